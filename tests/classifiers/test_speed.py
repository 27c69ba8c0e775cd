"""What is learned of a classifier's speed: closed forms on made-up work, and a probe of a real net."""

import pytest

from salviz.classifiers.speed import FULL, Speed, probe
from tests.models import toy


def learn(speed: Speed, method: str, seconds: float, *, each: float, images: int = 1, usual: float = 0.0) -> None:
    """Work at `seconds` a pass; of a method whose name begins with g passes are differentiated."""
    passes = each * images
    speed.learn(
        method, differentiates=method.startswith("g"), passes=passes, seconds=seconds * passes, images=images,
        usual=usual or each,
    )  # fmt: skip


def of(speed: Speed, method: str) -> float:
    return speed.of(method, differentiates=method.startswith("g"))


def test_nothing_learned_means_the_speed_of_the_kind() -> None:
    speed = Speed(forward=1.0, gradient=3.0)
    assert (of(speed, "f"), of(speed, "g")) == (1, 3)


def test_methods_learn_apart_and_kinds_learn_apart() -> None:
    speed = Speed(forward=1.0, gradient=3.0)
    learn(speed, "g slow", 9.0, each=2, images=100)
    # Two passes a map are as much the method's own work: its kind learns nothing of them.
    assert (of(speed, "g slow"), of(speed, "g"), of(speed, "f")) == (6, 3, 1)
    learn(speed, "g long", 5.0, each=FULL)
    assert (of(speed, "g long"), of(speed, "g"), of(speed, "g slow"), of(speed, "f")) == (4, 4, 6, 1)
    learn(speed, "f long", 2.0, each=4000)
    assert (of(speed, "f long"), of(speed, "f"), of(speed, "g")) == (1.5, 1.5, 4)


def test_the_latest_work_counts_most_and_one_outlier_half() -> None:
    speed = Speed(forward=1.0, gradient=3.0)
    for seconds in (9.0, 2.0, 2.0, 2.0):
        learn(speed, "f", seconds, each=1000)
    # 1 -> 5 -> 3.5 -> 2.75 -> 2.375
    assert of(speed, "f") == of(speed, "f of few") == 2.375


def test_a_first_small_job_tells_next_to_nothing_of_a_batch() -> None:
    speed = Speed(forward=1.0, gradient=3.0)
    learn(speed, "f", 4.0, each=1)
    assert of(speed, "f") == pytest.approx(1 + 3 * 0.5 / FULL)
    other = Speed(forward=1.0, gradient=3.0)
    learn(other, "f", 4.0, each=1, images=FULL)
    assert of(other, "f") == 2.5


def test_a_method_cut_to_few_samples_tells_little_of_its_usual_work() -> None:
    speed = Speed(forward=1.0, gradient=3.0)
    learn(speed, "g", 11.0, each=8, images=10, usual=400)
    assert of(speed, "g") == pytest.approx(3 + 8 * 0.5 * 8 / 400)
    assert of(speed, "g other") == 3


def test_no_pass_tells_nothing() -> None:
    speed = Speed(forward=1.0, gradient=3.0)
    speed.learn("f", differentiates=False, passes=0, seconds=9.0, images=1, usual=0.0)
    assert of(speed, "f") == 1


def test_a_probe_times_both_kinds_and_leaves_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, graphs = toy(), []
    hook = classifier.runtime.register_forward_pre_hook(
        lambda module, given: graphs.append((len(given[0]), given[0].requires_grad))
    )
    # A clock that goes on by 8 seconds between two looks: a probe of 4 forwards and one of 2 x 2 passes take as long.
    ticks = iter(range(0, 10**6, 8))
    monkeypatch.setattr("salviz.classifiers.speed.time.perf_counter", lambda: float(next(ticks)))
    speed = probe(classifier)
    hook.remove()
    assert (speed.forward, speed.gradient) == (2, 2)
    assert graphs == [(4, False), (4, False), (2, True)], "where they are long, few"
    assert all(parameter.grad is None for parameter in classifier.module.parameters())
