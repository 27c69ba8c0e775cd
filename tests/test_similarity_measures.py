"""Similarities of raw maps: the paper's own numbers on its pairs, and independent libraries on others."""

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from skimage.feature import hog as skimage_hog
from skimage.metrics import structural_similarity

from salviz.errors import RequestError
from salviz.similarity import cosine, hog, ssim, top_k
from salviz.similarity.measures import MEASURES, Measure, entropy, find_measure
from tests.golden.adebayo_inputs import golden, pairs

CASES = [(name, dtype) for name in golden()["cases"] for dtype in (torch.float64, torch.float32)]


def tensors(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    size, pair = name.split("/")
    a, b = (torch.from_numpy(m).permute(2, 0, 1)[None].to(dtype) for m in pairs(int(size))[pair])
    return a, b


def measure(metric, reduction, normalisation, data_range=2.0):
    return Measure("own", "own", "own", metric, reduction, normalisation, data_range)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", golden()["cases"])
def test_the_pairs_are_the_recipes(name):
    size, pair = name.split("/")
    found = [hashlib.sha256(m.tobytes()).hexdigest()[:16] for m in pairs(int(size))[pair]]
    assert found == golden()["cases"][name]["sha256_16"]


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize(
    ("section", "key", "used", "tolerance"),
    [
        ("reference", "spearman_abs", MEASURES["spearman_abs"], 1e-6),
        ("reference", "spearman_signed", MEASURES["spearman_signed"], 1e-6),
        ("reference", "ssim", MEASURES["ssim_notebook"], 1e-6),
        ("reference", "hog_spearman", MEASURES["hog_spearman"], 1e-5),
        ("reference", "hog_pearson", MEASURES["hog_pearson"], 1e-5),
        ("variants", "spearman_abs_noclip_chansum", measure("spearman", "sum_abs", "none"), 1e-6),
        ("variants", "spearman_signed_noclip_chansum", measure("spearman", "sum", "none"), 1e-6),
        ("variants", "spearman_abs_of_sum", measure("spearman", "abs_sum", "none"), 1e-6),
        ("variants", "spearman_elementwise_3ch", measure("spearman", "none", "none"), 1e-6),
        ("variants", "ssim_skimage026_R2", MEASURES["ssim_notebook"], 1e-6),
        ("variants", "ssim_skimage026_R1", MEASURES["ssim"], 1e-6),
        ("variants", "ssim_win5_pm1_R2", MEASURES["ssim_paper"], 1e-6),
        ("variants", "hog_pearson_pm1", measure("hog_pearson", "none", "minmax_signed"), 1e-5),
        ("quantus", "mprt_spearman_abs_maxnorm", measure("spearman", "abs_sum", "max"), 1e-6),
    ],
)
def test_golden(name, dtype, section, key, used, tolerance):
    expected = golden()["cases"][name][section][key]
    found = used(*tensors(name, dtype))
    assert found.dtype == dtype
    assert found.item() == pytest.approx(float(expected), rel=0, abs=tolerance, nan_ok=True)


@pytest.mark.parametrize("name", golden()["cases"])
@pytest.mark.parametrize(("which", "place"), [("a", 0), ("b", 1)])
def test_golden_entropy(name, which, place):
    # Quantus takes the mean over channels; a factor changes no entropy.
    found = entropy(tensors(name, torch.float64)[place])
    assert found.item() == pytest.approx(golden()["cases"][name]["quantus"][f"discrete_entropy_{which}"], abs=1e-9)


def test_golden_normalisations():
    a = torch.from_numpy(pairs(64)["identical"][0]).permute(2, 0, 1)[None]
    expected = golden()["norm_checks"]
    for key, used in (("abs_norm_64", MEASURES["spearman_abs"]), ("div_norm_64", MEASURES["spearman_signed"])):
        found = used.prepared(a)
        assert found.mean().item() == pytest.approx(expected[key]["mean"], abs=1e-6)
        assert found[0, 0, 0, 0].item() == pytest.approx(expected[key]["[0,0]"], abs=1e-6)
    assert int((MEASURES["spearman_abs"].prepared(a) == 1).sum()) == expected["abs_norm_64"]["n_at_1"]
    signed = MEASURES["spearman_signed"].prepared(a)
    assert signed.min().item() == pytest.approx(expected["div_norm_64"]["min"], abs=1e-6)
    found = MEASURES["ssim_notebook"].prepared(a)
    assert found.mean().item() == pytest.approx(expected["minmax_64"]["mean"], abs=1e-6)
    assert found[0, 0, 0, 0].item() == pytest.approx(expected["minmax_64"]["[0,0,0]"], abs=1e-6)


@pytest.mark.parametrize(("height", "width", "cell"), [(48, 48, 16), (50, 71, 16), (24, 40, 8)])
def test_hog_equals_scikit_image(height, width, cell):
    maps = noise(3, 2, height, width)
    maps[2] = maps[2].round()
    found = hog(maps, cell=cell)
    for one, expected in zip(found, maps, strict=True):
        wanted = skimage_hog(expected.permute(1, 2, 0).numpy(), pixels_per_cell=(cell, cell), channel_axis=2)
        # Theirs adds up in single precision.
        np.testing.assert_allclose(one.numpy(), wanted, atol=1e-7)


def test_gaussian_ssim_equals_scikit_image():
    a, b = noise(2, 31, 45).exp(), noise(2, 31, 45, seed=1).exp()
    found = ssim(a, b, window="gaussian", data_range=3.0)
    for i in (0, 1):
        expected = structural_similarity(a[i].numpy(), b[i].numpy(), gaussian_weights=True, data_range=3.0)
        assert found[i].item() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="no masks"):
        ssim(a, b, window="gaussian", valid=torch.ones_like(a, dtype=torch.bool))
    with pytest.raises(ValueError, match="11x11"):
        ssim(a[:, :10], b[:, :10], window="gaussian")


def test_cosine_in_closed_form_and_of_tiny_maps():
    a, b = noise(2, 9, 8), noise(2, 9, 8, seed=1)
    expected = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(cosine(a, b), expected)
    torch.testing.assert_close(cosine(1e-30 * a.float(), b.float()), expected.float())
    assert cosine(a, torch.zeros_like(a)).isnan().all()
    kept = torch.zeros(2, 9, 8, dtype=torch.bool)
    kept[:, 2:5] = True
    torch.testing.assert_close(
        cosine(a, b, valid=kept),
        torch.nn.functional.cosine_similarity(a[:, 2:5].flatten(1), b[:, 2:5].flatten(1)),
    )


def test_top_k_counts_common_pixels_and_shares_ties():
    a = torch.arange(100.0).view(1, 10, 10)
    assert top_k(a, a).item() == 1
    assert top_k(a, a.flip(1).flip(2)).item() == 0
    # Of the five highest of `a`, 95 to 99, three are among those of `b`.
    b = a.clone().view(-1)
    b[[95, 96]] = -1
    assert top_k(a, b.view(1, 10, 10)).item() == pytest.approx(3 / 5)
    # Ten pixels tie for five places: each belongs by half, whatever its place.
    tied = torch.zeros(1, 10, 10)
    tied[0, -1] = 1
    assert top_k(a, tied).item() == pytest.approx(0.5)
    assert top_k(a, torch.ones_like(a)).isnan().all()
    # Neighbouring numbers around one constant are rounding, and a batch is judged map by map.
    rounding = 1 + torch.finfo(torch.float32).eps * (torch.arange(100).view(1, 10, 10) % 2)
    assert top_k(torch.cat([a, a]), torch.cat([rounding, a])).isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="share"):
        top_k(a, a, share=0)


@pytest.mark.parametrize("used", MEASURES.values(), ids=list(MEASURES))
def test_every_measure_is_one_of_itself_undefined_of_nothing_and_blind_to_the_batch(used):
    a, b = noise(3, 3, 48, 48), noise(3, 3, 48, 48, seed=1)
    torch.testing.assert_close(used(a, a), torch.ones(3, dtype=a.dtype))
    together = used(a, b)
    torch.testing.assert_close(torch.cat([used(a[i : i + 1], b[i : i + 1]) for i in (2, 0, 1)]), together[[2, 0, 1]])
    nothing = a.clone()
    nothing[1] = 0
    broken = a.clone()
    broken[1, 0, 20, 20] = torch.nan
    for bad in (nothing, broken):
        found = used(bad, b)
        assert math.isnan(found[1])
        torch.testing.assert_close(found[[0, 2]], together[[0, 2]])


@pytest.mark.parametrize("used", MEASURES.values(), ids=list(MEASURES))
def test_every_measure_stays_on_its_device(used):
    a = torch.zeros(2, 3, 48, 48, device="meta")
    assert used(a, a).device.type == "meta"


@pytest.mark.parametrize("scale", [1e-20, 1e12])
@pytest.mark.parametrize("used", MEASURES.values(), ids=list(MEASURES))
def test_no_measure_depends_on_the_scale_of_a_map(used, scale):
    a, b = noise(2, 3, 48, 48).float(), noise(2, 3, 48, 48, seed=1).float()
    torch.testing.assert_close(used(a * scale, b), used(a, b), atol=2e-5, rtol=0)


def test_a_mask_leaves_pixels_out():
    a, b = noise(2, 3, 20, 20), noise(2, 3, 20, 20, seed=1)
    kept = torch.zeros(2, 20, 20, dtype=torch.bool)
    kept[:, :10] = True
    for used in (measure("spearman", "sum", "none"), measure("pearson", "none", "none")):
        assert used.takes_mask
        torch.testing.assert_close(used(a, b, valid=kept), used(a[:, :, :10], b[:, :, :10]))


def test_unknown_names_are_refused():
    with pytest.raises(RequestError, match="spearman_abs"):
        find_measure("spaerman")
    with pytest.raises(RequestError, match="There is no reduction 'product'"):
        MEASURES["cosine"].changed(reduction="product")
    changed = MEASURES["spearman_abs"].changed(normalisation="none", reduction="max_abs")
    assert changed.id == "spearman_abs+normalisation:none+reduction:max_abs"


def test_entropy_equals_numpy_and_scipy():
    maps = noise(3, 17, 19)
    maps[1] = 4.0
    found = entropy(maps, bins=20)
    for one, value in zip(maps, found, strict=True):
        counts = np.histogram(one.numpy(), bins=20)[0]
        assert value.item() == pytest.approx(scipy_entropy(counts), abs=1e-9)
    maps[2, 0, 0] = torch.inf
    assert entropy(maps).isnan().tolist() == [False, False, True]


def test_hog_is_undefined_where_no_block_fits() -> None:
    small = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0))
    for name in ("hog_pearson", "hog_spearman"):
        assert MEASURES[name](small, small).isnan().all()
        large = torch.nn.functional.interpolate(small[:, None], size=(48, 60))
        torch.testing.assert_close(MEASURES[name](large, large), torch.ones(2))


def test_a_measure_is_found_by_its_id_changed_or_not() -> None:
    for known in MEASURES.values():
        assert find_measure(known.id) is known
    changed = MEASURES["ssim"].changed(reduction="max_abs", normalisation="second_moment")
    assert find_measure(changed.id) == changed
    assert find_measure("ssim+normalisation:second_moment+reduction:max_abs") == changed
    for id, sentence in (
        ("psnr", "no similarity 'psnr'"),
        ("ssim+window:7", "no 'window'"),
        ("ssim+reduction:mean", "There is no reduction 'mean'; there are sum_abs"),
    ):
        with pytest.raises(RequestError, match=sentence):
            find_measure(id)


@pytest.mark.parametrize("id", MEASURES)
@pytest.mark.parametrize("masked", [False, True])
def test_first_maps_that_are_given_once_compare_as_in_a_call(id: str, masked: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    a, b, c = torch.randn(3, 2, 3, 64, 64, generator=generator)
    valid = torch.rand(2, 64, 64, generator=generator) > 0.2 if masked else None
    measure = find_measure(id)
    compare = measure.with_first(a, valid=valid)
    for other in (b, c, a):
        assert torch.equal(compare(other), measure(a, other, valid=valid))
