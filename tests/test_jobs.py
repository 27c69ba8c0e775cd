"""Background jobs: shared, cancelled with their last watcher, remembered within a budget."""

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from salviz import jobs
from salviz.errors import RequestError
from salviz.jobs import Job, JobRunner

SECONDS = 10


class Gate:
    """Work that starts, then goes on step by step as the test says."""

    def __init__(self, result: object = "result", partial: object = None) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.result, self.partial = result, partial
        self.runs = 0

    def __call__(self, job: Job) -> object:
        self.runs += 1
        if self.partial is not None:
            job.publish(self.partial)
        self.started.set()
        assert self.go.wait(SECONDS)
        job.tick(1, 2)
        return self.result


@pytest.fixture
def runner() -> Iterator[JobRunner]:
    made = JobRunner(capacity=100, size=lambda result: len(str(result)))
    yield made
    made._pool.shutdown(wait=True, cancel_futures=True)


def run(runner: JobRunner, key: str, task: Callable[[Job], object]) -> Job:
    job = runner.submit(key, task, watcher="w")
    assert job.finished.wait(SECONDS)
    return job


def test_a_result_is_kept(runner: JobRunner) -> None:
    job = run(runner, "a", lambda job: 42)
    assert (job.state, job.result, job.error, job.is_open) == ("done", 42, None, False)
    assert runner.is_done("a")
    assert runner.peek("a") == 42
    assert runner.submit("a", pytest.fail, watcher="other") is job


def test_two_watchers_share_one_job(runner: JobRunner) -> None:
    task = Gate()
    first = runner.submit("a", task, watcher="one")
    second = runner.submit("a", task, watcher="two")
    assert first is second
    first.leave("one")
    task.go.set()
    assert first.finished.wait(SECONDS)
    assert first.state == "done"
    assert task.runs == 1
    assert (first.done, first.total) == (1, 2)


def test_the_last_watcher_to_leave_cancels(runner: JobRunner) -> None:
    task = Gate(partial="half")
    job = runner.submit("a", task, watcher="one")
    runner.submit("a", task, watcher="two")
    assert task.started.wait(SECONDS)
    assert runner.peek("a") == "half"
    job.leave("one")
    job.leave("two")
    task.go.set()
    assert job.finished.wait(SECONDS)
    assert (job.state, job.result, job.error) == ("cancelled", None, None)
    assert not runner.is_done("a")
    assert runner.peek("a") == "half", "what a stopped job had found stays on the page"


def test_somebody_new_gets_a_fresh_job_while_the_old_one_stops(runner: JobRunner) -> None:
    old, new = Gate(), Gate(result="fresh")
    stopping = runner.submit("a", old, watcher="one")
    assert old.started.wait(SECONDS)
    stopping.leave("one")
    fresh = runner.submit("a", new, watcher="two")
    assert fresh is not stopping
    old.go.set()
    new.go.set()
    assert fresh.finished.wait(SECONDS)
    assert (stopping.state, fresh.state) == ("cancelled", "done")
    assert runner.peek("a") == "fresh"


def test_a_watcher_that_no_longer_looks_has_gone(runner: JobRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Gate()
    job = runner.submit("a", task, watcher="closed browser")
    assert task.started.wait(SECONDS)
    monkeypatch.setattr(jobs, "LEASE_SECONDS", -1.0)
    task.go.set()
    assert job.finished.wait(SECONDS)
    assert job.state == "cancelled"
    assert job.look("late") is False


def test_looking_renews_the_lease(runner: JobRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: clock[0])
    job = Job("a")
    job.look("w")
    for _ in range(3):
        clock[0] += jobs.LEASE_SECONDS - 1
        job.tick(1, 2)
        assert job.look("w")
    clock[0] += jobs.LEASE_SECONDS + 1
    with pytest.raises(jobs.Cancelled):
        job.tick(2, 2)


def test_a_job_cancelled_in_the_queue_never_runs(runner: JobRunner) -> None:
    first, second = Gate(), Gate()
    running = runner.submit("a", first, watcher="w")
    waiting = runner.submit("b", second, watcher="w")
    third = runner.submit("c", lambda job: 3, watcher="w")
    assert first.started.wait(SECONDS)
    assert [runner.place(job) for job in (running, waiting, third)] == [0, 1, 2]
    assert waiting.state == "queued"
    waiting.leave("w")
    first.go.set()
    assert third.finished.wait(SECONDS)
    assert (running.state, waiting.state, third.state) == ("done", "cancelled", "done")
    assert second.runs == 0
    assert runner.place(third) == 0


def test_people_errors_are_shown_as_they_are(runner: JobRunner) -> None:
    def refuse(job: Job) -> None:
        raise RequestError("There is no such class.")

    job = run(runner, "a", refuse)
    assert (job.state, job.error) == ("failed", "There is no such class.")
    assert not runner.is_done("a")
    assert run(runner, "a", lambda job: "second try").result == "second try"


def test_other_errors_are_logged_and_shown_as_one_sentence(runner: JobRunner, caplog: pytest.LogCaptureFixture) -> None:
    def break_down(job: Job) -> None:
        job.publish("half")
        raise ZeroDivisionError("secret detail")

    with caplog.at_level(logging.ERROR, logger="salviz.jobs"):
        job = run(runner, "a", break_down)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.count(".") == 1
    assert "secret" not in job.error
    assert "secret detail" in caplog.text
    assert runner.peek("a") == "half"


def test_the_least_recently_used_results_give_way(runner: JobRunner) -> None:
    for key in "abc":
        run(runner, key, lambda job: "x" * 33)
    assert runner.peek("a") is not None, "looked at last, so kept longest"
    run(runner, "d", lambda job: "x" * 33)
    assert [runner.is_done(key) for key in "abcd"] == [True, False, True, True]
    run(runner, "big", lambda job: "x" * 1000)
    assert [runner.is_done(key) for key in ("a", "c", "d", "big")] == [False, False, False, True]


def test_a_result_takes_the_place_of_what_a_stopped_job_had_found(runner: JobRunner) -> None:
    run(runner, "other", lambda job: "x" * 30)
    task = Gate(partial="p" * 60)
    job = runner.submit("a", task, watcher="w")
    assert task.started.wait(SECONDS)
    job.leave("w")
    task.go.set()
    assert job.finished.wait(SECONDS)
    run(runner, "a", lambda job: "y" * 60)
    assert runner.is_done("other"), "the stopped job's partial no longer counts"
    assert runner.peek("a") == "y" * 60


def test_what_a_stopped_job_had_found_stays_until_its_successor_has_found_more(runner: JobRunner) -> None:
    first = Gate(partial="half")
    job = runner.submit("a", first, watcher="w")
    assert first.started.wait(SECONDS)
    job.leave("w")
    first.go.set()
    assert job.finished.wait(SECONDS)
    second = Gate()
    job = runner.submit("a", second, watcher="w")
    assert second.started.wait(SECONDS)
    assert job.partial == runner.peek("a") == "half"
    assert job.published == 0
    second.go.set()
    assert job.finished.wait(SECONDS)
    assert runner.peek("a") == "result"


def test_nothing_is_known_of_what_nobody_asked_for(runner: JobRunner) -> None:
    assert runner.peek("a") is None
    assert not runner.is_done("a")


def test_a_tab_that_is_loaded_anew_finds_its_work(runner: JobRunner) -> None:
    task = Gate()
    job = runner.submit("a", task, watcher="before")
    assert task.started.wait(SECONDS)
    job.linger("before")
    job.tick(1, 4)
    assert runner.submit("a", task, watcher="after") is job
    task.go.set()
    assert job.finished.wait(SECONDS)
    assert (job.state, task.runs) == ("done", 1)


def test_a_closed_tab_s_work_ends_when_nobody_comes_back(runner: JobRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "GRACE_SECONDS", -1.0)
    task = Gate()
    job = runner.submit("a", task, watcher="before")
    assert task.started.wait(SECONDS)
    job.linger("before")
    task.go.set()
    assert job.finished.wait(SECONDS)
    assert job.state == "cancelled"
