"""Layers with fewer copies: the same values and the same gradients as the libraries' own."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from salviz.classifiers.folding import fold
from salviz.classifiers.lean import kernel_of_ones, lean

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def leaned(module: nn.Module) -> nn.Module:
    result = copy.deepcopy(module)
    lean(result)
    assert [type(part) for part in result.modules()] != [type(part) for part in module.modules()]
    return result


def gradient(module: nn.Module, x: Tensor, signal: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(module(leaf), leaf, signal)
    return found


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (30, 47)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [(3, 1, 1), (3, 2, 1), (5, 2, 1), (2, 2, 1), (4, 3, 1), (3, 4, 1), (2, 1, 1), (2, 1, 3), (3, 2, 2)],
)
@pytest.mark.parametrize("is_seen", [False, True])
def test_padding_without_a_copy_changes_nothing(
    size: tuple[int, int], kernel: int, stride: int, dilation: int, is_seen: bool
) -> None:
    class Seen(TorchFunctionMode):
        """Whoever looks at the calls can count the pixels that an output sees, as LRP's flat rule does."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is F.conv2d and args[1].shape[1] == 3:
                ones = torch.ones_like(args[0])
                counted = func(ones, kernel_of_ones(args[1]), None, *args[3:])
                plain = copy.deepcopy(module[0])
                plain.weight.fill_(1.0)
                plain.bias.zero_()
                if dilation == 1:
                    torch.testing.assert_close(counted, plain(ones), **EXACT)
            return result

    torch.manual_seed(0)
    module = nn.Sequential(
        Conv2dSame(3, 6, kernel, stride=stride, dilation=dilation), nn.ReLU6(inplace=True), nn.Conv2d(6, 4, 3)
    )
    module.double().requires_grad_(False)
    x = 4 * torch.randn(2, 3, *size, dtype=torch.float64)
    new = leaned(module)
    expected = module(x)
    signal = torch.randn_like(expected)
    backward = gradient(module, x, signal)
    with Seen() if is_seen else nullcontext():
        torch.testing.assert_close(new(x), expected, **EXACT)
        torch.testing.assert_close(gradient(new, x, signal), backward, **EXACT)


EDGES = torch.tensor([-1.0, -0.0, 0.0, 1e-300, 3.0, 6.0 - 1e-15, 6.0, 7.0, torch.inf, -torch.inf, torch.nan]).double()


def test_a_rectifier_passes_the_gradient_at_the_same_places() -> None:
    class Doubled(nn.Module):
        """Something to write into: what a layer made, not the input itself."""

        def __init__(self) -> None:
            super().__init__()
            self.rectifier = nn.ReLU6(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.rectifier(x * 1.0)
            return result

    module = Doubled()
    new, signal = leaned(module), torch.arange(1.0, 12.0).double()
    torch.testing.assert_close(new(EDGES), module(EDGES), equal_nan=True, rtol=0, atol=0)
    expected = gradient(module, EDGES, signal)
    assert expected.count_nonzero() not in (0, len(EDGES))
    torch.testing.assert_close(gradient(new, EDGES, signal), expected, rtol=0, atol=0)


def test_second_derivatives_are_right() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU6(inplace=True), nn.Conv2d(3, 1, 3), nn.Sigmoid()).double()
    new = leaned(module.requires_grad_(False))
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(new, x)
    assert torch.autograd.gradgradcheck(new, x)


@pytest.mark.parametrize("place", ["leaf", "view", "no graph"])
def test_a_rectifier_takes_whatever_it_is_given(place: str) -> None:
    new = leaned(nn.Sequential(nn.ReLU6(inplace=True)))
    x = torch.tensor([[-1.0, 2.0], [8.0, 3.0]], requires_grad=place != "no graph")
    expected = F.relu6(x.detach())
    given = {"leaf": lambda: x, "view": lambda: (x * 1)[:, ::1], "no graph": lambda: x}[place]()
    found = new(given)
    torch.testing.assert_close(found.detach(), expected)
    if place == "no graph":
        assert found.data_ptr() == x.data_ptr()
    else:
        (back,) = torch.autograd.grad(found.sum(), x)
        assert back.tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_nothing_is_kept_but_the_output() -> None:
    new = leaned(nn.Sequential(nn.ReLU6(inplace=True)))
    before = torch.randn(3, requires_grad=True) * 2
    after = new(before)
    assert after.data_ptr() == before.data_ptr()


def test_calls_are_seen_as_before() -> None:
    class Seen(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.hardtanh:
                self.calls.append((func, args[1:], kwargs or {}))
            return func(*args, **(kwargs or {}))

    module = nn.Sequential(nn.ReLU6(inplace=True))
    found = []
    for net in (module, leaned(module)):
        with Seen() as seen:
            net(torch.randn(3))
        ((_, args, kwargs),) = seen.calls
        found.append((*args, *kwargs.values()))
    assert found[0] == found[1] == (0.0, 6.0, True)


class Residual(nn.Module):
    """Convolutions before a ReLU6: as it is, after a sum made in place, and read by two."""

    def __init__(self, kind: type[nn.Conv2d]) -> None:
        super().__init__()
        self.first, self.norm1 = kind(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.third, self.norm3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.rectifier, self.again = nn.ReLU6(inplace=True), nn.ReLU6(inplace=True)
        self.last = nn.ReLU6(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectifier(self.norm1(self.first(x)))
        out = self.norm2(self.second(x))
        out += x
        out = self.again(out)
        result: Tensor = self.head(self.last(self.norm3(self.third(out))).mean(dim=(2, 3)))
        return result


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
def test_a_convolution_clips_its_own_output_where_that_changes_nothing(kind: type[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    module = Residual(kind).eval().requires_grad_(False)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            # Both ends of the ReLU6 are met.
            part.running_var.uniform_(0.01, 0.1)
            part.running_mean.normal_()
    folding = fold(module, (32, 32))
    folded, names = folding.module, folding.convolutions
    assert names == {"first", "second", "third"}
    parts = (folded.first, folded.second, folded.third)
    assert [getattr(part, "bounds", None) is not None for part in parts] == [True, False, True]
    x = (4 * torch.randn(3, 3, 32, 32)).contiguous(memory_format=torch.channels_last)
    calls: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        fast = folded(x)
        with Watch():
            plain = folded(x)
    # Who looks at the calls sees all of them. Which kernel oneDNN takes depends on the machine, on its threads and on
    # what follows the convolution, so that sums are not everywhere made in one order.
    assert (calls.count("conv2d"), calls.count("hardtanh")) == (3, 3)
    exact = copy.deepcopy(folded).double()(x.double())
    with_graph = folded(x.clone().requires_grad_(True)).detach()
    with torch.inference_mode():
        inferred = folded(x).clone()
    for values in (fast, plain, with_graph, inferred):
        torch.testing.assert_close(values.double(), exact, atol=2e-6, rtol=0)
    torch.testing.assert_close(fast, module(x), atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        halves = folded(x)
    assert not torch.equal(halves.float(), plain)
