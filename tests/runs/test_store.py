"""A run that is kept under a URL too: what is there is fetched and not made again."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest

from salviz.cli import main
from salviz.cli.arguments import REFUSED
from salviz.errors import DataError, RequestError
from salviz.runs import execution
from salviz.runs.bench import Options
from salviz.runs.execution import begin, resume
from salviz.runs.folder import RunFolder
from salviz.runs.store import Store
from tests.runs.conftest import spec


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/far/run" if request.param == "file" else f"memory://{tmp_path.name}/run"


def names(url: str) -> set[str]:
    files, root = fsspec.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/") for path in files.find(root)}


def made(folder: RunFolder) -> int:
    lines = (folder.path / "log.jsonl").read_text().splitlines()
    return sum(line["what"] == "made" for line in map(json.loads, lines))


def test_what_is_there_is_fetched_and_not_made_again(undisturbed: RunFolder, url: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    resume(folder, Options(part=(0, 2)))
    # Shards that were there before the store are sent too.
    resume(folder, store=Store(url))
    shards = {f"scores/{shard.key}.parquet" for shard in folder.plan}
    assert names(url) == {"run.json", "sample.parquet", "plan.parquet", *shards}
    # The folder is lost, and one file of the store.
    files, root = fsspec.url_to_fs(url)
    files.rm(f"{root}/scores/{folder.plan[-1].key}.parquet")
    shutil.rmtree(folder.path)
    again = RunFolder(tmp_path / "run")
    Store(url).restore(again)
    assert again.spec == spec()
    resume(again, store=Store(url))
    assert made(again) == 1
    assert again.digest() == undisturbed.digest()
    assert names(url) >= shards


def test_maps_go_where_their_rows_go(url: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(images=2, maps="clean"), folder)
    resume(folder, store=Store(url))
    maps = {path.name: path.read_bytes() for path in (folder.path / "maps").iterdir()}
    assert names(url) >= {f"maps/{name}" for name in maps}
    shutil.rmtree(folder.path)
    again = RunFolder(tmp_path / "run")
    Store(url).restore(again)
    resume(again, store=Store(url))
    assert made(again) == 0
    assert {path.name: path.read_bytes() for path in (again.path / "maps").iterdir()} == maps


def test_from_the_command_line(undisturbed: RunFolder, url: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(spec().as_dict()))
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert main(["run", "--spec", str(tmp_path / "spec.json"), "--out", first, "--store", url]) == 0
    assert main(["resume", second, "--store", url]) == 0
    assert RunFolder(second).digest() == undisturbed.digest()
    assert made(RunFolder(second)) == 0


def test_a_run_of_other_code_is_not_mixed_in(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = RunFolder(tmp_path / "first"), RunFolder(tmp_path / "second")
    asked = spec(images=2)
    begin(asked, first)
    resume(first, store=Store(url))
    monkeypatch.setattr(execution, "code_digest", lambda: "other")
    begin(asked, second)
    with pytest.raises(RequestError, match="other code"):
        resume(second, store=Store(url))
    resume(second, store=Store(url), accepts_changes=True)
    assert json.loads((second.path / "run.json").read_text()) == Store(url).about()


def test_what_cannot_be_done_costs_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match="cannot be opened"):
        Store("nosuchthing://bucket/run")
    assert main(["resume", str(tmp_path / "run"), "--store", f"file://{tmp_path}/far"]) == REFUSED
    assert "There is no run in" in capsys.readouterr().err
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "scores").write_text("a file where a folder should be")
    folder = RunFolder(tmp_path / "run")
    begin(spec(images=2), folder)
    with pytest.raises(DataError, match="cannot be written to"):
        resume(folder, store=Store(f"file://{tmp_path}/far"))
    assert folder.status().done == 1
