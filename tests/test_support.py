"""The table of what works: tried, not believed."""

import dataclasses

import pytest
import torch
from torch import nn

from salviz import methods
from salviz.errors import Cancelled
from salviz.support import cheapest, probe
from tests.models import classifier_of, timm_model, toy


def test_the_cheapest_settings_cost_least_and_are_allowed() -> None:
    classifier, size = timm_model("test_vit"), (160, 160)
    smooth, occlusion = methods.get("smoothgrad").card, methods.get("occlusion").card
    assert cheapest(smooth, classifier)["samples"] == 1
    assert occlusion.passes(cheapest(occlusion, classifier), size) == 1
    score_cam = methods.get("score_cam").card
    assert score_cam.passes(cheapest(score_cam, classifier), size) == 2, "zero channels stands for all"
    ablation = methods.get("ablation_cam").card
    assert cheapest(ablation, classifier)["channels"] == 1, "every channel is a run of the head"
    for method in methods.METHODS.values():
        chosen = cheapest(method.card, classifier)
        assert method.card.check_parameters(chosen) == chosen
        assert method.card.passes(chosen, size) <= method.card.passes(method.card.check_parameters(None), size)


def test_a_refusal_comes_with_its_reason() -> None:
    rows = {row.method: row for row in probe(timm_model("test_vit")).rows}
    assert list(rows) == list(methods.METHODS)
    assert rows["guided_backprop"].state == "refused"
    assert "ReLU nets only" in rows["guided_backprop"].reason
    assert rows["grad_cam"].state == "works"
    assert rows["grad_cam"].layer.endswith("norm1")
    assert rows["grad_cam"].grid == (10, 10)
    assert rows["gradient"].grid == (160, 160)
    assert not [row for row in rows.values() if row.state == "fails"]


def test_a_fault_is_called_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError("deep inside")

    def infinite(classifier: object, x: torch.Tensor, *args: object, **options: object) -> methods.Attribution:
        return methods.Attribution(torch.full((len(x), 4, 4), float("nan")))

    for name, function in (("gradient", broken), ("edge", infinite)):
        monkeypatch.setitem(methods.METHODS, name, dataclasses.replace(methods.get(name), explain=function))
    rows = {row.method: row for row in probe(toy()).rows}
    assert rows["gradient"].state == rows["edge"].state == "fails"
    assert "deep inside" not in rows["gradient"].reason
    assert "deep inside" in caplog.text
    assert "not finite" in rows["edge"].reason
    assert rows["grad_cam"].state == "works"


def test_a_net_without_places_leaves_the_methods_that_need_none() -> None:
    torch.manual_seed(0)
    flat = classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)), size=32, classes=3)
    rows = {row.method: row for row in probe(flat).rows}
    assert rows["grad_cam"].state == "refused"
    assert rows["gradient"].state == "works"
    assert not [row for row in rows.values() if row.state == "fails"]


def test_it_can_be_stopped() -> None:
    def stop(done: int, total: int) -> None:
        assert (done, total) == (1, len(methods.METHODS))
        raise Cancelled

    with pytest.raises(Cancelled):
        probe(toy(), progress=stop)
