"""Runs over data sets: their rows are the page's, and nothing that happens to a run loses or doubles one."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from salviz import explore, exploring, load, methods
from salviz.classifiers.labels import Labels
from salviz.errors import Cancelled, DataError, RequestError
from salviz.images import open_source
from salviz.request import request_for
from salviz.runs import Spec, bench, execution, measures, table
from salviz.runs.bench import Options
from salviz.runs.execution import begin, resume
from salviz.runs.folder import RunFolder
from salviz.runs.plan import label_of
from salviz.scores import kinds
from salviz.transforms import Variant
from tests.runs.conftest import done, spec


def rows(folder: RunFolder, columns: str = "*", where: str = "true") -> list[tuple[Any, ...]]:
    with table.scan(folder.files()) as connection:
        return connection.execute(f"select {columns} from rows where {where} order by all").fetchall()  # noqa: S608


def assert_alike(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    """The same but for rounding: a forward with a graph and one without add up in another order."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5, nan_ok=True)


def test_rows_are_what_the_page_shows(undisturbed: RunFolder) -> None:
    classifier = load("fashion_cnn")
    variants = [Variant.from_token(token) for token in ("rotate:+30", "flip_lr", "blur")]
    names = [one.name for one in undisturbed.sample]
    assert len(set(names)) == 10
    for place, name in enumerate(names):
        picture = open_source(name)
        for method in ("grad_cam", "gradient"):
            label = classifier.labels.names.index(str(undisturbed.sample[place].given))
            request = request_for(
                picture, classifier, method=method, label=label, variants=variants, changes=["untrained"]
            )
            found = explore(classifier, picture, request)
            settings = (*request.variants, *request.changes)
            predicted = found.predicted.tolist()
            confidence = np.float32(found.probabilities[0].max())
            expected = sorted(
                (name, label, predicted[0], float(confidence), setting, kind, value, outcome)
                for setting, kind, value, outcome in zip(
                    settings, kinds(found), found.ssim[1:].tolist(), predicted[1:], strict=True
                )
            )
            columns = "image, label, prediction, confidence, setting, kind, value, outcome"
            assert_alike(rows(undisturbed, columns, f"place = {place} and method = '{method}'"), expected)


@pytest.mark.parametrize("has_room", [True, False])
def test_pictures_are_augmented_beside_the_model_where_there_is_room(
    has_room: bool, undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def watched(*args: Any) -> exploring.Prepared:
        threads.append(threading.current_thread())
        return exploring.prepare(*args)

    monkeypatch.setattr(measures.cose, "has_room_beside", lambda device: has_room)
    monkeypatch.setattr(measures.cose, "prepare", watched)
    assert done(tmp_path / "run", spec()).digest() == undisturbed.digest()
    assert len(threads) == (10 if has_room else 0)
    assert threading.current_thread() not in threads


def test_a_resumed_run_ends_as_an_undisturbed_one(
    undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each single file, wherever that is."""
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    write = table.write

    def once(path: Path, content: Any) -> None:
        write(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "write", once)
    stops = 0
    while not folder.status().is_complete:
        with pytest.raises(KeyboardInterrupt):
            resume(folder)
        stops += 1
    assert stops == folder.status().shards == 6
    monkeypatch.undo()
    resume(folder)
    assert folder.digest() == undisturbed.digest()
    assert len(rows(folder)) == 10 * 2 * 4


@pytest.mark.slow
def test_killed_again_and_again(undisturbed: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    command = [sys.executable, "-m", "salviz", "resume", str(folder.path)]
    # Long enough to come as far as shards; the last one goes through.
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = folder.status().done
        until = time.monotonic() + 60
        while folder.status().done == before and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert folder.status().done > 0
    resume(folder)
    assert folder.status().is_complete
    assert folder.digest() == undisturbed.digest()


def test_a_full_disk_costs_a_sentence_and_nothing_written(
    undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    write, left = table.pq.write_table, [3]

    def full(content: Any, file: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(content, file, **options)

    monkeypatch.setattr(table.pq, "write_table", full)
    with pytest.raises(DataError, match="No space left on device"):
        resume(folder)
    assert folder.status().done == 3
    assert len(list((folder.path / "scores").iterdir())) == 3, "no half of a file stays"
    monkeypatch.undo()
    # What a killed worker left goes in time; what one may still write stays.
    old, new = folder.path / "scores" / ".old.parquet.1", folder.path / "scores" / ".new.parquet.2"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    resume(folder)
    assert folder.digest() == undisturbed.digest()
    assert (old.exists(), new.exists()) == (False, True)


def photographs(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for place in range(count):
        pixels = np.random.default_rng(place).integers(0, 255, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    return folder


def test_pictures_that_cannot_be_read_are_counted_and_cost_no_other(tmp_path: Path) -> None:
    here = photographs(tmp_path / "set")
    asked = spec(data=str(here), images=None, group=10, metrics={"cose": {}, "randomisation": {"order": "full"}})
    whole = done(tmp_path / "whole", asked)
    (here / "2.png").write_bytes(b"no picture")
    folder = RunFolder(tmp_path / "run")
    begin(asked, folder)
    # One changes and one goes while the run is under way.
    (here / "3.png").write_bytes((here / "1.png").read_bytes())
    (here / "4.png").unlink()
    resume(folder)
    found = dict(rows(folder, "distinct image, error", "error is not null"))
    assert "is not what it was when the run began" in found.pop("3.png")
    assert "no longer in the set" in found.pop("4.png")
    assert found == {"2.png": "This is not a picture Salviz can read: choose a PNG, JPEG, WebP, GIF, BMP or TIFF file."}
    assert len(rows(folder, "*", "error is not null")) == 3 * 2 * 2
    # The others have the numbers that they have beside sound pictures.
    columns = "image, method, metric, quantity, setting, value"
    assert rows(folder, columns, "error is null") == rows(whole, columns, "image in ('0.png', '1.png', '5.png')")


def test_a_resumed_run_opens_the_set_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as it was found then: here by its whole path, elsewhere by its revision."""
    here = tmp_path / "here" / "set" / "Coat"
    here.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (30, 30, 3), dtype=np.uint8)).save(here / "1.png")
    monkeypatch.chdir(tmp_path / "here")
    folder = RunFolder(tmp_path / "run")
    begin(spec(data="set", images=1), folder)
    monkeypatch.chdir(tmp_path)
    resume(folder)
    assert rows(folder, "distinct image, label, error") == [("Coat/1.png", 4, None)]


def test_classes_are_found_by_number_id_name_and_all_their_names() -> None:
    labels = Labels(("tench, Tinca tinca", "crane", "crane", "maillot, tank suit"), ("n1", "n2", "n3", "n4"))
    known = {2: 2, 4: None, None: None, "n2": 1, "TENCH": 0, "Tinca_tinca": 0, "tench, Tinca tinca": 0, "crane": None,
             "tank suit": 3, "suit": None, "maillot, suit": None,
             "Tench/fish": 0, "/t/tench": 0, "crane/maillot": None}  # fmt: skip
    assert {given: label_of(given, labels) for given in known} == known


def test_a_method_that_fails_on_one_picture_fails_there_alone(
    undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = undisturbed.sample[5].name
    digest = open_source(broken).digest
    gradient = methods.get("gradient")
    explained = measures.cose.explore_set

    def fails(classifier: Any, picture: Any, requests: Sequence[Any], **options: Any) -> Any:
        if picture.digest == digest and any(request.method == "gradient" for request in requests):
            raise ZeroDivisionError("no such luck")
        return explained(classifier, picture, requests, **options)

    monkeypatch.setattr(measures.cose, "explore_set", fails)
    folder = done(tmp_path / "run", spec())
    assert rows(folder, "image, method, error", "error is not null") == [
        (broken, "gradient", "ZeroDivisionError: no such luck")
    ]
    columns = "image, method, setting, value"
    sound = f"not (image = '{broken}' and method = 'gradient')"
    assert_alike(rows(folder, columns, sound), rows(undisturbed, columns, sound))
    assert gradient is methods.get("gradient")


def test_a_method_that_cannot_explain_a_model_says_why_for_every_picture(tmp_path: Path) -> None:
    folder = done(tmp_path / "run", spec(models=("fashion_vit",), methods={"cam": {}, "grad_cam": {}}, images=3))
    found = rows(folder, "method, count(*), any_value(error)", "true group by method")
    assert found[0][:2] == ("cam", 3)
    assert "CAM is defined for nets that end" in found[0][2]
    assert found[1] == ("grad_cam", 12, None)


def test_only_what_depends_on_a_change_is_made_anew(tmp_path: Path) -> None:
    def made(asked: Spec) -> int:
        folder = RunFolder(tmp_path / "run")
        begin(asked, folder)
        before = folder.status().done
        resume(folder)
        assert folder.status().is_complete
        return folder.status().shards - before

    assert made(spec()) == 6
    assert made(spec()) == 0
    # Another method is one column more; other settings of one leave the other alone.
    assert made(spec(methods={"grad_cam": {}, "gradient": {}, "edge": {}})) == 3
    assert made(spec(methods={"grad_cam": {"layer": "layer2"}, "gradient": {}})) == 3
    # More pictures: the groups that were full stay.
    assert made(spec(images=14)) == 4
    assert made(spec(metrics={"cose": {"augmentations": "flip_ud"}})) == 6
    # And back: everything is still there.
    assert made(spec()) == 0
    assert len(rows(RunFolder(tmp_path / "run"))) == 10 * 2 * 4


def test_other_code_or_weights_are_not_mixed_in_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    resume(folder)
    monkeypatch.setattr(execution, "code_digest", lambda: "other")
    for again in (lambda: resume(folder), lambda: begin(spec(), folder)):
        with pytest.raises(RequestError, match="made with other code"):
            again()
    monkeypatch.undo()
    for module, real in ((bench, bench.load), (execution, execution.load)):
        other = partial(lambda id, device, load: replace(load(id, device=device), digest="other"), load=real)
        monkeypatch.setattr(module, "load", other)
    (missing,) = [shard for shard in folder.plan if shard.first == 8 and shard.method == "gradient"]
    folder.file(missing).unlink()
    with pytest.raises(RequestError, match="made with other weights of fashion_cnn"):
        resume(folder)
    assert folder.status().done == 5
    resume(folder, accepts_changes=True)
    assert folder.status().is_complete
    assert missing.key not in folder.present()


def test_workers_side_by_side_make_the_same_run(undisturbed: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    resume(folder, Options(part=(1, 2)))
    assert folder.status().done == 2
    resume(folder, Options(part=(0, 2)))
    assert folder.status().is_complete
    assert folder.digest() == undisturbed.digest()


def test_neither_batch_size_nor_the_order_of_the_set_changes_a_row(tmp_path: Path, undisturbed: RunFolder) -> None:
    columns = "image, method, setting, outcome, value"
    found = rows(done(tmp_path / "run", spec(), batch_size=3), columns)
    expected = rows(undisturbed, columns)
    assert [row[:-1] for row in found] == [row[:-1] for row in expected]
    np.testing.assert_allclose([row[-1] for row in found], [row[-1] for row in expected], atol=1e-4)


def test_a_run_can_be_stopped_and_goes_on(tmp_path: Path, undisturbed: RunFolder) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)

    seen = []

    def stop(done: int, total: int, what: str) -> None:
        seen.append((done, total))
        # Two methods and the four pictures of the first group: their files are there.
        if done > 8:
            folder.cancel()

    with pytest.raises(Cancelled):
        resume(folder, told=stop)
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {20}
    assert 0 < folder.status().done < 6
    folder.go_on()
    resume(folder)
    assert folder.digest() == undisturbed.digest()


def test_a_damaged_folder_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no run"):
        RunFolder.existing(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RequestError, match="is damaged"):
        RunFolder.existing(tmp_path)
