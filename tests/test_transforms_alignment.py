"""Maps warped back: the paper's own results, scikit-image live, exact equivariance, and masks."""

import numpy as np
import pytest
import torch
from skimage.transform import rotate

from salviz.transforms import AUGMENTATIONS, Variant, augment, default_variants, draw_variants, realign
from tests.golden.cose_inputs import blobs, golden, shift0, variant

REALIGNED = {name: numbers for name, numbers in golden()["realign"].items() if "realigned_sum" in numbers}
SHAPES = [(30, 30), (31, 44), (45, 32), (33, 33), (5, 40), (1, 1)]


def one(array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None]


@pytest.mark.parametrize("name", sorted(REALIGNED))
def test_as_released(name):
    case, n = name.split("@")
    n, expected = int(n), REALIGNED[name]
    source = blobs(2 if "blobs2" in case else 1, n)
    single = "float32" in case
    maps = one(source.astype(np.float32) if single else source)
    aligned, valid = realign(maps, [variant("_".join(case.split("_")[:3]))])
    assert valid.masked.tolist() == [True]
    assert int(valid.pixels.sum()) == expected["valid"]
    # scikit-image computes positions of single-precision maps in single precision; ours are always double.
    assert aligned.double().sum().item() == pytest.approx(expected["realigned_sum"], rel=1e-7 if single else 1e-12)
    if not single:
        at = [0, n // 4, n // 2, 3 * n // 4]
        samples = aligned[0].numpy()[np.ix_(at, at)].ravel()
        np.testing.assert_allclose(samples, np.ravel(expected["realigned_samples"]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rotation_as_scikit_image(height, width, dtype):
    rs = np.random.RandomState(height)
    for angle in [*rs.uniform(-180, 180, size=8), 4.5, -135, 0]:
        v = Variant("rotate", angle)
        source = rs.random_sample((height, width))
        aligned, _ = realign(one(source).to(dtype), [v])
        expected = rotate(source, -v.magnitude, preserve_range=True, clip=False, mode="constant", cval=0)
        atol = 1e-10 if dtype == torch.float64 else 1e-6
        np.testing.assert_allclose(aligned[0].numpy(), expected, rtol=0, atol=atol, err_msg=str(v))


@pytest.mark.parametrize(("dx", "dy"), [(0, 7), (-7, 0), (16, 0), (0, -16), (0, 0), (50, 0), (0, -50)])
def test_translation_is_undone_exactly(dx, dy):
    source = np.random.RandomState(0).random_sample((40, 30))
    v = Variant("translate_x", dx) if dx else Variant("translate_y", dy)
    inside = min(abs(dx), 30), min(abs(dy), 40)
    moved = shift0(source, dx, dy) if inside == (abs(dx), abs(dy)) else np.zeros_like(source)
    aligned, (pixels, masked) = realign(one(moved), [v])
    assert masked.tolist() == [True]
    assert int(pixels.sum()) == (40 - inside[1]) * (30 - inside[0])
    assert torch.equal(aligned[pixels], one(source)[pixels])
    assert not aligned[~pixels].any()


@pytest.mark.parametrize("angle", [0, 90, 180, 270, 360, -90])
def test_right_angles_are_undone_exactly(angle):
    source = np.random.RandomState(0).random_sample((24, 24))
    aligned, valid = realign(one(np.rot90(source, angle // 90)), [Variant("rotate", angle)])
    assert torch.equal(aligned, one(source))
    assert valid.pixels.all()
    assert valid.masked.all()


@pytest.mark.parametrize(("height", "width"), [(24, 24), (31, 44), (45, 32)])
def test_undoes_what_augment_does(height, width):
    """The frame as its own map follows every motion, so that realigned it is the clean one where valid."""
    y, x = np.mgrid[:height, :width]
    frame = torch.from_numpy((60 + 2 * x + y).astype(np.uint8)).expand(3, -1, -1)
    variants = [v for v in [*default_variants(), *draw_variants(0, "a")] if v.card.kind == "geometric"]
    maps = augment(frame, variants)[:, 0].double()
    aligned, valid = realign(maps, variants)
    difference = (aligned - frame[0]).abs()
    # Away from the mask's rim and the frame's edge, where the fill bleeds in, rotation leaves only the
    # rounding to the nearest neighbour: one grey step of 3.
    holes = torch.nn.functional.pad((~valid.pixels).double(), (2, 2, 2, 2), value=1.0)
    rim = torch.nn.functional.max_pool2d(holes, 5, stride=1) > 0
    assert difference[~rim].max() <= 3
    assert (~rim).float().mean() > 0.25
    exact = torch.tensor([v.augmentation != "rotate" for v in variants])
    assert not difference[exact][valid.pixels[exact]].any()


def test_only_translations_and_rotations_have_a_mask():
    variants = default_variants()
    _, valid = realign(torch.rand(13, 40, 40), variants)
    names = {v.augmentation for v, masked in zip(variants, valid.masked.tolist(), strict=True) if masked}
    assert names == {"translate_x", "translate_y", "rotate"}
    assert valid.pixels[~valid.masked].all()


def test_photometric_maps_stay_as_they_are():
    variants = [v for v in default_variants() if v.card.kind == "photometric"]
    maps = torch.rand(len(variants), 9, 11)
    aligned, _ = realign(maps, variants)
    assert torch.equal(aligned, maps)
    assert aligned.data_ptr() != maps.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_does_not_depend_on_batch_or_order(dtype):
    variants = [*default_variants(), *draw_variants(0, "b")]
    maps = torch.rand(len(variants), 23, 30, dtype=dtype, generator=torch.Generator().manual_seed(0))
    aligned, valid = realign(maps, variants)
    assert aligned.dtype == dtype
    for i in torch.randperm(len(variants)).tolist():
        alone, own = realign(maps[i : i + 1], [variants[i]])
        assert torch.equal(alone[0], aligned[i])
        assert torch.equal(own.pixels[0], valid.pixels[i])


def test_mask_does_not_depend_on_precision():
    variants = [Variant("rotate", level) for level in AUGMENTATIONS["rotate"].levels]
    maps = torch.rand(30, 64, 64)
    assert torch.equal(realign(maps, variants)[1].pixels, realign(maps.double(), variants)[1].pixels)


def test_stays_on_its_device():
    aligned, valid = realign(torch.empty(13, 30, 40, device="meta"), default_variants())
    assert {t.device.type for t in (aligned, *valid)} == {"meta"}
    assert aligned.shape == valid.pixels.shape == (13, 30, 40)


@pytest.mark.parametrize(
    "maps", [torch.zeros(2, 4, 4), torch.zeros(13, 3, 4, 4), torch.zeros(13, 4, 4, dtype=torch.uint8)]
)
def test_refuses_other_maps(maps):
    with pytest.raises(ValueError, match=r"\(13, H, W\) floating point"):
        realign(maps, default_variants())
