"""`salviz run` and what follows it: the library's run, from a terminal."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from salviz.cli import main
from salviz.cli.arguments import REFUSED
from salviz.runs import execution
from salviz.runs.bench import Counts, Made, Options
from salviz.runs.execution import here
from salviz.runs.folder import RunFolder
from salviz.runs.presence import holding
from salviz.runs.shelf import Shelf
from tests.runs.conftest import done, spec

BASIC = ["run", "--data", "fashion", "--models", "fashion_cnn", "--images", "4"]


def test_options_and_a_spec_make_the_runs_of_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = spec(methods={"grad_cam": {"layer": "layer2"}, "gradient": {}}, images=5, seed=2, is_stratified=True)
    expected = done(tmp_path / "library", asked).digest()
    command = [
        "run", "--data", "fashion", "--models", "fashion_cnn", "--methods", "grad_cam,gradient", "--images", "5",
        "--seed", "2", "--stratified", "--group", "4", "--set", "grad_cam.layer=layer2",
        "--set", "cose.augmentations=rotate:+30,flip_lr,blur", "--out", str(tmp_path / "options"),
    ]  # fmt: skip
    assert main(command) == 0
    assert RunFolder(tmp_path / "options").digest() == expected
    assert RunFolder(tmp_path / "options").spec == asked
    (tmp_path / "spec.json").write_text(json.dumps(asked.as_dict()))
    assert main(["run", "--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path / "file")]) == 0
    assert RunFolder(tmp_path / "file").digest() == expected
    capsys.readouterr()
    assert main(["status", str(tmp_path / "file"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "shards": 4, "done": 4, "is_complete": True, "failed": 0,
    }  # fmt: skip
    assert main(["report", str(tmp_path / "file"), "--html", str(tmp_path / "out" / "report.html")]) == 0
    assert "fashion_cnn, grad_cam" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_parts_are_made_by_workers_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main([*BASIC, "--group", "2", "--prepare", "--out", out]) == 0
    assert "4 shards of 4 pictures to make" in capsys.readouterr().out
    assert main(["resume", out, "--shard", "2/2"]) == 0
    assert "2 of 4 shards" in capsys.readouterr().out
    assert main(["status", out]) == 0
    assert "2 of 4 shards, 4 pictures: not complete" in capsys.readouterr().out
    assert main(["resume", out, "--shard", "1/2"]) == 0
    assert main(["status", out]) == 0
    assert "4 of 4 shards, 4 pictures: complete" in capsys.readouterr().out


def test_pictures_that_failed_are_named_from_run_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    for place in range(3):
        Image.new("RGB", (28, 28), (60 * place, 90, 30)).save(tmp_path / "set" / f"{place}.png")
    (tmp_path / "set" / "3.png").write_bytes(b"no picture")
    out = str(tmp_path / "run")
    # The set is named as a shell completes it.
    asked = ["run", "--data", f"{tmp_path / 'set'}/", "--models", "fashion_cnn", "--out", out]
    assert main([*asked, "--images", "5"]) == REFUSED
    assert "The set has 4 pictures, not 5: ask for fewer" in capsys.readouterr().err
    assert main(asked) == 0
    assert "Something failed for 1 of 4 pictures; salviz report" in capsys.readouterr().err
    assert main(["status", out]) == 0
    assert "4 pictures: complete; something failed for 1 of them" in capsys.readouterr().out
    assert main(["status", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == 1
    assert main(["report", out, "--html", str(tmp_path / "report.html")]) == 0
    counts = (
        "COSE counts pictures whose clean prediction is right. Fashion CNN: no picture has a label it knows; its "
        "prediction for the clean picture stands for one."
    )
    assert counts in capsys.readouterr().out.splitlines()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert counts in page
    assert "<h1>set · COSE</h1>" in page
    assert "4 pictures, seed 0" in page
    assert "complete; something failed for 1 of the pictures" in page
    # So few that each score says it.
    assert ", 3 pictures</td>" in page


def test_pages_see_a_run_of_the_command_line_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, seen = Shelf(tmp_path), []

    def watched(folder: RunFolder, groups: Any, options: Options, counts: Counts, **loaded: Any) -> Iterator[Made]:
        for made in here(folder, groups, options, counts, **loaded):
            seen.append(shelf.standing("run"))
            yield made

    monkeypatch.setattr(execution, "here", watched)
    assert main([*BASIC, "--group", "2", "--out", str(tmp_path / "run")]) == 0
    assert [(one.state, one.total) for one in seen] == [("running", 8), ("running", 8)]
    assert shelf.standing("run").state == "complete"
    # Who comes second works too, and is not in the way of the first.
    RunFolder(tmp_path / "run").file(RunFolder(tmp_path / "run").plan[0]).unlink()
    with holding(tmp_path / "run"):
        assert main(["resume", str(tmp_path / "run")]) == 0
        assert shelf.standing("run").state == "running"
    assert shelf.standing("run").state == "complete"


def test_a_cancelled_run_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main([*BASIC, "--out", out]) == 0
    assert main(["cancel", out]) == 0
    RunFolder(out).file(RunFolder(out).plan[0]).unlink()
    assert main(["status", out]) == 0
    assert "cancelled" in capsys.readouterr().out
    assert main(["resume", out]) == 0
    assert RunFolder(out).status().is_complete


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["run", "--out", "x"], "Which pictures?"),
        ([*BASIC, "--spec", "a.json", "--out", "x"], "give --spec, or the options, not both"),
        (["run", "--spec", "nowhere.json", "--out", "x"], "cannot be read"),
        ([*BASIC, "--set", "cose=1", "--out", "x"], "--set name.setting=value"),
        ([*BASIC, "--set", "rise.masks=1", "--out", "x"], "neither one of the methods nor one of the metrics"),
        ([*BASIC, "--metrics", "randomisation", "--set", "randomisation.draws=two", "--out", "x"], "is no value of"),
        ([*BASIC, "--shard", "3/2", "--out", "x"], "--shard I/N"),
        ([*BASIC, "--methods", "grad_kam", "--out", "x"], "grad_kam"),
        (["run", "--data", "nowhere", "--out", "x"], "There is no image set"),
        ([*BASIC, "--gpus", "1", "--out", "x"], "--gpus is of the engine ray"),
        (["status", "nowhere"], "There is no run"),
        (["cancel", "nowhere"], "There is no run"),
    ],
)
def test_what_cannot_be_done_costs_a_sentence(
    command: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == REFUSED
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_library_of_a_cluster_is_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*BASIC, "--engine", "ray", "--out", str(tmp_path / "run")]) == REFUSED
    assert capsys.readouterr().err == "The engine ray needs Ray: pip install -r requirements-ray.txt.\n"
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        main([*BASIC, "--engine", "ray", "--gpus", "1.5", "--out", str(tmp_path / "run")])
    assert "must be 0, a part of one or a whole number" in capsys.readouterr().err
