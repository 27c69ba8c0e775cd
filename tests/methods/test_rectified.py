"""Deconvnet and FullGrad: what is changed or collected on the way back through a net's layers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import salviz
from salviz import engine, methods
from salviz.classifiers import Classifier
from salviz.errors import MethodError
from salviz.images import open_sample
from salviz.targets import ClassTarget
from salviz.work import Work
from tests.models import LinearNet, classifier_of, images, timm_model


def explain(classifier, x, method, classes, output="logit", against=None):
    rivals = None if against is None else torch.as_tensor(against)
    return engine.explain(
        classifier, x, method=method, target=ClassTarget(torch.as_tensor(classes), output, rivals),
        digests=[str(i) for i in range(len(x))],
    )  # fmt: skip


FORMS = {
    "module": nn.ReLU(),
    "in place": nn.ReLU6(inplace=True),
    "function": F.relu6,
    "tensor": lambda t: t.relu(),
    "hardtanh": lambda t: F.hardtanh(t, 0.0, 6.0),
    "in place, its answer not read": lambda t: (F.relu6(t, inplace=True), t)[1],
    "in place, through a view": lambda t: (t[:, :].relu_(), t)[1],
}


@pytest.mark.parametrize("form", FORMS)
def test_deconvnet_by_hand(form: str) -> None:
    """conv - ReLU - max pooling - conv - ReLU - sum in float64: every ReLU passes what is positive, from wherever."""
    act = FORMS[form]
    torch.manual_seed(1)
    a, b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = a, b

        def forward(self, x):
            return act(self.b(F.max_pool2d(act(self.a(x)), 2))).sum(dim=(2, 3))

    x = images(2, 10)
    # A contrast sends a negative signal down one channel: nothing of it may arrive.
    found = explain(classifier_of(Net(), size=10, classes=6), x, "deconvnet", [2, 0], against=[4, 1]).maps
    with torch.no_grad():
        top = dict.fromkeys(("module", "tensor", "in place, through a view"), torch.inf).get(form, 6.0)
        h = a.double()(x.double()).clamp(0, top)
        _, places = F.max_pool2d(h, 2, return_indices=True)
        signal = torch.zeros(2, 6, 3, 3, dtype=torch.float64)
        signal[[0, 1], [2, 0]] = 1.0
        back = F.max_unpool2d(F.conv_transpose2d(signal, b.double().weight), places, 2, output_size=(8, 8))
        expected = F.conv_transpose2d(back.clamp(min=0), a.weight)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_deconvnet_equals_captum_where_captum_is_right() -> None:
    from captum.attr import Deconvolution

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    classifier, x = classifier_of(net, size=20, classes=5), images(2, 20)
    with pytest.warns(UserWarning, match="backward hooks"):
        oracle = Deconvolution(net).attribute(x.clone().requires_grad_(), target=[1, 4])
    torch.testing.assert_close(explain(classifier, x, "deconvnet", [1, 4]).maps, oracle)


def test_deconvnet_of_a_net_with_other_activations_is_refused() -> None:
    with pytest.raises(MethodError, match=r"deconvnet is defined for ReLU nets only.*gelu"):
        explain(timm_model("test_vit"), images(1, 160), "deconvnet", [0])
    with pytest.raises(MethodError, match="no ReLU on the way"):
        explain(classifier_of(LinearNet(8), size=8, classes=4), images(1, 8), "deconvnet", [0])


class Mixed(nn.Module):
    """Every kind of constant FullGrad knows: biases, a batch norm that stays, a cap, a smooth activation, a gate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.gate = nn.Conv2d(6, 6, 3, stride=2), nn.Conv2d(6, 6, 1)
        self.norm2, self.head = nn.GroupNorm(2, 6), nn.Linear(6, 4)
        with torch.no_grad():
            self.norm1.running_mean.normal_()
            self.norm1.running_var.uniform_(0.5, 2)
            self.norm1.bias.normal_()
            self.conv1.weight.mul_(5)
            self.norm2.weight.normal_()
            self.norm2.bias.normal_()

    def forward(self, x: torch.Tensor, extra: list[torch.Tensor] | None = None) -> torch.Tensor:
        """With `extra`, those tensors are added where the constants come in, and what came out is noted."""
        self.seen: list[torch.Tensor] = []

        def out(value):
            place = len(self.seen)
            self.seen.append(value.detach())
            return value if extra is None else value + extra[place]

        # The activation comes first, so that the norm cannot be folded.
        h = out(F.relu6(out(self.conv1(x))))
        h = out(self.norm1(h))
        h = out(F.gelu(out(self.conv2(h))))
        h = out(h * out(torch.sigmoid(out(self.gate(h.mean(dim=(2, 3), keepdim=True))))))
        h = out(self.norm2(h))
        return out(self.head(F.relu(h).mean(dim=(2, 3))))


def jvp(function, z: torch.Tensor) -> torch.Tensor:
    """The linear approximation's value at `z` itself."""
    return torch.autograd.functional.jvp(function, z, z)[1]


def naive_terms(net: Mixed, x: torch.Tensor, c: int) -> list[torch.Tensor]:
    """Gradients at zeros added after every layer, times what the layer adds to its linear part."""
    net(x)
    zeros = [torch.zeros_like(value, requires_grad=True) for value in net.seen]
    leaf = x.clone().requires_grad_()
    gradients = torch.autograd.grad(net(leaf, zeros)[:, c].sum(), [leaf, *zeros])
    conv1, relu6, norm1, conv2, gelu, gate, sigmoid, gated, norm2, head = net.seen
    sums = gelu.mean(dim=(2, 3), keepdim=True)
    constants = [
        x,
        net.conv1.bias.view(1, -1, 1, 1).expand_as(conv1),
        relu6 - jvp(F.relu6, conv1),
        norm1 - jvp(net.norm1, relu6),
        net.conv2.bias.view(1, -1, 1, 1).expand_as(conv2),
        gelu - jvp(F.gelu, conv2),
        gate - F.conv2d(sums, net.gate.weight),
        sigmoid - jvp(torch.sigmoid, gate),
        gated - 2 * gelu * sigmoid,
        norm2 - jvp(net.norm2, gated),
        head - F.relu(norm2).mean(dim=(2, 3)) @ net.head.weight.T,
    ]
    return [g * b for g, b in zip(gradients, constants, strict=True)]


def naive_map(terms: list[torch.Tensor], size: int) -> np.ndarray:
    total = np.zeros((size, size))
    for term in terms:
        if term.ndim != 4 or term.shape[2] == 1:
            continue
        absolute = term[0].abs()
        rescaled = absolute - absolute.min()
        rescaled = rescaled / rescaled.max()
        for channel in rescaled:
            total += F.interpolate(channel[None, None], size=(size, size), mode="bilinear")[0, 0].numpy()
    return total


def test_full_grad_by_hand() -> None:
    net = Mixed().eval().requires_grad_(False)
    classifier, x = classifier_of(net, size=15, classes=4), images(2, 15)
    found = explain(classifier, x, "full_grad", [3, 1])
    exact = copy.deepcopy(net).double()
    for i, c in enumerate((3, 1)):
        one = x[[i]].double()
        terms = naive_terms(exact, one, c)
        torch.testing.assert_close(sum(t.sum() for t in terms), exact(one)[0, c], atol=1e-10, rtol=1e-10)
        np.testing.assert_allclose(found.maps[i].numpy(), naive_map(terms, 15), atol=2e-4)
    assert found.completeness.abs().max() < 1e-5


def test_full_grad_of_a_linear_net_in_closed_form() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.conv(x).mean(dim=(2, 3))

    net, x = Net(), images(1, 8)
    found = explain(classifier_of(net, size=8, classes=4), x, "full_grad", [2]).maps[0]
    size = (x * net.conv.weight[2].view(1, 3, 1, 1)).abs()[0]
    # Of the bias terms one channel is b/64 everywhere and the others are nothing, which rescales to one.
    expected = ((size - size.min()) / (size.max() - size.min())).sum(0) + 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("output", ["logit", "probability"])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"])
def test_full_grad_is_complete_in_float64(name: str, output: str) -> None:
    module = copy.deepcopy(timm_model(name).module).double()
    size = timm_model(name).preprocessing.input_size
    classifier = classifier_of(module, size=size, classes=1000)
    # Biases that are not zero, as training makes them.
    torch.manual_seed(1)
    for part in classifier.module.modules():
        if isinstance(getattr(part, "bias", None), nn.Parameter):
            part.bias.normal_(0, 0.3)
    x, target = images(2, size).double(), ClassTarget(torch.tensor([3, 7]), output)
    assert methods.get("full_grad").refusal(timm_model(name)) is None
    found = methods.get("full_grad").explain(classifier, x, target, generators=[], work=Work())
    score = target.score(classifier.forward(x)).abs()
    assert (found.completeness.abs() < 1e-10 * score.clamp(min=1)).all()


class Overwriting(nn.Module):
    """Rectifiers in place or not: after a convolution, after a sum made in place, over what another has read, and as
    a gate that is overwritten in its turn.
    """

    def __init__(self, *, is_inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.third = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.fourth = nn.Conv2d(8, 4, 1)
        self.is_inplace = is_inplace
        self.relu, self.relu6 = nn.ReLU(is_inplace), nn.ReLU6(is_inplace)
        for part in self.children():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.5)
                nn.init.normal_(part.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.relu6(self.first(x))
        out = self.second(skip)
        out += skip
        out = self.relu(out)
        read = self.third(out)
        # Its gradient is that of both readers.
        before = read * 2.0
        out = self.relu6(read) + before
        gate = F.relu6(out * 1.5, inplace=self.is_inplace)
        gate = gate.div_(6.0) if self.is_inplace else gate / 6.0
        return self.fourth(out * gate).mean(dim=(2, 3))


def test_full_grad_is_the_same_whether_rectifiers_overwrite_or_not() -> None:
    x = images(5, 12)
    plain, overwriting = (
        explain(classifier_of(Overwriting(is_inplace=is_inplace), size=12, classes=4), x, "full_grad", [0, 1, 2, 3, 0])
        for is_inplace in (False, True)
    )
    torch.testing.assert_close(overwriting.maps, plain.maps)
    assert plain.completeness.abs().max() < 1e-4
    assert overwriting.completeness.abs().max() < 1e-4


def test_full_grad_refuses_what_has_no_biases_on_the_picture() -> None:
    with pytest.raises(MethodError, match="tokens that mix"):
        explain(timm_model("test_vit"), images(1, 160), "full_grad", [0])
    with pytest.raises(MethodError, match="has none"):
        explain(classifier_of(LinearNet(8), size=8, classes=4), images(1, 8), "full_grad", [0])


def test_full_grad_of_the_prepared_net_is_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding as the prepared net does it must not move a layer's terms: a row too many was 5 % of the map."""
    classifier = salviz.load("tf_efficientnet_lite0", device="cpu")
    pictures = [open_sample("cat")]
    found = salviz.explain(classifier, pictures, methods=["full_grad"])["full_grad"].maps
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, x: forward(self, x, is_published=True))
    expected = salviz.explain(classifier, pictures, methods=["full_grad"])["full_grad"].maps
    assert (found - expected).abs().max() < 5e-3 * expected.abs().max()
