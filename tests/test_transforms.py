"""Augmentations on frames: the paper's own results, Pillow live, and independence of the batch."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from salviz.transforms import AUGMENTATIONS, Variant, augment, default_variants, draw_variants
from tests.golden.cose_inputs import golden, image_u8, smooth_image_u8, variant

BLACK_FILL = {"resample": Image.Resampling.NEAREST}
SIZES = [(1, 1), (2, 7), (4, 4), (5, 9), (31, 17), (32, 32), (40, 64)]  # height, width


def to_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def to_array(frame: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(frame.numpy().transpose(1, 2, 0))


def with_pillow(image: Image.Image, v: Variant) -> Image.Image:
    """What the released code does: Pillow's operation, translations as torchvision asks Pillow for them."""
    m = v.magnitude
    match v.augmentation:
        case "translate_x":
            return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -int(m), 0, 1, 0), **BLACK_FILL)
        case "translate_y":
            return image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, -int(m)), **BLACK_FILL)
        case "rotate":
            return image.rotate(m, **BLACK_FILL)
        case "brightness" | "color" | "contrast" | "sharpness":
            return getattr(ImageEnhance, v.card.title)(image).enhance(1.0 + m)
        case "auto_contrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "flip_lr":
            return ImageOps.mirror(image)
        case "flip_ud":
            return ImageOps.flip(image)
        case "blur":
            return image.filter(ImageFilter.BLUR)
        case "smooth":
            return image.filter(ImageFilter.SMOOTH)
    raise AssertionError(v)


def random_image(rs: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """Noise in one of several ranges, so that tables meet empty ends, few values and flat channels."""
    low = rs.randint(0, 200, size=3)
    span = rs.choice([1, 2, 30, 56, 256], size=3)
    noise = rs.randint(0, 2**16, size=(height, width, 3))
    return np.minimum(low + noise % span, 255).astype(np.uint8)


@pytest.mark.parametrize("name", sorted(golden()["augment"]))
def test_bit_exact_with_released_code(name):
    picture, operation = name.split("_", 1)
    image = image_u8(9, 64) if picture == "rand9" else smooth_image_u8(64)
    [out] = augment(to_tensor(image), [variant(operation)])
    expected = golden()["augment"][name]
    got = to_array(out)
    assert got.reshape(-1, 3).sum(axis=0).tolist() == expected["chan"]
    assert hashlib.sha256(got.tobytes()).hexdigest()[:16] == expected["sha256_16"]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_bit_exact_with_pillow(augmentation):
    card = AUGMENTATIONS[augmentation]
    rs = np.random.RandomState(sum(map(ord, augmentation)))
    low, high = (-50, 50) if card.unit == "px" else card.bounds
    for height, width in SIZES * 6:
        image = random_image(rs, height, width)
        drawn = (
            rs.uniform(low, high) if rs.random_sample() < 0.5 else rs.choice([-1, 1]) * rs.choice(card.levels or [0])
        )
        v = Variant(augmentation, float(np.clip(drawn, low, high)) if card.has_magnitude else None)
        [out] = augment(to_tensor(image), [v])
        expected = np.asarray(with_pillow(Image.fromarray(image), v))
        np.testing.assert_array_equal(to_array(out), expected, err_msg=f"{v} {height}x{width}")


@pytest.mark.parametrize("angle", [-360, -270, -180, -90, 0, 90, 180, 270, 360, 89.99999, 1e-5])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_right_angles_as_pillow(angle, height, width):
    image = random_image(np.random.RandomState(3), height, width)
    v = Variant("rotate", angle)
    [out] = augment(to_tensor(image), [v])
    np.testing.assert_array_equal(to_array(out), np.asarray(with_pillow(Image.fromarray(image), v)))


@pytest.mark.parametrize("augmentation", ["brightness", "color", "contrast", "sharpness"])
def test_every_level_truncates_as_pillow(augmentation):
    # All differences of two bytes meet all the paper's factors.
    values = np.arange(256, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(values[:, None], values[None, ::-1], values[None, :]), axis=2)
    levels = AUGMENTATIONS[augmentation].levels
    variants = [Variant(augmentation, sign * level) for level in levels[::4] for sign in (1, -1)]
    for v, out in zip(variants, augment(to_tensor(image), variants), strict=True):
        np.testing.assert_array_equal(
            to_array(out), np.asarray(with_pillow(Image.fromarray(image), v)), err_msg=v.label
        )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([id for id, card in AUGMENTATIONS.items() if card.has_magnitude]),
    st.floats(-1, 1),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 2**31),
)
def test_continuous_magnitudes_as_pillow(augmentation, share, height, width, seed):
    card = AUGMENTATIONS[augmentation]
    low, high = (-30, 30) if card.unit == "px" else card.bounds
    v = Variant(augmentation, share * high if share > 0 else -share * low)
    image = random_image(np.random.RandomState(seed), height, width)
    [out] = augment(to_tensor(image), [v])
    np.testing.assert_array_equal(to_array(out), np.asarray(with_pillow(Image.fromarray(image), v)))


def test_zero_magnitude_changes_nothing():
    frame = to_tensor(image_u8(1, 33))
    variants = [Variant(id, 0.0) for id, card in AUGMENTATIONS.items() if card.has_magnitude]
    assert torch.equal(augment(frame, variants), frame.expand(len(variants), -1, -1, -1))


def test_does_not_depend_on_batch_or_order():
    variants = [*draw_variants(1, "a"), *default_variants()]
    frames = torch.stack([to_tensor(image_u8(seed, 24)) for seed in range(len(variants))])
    before = frames.clone()
    together = augment(frames, variants)
    assert torch.equal(frames, before)
    alone = torch.cat([augment(frames[i : i + 1], [v]) for i, v in enumerate(variants)])
    assert torch.equal(together, alone)
    order = torch.randperm(len(variants), generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(frames[order], [variants[i] for i in order]), together[order])


def test_one_frame_for_many_variants():
    frame = to_tensor(image_u8(2, 20))
    variants = default_variants()
    many = augment(frame, variants)
    assert torch.equal(many, augment(frame[None], variants))
    assert torch.equal(many, augment(frame.expand(13, -1, -1, -1), variants))
    assert augment(frame, []).shape == (0, 3, 20, 20)


def test_stays_on_its_device():
    frames = torch.empty(13, 3, 30, 40, dtype=torch.uint8, device="meta")
    out = augment(frames, default_variants())
    assert out.device.type == "meta"
    assert out.shape == frames.shape
    assert out.dtype == torch.uint8


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(8, 8, dtype=torch.uint8),
    ],
)
def test_refuses_other_frames(frames):
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\) uint8"):
        augment(frames, default_variants()[:2])


def test_refuses_unequal_numbers():
    with pytest.raises(ValueError, match="2 frames do not fit 13 variants"):
        augment(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), default_variants())
