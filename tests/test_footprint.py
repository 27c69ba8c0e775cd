"""Passes are cut to memory before it runs out, and nothing but their size changes."""

import dataclasses

import pytest
import torch
from torch import nn

from salviz import engine, footprint
from salviz.classifiers.classifier import Classifier
from tests.models import classifier_of, images, timm_model, toy


class Exponentials(nn.Module):
    """Keeps the results of its exponentials for the backward, and nothing else of the input's size."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.head = nn.Linear(3, 4)
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        for _ in range(self.count):
            x = -(-x).exp()
        return self.head(x.mean(dim=(2, 3)))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("size", [(32, 32), (48, 20)])
def test_what_a_forward_keeps_is_measured(count: int, size: tuple[int, int]) -> None:
    classifier = classifier_of(Exponentials(count), size=size, classes=4)
    with torch.inference_mode():
        found = footprint.kept(classifier, size)
    each = 4 * 3 * size[0] * size[1]
    # The averages of the channels are what the head may keep.
    assert 0 <= found - count * each <= 4 * 3


def test_it_is_measured_once_a_net_and_size() -> None:
    module = Exponentials(2)
    classifier = classifier_of(module, size=32, classes=4)
    other = dataclasses.replace(classifier, like=classifier)
    before = len(module.sizes)
    for one in (classifier, other, classifier):
        assert footprint.kept(one, (32, 32)) == footprint.kept(classifier, (32, 32))
    assert module.sizes[before:] == [1]
    footprint.kept(other, (64, 32))
    assert module.sizes[before:] == [1, 1]


def limited(monkeypatch: pytest.MonkeyPatch, classifier: Classifier, size: tuple[int, int], images_: float) -> None:
    """A machine whose memory is what so many images' passes take, twice over."""
    room = 2 * footprint.kept(classifier, size) * images_
    monkeypatch.setattr(footprint, "total", lambda: 2 * room)


@pytest.mark.parametrize(("room", "expected"), [(100, 8), (8.01, 8), (7.5, 7), (2.01, 2), (1.01, 1), (0.1, 1)])
def test_as_many_images_as_fit(room: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = timm_model("test_resnet")
    limited(monkeypatch, classifier, (160, 160), room)
    assert footprint.images_in_pass(classifier, (160, 160)) == expected
    # Twice as many pixels, half as many images.
    twice = footprint.images_in_pass(classifier, (320, 160))
    assert abs(twice - min(8, max(1, room / 2))) <= 1


def test_where_there_is_plenty_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Exponentials(1)
    classifier = classifier_of(module, size=224, classes=4)
    monkeypatch.setattr(footprint, "total", lambda: 16 * 2**30)
    before = len(module.sizes)
    assert footprint.images_in_pass(classifier, (224, 224)) == 8
    assert len(module.sizes) == before
    assert footprint.images_in_pass(classifier, (1024, 1024)) == 8
    assert len(module.sizes) == before + 1


def test_a_net_that_does_not_fit_at_all_is_left_to_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.empty(2**46)

    monkeypatch.setattr(footprint, "total", lambda: 1)
    assert footprint.images_in_pass(classifier_of(Huge(), size=32, classes=3), (32, 32)) == 1


def test_the_meta_device_has_no_memory_to_run_out() -> None:
    classifier = classifier_of(Exponentials(1).to("meta"), size=32, classes=4)
    assert footprint.images_in_pass(classifier, (10**6, 10**6)) == 32


@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "occlusion", "grad_cam"])
def test_results_do_not_depend_on_memory(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, classifier = images(6, 32), toy()
    settings = {"smoothgrad": {"samples": 3}, "occlusion": {"window": 16, "stride": 16}}.get(method)
    options = {"method": method, "parameters": settings, "digests": list("abcdef")}
    plain, logits = engine.explain(classifier, x, **options), engine.predict(classifier, x)
    limited(monkeypatch, classifier, (32, 32), 2.01)
    sizes: list[int] = []
    with classifier.runtime.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0]))):
        found = engine.explain(classifier, x, **options)
        again = engine.predict(classifier, x)
    assert max(sizes) <= 2
    torch.testing.assert_close(found.maps, plain.maps, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.logits, plain.logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(again, logits, atol=1e-6, rtol=1e-5)
