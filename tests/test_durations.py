"""How long work will take: made-up speeds times passes counted by hand, and what real work teaches."""

import threading

import pytest

from salviz import durations, methods
from salviz.classifiers.speed import FULL, Speed
from salviz.classifiers.store import Loaded
from salviz.errors import MethodError
from salviz.exploring import explore
from salviz.images.gallery import open_sample
from salviz.request import request_for
from salviz.transforms import Variant
from tests.models import timm_model, toy

KEY = ("toy", "cpu", None)


def loaded(classifier=None, forward: float = 1.0, gradient: float = 3.0) -> Loaded:
    return Loaded(classifier or toy(), Speed(forward, gradient), KEY)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"rise": {"samples": 4000}}, 4000),
        ({"lime": {"samples": 100}}, 99),
        ({"grad_cam": None}, 1),
        ({"gradient": None}, 2 * 3),
        ({"smoothgrad": {"samples": 50}}, 100 * 3),
        ({"integrated_gradients": {"steps": 50}}, 101 * 3),
        ({"extremal_perturbation": {"iterations": 800}}, 1600 * 3),
        # What methods share is made once: noisy copies; class activation maps' forward.
        ({"smoothgrad": {"samples": 50}, "vargrad": {"samples": 50}, "rise": {"samples": 10}}, 100 * 3 + 10),
        ({"grad_cam": None, "layer_cam": None}, 1),
        # The gradient goes on from the forward of a class activation map.
        ({"grad_cam": None, "gradient": None}, 1 + 2 * 3 - 1),
        # A method of no pass: the prediction.
        ({"random": None}, 1),
    ],
)
def test_passes_cost_what_their_kind_costs(chosen: dict, expected: float) -> None:
    assert durations.seconds(loaded(), chosen) == expected


def test_what_was_learned_of_a_method_is_its_own() -> None:
    known = loaded()
    known.speed.learn("rise", differentiates=False, passes=40, seconds=200.0, images=20, usual=2.0)
    assert durations.seconds(known, {"rise": {"samples": 100}}) == 100 * 3.0
    assert durations.seconds(known, {"occlusion": None}) == methods.get("occlusion").card.cost(
        toy(), methods.get("occlusion").card.check_parameters(None)
    )


def test_runs_behind_a_layer_are_counted_and_wrong_settings_refused() -> None:
    vit, card = timm_model("test_vit"), methods.get("ablation_cam").card
    cost = card.cost(vit, card.check_parameters(None))
    assert cost > 2
    assert durations.seconds(loaded(vit, forward=2.0), {"ablation_cam": None}) == pytest.approx(2 * cost)
    with pytest.raises(MethodError, match="no setting 'smaples'"):
        durations.seconds(loaded(), {"rise": {"smaples": 3}})


def test_nobody_waits_while_others_compute() -> None:
    known, begun, over = loaded(), threading.Event(), threading.Event()

    def compute() -> None:
        with known.classifier.lock:
            begun.set()
            over.wait(60)

    other = threading.Thread(target=compute)
    other.start()
    begun.wait(60)
    found: list[float] = []
    asking = threading.Thread(
        target=lambda: found.append(durations.seconds(known, {"rise": {"samples": 7}, "score_cam": {"channels": 5}}))
    )
    asking.start()
    asking.join(30)
    try:
        assert found == [7 + 6]
    finally:
        over.set()
        other.join()


def test_a_real_exploration_teaches_its_own_method_and_kind() -> None:
    classifier, picture = toy(), open_sample("cat")
    known = loaded(classifier)
    variants = (Variant.from_token("flip_lr"),)
    request = request_for(picture, classifier, method="smoothgrad", parameters={"samples": 20}, variants=variants)
    found = explore(classifier, picture, request)
    assert found.passes == 2 * 40 > FULL
    durations.learn(known, found)
    second = found.seconds / found.passes
    # 40 of the usual 100 passes a map count for that share of a half.
    own = 3 + 0.5 * 0.4 * (second - 3)
    assert durations.seconds(known, {"smoothgrad": None}) == pytest.approx(100 * own)
    assert durations.seconds(known, {"integrated_gradients": {"steps": 10}}) == pytest.approx(21 * (3 + second) / 2)
    assert durations.seconds(known, {"rise": {"samples": 10}}) == 10


def test_a_row_of_several_teaches_only_where_nothing_is_shared() -> None:
    classifier, picture = toy(), open_sample("cat")
    known = loaded(classifier)
    for method, is_taught in (("smoothgrad", False), ("rise", True)):
        request = request_for(picture, classifier, method=method, parameters={"samples": 20}, variants=())
        found = explore(classifier, picture, request)
        before = durations.seconds(known, {method: None})
        durations.learn(known, found, is_alone=False)
        assert (durations.seconds(known, {method: None}) != before) == is_taught
