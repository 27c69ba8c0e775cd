"""Loops that do what chains of PyTorch's operators do: compared with those, in double precision where sums are made."""

import dataclasses
import importlib
from collections.abc import Callable

import numba
import pytest
import torch
from torch import Tensor, nn

from salviz import engine, kernels
from salviz.kernels import arrays, compiled, compiled_rescaling
from salviz.methods.paths.guided import GuidedPath
from tests.models import classifier_of

SHAPES = [(3, 16, 5, 7), (1, 5, 9, 1), (2, 1, 4, 4), (2, 37, 1, 1), (4, 8, 3, 2)]


def last(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return values.to(memory_format=torch.channels_last)


def agrees(found: kernels.Terms, terms: Tensor) -> None:
    exact = terms.double()
    sizes = exact.abs()
    low, high = sizes.amin((1, 2, 3), keepdim=True), sizes.amax((1, 2, 3), keepdim=True)
    drawn = torch.where(high > low, (sizes - low) / (high - low), torch.zeros_like(sizes)).sum(1)
    room = 1e-6 * sizes.sum((1, 2, 3)).max().item()
    torch.testing.assert_close(found[0].double(), exact.sum((1, 2, 3)), rtol=0, atol=room)
    torch.testing.assert_close(found[1].double(), drawn, rtol=0, atol=2e-6 * terms.shape[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_terms_are_those_of_the_product(shape: tuple[int, ...]) -> None:
    gradient, places = last(*shape, seed=0), last(*shape, seed=1)
    channels = last(1, shape[1], 1, 1, seed=2)
    for constant in (places, channels):
        found = kernels.terms(gradient, constant)
        assert found is not None
        agrees(found, gradient * constant)


@pytest.mark.parametrize("is_same", [True, False])
@pytest.mark.parametrize("shape", [(3, 24, 41, 37), (3, 5, 2, 3)])
def test_terms_of_an_image_do_not_depend_on_its_batch(shape: tuple[int, ...], is_same: bool) -> None:
    gradient, constant = last(*shape, seed=42), last(*(1, shape[1], 1, 1) if is_same else shape, seed=43)
    found = kernels.terms(gradient, constant)
    assert found is not None
    for n in range(len(gradient)):
        alone = kernels.terms(gradient[n : n + 1], constant if is_same else constant[n : n + 1])
        assert alone is not None
        for one, all_of_them in zip(alone, found, strict=True):
            assert torch.equal(one[0], all_of_them[n])


@pytest.mark.parametrize("cap", [6.0, 0.5, float("inf")])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_clamps_way_back_and_its_terms(shape: tuple[int, ...], cap: float) -> None:
    gradient, bias = last(*shape, seed=3), torch.randn(shape[1], generator=torch.Generator().manual_seed(4))
    clipped = last(*shape, seed=5, scale=4.0).clamp(0, cap)
    found = kernels.clip_terms(gradient, clipped, cap, bias)
    assert found is not None
    passed = torch.ops.aten.hardtanh_backward(gradient, clipped, 0.0, cap)
    assert torch.equal(found[0], passed)
    agrees(found[1], torch.where(clipped >= cap, gradient, torch.zeros_like(gradient)))
    agrees(found[2], passed * bias.view(1, -1, 1, 1))


def test_a_gradient_of_another_layout_is_put_in_order() -> None:
    clipped = last(2, 3, 4, 5, seed=6).clamp(0, 1)
    spread = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(7)).expand(2, 3, 4, 5)
    found = kernels.clip_terms(spread, clipped, 1.0, torch.ones(3))
    assert found is not None
    assert torch.equal(found[0], torch.ops.aten.hardtanh_backward(spread.contiguous(), clipped, 0.0, 1.0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bounds", [(0.0, 6.0), (0.0, float("inf")), (-1.0, 1.0)])
@pytest.mark.parametrize("baselines", ["one", "each"])
def test_slopes_from_a_baseline(shape: tuple[int, ...], bounds: tuple[float, float], baselines: str) -> None:
    z, slope = last(*shape, seed=8, scale=4.0), torch.empty(shape).to(memory_format=torch.channels_last)
    z0 = last(*(1 if baselines == "one" else shape[0], *shape[1:]), seed=9, scale=4.0)
    # No change at all at one place of every image: the derivative counts.
    z[:, 0, 0, 0] = z0[:, 0, 0, 0]
    out, out0 = z.clamp(*bounds), z0.clamp(*bounds)
    derivative = ((z0 > bounds[0]) & (z0 < bounds[1])).float().expand_as(z)
    wanted = torch.where(z == z0, derivative, (out - out0) / (z - z0))
    assert kernels.clip_slopes(z, bounds, z0, slope)
    assert torch.equal(z, out)
    assert torch.equal(slope, wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cap", [6.0, float("inf")])
def test_shares_of_what_a_clamp_leaves(shape: tuple[int, ...], cap: float) -> None:
    value, whole = last(*shape, seed=10, scale=4.0), last(*shape, seed=11).abs()
    out = value.clamp(0, cap)
    wanted = out / (whole + 1e-9)
    assert kernels.clip_shares(value, whole, cap, 1e-9)
    assert torch.equal(value, out)
    torch.testing.assert_close(whole, wanted, rtol=2e-7, atol=0)


def test_what_is_no_number_stays_none() -> None:
    gradient = last(2, 4, 3, 3, seed=12)
    gradient[1, 2, 0, 1] = torch.nan
    found = kernels.clip_terms(gradient, torch.ones_like(gradient), 6.0, torch.ones(4))
    assert found is not None
    score, drawn = found[2]
    assert score.isnan().tolist() == [False, True]
    assert drawn[0].isfinite().all()
    assert drawn[1, 0, 1].isnan()


def test_activations_that_are_no_number_are_not_hidden() -> None:
    z = last(2, 4, 3, 3, seed=26)
    z[1, 2, 0, 1] = torch.nan
    missing = z.isnan()
    slope, value, whole = torch.empty_like(z), z.clone(), torch.ones_like(z)
    assert kernels.clip_slopes(z, (0.0, 6.0), last(1, 4, 3, 3, seed=27), slope)
    assert kernels.clip_shares(value, whole, 6.0, 1e-9)
    for found in (z, slope, value, whole):
        assert torch.equal(found.isnan(), missing)


def test_what_other_operators_have_to_do_is_left_alone() -> None:
    z = last(2, 4, 3, 3, seed=13)
    for other in (z.double(), z.contiguous(), z.flatten(1), z[:0], z.to("meta")):
        before = other.clone()
        assert kernels.terms(other, other) is None
        assert kernels.clip_terms(other, other, 6.0, torch.ones(4)) is None
        assert not kernels.clip_slopes(other, (0.0, 6.0), other, torch.empty_like(other))
        assert not kernels.clip_shares(other, other.clone(), 6.0, 1e-9)
        assert other.is_meta or torch.equal(other, before)


def test_what_does_not_fit_together_is_left_alone() -> None:
    z, less = last(2, 4, 3, 3, seed=28), last(2, 4, 3, 2, seed=29)
    assert kernels.terms(z, less) is None
    assert kernels.clip_terms(z, less, 6.0, torch.ones(4)) is None
    assert kernels.clip_terms(z, z, 6.0, torch.ones(3)) is None
    assert not kernels.clip_slopes(z, (0.0, 6.0), less, torch.empty_like(z))
    assert not kernels.clip_slopes(z, (0.0, 6.0), z, less)
    assert not kernels.clip_shares(z, less, 6.0, 1e-9)
    flat, totals = torch.rand(2, 9), torch.ones(2, 1)
    for given in ((flat, flat[:, :8], totals, flat), (flat, flat, totals[:1], flat), (flat, flat, flat, flat)):
        parts = [part.contiguous() for part in given]
        assert kernels.advance(*parts, (0.0, 1.0, 0.5), arrived=0.0, group=2) is None
    even = torch.ones(9)
    norm = kernels.norms(flat[:, None], flat[:, None], 1e-3, even, even)
    assert norm is not None
    both, out0, scale = norm[1]
    for bad in (scale[:1], scale.expand(2, 1, 9), torch.ones(2, 2, 1)[:, ::2]):
        assert kernels.norms_back(flat[:, None], both, out0, bad, even) is None
    assert kernels.norms_back(flat[:, None], both, out0, scale, even[:8]) is None


@pytest.mark.parametrize("images", [1, 8])
def test_many_threads_are_left_to_other_operators_however_many_images(
    images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = last(images, 4, 3, 3, seed=14)
    for threads, is_done in ((4, True), (5, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert (kernels.terms(z, z) is not None) == is_done
        assert (kernels.terms(z, z[:1, :, :1, :1]) is not None) == is_done


def test_a_bias_may_be_part_of_a_larger_tensor() -> None:
    z, bias = last(2, 4, 3, 3, seed=35), torch.arange(8.0, requires_grad=True)[::2]
    found = kernels.clip_terms(z, z.clamp(0, 6), 6.0, bias)
    assert found is not None
    agrees(found[2], found[0] * bias.detach().view(1, -1, 1, 1))


def test_autograd_sees_what_is_overwritten() -> None:
    leaf = last(2, 4, 3, 3, seed=15).requires_grad_(True)
    z = leaf * 1.0
    squared = z * z
    with torch.no_grad():
        assert kernels.clip_slopes(z, (0.0, 6.0), last(1, 4, 3, 3, seed=16), torch.empty_like(z))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


@pytest.mark.parametrize("baselines", ["one", "each"])
@pytest.mark.parametrize(
    ("shape", "is_last"), [((3, 5, 7), False), ((2, 8, 4, 3), False), ((2, 8, 4, 3), True), ((4, 6), False)]
)
def test_slopes_of_a_curve(shape: tuple[int, ...], is_last: bool, baselines: str) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(18))
    z0 = torch.randn(1 if baselines == "one" else shape[0], *shape[1:], generator=torch.Generator().manual_seed(19))
    z.view(len(z), -1)[:, ::3] = z0.view(len(z0), -1)[:, ::3] + 1e-4
    if is_last:
        z, z0 = z.to(memory_format=torch.channels_last), z0.to(memory_format=torch.channels_last)
    out, out0 = z.tanh(), z0.tanh()
    found = kernels.slopes(z, out, z0, out0, 0.005, lambda half_way: 1 - half_way.tanh().square())
    assert found is not None
    exact, exact0 = z.double(), z0.double()
    wanted = (exact.tanh() - exact0.tanh()) / (exact - exact0)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5)
    near = ((z - z0).abs() < 0.005).nonzero(as_tuple=True)
    assert len(near[0]) >= z.numel() // 3
    torch.testing.assert_close(found[near].double(), wanted[near], rtol=3e-7, atol=3e-7)


def test_slopes_of_a_curve_where_they_cannot_be_found() -> None:
    z = last(2, 4, 3, 3, seed=20)
    # As many channels as columns: laid out in either way it has the same number of rows of the same length.
    even = last(2, 3, 3, 3, seed=20)
    pairs = [(z.double(), z.double()), (z.to("meta"), z.to("meta")), (z, z[:, :1]), (z, z.contiguous()[0])]
    pairs += [(even, even.contiguous()), (even.contiguous(), even), (even.contiguous()[:1], even[:1])]
    for part, part0 in pairs:
        assert kernels.slopes(part, part, part0, part0, 0.1, torch.cos) is None
        assert kernels.slopes(part0, part, part0, part0, 0.1, torch.cos) is None


@pytest.mark.parametrize("baselines", ["one", "each"])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 4, 16), (1, 1, 33)])
def test_norms_and_their_way_back(shape: tuple[int, ...], baselines: str) -> None:
    z, gradient = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (21, 22))
    z0 = torch.randn(1 if baselines == "one" else shape[0], *shape[1:], generator=torch.Generator().manual_seed(23))
    weight, bias = (torch.randn(shape[-1], generator=torch.Generator().manual_seed(seed)) for seed in (40, 41))
    found = kernels.norms(z, z0, 1e-3, weight, bias)
    assert found is not None
    centred, centred0 = (part.double() - part.double().mean(-1, keepdim=True) for part in (z, z0))
    d, d0 = ((part.square().mean(-1, keepdim=True) + 1e-3).sqrt() for part in (centred, centred0))
    torch.testing.assert_close(found[0].double(), weight * centred / d + bias, rtol=1e-5, atol=1e-5)
    back = kernels.norms_back(gradient, *found[1], weight)
    assert back is not None
    gradient = weight * gradient.double()
    # The changes that are handed back add up to the change of the norm.
    change = (gradient * (centred / d - centred0 / d0)).sum(-1)
    torch.testing.assert_close((back.double() * (z.double() - z0.double())).sum(-1), change, rtol=1e-4, atol=1e-4)
    plain = gradient / d + (centred + centred0) / (-shape[-1] * d * (d + d0)) * (gradient * centred0 / d0).sum(
        -1, keepdim=True
    )
    torch.testing.assert_close(back.double(), plain - plain.mean(-1, keepdim=True), rtol=1e-5, atol=1e-5)


def test_norms_that_cannot_be_found() -> None:
    z = torch.randn(2, 3, 4, 5)
    for part, part0 in ((z.double(), z.double()), (z, z[:, :1]), (z.transpose(1, 3), z), (z.to("meta"), z.to("meta"))):
        assert kernels.norms(part, part0, 1e-5, part.new_ones(5), part.new_ones(5)) is None
    assert kernels.norms(z, z, 1e-5, torch.ones(5), torch.ones(4)) is None


class Small(nn.Module):
    """Convolutions with and without an activation between them, a skip, and both kinds of rectifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.deep = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.narrow, self.wide = nn.Conv2d(12, 5, 1), nn.Conv2d(5, 12, 1)
        self.cap, self.relu, self.head = nn.ReLU6(inplace=True), nn.ReLU(inplace=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cap(self.first(3 * x))
        x = x + self.relu(self.wide(self.narrow(self.cap(self.deep(x)))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("fraction", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("features", [1, 5, 5000])
def test_guided_paths_are_those_of_other_operators(
    features: int, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = torch.rand(3, features, generator=torch.Generator().manual_seed(24))
    length[:, ::5] = 0
    tables = torch.randn(6, 3, features, generator=torch.Generator().manual_seed(25)) * 1e-3
    tables[:, :, : features // 3] = tables[:, :, : features // 3].round(decimals=3)

    def shares() -> list[Tensor]:
        path = GuidedPath(length, steps=6, fraction=fraction, max_dist=0.1)
        return [path.advance(step, table).clone() for step, table in enumerate(tables)] + [path.share]

    with_loops = shares()
    monkeypatch.setattr(arrays, "is_free", lambda *tensors: False)
    for found, wanted in zip(with_loops, shares(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["full_grad", "deeplift", "lrp"])
def test_methods_give_the_same_with_and_without(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Small().to(memory_format=torch.channels_last)
    classifier = dataclasses.replace(classifier_of(net, size=16, classes=4), channels_last=True)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    used = []
    loops = [(compiled, "terms"), (compiled, "clip_terms"), (compiled, "clip_shares")]
    for place, name in [*loops, (compiled_rescaling, "clip_slopes")]:
        loop = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, loop=loop: (used.append(1), loop(*args)))

    def maps() -> engine.Explained:
        return engine.explain(classifier, x, method=method, digests=["a", "b", "c"])

    with_loops = maps()
    assert used
    monkeypatch.setattr(arrays, "is_free", lambda *tensors: False)
    used.clear()
    without = maps()
    assert not used
    scale = without.maps.abs().max().item()
    torch.testing.assert_close(with_loops.maps, without.maps, rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(with_loops.completeness, without.completeness, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dim", "is_last"), [((3, 4, 5, 2), -3, True), ((2, 5, 7), -1, False), ((4, 6), -1, False)]
)
def test_parts_of_either_sign_and_their_way_back(shape: tuple[int, ...], dim: int, is_last: bool) -> None:
    layout = torch.channels_last if is_last else torch.contiguous_format
    x = torch.randn(shape, generator=torch.Generator().manual_seed(30))
    x.view(-1)[::3] = 0
    x = x.contiguous(memory_format=layout)
    assert (x == 0).any()
    both = torch.cat([x, x], dim=dim).contiguous(memory_format=layout)
    gradient = torch.randn(both.shape, generator=torch.Generator().manual_seed(31)).contiguous(memory_format=layout)
    assert kernels.split(x, dim, both)
    assert torch.equal(both, torch.cat([x.clamp(min=0), x.clamp(max=0)], dim=dim))
    back = torch.empty_like(x)
    assert kernels.unite(both, gradient, dim, back)
    over, under = gradient.chunk(2, dim=dim)
    assert torch.equal(back, torch.where(x > 0, over, under))


def test_parts_of_what_is_no_number_or_infinite() -> None:
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf]])
    both, back = torch.empty(1, 6), torch.empty(1, 3)
    assert kernels.split(x, -1, both)
    expected = torch.tensor([[torch.nan, torch.inf, 0, torch.nan, 0, -torch.inf]])
    torch.testing.assert_close(both, expected, rtol=0, atol=0, equal_nan=True)
    assert kernels.unite(both, torch.arange(6.0)[None], -1, back)
    assert back.tolist() == [[0, 1, 5]]


def test_parts_along_what_does_not_come_last_are_left_alone() -> None:
    x = last(2, 4, 3, 3, seed=32)
    for part, dim in ((x, -1), (x, -2), (x.contiguous(), -3), (x.double(), -3)):
        both = torch.zeros_like(torch.cat([part, part], dim=dim))
        assert not kernels.split(part, dim, both)
        assert not kernels.unite(both, both, dim, torch.zeros_like(part))
        assert not both.any()
    assert not kernels.split(x, -3, torch.zeros_like(x))
    assert not kernels.unite(x, x, -3, torch.zeros_like(x))


def test_colours_between_levels_and_their_slope() -> None:
    levels = torch.randn(5, 2, 6, 3, 3, generator=torch.Generator().manual_seed(33))
    strength = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(34))
    # The ends, a level itself, and what rounding may leave beside them.
    strength[0, :5, 0] = torch.tensor([0.0, 1.0, 0.5, -1e-7, 1 + 1e-6])
    found = kernels.between(strength, levels)
    assert found is not None
    place = strength.double() * 4
    below = place.floor().clamp(0, 3)
    n, i, j = torch.meshgrid(torch.arange(2), torch.arange(6), torch.arange(3), indexing="ij")
    under, over = (levels.double()[below.long() + step, n, i, j] for step in (0, 1))
    torch.testing.assert_close(
        found[0].double(), torch.lerp(under, over, (place - below)[..., None]), rtol=0, atol=2e-6
    )
    torch.testing.assert_close(found[1].double(), over - under, rtol=0, atol=1e-6)
    gradient = torch.randn_like(found[1])
    sums = kernels.dots(gradient, found[1], 4.0)
    assert sums is not None
    torch.testing.assert_close(sums.double(), 4 * (gradient.double() * found[1]).sum(-1), rtol=0, atol=1e-5)
    for other, others in ((strength.double(), levels), (strength, levels[:1]), (strength[:, :5], levels)):
        assert kernels.between(other, others) is None
    assert kernels.dots(gradient, gradient[..., :2], 1.0) is None


def test_colours_of_what_is_no_share_read_no_foreign_memory() -> None:
    levels = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 1, 1, 5, 3).contiguous()
    strength = torch.tensor([[[torch.nan, torch.inf, -torch.inf, 1e30, -1e30]]])
    found = kernels.between(strength, levels)
    assert found is not None
    # Beyond the last level, and before the first, the nearest step goes on.
    torch.testing.assert_close(found[0][0, 0, :, 0], 3 * strength[0, 0], rtol=1e-6, atol=0, equal_nan=True)
    assert (found[1] == 1).all()


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize(
    ("shape", "is_last"), [((3, 5, 4, 7), True), ((3, 5, 4, 7), False), ((3, 33), False), ((4,), False)]
)
def test_moments_of_samples(shape: tuple[int, ...], is_last: bool, order: int) -> None:
    layout = torch.channels_last if is_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(38)
    samples = [torch.randn(shape, generator=generator).contiguous(memory_format=layout) for _ in range(9)]
    moments, counts = [torch.zeros_like(samples[0]) for _ in range(order)], torch.zeros(len(samples[0]))
    for sample in samples:
        counts += 1
        assert kernels.add_sample(sample, counts, *moments)
    exact = torch.stack(samples).double()
    torch.testing.assert_close(moments[0].double(), exact.mean(0), rtol=0, atol=1e-6)
    for power, sums in enumerate(moments[1:], start=2):
        torch.testing.assert_close(sums.double(), (exact - exact.mean(0)).pow(power).sum(0), rtol=0, atol=1e-4)


def test_moments_in_another_order_of_memory_are_left_alone() -> None:
    sample, zeros = last(2, 4, 3, 3, seed=39), torch.zeros(2, 4, 3, 3)
    counts = torch.ones(2)
    alike = torch.zeros_like(sample)
    for given in (
        (sample, counts, zeros, zeros), (sample, counts, alike, zeros), (sample, counts[:1], alike, alike),
        (sample, counts, alike[:1], alike), (sample.double(), counts, alike.double(), alike.double()),
        (sample, torch.ones(4)[::2], alike, alike),
    ):  # fmt: skip
        assert not kernels.add_sample(*given)
        assert not any(moment.any() for moment in given[2:])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_do_not_depend_on_the_threads(threads: int) -> None:
    z, z0, bias = last(5, 16, 5, 7, seed=36), last(1, 16, 5, 7, seed=37), torch.randn(16)
    length, totals, gradient = torch.rand(5, 700), torch.full((5, 1), 350.0), torch.randn(5, 700)

    def all_of_it() -> list[Tensor]:
        clipped, held, slope, share = z.clamp(0, 6), z.clone(), torch.empty_like(z), torch.zeros_like(length)
        passed, caps, biases = kernels.clip_terms(z, clipped, 6.0, bias)  # type: ignore[misc]
        both, whole, back = torch.empty(5, 32, 5, 7), z.abs(), torch.empty_like(z)
        both = both.to(memory_format=torch.channels_last)
        assert kernels.clip_slopes(held, (0.0, 6.0), z0, slope)
        assert kernels.split(z, -3, both)
        assert kernels.unite(both, both + 1, -3, back)
        assert kernels.clip_shares(z.clone(), whole, 6.0, 1e-9)
        normed = kernels.norms(z.contiguous(), z0.contiguous(), 1e-3, torch.randn(7), torch.randn(7))
        assert normed is not None
        found = [
            *(kernels.terms(z, z) or ()), passed, *caps, *biases, held, slope, both, back, whole, normed[0],
            *normed[1], kernels.norms_back(z.contiguous(), *normed[1], torch.ones(7)),
            kernels.dots(normed[0], normed[0], 2.0),
            kernels.advance(share, length, totals, gradient, (0.0, 1.0, 0.5), arrived=1e-6, group=50), share,
            *(kernels.between(torch.rand(1, 20, 5), torch.randn(3, 1, 20, 5, 3)) or ()),
        ]  # fmt: skip
        return [tensor for tensor in found if tensor is not None]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.manual_seed(0)
        expected = all_of_it()
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        found = all_of_it()
    finally:
        torch.set_num_threads(before)
    assert len(found) == len(expected) == 22
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_where_nothing_may_be_written_loops_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def nowhere(compiler: Callable[..., object]) -> Callable[..., object]:
        def compile_(*signature: object, **options: object) -> object:
            if options.get("cache"):
                refused.append(compiler)
                raise RuntimeError("cannot cache function: no locator available")
            return compiler(*signature, **options)

        return compile_

    compilers = [numba.njit, numba.cfunc]
    for compiler in compilers:
        monkeypatch.setattr(numba, compiler.__name__, nowhere(compiler))
    try:
        importlib.reload(compiled)
        z = last(2, 4, 3, 3, seed=17)
        found = kernels.terms(z, z)
        assert found is not None
        agrees(found, z * z)
        assert {*refused} == {*compilers}
    finally:
        monkeypatch.undo()
        importlib.reload(compiled)
