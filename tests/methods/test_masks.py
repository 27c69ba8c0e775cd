"""Optimised masks against naive float64 versions from the papers, and on nets whose answer is known."""

import copy
import math

import pytest
import torch
from torch import nn

from salviz import engine, methods
from salviz.methods.masks import machinery
from salviz.methods.masks.extremal import AREA_WEIGHT, AREAS, TEMPERATURE, SmoothMasks
from salviz.seeds import generators
from salviz.targets import ClassTarget
from salviz.work import Work
from tests.models import ToyNet, classifier_of, images, toy

LEVELS = 8


def explain(classifier, x, method, classes, output="logit", **parameters):
    return engine.explain(
        classifier, x, method=method, parameters=parameters,
        target=ClassTarget(torch.as_tensor(classes), output), digests=[str(i) for i in range(len(x))],
    )  # fmt: skip


# Plain loops from the papers. Only the network, the optimisers and autograd are torch's.


def naive_weights(cells: int, size: int, sigma: float, shift: float) -> list[list[float]]:
    """Shares of the cells in every pixel of an axis: linear interpolation, then a Gaussian, borders repeated."""
    table = []
    radius = math.ceil(4 * sigma)
    bell = {d: math.exp(-d * d / (2 * sigma * sigma)) if sigma else 1.0 for d in range(-radius, radius + 1)}
    for pixel in range(size):
        row = [0.0] * cells
        for d, weight in bell.items():
            place = (pixel + 0.5 + shift + d) * cells / size - 0.5
            place = min(max(place, 0.0), cells - 1.0)
            left = min(int(place), cells - 2)
            row[left] += weight / sum(bell.values()) * (1 - (place - left))
            row[left + 1] += weight / sum(bell.values()) * (place - left)
        table.append(row)
    return table


def naive_upsample(cells, size, sigma=0.0, shifts=(0.0, 0.0)):
    rows = naive_weights(cells.shape[0], size, sigma, shifts[0])
    columns = naive_weights(cells.shape[1], size, sigma, shifts[1])
    pixels = []
    for i in range(size):
        for j in range(size):
            share = torch.tensor([[a * b for b in columns[j]] for a in rows[i]], dtype=torch.float64)
            pixels.append((share * cells).sum())
    return torch.stack(pixels).view(size, size)


def naive_levels(x, sigma):
    """The image under Gaussians of 0, 1/7, ... 7/7 of `sigma`, weights normalised over the pixels there are."""
    size = x.shape[1]
    grid = torch.arange(size, dtype=torch.float64)
    levels = [x]
    for level in range(1, LEVELS):
        width = sigma * level / (LEVELS - 1)
        out = torch.empty_like(x)
        for i in range(size):
            for j in range(size):
                bell = torch.exp(-((grid[:, None] - i) ** 2 + (grid - j) ** 2) / (2 * width**2))
                out[:, i, j] = (bell * x).sum(dim=(1, 2)) / bell.sum()
        levels.append(out)
    return levels


def naive_blurred(levels, strength):
    size = levels[0].shape[1]
    pixels = []
    for i in range(size):
        for j in range(size):
            place = strength[i, j] * (LEVELS - 1)
            k = min(int(place.detach()), LEVELS - 2)
            low, high = levels[k][:, i, j], levels[k + 1][:, i, j]
            pixels.append(low + (place - k) * (high - low))
    return torch.stack(pixels, dim=1).view(3, size, size)


def naive_meaningful(net, x, c, draws, *, iterations, grid, smooth, sigma, jitter, size_weight, tv_weight, tv_power):
    size = x.shape[1]
    levels = naive_levels(x, sigma)

    def probability(mask):
        return net(naive_blurred(levels, mask)[None]).softmax(1)[0, c]

    def circle(radius):
        mask = torch.zeros(grid, grid, dtype=torch.float64)
        for i in range(grid):
            for j in range(grid):
                mask[i, j] = float(math.hypot(i + 0.5 - grid / 2, j + 0.5 - grid / 2) <= radius)
        return mask

    whole = net(x[None]).softmax(1)[0, c]
    full = probability(torch.ones(size, size, dtype=torch.float64))
    radius = 1
    while whole - probability(naive_upsample(circle(radius), size, smooth)) < 0.99 * (whole - full):
        radius += 1
    mask = circle(radius).requires_grad_()
    adam = torch.optim.Adam([mask], lr=0.1)
    for step in range(iterations):
        adam.zero_grad()
        shifts = [float(d) - (jitter - 1) / 2 for d in draws[step]]
        loss = probability(naive_upsample(mask, size, smooth, shifts))
        for i in range(grid):
            for j in range(grid):
                loss = loss + size_weight * mask[i, j]
                if i + 1 < grid:
                    loss = loss + tv_weight * (mask[i + 1, j] - mask[i, j]).abs() ** tv_power
                if j + 1 < grid:
                    loss = loss + tv_weight * (mask[i, j + 1] - mask[i, j]).abs() ** tv_power
        loss.backward()
        adam.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
    return naive_upsample(mask.detach(), size, smooth), radius


def naive_smooth_maximum(cells, step, sigma, reach):
    count = cells.shape[0]
    fold = lambda i: -1 - i if i < 0 else 2 * count - 1 - i if i >= count else i  # noqa: E731
    mask = []
    for i in range(count):
        for j in range(count):
            above = below = 0.0
            for di in range(-reach, reach + 1):
                for dj in range(-reach, reach + 1):
                    bell = math.exp(-(max(0.0, math.hypot(di, dj) * step / sigma - 1) ** 2) / 4)
                    value = bell * cells[fold(i + di), fold(j + dj)]
                    above = above + value * (value / TEMPERATURE).exp()
                    below = below + (value / TEMPERATURE).exp()
            mask.append(above / below)
    return torch.stack(mask).view(count, count)


def naive_area_loss(mask, area):
    values, _ = mask.flatten().sort()
    count = len(values)
    wanted = [min(1.0, max(0.0, rank + 1 - (1 - area) * count)) for rank in range(count)]
    start = 0
    while start < count:  # equal values share what their ranks ask for
        stop = start + 1
        while stop < count and float((values[stop] - values[stop - 1]).detach()) <= 1e-12:
            stop += 1
        wanted[start:stop] = [sum(wanted[start:stop]) / (stop - start)] * (stop - start)
        start = stop
    return sum((value - want) ** 2 for value, want in zip(values, wanted, strict=True)) / count


def naive_extremal(net, x, c, *, area, variant, iterations, stride, smooth, sigma, reach):
    size = x.shape[1]
    levels = naive_levels(x, sigma)
    cells = torch.full((size // stride, size // stride), 0.5, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([cells], lr=0.01, momentum=0.9)
    for step in range(iterations):
        sgd.zero_grad()
        mask = naive_smooth_maximum(cells, stride, smooth, reach)
        pixels = naive_upsample(mask, size)
        weight = AREA_WEIGHT * (1 if step < iterations / 3 else 2 if step < 2 * iterations / 3 else 4)
        if variant == "preserve":
            loss = -net(naive_blurred(levels, 1 - pixels)[None])[0, c]
        else:
            loss = net(naive_blurred(levels, pixels)[None])[0, c]
        (loss + weight * naive_area_loss(mask, area)).backward()
        sgd.step()
        with torch.no_grad():
            cells.clamp_(0, 1)
    return naive_upsample(naive_smooth_maximum(cells.detach(), stride, smooth, reach), size)


def strong_toy(size: int):
    """The toy net with logits as far apart as those of a trained net, against which the prices are set."""
    net = ToyNet()
    net.linear.weight.data *= 20
    return classifier_of(net, size=size, classes=10)


def double_toy():
    classifier = strong_toy(16)
    classifier.module.double()
    return classifier


def run(classifier, x, method, classes, **parameters):
    """The method itself, without the engine, which takes float32 images."""
    found = methods.get(method)
    settings = found.card.check_parameters(parameters)
    streams = generators(0, [str(i) for i in range(len(x))], method)
    return found.explain(
        classifier, x, ClassTarget(torch.tensor(classes)), generators=streams, work=Work(batch_size=2), **settings
    ).maps


MEANINGFUL = {
    "iterations": 4, "grid": 4, "smooth": 1.0, "sigma": 3.0, "jitter": 3,
    "size_weight": 0.01, "tv_weight": 0.1, "tv_power": 3.0,
}  # fmt: skip


def test_meaningful_perturbation_equals_a_naive_one() -> None:
    classifier, x = double_toy(), images(3, 16).double()
    classes = classifier.module(x).argmax(1).tolist()
    maps = run(classifier, x, "meaningful_perturbation", classes, **MEANINGFUL)
    radii = set()
    for i, (image, c) in enumerate(zip(x, classes, strict=True)):
        generator = generators(0, [str(i)], "meaningful_perturbation")[0]
        draws = torch.randint(3, (4, 2), generator=generator).tolist()
        naive, radius = naive_meaningful(classifier.module, image, c, draws, **MEANINGFUL)
        radii.add(radius)
        assert naive.std() > 0.02
        torch.testing.assert_close(maps[i], naive, atol=1e-9, rtol=0)
    assert len(radii) > 1, "the images should need different circles"
    single = classifier_of(copy.deepcopy(classifier.module).float(), size=16, classes=10)
    rounded = run(single, x.float(), "meaningful_perturbation", classes, **MEANINGFUL)
    torch.testing.assert_close(rounded.double(), maps, atol=1e-3, rtol=0)


@pytest.mark.parametrize("variant", ["preserve", "delete"])
def test_extremal_perturbation_equals_a_naive_one(variant: str) -> None:
    classifier, x = double_toy(), images(2, 16).double()
    settings = {"variant": variant, "iterations": 6, "stride": 4, "smooth": 2.5, "sigma": 3.0}
    classes = classifier.module(x).argmax(1).tolist()
    maps = run(classifier, x, "extremal_perturbation", classes, area=0.3, **settings)
    for i, (image, c) in enumerate(zip(x, classes, strict=True)):
        naive = naive_extremal(classifier.module, image, c, area=0.3, reach=2, **settings)
        assert naive.std() > 0.01
        torch.testing.assert_close(maps[i], naive, atol=1e-9, rtol=0)


def test_the_sum_over_areas_is_the_sum_of_the_masks_of_each() -> None:
    x = images(3, 32)
    settings = {"iterations": 4, "stride": 4, "smooth": 4.0, "sigma": 4.0}
    total = explain(toy(), x, "extremal_perturbation", [1, 2, 3], areas="sum", **settings).maps
    single = [explain(toy(), x, "extremal_perturbation", [1, 2, 3], area=a, **settings).maps for a in AREAS]
    torch.testing.assert_close(total, sum(single), atol=1e-5, rtol=0)


# Nets whose answer is known.

TOP, LEFT, SIDE = 12, 24, 32
"""A quarter of the 64 x 64 picture, away from the centre, on the lattice of 4 pixels."""


class Square(nn.Module):
    """Class 0 is how much of the picture's texture is left in a square; class 1 is nothing."""

    def __init__(self, texture: torch.Tensor) -> None:
        super().__init__()
        seen = torch.zeros(64, 64)
        seen[TOP : TOP + SIDE, LEFT : LEFT + SIDE] = 1
        self.weight = nn.Parameter(texture * seen / seen.sum() / 3)

    def forward(self, x):
        score = 10 * (x * self.weight).sum(dim=(1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def square_case():
    texture = torch.randint(2, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return classifier_of(Square(texture[0]), size=64, classes=2), texture


def overlap(mask: torch.Tensor, threshold: float = 0.5) -> float:
    truth = torch.zeros(64, 64, dtype=torch.bool)
    truth[TOP : TOP + SIDE, LEFT : LEFT + SIDE] = True
    found = mask > threshold
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("variant", ["preserve", "delete"])
def test_extremal_perturbation_finds_the_only_square_that_matters(variant: str) -> None:
    classifier, x = square_case()
    settings = {"area": 0.25, "variant": variant, "stride": 4, "sigma": 4.0, "iterations": 100}
    sharp = explain(classifier, x, "extremal_perturbation", [0], smooth=0.5, **settings).maps[0]
    # A bell narrower than a cell makes the square itself a mask of this area: the exact optimum. Only its four
    # corner pixels, read between cells, are below a half: (5/8)^2.
    assert overlap(sharp) == (SIDE**2 - 4) / SIDE**2
    inside = sharp[TOP + 2 : TOP + SIDE - 2, LEFT + 2 : LEFT + SIDE - 2]
    torch.testing.assert_close(inside, torch.ones_like(inside), atol=0.01, rtol=0)
    assert sharp.mean() == pytest.approx(0.25, abs=0.005)
    # Round corners of a smooth mask cost a little.
    smooth = explain(classifier, x, "extremal_perturbation", [0], smooth=3.0, **settings).maps[0]
    assert overlap(smooth) > 0.85


def test_meaningful_perturbation_finds_the_only_square_that_matters() -> None:
    classifier, x = square_case()
    found = explain(
        classifier, x, "meaningful_perturbation", [0], output="target", grid=16, smooth=1.0, sigma=4.0, jitter=1,
        size_weight=1e-3, tv_weight=0.0, iterations=150,
    )  # fmt: skip
    # Half of the strongest blur wipes the texture out already, and more would only cost: inside lies about that.
    inside = found.maps[0][TOP + 4 : TOP + SIDE - 4, LEFT + 4 : LEFT + SIDE - 4]
    assert inside.min() > 0.3
    assert overlap(found.maps[0], float(inside.median()) / 2) > 0.95
    outside = found.maps[0].clone()
    outside[TOP - 8 : TOP + SIDE + 8, LEFT - 8 : LEFT + SIDE + 8] = 0
    assert outside.max() == 0


def test_the_price_of_size_and_of_slopes_acts() -> None:
    x, settings = images(2, 32), {"grid": 8, "smooth": 1.0, "sigma": 4.0, "iterations": 60, "start": "all"}
    found = {
        key: explain(toy(), x, "meaningful_perturbation", [1, 2], **settings, **prices).maps
        for key, prices in {
            "free": {"size_weight": 0.0, "tv_weight": 0.0},
            "small": {"size_weight": 1.0, "tv_weight": 0.0},
            "flat": {"size_weight": 1e-3, "tv_weight": 10.0},
        }.items()
    }
    slopes = {key: machinery.total_variation(maps, 3.0) for key, maps in found.items()}
    assert found["small"].abs().max() == 0, "a price above any gain hides nothing"
    assert (slopes["flat"] < 0.1 * slopes["free"]).all()
    assert (found["free"].mean(dim=(1, 2)) > 0.1).all()


@pytest.mark.parametrize("variant", ["preserve", "delete"])
def test_hardly_a_shifted_copy_of_the_extremal_mask_does_better(variant: str) -> None:
    """All copies have the same shape and area: only the place differs."""
    classifier, x = strong_toy(32), images(3, 32)
    c = classifier.predict(x).argmax(1)
    settings = {"area": 0.2, "variant": variant, "stride": 4, "smooth": 0.5, "sigma": 6.0, "iterations": 100}
    maps = explain(classifier, x, "extremal_perturbation", c, **settings).maps
    pyramid = machinery.BlurPyramid(x, 6.0)

    def scores(mask):
        changed = pyramid.masked_in(mask) if variant == "preserve" else pyramid.masked_out(mask)
        return classifier.predict(changed)[range(3), c]

    best = scores(maps)
    others = torch.stack([
        scores(maps.roll((down, right), dims=(1, 2)))
        for down in range(0, 32, 4) for right in range(0, 32, 4) if (down, right) != (0, 0)
    ])  # fmt: skip
    is_worse = others < best if variant == "preserve" else others > best
    assert is_worse.float().mean(dim=0).min() > 0.95, is_worse.float().mean(dim=0)


@pytest.mark.parametrize("area", [0.05, 0.2, 0.4, 0.8])
def test_the_area_is_kept(area: float) -> None:
    """Exactly by sharp masks; the soft edges of smooth ones can shift it by some hundredths."""
    found = explain(
        strong_toy(48), images(2, 48), "extremal_perturbation", [1, 2], area=area, stride=3, smooth=0.5, sigma=6.0,
        iterations=100,
    ).maps  # fmt: skip
    torch.testing.assert_close(found.mean(dim=(1, 2)), torch.full((2,), area), atol=0.01, rtol=0)


def test_nothing_to_tell_apart_gives_a_flat_mask() -> None:
    """On an even image no place is better than another: neither border, nor corner, nor the order in memory."""
    found = explain(
        toy(), torch.full((1, 3, 32, 32), 0.7), "extremal_perturbation", [1], iterations=50, stride=4, smooth=4.0
    )
    assert found.is_flat.all()
    # Twice the distance between sorted and wanted values pulls every cell alike, so the mask's level is the area.
    assert found.maps.mean() == pytest.approx(0.1, abs=0.02)


# The pieces.


def test_the_area_loss_is_the_papers_where_no_values_are_equal() -> None:
    mask = torch.rand(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for area in (0.1, 0.25, 0.975):
        ones = round(area * 40)
        wanted = torch.cat([torch.zeros(40 - ones), torch.ones(ones)]).double()
        expected = (mask.flatten(1).sort(dim=1).values - wanted).square().mean(1)
        found = machinery.area_loss(mask, torch.full((3,), area, dtype=torch.float64))
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    # Equal values: all six places are pulled to a third, none is preferred.
    even = torch.full((1, 2, 3), 0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(machinery.area_loss(even, torch.tensor([1 / 3]).double()).sum(), even)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2 * (0.5 - 1 / 3) / 6), atol=1e-7, rtol=0)
    assert machinery.area_loss(torch.ones(1, 1, 1), torch.ones(1)) == 0


def test_the_pyramid_is_exact_at_its_levels() -> None:
    x = images(2, 24).double()
    pyramid = machinery.BlurPyramid(x, 7.0)
    everywhere = torch.ones(2, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(pyramid.masked_in(everywhere), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(pyramid.masked_out(0 * everywhere), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(pyramid.masked_out(everywhere), machinery.blur(x, 7.0), atol=1e-12, rtol=0)
    torch.testing.assert_close(pyramid.masked_in(everywhere * 4 / 7), machinery.blur(x, 3.0), atol=1e-12, rtol=0)
    # A flat colour stays, up to the border.
    flat = torch.full((1, 3, 9, 13), 0.3, dtype=torch.float64)
    torch.testing.assert_close(machinery.blur(flat, 20.0), flat, atol=1e-12, rtol=0)


def test_upsampling_moves_the_mask_by_whole_and_half_pixels() -> None:
    still = machinery.upsampling(6, 48, 2.0)
    torch.testing.assert_close(still.sum(1), torch.ones(48, dtype=torch.float64))
    torch.testing.assert_close(still, still.flip(0, 1))
    torch.testing.assert_close(machinery.upsampling(6, 48, 2.0, 3.0)[:-3], still[3:], atol=1e-12, rtol=0)
    half = machinery.upsampling(6, 48, 2.0, 0.5)
    torch.testing.assert_close(half, machinery.upsampling(6, 48, 2.0, -0.5).flip(0, 1), atol=1e-12, rtol=0)
    bilinear = nn.functional.interpolate(torch.eye(6).view(1, 6, 6), size=48, mode="linear")[0].T
    torch.testing.assert_close(machinery.upsampling(6, 48).float(), bilinear, atol=1e-6, rtol=0)


def test_one_cell_makes_one_round_spot() -> None:
    masks = SmoothMasks((224, 224), 7, 7.0, torch.zeros(1, dtype=torch.float64))
    cells = torch.zeros(1, 32, 32, dtype=torch.float64)
    cells[0, 16, 16] = 1
    spot = masks.at_lattice(cells)[0]
    assert spot[16, 16] == pytest.approx(1, abs=1e-6)
    assert spot[16, 17] == pytest.approx(1, abs=1e-6), "the top is flat"
    torch.testing.assert_close(spot, spot.T)
    assert spot.mean() < AREAS[0], "the smallest area must be possible"
    sums = masks.at_lattice(torch.full((1, 32, 32), 0.5, dtype=torch.float64))
    assert sums.amax() - sums.amin() < 1e-12


@pytest.mark.parametrize("method", ["meaningful_perturbation", "extremal_perturbation"])
def test_a_mask_does_not_depend_on_the_others_of_its_batch(method: str) -> None:
    classifier, x = toy(), images(3, 32)
    settings = {"iterations": 15, "smooth": 3.0, "sigma": 5.0}
    settings |= {"grid": 8} if method == "meaningful_perturbation" else {"stride": 4, "areas": "sum"}
    parts = {
        size: engine.explain(
            classifier, x, method=method, parameters=settings, digests=list("abc"), batch_size=size,
            target=ClassTarget(torch.arange(3)),
        ).maps
        for size in (1, 2, 64)
    }  # fmt: skip
    torch.testing.assert_close(parts[1], parts[64], atol=1e-4, rtol=0)
    torch.testing.assert_close(parts[2], parts[64], atol=1e-4, rtol=0)


def test_passes_are_exact() -> None:
    size = (224, 224)
    meaningful, extremal = (methods.get(m).card for m in ("meaningful_perturbation", "extremal_perturbation"))
    # 20 circles on a grid of 28: half its diagonal is 19.8 cells.
    assert meaningful.passes(meaningful.check_parameters({}), size) == 2 * 300 + 20
    assert meaningful.passes(meaningful.check_parameters({"start": "all"}), size) == 2 * 300
    assert extremal.passes(extremal.check_parameters({}), size) == 2 * 800
    assert extremal.passes(extremal.check_parameters({"areas": "sum", "iterations": 100}), size) == 2 * 100 * 7
