"""What methods do with loops where there are any: with and without, held to definitions in double precision."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.kernels import arrays
from salviz.methods.masks import machinery
from salviz.methods.relevance import rules

LAYERS = {
    "convolution": ((2, 6, 5, 4), (8, 6, 3, 3), lambda x, w, b: F.conv2d(x, w, b, padding=1)),
    "one long": ((2, 6, 9), (8, 6, 3), lambda x, w, b: F.conv1d(x, w, b, padding=1)),
    "grouped": ((2, 6, 5, 4), (8, 3, 3, 3), lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=2)),
    "linear": ((2, 5, 6), (8, 6), F.linear),
    "linear of one row": ((2, 6), (8, 6), F.linear),
    "a transposed matrix": ((2, 5, 6), (8, 6), lambda x, w, b: x @ w.T if b is None else x @ w.T + b),
}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["with loops", "without"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setattr(arrays, "is_free", lambda *tensors: False)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", [*LAYERS])
def test_positive_contributions_and_their_way_back(name: str, has_bias: bool, is_last: bool) -> None:
    """`(x w)+` is `x+ w+ + x- w-`, of which a positive `x` hands back `w+`, any other `w-`."""
    shape, of_weight, layer = LAYERS[name]
    layout = torch.channels_last if is_last and len(shape) == 4 else torch.contiguous_format
    x, weight = noise(*shape, seed=0), noise(*of_weight, seed=1).requires_grad_(True)
    x.view(-1)[::4] = 0
    bias = noise(of_weight[0], seed=2) if has_bias else None
    leaf = x.contiguous(memory_format=layout).requires_grad_(True)
    kept = weight.detach().clone()
    found = rules._positive_part(layer, leaf, weight, bias, False)
    gradient = noise(*found.shape, seed=3)
    (back,) = torch.autograd.grad(found, leaf, gradient)
    assert torch.equal(weight, kept)

    exact, wide = x.double().requires_grad_(True), weight.detach().double()
    above = None if bias is None else bias.double().clamp(min=0)
    is_over = exact.detach() > 0
    zero = torch.zeros_like(exact)
    over = layer(torch.where(is_over, exact, zero), wide.clamp(min=0), above)
    expected = over + layer(torch.where(is_over, zero, exact), wide.clamp(max=0), None)
    (wanted,) = torch.autograd.grad(expected, exact, gradient.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(back.double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.usefixtures("loops")
def test_parts_of_what_is_no_number_are_none_either() -> None:
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0]], requires_grad=True)
    both = rules._Split.apply(x, -1)
    expected = torch.tensor([[torch.nan, torch.inf, 0, 0, torch.nan, 0, -torch.inf, 0]])
    torch.testing.assert_close(both, expected, rtol=0, atol=0, equal_nan=True)
    (back,) = torch.autograd.grad(both, x, torch.arange(8.0)[None])
    assert back.tolist() == [[0, 1, 6, 7]]


@pytest.mark.usefixtures("loops")
def test_blurs_between_levels_and_their_slope() -> None:
    pyramid = machinery.BlurPyramid(noise(2, 3, 6, 5, seed=4), 4.0)
    levels = pyramid._levels.double()
    strength = torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(5))
    strength.view(-1)[:2] = torch.tensor([0.0, 1.0])
    strength.requires_grad_(True)
    found = pyramid.blurred(strength)
    gradient = noise(*found.shape, seed=6)
    (slope,) = torch.autograd.grad(found, strength, gradient)

    exact = strength.detach().double().requires_grad_(True)
    # Each level's share is a hat around its own place.
    place = exact * (machinery.LEVELS - 1)
    hats = (1 - (place - torch.arange(machinery.LEVELS).view(-1, 1, 1, 1)).abs()).clamp(min=0)
    expected = (hats.unsqueeze(-1) * levels).sum(0).permute(0, 3, 1, 2)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
    (wanted,) = torch.autograd.grad(expected, exact, gradient.double())
    inside = ((exact > 0) & (exact < 1)).detach()
    torch.testing.assert_close(slope.double()[inside], wanted[inside], rtol=0, atol=2e-5)


def test_what_loops_hand_back_has_no_gradient_of_its_own() -> None:
    x = noise(2, 4, seed=7).requires_grad_(True)
    pyramid, strength = machinery.BlurPyramid(noise(1, 3, 4, 4, seed=8), 2.0), torch.rand(1, 4, 4, requires_grad=True)
    for value, leaf in ((rules._Split.apply(x, -1).square(), x), (pyramid.blurred(strength).square(), strength)):
        (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
