"""SSIM and rank correlation: the paper's own numbers, scikit-image and scipy live, masks, the undefined."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from scipy.stats import pearsonr, rankdata, spearmanr
from skimage.metrics import structural_similarity

from salviz.similarity import pearson, spearman, ssim
from salviz.similarity.correlation import _ranks
from salviz.transforms import Validity, Variant, default_variants, realign
from tests.golden.cose_inputs import blobs, golden, pair, shift0, variant

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-6}
DTYPES = [torch.float64, torch.float32]


def in_both_precisions(section: str) -> list[tuple[str, torch.dtype]]:
    """Names and dtypes; what the released code computed in single precision is compared in it alone."""
    return [
        (name, dtype)
        for name in sorted(golden()[section])
        for dtype in DTYPES
        if dtype == torch.float32 or "float32" not in name
    ]


# In single precision 1 - x has ties that x has not: the maps differ, not the ranking.
INEXACT = {("blobs1_complement", torch.float32)}


def one(array, dtype=torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None].to(dtype)


def agrees(found: torch.Tensor, expected: float | None, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert found.item() == pytest.approx(
        math.nan if expected is None else expected, rel=0, abs=TOLERANCE[dtype], nan_ok=True
    )


@pytest.mark.parametrize(("name", "dtype"), in_both_precisions("pairs"))
def test_pairs_as_released(name, dtype):
    case, n = name.split("@")
    a, b = (one(m, dtype) for m in pair(case, int(n)))
    expected = golden()["pairs"][name]
    agrees(ssim(a, b), expected["ssim"], dtype)
    agrees(ssim(a, b, data_range=2.0), expected["ssim_data_range_2"], dtype)
    if (case, dtype) not in INEXACT:
        agrees(spearman(a, b), expected["spearman"], dtype)


@pytest.mark.parametrize(("name", "dtype"), in_both_precisions("masked"))
def test_masked_as_released(name, dtype):
    n = int(name.split("@")[1])
    mask = torch.zeros(1, n, n, dtype=torch.bool)
    mask[:, n // 4 :, : n // 3] = True
    a, b = one(blobs(1, n), dtype), one(blobs(2, n), dtype)
    expected = golden()["masked"][name]
    agrees(ssim(a, b, valid=mask), expected["ssim"], dtype)
    agrees(ssim(a, b, valid=mask, data_range=2.0), expected["ssim_data_range_2"], dtype)
    agrees(spearman(a, b, valid=mask), expected["spearman"], dtype)


@pytest.mark.parametrize(("name", "dtype"), in_both_precisions("realign"))
def test_realigned_as_released(name, dtype):
    case, n = name.split("@")
    first = blobs(1, int(n))
    if case.startswith("equivariant"):
        v, augmented = equivariant(case, first)
    else:
        graded = "_L" in case
        v = variant("_".join(case.split("_")[: 3 if graded else 1]))
        augmented = blobs(2, int(n)) if "blobs2" in case else first
    aligned, valid = realign(one(augmented, dtype), [v])
    expected = golden()["realign"][name]
    agrees(ssim(one(first, dtype), aligned, valid=valid), expected["ssim"], dtype)
    agrees(spearman(one(first, dtype), aligned, valid=valid), expected["spearman"], dtype)
    if "ssim_data_range_2" in expected:
        agrees(
            ssim(one(first, dtype), aligned, valid=valid, data_range=2.0),
            expected["ssim_data_range_2"],
            dtype,
        )


def equivariant(case: str, source: np.ndarray) -> tuple[Variant, np.ndarray]:
    """The variant, and the map of a method that follows it exactly."""
    _, operation, *rest = case.split("_")
    amount = int(rest[0]) if rest else 0
    return {
        "TranslateX": lambda: (Variant("translate_x", amount), shift0(source, amount, 0)),
        "TranslateY": lambda: (Variant("translate_y", amount), shift0(source, 0, amount)),
        "Rotate": lambda: (Variant("rotate", amount), np.rot90(source, amount // 90)),
        "FlipUD": lambda: (Variant("flip_ud"), np.flipud(source)),
    }[operation]()


def released_ssim(a, b, mask, data_range):
    mean, local = structural_similarity(a, b, win_size=5, full=True, data_range=data_range)
    if mask is None:
        return mean
    kept = binary_erosion(mask, np.ones((5, 5)), border_value=1)
    return local[kept].mean() if kept.any() else math.nan


@pytest.mark.parametrize(("height", "width"), [(5, 5), (6, 9), (17, 30), (41, 23)])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e6])
def test_mixed_batch_as_scikit_image(height, width, scale):
    rs = np.random.RandomState(height)
    a, b = scale * rs.standard_normal((2, 8, height, width))
    b[:4] += a[:4]
    b[3] = np.round(b[3] / scale) * scale
    pixels = rs.random_sample((8, height, width)) < 0.97
    pixels[5, :, 2:] = False
    pixels[6] = True
    masked = np.arange(8) % 2 == 0
    masked[5] = True
    valid = Validity(torch.from_numpy(pixels), torch.from_numpy(masked))
    for data_range in ("pair", 2.0 * scale):
        found = ssim(torch.from_numpy(a), torch.from_numpy(b), valid=valid, data_range=data_range)
        for i in range(8):
            span = max(np.ptp(a[i]), np.ptp(b[i])) if data_range == "pair" else data_range
            expected = released_ssim(a[i], b[i], pixels[i] if masked[i] else None, span)
            assert found[i].item() == pytest.approx(expected, rel=0, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_correlations_as_scipy(dtype):
    rs = np.random.RandomState(0)
    a, b = rs.standard_normal((2, 9, 13, 21))
    b[:5] -= 0.7 * a[:5]
    a[2:6], b[1:4] = a[2:6].round(), b[1:4].round()
    b[6] = np.maximum(b[6], 0)
    a, b = (torch.from_numpy(m).to(dtype) for m in (a, b))
    pixels = torch.from_numpy(rs.random_sample((9, 13, 21)) < 0.6)
    pixels[8] = True
    ranks, straight = spearman(a, b, valid=pixels), pearson(a, b, valid=pixels)
    for i in range(9):
        x, y = a[i][pixels[i]].double().numpy(), b[i][pixels[i]].double().numpy()
        agrees(ranks[i], spearmanr(x, y).correlation, dtype)
        agrees(straight[i], pearsonr(x, y).statistic, dtype)


def test_ranks_as_scipy():
    rs = np.random.RandomState(1)
    maps = torch.from_numpy(rs.randint(0, 9, size=(5, 11, 7)).astype(np.float64))
    kept = torch.from_numpy(rs.random_sample((5, 11, 7)) < 0.7)
    found = _ranks(maps, kept)
    for m, k, r in zip(maps, kept, found, strict=True):
        expected = rankdata(m[k].numpy())
        np.testing.assert_allclose(r[k].numpy() * len(expected) + (len(expected) + 1) / 2, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_is_one(dtype):
    maps = torch.stack([one(blobs(seed, 40), dtype)[0] for seed in range(4)]) * 1e-12
    for measure in (ssim, spearman, pearson):
        assert torch.allclose(measure(maps, maps), torch.ones(4, dtype=dtype), atol=1e-6)


@pytest.mark.parametrize("scale", [0.9, 2.0], ids=["some have a wider range", "it has the widest range"])
def test_expanded_map_is_the_same_as_copies(scale):
    variants = default_variants()
    clean = scale * torch.rand(1, 32, 30, generator=torch.Generator().manual_seed(0))
    clean = clean.expand(13, -1, -1)
    aligned, valid = realign(torch.rand(13, 32, 30), variants)
    for measure in (ssim, spearman, pearson):
        assert torch.equal(measure(clean, aligned, valid=valid), measure(clean.contiguous(), aligned, valid=valid))


def test_symmetric_and_independent_of_the_batch():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(13, 32, 30, dtype=torch.float64, generator=generator) for _ in range(2))
    aligned, valid = realign(b, default_variants())
    for measure in (ssim, spearman, pearson):
        together = measure(a, aligned, valid=valid)
        torch.testing.assert_close(measure(aligned, a, valid=valid), together, rtol=0, atol=1e-12)
        for i in range(13):
            own = Validity(valid.pixels[i : i + 1], valid.masked[i : i + 1])
            torch.testing.assert_close(
                measure(a[i : i + 1], aligned[i : i + 1], valid=own)[0], together[i], rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("dtype", DTYPES)
def test_undefined_stays_undefined(dtype):
    ramp = torch.linspace(0, 1, 64, dtype=dtype).view(1, 8, 8)
    flat = torch.full((1, 8, 8), 0.1, dtype=dtype)
    nothing = torch.zeros(1, 8, 8, dtype=torch.bool)
    broken = ramp.clone()
    broken[0, 3, 3] = math.nan
    assert ssim(flat, flat).isnan().all()
    assert ssim(flat, ramp).isfinite().all()
    assert ssim(flat, flat, data_range=2.0).item() == pytest.approx(1)
    assert ssim(ramp, ramp, valid=nothing).isnan().all()
    assert ssim(ramp, broken).isnan().all()
    for measure in (spearman, pearson):
        assert measure(flat, ramp).isnan().all()
        assert measure(ramp, flat).isnan().all()
        assert measure(ramp, ramp, valid=nothing).isnan().all()
        assert measure(ramp, broken).isnan().all()
        single = nothing.clone()
        single[0, 0, 0] = True
        assert measure(ramp, ramp, valid=single).isnan().all()
        assert measure(ramp, broken, valid=~broken.isnan()).item() == pytest.approx(1, abs=1e-6)


def test_one_undefined_pair_leaves_the_others():
    maps = torch.rand(3, 16, 16)
    maps[1] = 0
    for measure in (ssim, spearman, pearson):
        assert measure(maps, maps).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("measure", [ssim, spearman, pearson])
def test_stays_on_its_device(measure):
    clean = torch.empty(1, 30, 40, device="meta").expand(13, -1, -1)
    aligned, valid = realign(torch.empty(13, 30, 40, device="meta"), default_variants())
    for choice in (None, valid, valid.pixels):
        out = measure(clean, aligned, valid=choice)
        assert out.device.type == "meta"
        assert out.shape == (13,)
        assert out.dtype == torch.float32


def test_refuses_what_does_not_fit():
    maps = torch.rand(2, 8, 8)
    with pytest.raises(ValueError, match="alike"):
        ssim(maps, maps[:1])
    with pytest.raises(ValueError, match="dtype"):
        spearman(maps, maps.double())
    with pytest.raises(ValueError, match="bool"):
        pearson(maps, maps, valid=maps)
    with pytest.raises(ValueError, match="at least 5x5"):
        ssim(maps[:, :4], maps[:, :4])
    with pytest.raises(ValueError, match="data_range"):
        ssim(maps, maps, data_range=0.0)
