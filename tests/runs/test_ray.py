"""Runs on a real Ray cluster of two nodes: the rows of the local engine, whatever dies."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import salviz
from salviz.cli import main
from salviz.errors import Cancelled, RequestError
from salviz.runs import ray_engine
from salviz.runs.execution import begin, resume
from salviz.runs.folder import RunFolder
from salviz.runs.ray_engine import Cluster, on_ray
from tests.runs.conftest import done, spec

ray = pytest.importorskip("ray")

# Ray's processes and sockets are its own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = {"object_store_memory": 80 * 2**20}


@pytest.fixture(autouse=True)
def nodes_are_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's nodes have this machine's other address, which the suite takes for another machine's."""
    if request.node.name != "test_no_cluster_costs_a_sentence":
        monkeypatch.setattr(ray_engine, "_reach", lambda address: None)


def started(*nodes: dict[str, Any]) -> Any:
    from ray.cluster_utils import Cluster as Nodes

    made = Nodes(initialize_head=True, head_node_args={**SMALL, **nodes[0]})
    for node in nodes[1:]:
        made.add_node(**SMALL, **node)
    return made


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes with a raylet and an object store each, and room for one worker of as many threads as here."""
    node = {"num_cpus": torch.get_num_threads()}
    nodes = started(node, node)
    yield nodes.address
    nodes.shutdown()


def notes(folder: RunFolder, what: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder.path / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["what"] == what]


def test_two_nodes_make_the_local_run(address: str, undisturbed: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    seen = []
    resume(folder, told=lambda done, total, what: seen.append((done, total)), engine=on_ray(Cluster(address)))
    assert folder.digest() == undisturbed.digest()
    assert seen == sorted(seen)
    assert seen[-1] == (20, 20)
    assert len(notes(folder, "made")) == 3
    assert not ray.is_initialized()


def test_a_worker_on_each_node(address: str, tmp_path: Path) -> None:
    asked = spec(models=("fashion_cnn", "fashion_vit"), images=12, group=1)
    expected = done(tmp_path / "here", asked)
    folder = RunFolder(tmp_path / "run")
    begin(asked, folder)

    def waits(done: int, total: int, what: str) -> None:
        if "1 of 2 workers" in what:
            # Else the first one might have made everything before the other is there.
            time.sleep(0.5)

    resume(folder, told=waits, engine=on_ray(Cluster(address)))
    assert folder.digest() == expected.digest()
    workers = notes(folder, "worker")
    assert len({worker["node"] for worker in workers}) == 2
    assert {note["by"] for note in notes(folder, "made")} == {worker["by"] for worker in workers}


def test_a_worker_that_is_killed_costs_nothing_but_time(address: str, tmp_path: Path) -> None:
    asked = spec(images=12, group=1)
    expected = done(tmp_path / "here", asked)
    folder = RunFolder(tmp_path / "run")
    begin(asked, folder)
    killed = []

    def kill(done: int, total: int, what: str) -> None:
        if done and not killed:
            killed.append(notes(folder, "worker")[0]["by"])
            os.kill(int(killed[0].rpartition(":")[2]), signal.SIGKILL)

    # One worker alone: it is at work on the next group when the first one is told.
    resume(folder, told=kill, engine=on_ray(Cluster(address, workers=1)))
    by = [note["by"] for note in notes(folder, "made")]
    assert killed
    assert len(by) == 12
    assert by[-1] != killed[0], "another process took its place"
    assert folder.digest() == expected.digest()


def test_work_that_kills_its_workers_ends_the_run_with_a_sentence(address: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    killed: set[str] = set()

    def kill(done: int, total: int, what: str) -> None:
        for note in notes(folder, "worker"):
            if note["by"] not in killed:
                killed.add(note["by"])
                os.kill(int(note["by"].rpartition(":")[2]), signal.SIGKILL)

    with pytest.raises(RequestError, match=r"died 4 times over the same work \(fashion_cnn, cose, from picture 1\)"):
        resume(folder, told=kill, engine=on_ray(Cluster(address, workers=1)))
    assert len(killed) == 4


def test_a_node_that_is_lost_costs_nothing_but_time(tmp_path: Path) -> None:
    """The other one has room for one worker only: the lost node's makes its group once that one has no more to do."""
    asked = spec(images=10, group=1)
    expected = done(tmp_path / "here", asked)
    folder = RunFolder(tmp_path / "run")
    begin(asked, folder)
    nodes = started({"num_cpus": 1}, {"num_cpus": 1})
    (lost,) = nodes.worker_nodes

    def lose(done: int, total: int, what: str) -> None:
        if "1 of 2 workers" in what:
            time.sleep(0.5)
        if "2 of 2 workers" in what and lost in nodes.worker_nodes:
            nodes.remove_node(lost, allow_graceful=False)

    try:
        resume(folder, told=lose, engine=on_ray(Cluster(nodes.address)))
    finally:
        nodes.shutdown()
    assert lost not in nodes.worker_nodes
    assert folder.digest() == expected.digest()


def test_a_cancelled_run_goes_on(address: str, tmp_path: Path) -> None:
    asked = spec(images=8, group=1)
    expected = done(tmp_path / "here", asked)
    folder = RunFolder(tmp_path / "run")
    begin(asked, folder)
    engine = on_ray(Cluster(address, workers=1))
    with pytest.raises(Cancelled):
        resume(folder, told=lambda done, total, what: folder.cancel() if done else None, engine=engine)
    assert 0 < folder.status().done < folder.status().shards
    folder.go_on()
    resume(folder, engine=engine)
    assert folder.digest() == expected.digest()


def test_from_the_command_line_into_a_store(
    address: str, undisturbed: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(spec().as_dict()))
    out, store = str(tmp_path / "run"), f"file://{tmp_path}/far"
    on = ["--engine", "ray", "--address", address, "--store", store]
    assert main(["run", "--spec", str(tmp_path / "spec.json"), "--out", out, "--prepare"]) == 0
    assert main(["resume", out, *on]) == 0
    assert "6 of 6 shards" in capsys.readouterr().out
    assert RunFolder(out).digest() == undisturbed.digest()
    shutil.rmtree(out)
    assert main(["resume", out, *on]) == 0
    assert RunFolder(out).digest() == undisturbed.digest()
    assert not notes(RunFolder(out), "made")


def test_other_weights_are_refused(address: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    about = folder.path / "run.json"
    about.write_text(about.read_text().replace(folder.about["weights"]["fashion_cnn"], "other"))
    with pytest.raises(RequestError, match=r"The Ray worker .* was made with other weights of fashion_cnn"):
        resume(RunFolder(folder.path), engine=on_ray(Cluster(address)))
    assert folder.status().done == 0


def test_a_node_with_other_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    shutil.copytree(Path(salviz.__file__).parent, tmp_path / "other" / "salviz")
    with (tmp_path / "other" / "salviz" / "engine.py").open("a") as file:
        file.write("\n# Changed.\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "other"), os.environ.get("PYTHONPATH", "")]))
    # Workers look where the driver stands, too.
    monkeypatch.chdir(tmp_path)
    nodes = started({"num_cpus": 1})
    try:
        with pytest.raises(RequestError, match=r"other code of Salviz .* install the same on every node"):
            resume(folder, engine=on_ray(Cluster(nodes.address)))
    finally:
        nodes.shutdown()
    assert folder.status().done == 0


def test_a_worker_a_gpu(undisturbed: RunFolder, tmp_path: Path) -> None:
    """Ray believes what it is told of GPUs; the classifiers find none and compute on the CPU."""
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    nodes = started({"num_cpus": 2, "num_gpus": 2})
    try:
        told: set[str] = set()
        resume(folder, told=lambda done, total, what: told.add(what), engine=on_ray(Cluster(nodes.address)))
        assert "on Ray, 0 of 2 workers" in told
        assert {worker["gpus"] for worker in notes(folder, "worker")} == {1}
        assert folder.digest() == undisturbed.digest()
        folder.file(folder.plan[0]).unlink()
        with pytest.raises(RequestError, match="No node of the Ray cluster has 4 GPUs"):
            resume(folder, engine=on_ray(Cluster(nodes.address, gpus=4)))
    finally:
        nodes.shutdown()


def test_no_cluster_costs_a_sentence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    with pytest.raises(RequestError, match=r"There is no Ray cluster at 127\.0\.0\.1:1"):
        resume(folder, engine=on_ray(Cluster("127.0.0.1:1")))
