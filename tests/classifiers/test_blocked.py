"""Stretches in oneDNN's layout: the same numbers, and nobody who looks sees anything of it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from salviz.classifiers import Classifier, lean
from tests.models import classifier_of

pytestmark = pytest.mark.skipif(lean.FUSED is None, reason="PyTorch is built without oneDNN")


class Small(nn.Module):
    """Convolutions, norms, a residual and a rectifier as MobileNets have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.inner = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
            nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.head = nn.Conv2d(16, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.inner(x)).mean((2, 3))


class Block(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def chain(last: nn.Module | None = None) -> nn.Module:
    """The same layers, one after the other: what comes last may be something else."""
    small = Small()
    return nn.Sequential(
        small.stem, Block(small.inner), last or nn.Identity(), small.head, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def prepared(module: nn.Module, size: int = 64) -> Classifier:
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    classifier = classifier_of(module, size=size, classes=10)
    _ = classifier.runtime  # Made now: its making runs pictures through the net.
    return classifier


@contextmanager
def layouts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each convolution was given oneDNN's layout, by whichever call made it."""
    seen: list[bool] = []
    forward = nn.Conv2d._conv_forward
    fused = lean.FUSED

    def plain(self: nn.Conv2d, x: Tensor, *rest: Any) -> Tensor:
        seen.append(x.is_mkldnn)
        return forward(self, x, *rest)

    def call(x: Tensor, *rest: Any) -> Tensor:
        seen.append(x.is_mkldnn)
        return fused(x, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "_conv_forward", plain)
        patch.setattr(lean, "FUSED", call)
        yield seen


def passes(classifier: Classifier, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, list[bool]]:
    with layouts(monkeypatch) as seen:
        return classifier.predict(x), seen


NETS: dict[str, Callable[[], nn.Module]] = {
    "mobilenetv2": lambda: timm.create_model("mobilenetv2_035", num_classes=10),
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10),
    "torchvision's": lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.35),
    "resnet": lambda: timm.create_model("test_resnet", num_classes=10),
}


@pytest.mark.parametrize("name", NETS)
def test_the_numbers_are_the_published_nets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = prepared(NETS[name]())
    for count, height, width in ((1, 64, 64), (3, 64, 64), (2, 75, 50)):
        x = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))
        found, seen = passes(classifier, x, monkeypatch)
        assert seen
        assert all(seen)
        wide = copy.deepcopy(classifier.module).double()(x.double())
        span = wide.amax() - wide.amin()
        torch.testing.assert_close(found.double() / span, wide / span, rtol=0, atol=2e-5)
        assert found.is_contiguous()


def grad(x: Tensor) -> AbstractContextManager[Any]:
    x.requires_grad_(True)
    return torch.enable_grad()


class Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(isinstance(value, Tensor) and value.is_mkldnn for value in args)
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(isinstance(value, Tensor) and value.is_mkldnn for value in args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "within",
    [grad, lambda x: Calls(), lambda x: Dispatched(), lambda x: torch.autocast("cpu", dtype=torch.bfloat16),
     lambda x: torch.inference_mode()],
    ids=["graph", "function mode", "dispatch mode", "autocast", "inference mode"],
)  # fmt: skip
def test_whoever_looks_sees_the_plain_layout(
    within: Callable[[Tensor], AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = prepared(chain())
    x = torch.randn(2, 3, 64, 64)
    expected, seen = passes(classifier, x, monkeypatch)
    assert all(seen)
    with layouts(monkeypatch) as seen, within(x):
        found = classifier.forward(x)
    assert seen
    assert not any(seen)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05 if found.dtype == torch.bfloat16 else 1e-5)


def test_hooks_and_replaced_layers_are_given_plain_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = prepared(chain())
    x = torch.randn(2, 3, 64, 64)
    expected, _ = passes(classifier, x, monkeypatch)
    inner = classifier.runtime[1].inner[0]
    given: list[Tensor] = []
    for attach in (inner.register_forward_hook, inner.register_forward_pre_hook):
        handle = attach(
            lambda part, *values: given.append(values[-1] if isinstance(values[-1], Tensor) else values[-1][0])
        )
        found, seen = passes(classifier, x, monkeypatch)
        handle.remove()
        assert not any(seen)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert [value.layout for value in given] == [torch.strided] * 2
    inner.__dict__["forward"] = lambda value: torch.zeros_like(value)
    assert not any(passes(classifier, x, monkeypatch)[1])
    del inner.__dict__["forward"]
    again, seen = passes(classifier, x, monkeypatch)
    assert all(seen)
    assert torch.equal(again, expected)


@pytest.mark.parametrize(
    ("net", "name", "before", "after"),
    [
        # Only what comes before the layer is laid out, and what comes after it, where that is worth it.
        (chain, "3", 3, 0),
        (chain, "0", 0, 3),
        (chain, "1.inner.2", 0, 0),
        # Within a module that has nearly all of the net there is a stretch of its own.
        (NETS["torchvision's"], "features.17", 48, 0),
        (NETS["torchvision's"], "features.17.conv.0", 48, 0),
        (NETS["torchvision's"], "features", 52, 0),
        (NETS["torchvision's"], "features.1", 0, 49),
    ],
)
def test_a_stretch_is_interrupted_where_somebody_looks(
    net: Callable[[], nn.Module], name: str, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = prepared(net())
    x = torch.randn(2, 3, 64, 64)
    expected, _ = passes(classifier, x, monkeypatch)
    given: list[Tensor] = []
    part = classifier.runtime.get_submodule(name)
    with layouts(monkeypatch) as seen:
        part.register_forward_pre_hook(lambda part, inputs: given.append(inputs[0]))
        part.register_forward_hook(lambda part, inputs, output: given.extend((inputs[0], output, len(seen))))
        found = classifier.predict(x)
    came, went, result, done = given
    assert {value.layout for value in (came, went, result)} == {torch.strided}
    own = sum(isinstance(inner, nn.Conv2d) for inner in part.modules())
    assert [sum(seen[: done - own]), sum(seen[done:])] == ([before, after] if name != "features" else [0, 0])
    # Within `features` itself nobody looks.
    assert sum(seen[done - own : done]) == (before if name == "features" else 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Doubling(nn.Module):
    """Gives other numbers in oneDNN's layout."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x if x.is_mkldnn else x * 1.0


class Picky(nn.Module):
    """Works on plain tensors alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).sigmoid().permute(0, 3, 1, 2)


@pytest.mark.parametrize("last", [Doubling, Picky])
def test_a_net_with_a_layer_that_cannot_runs_as_before(last: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = prepared(chain(last()))
    x = torch.randn(2, 3, 64, 64)
    found, seen = passes(classifier, x, monkeypatch)
    # Three of four convolutions come before it: too few.
    assert seen
    assert not any(seen)
    torch.testing.assert_close(found, classifier.module(x), rtol=1e-4, atol=1e-5)


def test_what_the_nets_own_code_does_between_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # A sum and a mean over places stand in the net's own `forward`, so that no children follow each other.
    classifier = prepared(Small())
    x = torch.randn(2, 3, 64, 64)
    found, seen = passes(classifier, x, monkeypatch)
    assert not any(seen)
    torch.testing.assert_close(found, classifier.module(x), rtol=1e-4, atol=1e-5)


def test_a_copy_has_a_stretch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = prepared(chain())
    x = torch.randn(2, 3, 64, 64)
    copied = copy.deepcopy(classifier.runtime)
    with torch.no_grad():
        copied[1].inner[0].weight.zero_()
        other = copied(x)
    expected, seen = passes(classifier, x, monkeypatch)
    assert all(seen)
    assert not torch.allclose(other, expected)
    # A hook at the copy concerns the copy.
    copied[1].inner[0].register_forward_hook(lambda *values: None)
    assert all(passes(classifier, x, monkeypatch)[1])
    with layouts(monkeypatch) as seen, torch.no_grad():
        torch.testing.assert_close(copied(x), other, rtol=0, atol=1e-5)
    assert not any(seen)


@pytest.mark.parametrize("is_watched", [False, True])
def test_what_will_be_laid_out_anyway_is_not_laid_out_with_channels_last_before(
    is_watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = replace(prepared(chain()), channels_last=True)
    x = torch.randn(2, 3, 64, 64)
    expected = classifier.module(x)
    if is_watched:
        classifier.runtime[0].register_forward_hook(lambda *values: None)
        classifier.runtime[1].register_forward_hook(lambda *values: None)
    given: list[Tensor] = []
    classifier.runtime.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    found, seen = passes(classifier, x, monkeypatch)
    assert given[0].is_contiguous() != is_watched
    assert any(seen) != is_watched
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
