"""Computing a run on Ray: the GPUs of one machine or the nodes of a cluster, with the rows of the local engine.

Data flow: groups of shards -> a pool of workers, one a GPU or a handful of CPUs, each of which opens the data and
keeps its last model loaded -> tables -> the process that was started, which alone writes them, wherever the run lives.
So workers need neither the run's folder nor a right to write.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from salviz.errors import Cancelled, RequestError, SalvizError
from salviz.memory import keep_freed, keeps_freed
from salviz.runs.bench import Bench, Counts, Group, Made, Options
from salviz.runs.execution import Engine
from salviz.runs.folder import RunFolder, Sampled
from salviz.runs.plan import code_digest

TRIES = 4
"""How often a group is given to workers that die over it."""

_TICK_SECONDS = 0.5
_REACH_SECONDS = 10.0


@dataclass(frozen=True)
class Cluster:
    """Which Ray cluster computes, and what a worker of it takes.

    Attributes:
        address: Such as `10.0.0.1:6379`, `ray://…:10001` or `auto`; None for the cluster that runs on this machine,
            and else for this machine alone.
        gpus: GPUs a worker takes, 0.5 for two workers a GPU; None for one where the cluster has any.
        threads: Of a worker on the CPU. None takes as many as this process would: the order in which threads add up
            shows in the last digits, so the rows then are the local engine's.
        workers: How many at the most; None for as many as the cluster has room for. Where a cluster grows as it is
            asked to, this asks.
    """

    address: str | None = None
    gpus: float | None = None
    threads: int | None = None
    workers: int | None = None


def on_ray(cluster: Cluster = Cluster()) -> Engine:
    """The engine that computes on a Ray cluster.

    Args:
        cluster: Which one; left aside where this process is connected to one already.

    Returns:
        For `execution.resume`. It raises `RequestError` where the cluster cannot be reached, a node has other code or
        weights than the run or lacks its data, or workers die over a group again and again.

    Raises:
        RequestError: Ray is not installed.
    """
    _ray()

    def compute(
        folder: RunFolder, groups: Sequence[Group], options: Options, counts: Counts
    ) -> Generator[Made, None, None]:
        if not groups:
            return
        with _connected(cluster.address):
            yield from _computed(cluster, folder, groups, options, counts)

    return compute


class Worker:
    """What runs on a node.

    Args:
        about: What the run's `run.json` holds.
        sample: Its pictures.
        options: How it is computed.
        threads: Of torch.
        keeps: Whether it keeps the memory it frees, as whoever asks does, so that its passes are as large.
        where: The run, for messages.
    """

    def __init__(
        self, about: Mapping[str, Any], sample: Sequence[Sampled], options: Options, threads: int, keeps: bool,
        where: str,
    ) -> None:  # fmt: skip
        # Nothing that may fail: of a worker that cannot be made, Ray tells no plain reason.
        if keeps:
            keep_freed()
        self._about, self._sample, self._options, self._where = about, sample, options, where
        self._threads = threads
        self._bench: Bench

    @property
    def _name(self) -> str:
        return f"{socket.gethostname()}:{os.getpid()}"

    def check(self) -> tuple[str, str]:
        """Name of the worker, its host and process, and Ray's id of its node, once it can work.

        Raises:
            RequestError: This node's code is not that of the run, or the data is not here.
        """
        with self._said():
            if code_digest() != self._about["code"]:
                raise RequestError(
                    f"it has other code of Salviz than the run in '{self._where}' was begun with (version "
                    f"{self._about['version']}); install the same on every node."
                )
            torch.set_num_threads(self._threads)
            # By the name that holds everywhere: a relative path was meant where the run was begun.
            data = self._about["data"]
            self._bench = Bench(self._about, data, self._sample, self._options, where=self._where)
        return self._name, str(_ray().get_runtime_context().get_node_id())

    def make(self, group: Group) -> Made:
        """Compute a group; for a worker that was checked.

        Args:
            group: Its shards.

        Raises:
            RequestError: What `Bench.make` raises, with the node it happened on.
        """
        with self._said():
            made = self._bench.make(group, Counts())
        return replace(made, by=self._name)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except SalvizError as error:
            raise RequestError(f"The Ray worker {self._name} cannot go on: {error}") from error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RequestError("The engine ray needs Ray: pip install -r requirements-ray.txt.") from error
    return ray


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    # Nothing about a run goes to anybody who was not asked for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        place = f"There is no Ray cluster at {address}" if address else "Ray cannot be started here"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RequestError(f"{place} ({reason}).") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Find out within seconds whether anything is there; Ray itself tries for minutes.

    Raises:
        OSError: Nothing is.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()


def _computed(
    cluster: Cluster, folder: RunFolder, groups: Sequence[Group], options: Options, counts: Counts
) -> Iterator[Made]:
    ray = _ray()
    threads = cluster.threads or torch.get_num_threads()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    takes = _taken(cluster, threads, nodes)
    if not takes["num_gpus"] and options.device == "auto":
        # A GPU that was not asked for is another's.
        options = replace(options, device="cpu")
    count = min(len(groups), cluster.workers or max(1, sum(_room(node, takes) for node in nodes)))
    # What dies is replaced below and not by Ray: its own tries are used up before it gives a lost node up.
    maker = ray.remote(**takes, max_restarts=0, max_task_retries=0)(Worker)
    given = (folder.about, ray.put(folder.sample), options, threads, keeps_freed(), str(folder.path))
    waiting, left, there = deque(groups), len(groups), 0
    pending: dict[Any, tuple[Any, Group]] = {}
    deaths: Counter[Group] = Counter()

    def hire() -> None:
        # It has work only once it says that it is there: what Ray has no room for yet must keep none from the others.
        worker = maker.remote(*given)
        pending[worker.check.remote()] = worker, ()

    for _ in range(count):
        hire()
    try:
        while left:
            if folder.is_cancelled:
                raise Cancelled
            counts.begin(f"on Ray, {there} of {count} workers")
            for done in ray.wait(list(pending), timeout=_TICK_SECONDS)[0]:
                worker, group = pending.pop(done)
                found = _result(ray, done)
                if found is None:
                    ray.kill(worker)
                    deaths[group] += 1
                    _refuse_deaths(deaths, group, count)
                    if group:
                        there -= 1
                        waiting.appendleft(group)
                    hire()
                    continue
                if waiting:
                    # In the plan's order, so that a worker changes its model as rarely as it can.
                    following = waiting.popleft()
                    pending[worker.make.remote(following)] = worker, following
                else:
                    # Its room may be what another waits for.
                    ray.kill(worker)
                if group:
                    left -= 1
                    counts.add(sum(shard.count for shard in group))
                    yield found
                else:
                    there += 1
                    folder.note("worker", by=found[0], node=found[1], threads=threads, gpus=takes["num_gpus"])
    finally:
        for worker, _ in pending.values():
            ray.kill(worker)


def _refuse_deaths(deaths: Mapping[Group, int], group: Group, workers: int) -> None:
    """Refuse to go on where workers die over the same group, or before they have any, again and again."""
    if group and deaths[group] >= TRIES:
        first = group[0]
        what = f"{first.model}, {first.metric}, from picture {first.first + 1}"
        raise RequestError(
            f"Ray workers died {TRIES} times over the same work ({what}); do their nodes have the memory? What is "
            "written stays: resume the run."
        )
    if deaths[()] >= TRIES * workers:
        raise RequestError("Ray workers died before they could begin; is Salviz installed on every node?")


def _taken(cluster: Cluster, threads: int, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a worker takes of its node."""
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
    if gpus:
        if not any(node.get("GPU", 0) >= gpus for node in nodes) and cluster.workers is None:
            raise RequestError(f"No node of the Ray cluster has {gpus:g} GPUs; give --gpus 0 to compute on CPUs.")
        return {"num_cpus": 1, "num_gpus": gpus}
    # No node with fewer CPUs than threads would ever be given work.
    largest = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    return {"num_cpus": min(threads, largest) if largest else threads, "num_gpus": 0}


def _room(node: Mapping[str, float], takes: Mapping[str, float]) -> int:
    """How many workers a node has room for."""
    kinds = (("CPU", takes["num_cpus"]), ("GPU", takes["num_gpus"]))
    return min(int(node.get(kind, 0) // share) for kind, share in kinds if share)


def _result(ray: Any, done: Any) -> Any:
    """What a worker returned; None where it died.

    Raises:
        RequestError: It says what is wrong.
    """
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SalvizError):
            raise error.cause from None
        reason = (str(error.cause).strip().splitlines() or [""])[-1]
        raise RequestError(
            f"A Ray worker failed ({type(error.cause).__name__}: {reason}); is the same Salviz on every node?"
        ) from error
    except ray.exceptions.RayError:
        return None
