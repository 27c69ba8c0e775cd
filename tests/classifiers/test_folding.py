"""Folding batch norms: the same function, fewer operations, the published module untouched."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from salviz import engine
from salviz.classifiers.folding import Folding, fold
from salviz.classifiers.layers import target_layer
from tests.models import classifier_of, images, timm_model


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("test_resnet", 0),
        ("mobilenetv2_035", 0),
        ("tf_efficientnet_lite0", 0),
        # It standardises its weights and has group norms: nothing to fold.
        pytest.param("resnetv2_50x1_bit", None, marks=pytest.mark.slow),
        pytest.param("densenet121", None, marks=pytest.mark.slow),  # most of its norms stand before their convolutions
        pytest.param("vgg11_bn", 0, marks=pytest.mark.slow),  # a gigabyte of weights in float64
    ],
)
def test_values_and_gradients_stay(name: str, left: int | None) -> None:
    """In float64: in float32 a unit at the kink of its ReLU may fall on the other side, and its gradient with it."""
    classifier = timm_model(name)
    module = copy.deepcopy(classifier.module).double()
    size = min(classifier.preprocessing.input_size[0], 96)
    folded = fold(module, (size, size)).module
    if norms(module):
        assert norms(folded) < norms(module)
    if left is not None:
        assert norms(folded) == left
    x = images(1, size).double().requires_grad_(True)
    scores = []
    for net in (module, folded):
        logits = net(x)
        (gradient,) = torch.autograd.grad(logits[:, 3].sum(), x)
        scores.append((logits.detach(), gradient))
    (logits, gradient), (folded_logits, folded_gradient) = scores
    torch.testing.assert_close(folded_logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded_gradient, gradient, rtol=1e-7, atol=1e-9)


def test_against_the_formula_in_float64() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.1, 2)
    net[1].weight.data.normal_()
    net[1].bias.data.normal_()
    classifier = classifier_of(net.float(), size=9, classes=5)
    folding = fold(classifier.module, (9, 9))
    folded, names = folding.module, folding.convolutions
    assert names == {"0"}
    x = images(3, 9).double()
    conv, norm = classifier.module[0].double(), classifier.module[1].double()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(1, -1, 1, 1)
    expected = (conv(x) - norm.running_mean.view(1, -1, 1, 1)) * scale + norm.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(folded[1](folded[0](x.float())).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_published_module_is_left_alone_and_the_rest_is_shared() -> None:
    classifier = timm_model("test_resnet")
    before = {name: value.clone() for name, value in classifier.module.state_dict().items()}
    runtime = classifier.runtime
    assert all(torch.equal(before[name], value) for name, value in classifier.module.state_dict().items())
    assert runtime.get_submodule("fc").weight.data_ptr() == classifier.module.get_submodule("fc").weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in runtime.parameters())


@pytest.mark.parametrize("first", ["autocast", "inference mode"])
def test_whatever_pass_comes_first_the_copy_is_the_same(first: str) -> None:
    classifier = replace(timm_model("test_resnet"), autocast=torch.bfloat16 if first == "autocast" else None)
    x = images(1, 96)
    with torch.inference_mode(first == "inference mode"):
        classifier.predict(x.clone(), may_halve=True)
    assert classifier.folded == timm_model("test_resnet").folded != frozenset()
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(classifier.forward(leaf).amax(), leaf)
    assert gradient.abs().sum() > 0


class Awkward(nn.Module):
    """A convolution's output read twice, by its norm and by the sum: folding would change the net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.norm.running_mean.fill_(2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x)
        return self.head((features + self.norm(features)).mean(dim=(2, 3)))


class Standardised(nn.Conv2d):
    """Changes its weights on every call: folding into them is undone, but the other convolution can be folded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight / self.weight.std(dim=(1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


def test_a_convolution_with_a_will_of_its_own_keeps_its_norm() -> None:
    torch.manual_seed(0)
    parts = [Standardised(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval().requires_grad_(False)
    for norm in (net[1], net[3]):
        norm.running_var.fill_(4.0)
        norm.running_mean.fill_(0.5)
    folding = fold(net, (9, 9))
    folded, names = folding.module, folding.convolutions
    assert names == {"2"}
    x = images(2, 9)
    torch.testing.assert_close(folded(x), net(x))


class Reused(nn.Module):
    """One convolution before two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.conv(self.first(self.conv(x)))).mean(dim=(2, 3)))


@pytest.mark.parametrize("net", [Awkward, Reused, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3))])
def test_what_cannot_be_folded_is_not(net: type[nn.Module]) -> None:
    module = net().eval().requires_grad_(False)
    folding = fold(module, (8, 8))
    folded, names = folding.module, folding.convolutions
    assert folded is module
    assert names == frozenset()


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0"])
def test_what_is_known_of_a_net_of_the_same_layers_changes_nothing(name: str) -> None:
    classifier, other = timm_model(name), timm_model(name)
    torch.manual_seed(7)
    module = copy.deepcopy(other.module)
    for value in module.parameters():
        value.copy_(value + 0.05 * torch.randn_like(value))
    known, size = fold(classifier.module, (64, 64)), (64, 64)
    alone, told = fold(module, size), fold(module, size, like=known)
    assert (told.pairs, told.clips) == (alone.pairs, alone.clips) == (known.pairs, known.clips)
    for x in (images(2, 64), images(2, 64).contiguous(memory_format=torch.channels_last)):
        assert torch.equal(told.module(x), alone.module(x))


def test_a_net_is_not_folded_where_the_one_it_is_like_is_not() -> None:
    module = timm_model("test_resnet").module
    assert fold(module, (64, 64), like=Folding(module)).module is module


def test_pairs_that_do_not_fit_are_found_anew() -> None:
    module = timm_model("test_resnet").module
    right = fold(module, (64, 64))
    (_, norm), *others = right.pairs
    swapped = Folding(module, ((others[0][0], norm), *others))
    assert fold(module, (64, 64), like=swapped).pairs == right.pairs


def test_a_layer_that_folding_changed_is_taken_from_the_published_module() -> None:
    """The activation of a convolution is its own, before the norm."""
    classifier, x = timm_model("test_resnet"), images(2, 160)
    conv = next(name for name in classifier.folded if name.startswith("layer4"))
    assert target_layer(classifier, conv).is_published
    assert not target_layer(classifier).is_published
    seen = []
    handle = classifier.module.get_submodule(conv).register_forward_hook(lambda *a: seen.append(a[2].detach()))
    with torch.no_grad():
        classifier.module(x)
    handle.remove()
    found = engine.explain(classifier, x, method="layer_cam", parameters={"layer": conv}, digests=["a", "b"])
    leaf = x.clone().requires_grad_(True)
    activation = []
    handle = classifier.module.get_submodule(conv).register_forward_hook(lambda *a: activation.append(a[2]))
    logits = classifier.module(leaf)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.amax(dim=1).sum(), activation[0])
    torch.testing.assert_close(found.maps, (gradient.clamp(min=0) * seen[0]).sum(1), rtol=1e-3, atol=1e-5)
