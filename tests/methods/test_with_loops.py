"""What methods do with loops where there are any: with and without, held to definitions in double precision."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.kernels import arrays
from salviz.methods.gradients.terms import FullGradTerms
from salviz.methods.masks import machinery
from salviz.methods.paths.deeplift import _head_slope
from salviz.methods.paths.rescale import rescaled_norm
from salviz.methods.relevance import rules
from salviz.methods.sampling import Estimate, VarianceEstimate
from salviz.targets import ClassTarget

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


@pytest.mark.parametrize("output", ["logit", "probability"])
@pytest.mark.parametrize("against", [None, [3, 4, 5, 6, 7]])
def test_a_heads_slope_does_not_depend_on_the_batch(output: str, against: list[int] | None) -> None:
    target = ClassTarget(torch.arange(5), output, None if against is None else torch.tensor(against))
    logits, logits0 = 3 * noise(5, 37, seed=9), noise(1, 37, seed=10).expand(5, 37)
    found = _head_slope(target, logits, logits0)
    change = target.score(logits.double()) - target.score(logits0.double())
    torch.testing.assert_close((found.double() * (logits - logits0)).sum(1), change, rtol=0, atol=1e-5)
    for n in range(5):
        one = slice(n, n + 1)
        assert torch.equal(_head_slope(target.part(one), logits[one], logits0[one])[0], found[n])


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("kind", [Estimate, VarianceEstimate])
def test_moments_of_an_image_do_not_depend_on_who_is_done(kind: type[Estimate], is_last: bool) -> None:
    layout = torch.channels_last if is_last else torch.contiguous_format
    samples = [noise(2, 3, 9, 7, seed=20 + step).contiguous(memory_format=layout) for step in range(12)]
    pair, alone, plain = kind(samples[0]), kind(samples[0][:1]), Estimate(samples[0][:1])
    for step, sample in enumerate(samples):
        is_done = step >= 8
        pair.add(sample[:1] if is_done else sample, torch.tensor([0]) if is_done else None)
        alone.add(sample[:1])
        plain.add(sample[:1])
    assert pair.count.tolist() == [12, 8]
    for one, other in zip(pair._moments, alone._moments, strict=True):
        assert torch.equal(one[:1], other)
    assert torch.equal(alone.variance(), plain.variance())
    exact = torch.stack(samples)[:, :1].double()
    torch.testing.assert_close(alone.variance().double(), exact.var(0), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("loops")
def test_a_norm_of_some_tokens_does_not_depend_on_the_batch() -> None:
    z, z0, weight, bias = noise(3, 5, 16, seed=11), noise(1, 5, 16, seed=12), noise(16, seed=13), noise(16, seed=14)
    whole = rescaled_norm(F.layer_norm, z0[:, 1:], z[:, 1:], (16,), weight, bias)
    torch.testing.assert_close(whole, F.layer_norm(z[:, 1:], (16,), weight, bias), rtol=0, atol=2e-6)
    for n in range(3):
        alone = rescaled_norm(F.layer_norm, z0[:, 1:], z[n : n + 1, 1:], (16,), weight, bias)
        assert torch.equal(alone[0], whole[n])


@pytest.mark.usefixtures("loops")
def test_a_long_rows_norm_is_as_exact_as_a_short_ones() -> None:
    z, z0 = 1 + noise(2, 64, 40, 40, seed=15), noise(1, 64, 40, 40, seed=16)
    found = rescaled_norm(F.group_norm, z0, z, 1)
    torch.testing.assert_close(found.double(), F.group_norm(z.double(), 1), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("loops")
def test_what_is_nearly_alike_is_never_drawn_below_nothing() -> None:
    gradient = torch.full((1, 24, 5, 5), 0.1).contiguous(memory_format=torch.channels_last)
    gradient[0, 3, 2, 2] = 0.1001
    terms = FullGradTerms(torch.zeros(1, 3, 5, 5))
    terms.add(gradient, torch.ones(24))
    assert (terms.saliency((5, 5)) >= 0).all()
    # The only one that is not the least, but for what rounding leaves of the others.
    torch.testing.assert_close(terms.saliency((5, 5))[0, 2, 2], torch.tensor(1.0), rtol=0, atol=0.02)
