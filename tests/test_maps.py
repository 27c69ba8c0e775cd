"""Maps against re-implementations in numpy and the numbers of COSE's own code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salviz import maps, methods
from tests.golden import cose_inputs

GOLDEN = json.loads((Path(__file__).parent / "golden" / "cose.json").read_text())["visualize"]
CAM, GRADIENT, EDGE = (methods.get(name).card for name in ("grad_cam", "gradient", "edge"))


@pytest.mark.parametrize("card", [CAM, GRADIENT, EDGE], ids=lambda card: card.scaling)
def test_what_is_flat_but_for_rounding_stays_flat_when_it_is_spread(card: methods.card.MethodCard) -> None:
    values = torch.from_numpy(raw_of(3, 6, 6)).float()
    rounding = 1 + torch.finfo(torch.float32).eps * values.sign()
    real = 1 + 1e-4 * values.abs()
    spread = maps.comparable(torch.stack([rounding[0], real[1], rounding[2]]), card, (12, 12))
    assert (spread[[0, 2]] == 0).all()
    # What stands beside it in the batch changes nothing.
    assert torch.equal(spread[1:2], maps.comparable(real[1:2], card, (12, 12)))
    assert spread[1].max() > 0.99


def raw_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def minmax(values: np.ndarray) -> np.ndarray:
    """pytorch-grad-cam's `scale_cam_image` before its resize."""
    shifted = values - values.min()
    return shifted / (1e-7 + shifted.max())


def percentile(values: np.ndarray) -> np.ndarray:
    """PAIR's `VisualizeImageGrayscale` after its sum over channels."""
    high, low = np.percentile(values, 99), values.min()
    return np.clip((values - low) / (high - low), 0, 1)


def resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, pixel centres at half-integers, edges repeated: pixel by pixel from the formula."""
    out = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            y = (row + 0.5) * values.shape[0] / height - 0.5
            x = (column + 0.5) * values.shape[1] / width - 0.5
            y, x = np.clip(y, 0, values.shape[0] - 1), np.clip(x, 0, values.shape[1] - 1)
            top, left = int(y), int(x)
            low, right = min(top + 1, values.shape[0] - 1), min(left + 1, values.shape[1] - 1)
            upper = values[top, left] * (1 - x + left) + values[top, right] * (x - left)
            lower = values[low, left] * (1 - x + left) + values[low, right] * (x - left)
            out[row, column] = upper * (1 - y + top) + lower * (y - top)
    return out


@pytest.mark.parametrize(("shape", "size"), [((7, 7), (224, 224)), ((3, 5), (31, 18)), ((1, 1), (4, 4))])
def test_resize_is_the_half_pixel_formula(shape: tuple[int, int], size: tuple[int, int]) -> None:
    raw = raw_of(*shape)
    found = maps.resize(torch.from_numpy(raw)[None], size)[0].numpy()
    np.testing.assert_allclose(found, resized(raw, *size), atol=1e-12)


def test_resize_to_the_same_size_is_the_same_tensor() -> None:
    raw = torch.from_numpy(raw_of(2, 8, 8))
    assert maps.resize(raw, (8, 8)) is raw


def test_cells_are_blocks_of_one_value() -> None:
    raw = torch.arange(6.0).view(1, 2, 3)
    expected = np.kron(raw[0].numpy(), np.ones((4, 5)))
    np.testing.assert_array_equal(maps.repeat_cells(raw, (8, 15))[0].numpy(), expected)


def test_unsigned_forms() -> None:
    raw = raw_of(2, 3, 4, 4)
    tensor = torch.from_numpy(raw)
    np.testing.assert_allclose(maps.signed(tensor).numpy(), raw.sum(1))
    np.testing.assert_allclose(maps.unsigned(tensor, "magnitude").numpy(), np.abs(raw).sum(1))
    np.testing.assert_allclose(maps.unsigned(tensor, "positive").numpy(), np.maximum(raw.sum(1), 0))
    np.testing.assert_allclose(maps.unsigned(tensor, "as_is").numpy(), raw.sum(1))
    single = tensor[:, 0]
    assert maps.signed(single) is single
    np.testing.assert_allclose(maps.unsigned(single, "magnitude").numpy(), np.abs(raw[:, 0]))
    np.testing.assert_allclose(maps.unsigned(single, "positive").numpy(), np.maximum(raw[:, 0], 0))


@pytest.mark.parametrize("strength", [1.0, 1e-7])
def test_comparable_class_activation_maps_are_scaled_resized_and_scaled(strength: float) -> None:
    """Twice, which matters for maps hardly above the divisor's 1e-7."""
    raw = strength * raw_of(3, 7, 7)
    found = maps.comparable(torch.from_numpy(raw), CAM, (28, 35)).numpy()
    for values, one in zip(found, raw, strict=True):
        np.testing.assert_allclose(values, minmax(resized(minmax(np.maximum(one, 0)), 28, 35)), atol=1e-12)


def test_comparable_gradients_are_clipped_at_the_99th_percentile() -> None:
    raw = raw_of(3, 3, 24, 32)
    found = maps.comparable(torch.from_numpy(raw), GRADIENT, (24, 32)).numpy()
    for values, one in zip(found, raw, strict=True):
        np.testing.assert_allclose(values, percentile(np.abs(one).sum(0)), atol=1e-12)


@pytest.mark.parametrize("size", [64, 224])
def test_percentile_scaling_equals_the_released_code(size: int) -> None:
    attribution = cose_inputs.attribution3(7, size)
    channels_first = torch.from_numpy(np.ascontiguousarray(attribution.transpose(2, 0, 1)))[None]
    found = maps.comparable(channels_first.double(), GRADIENT, (size, size))[0].numpy()
    expected = GOLDEN[f"attr7@{size}"]
    assert found.sum() == pytest.approx(expected["sum"], rel=1e-9)
    assert (found.min(), found.max()) == (expected["min"], expected["max"])
    assert (found == 1).mean() == pytest.approx(expected["frac_at_1"], rel=1e-12)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.5, 100.0), st.integers(0, 10**6))
def test_percentile_is_numpys(height: int, width: int, q: float, seed: int) -> None:
    raw = np.round(raw_of(height, width, seed=seed), 1)
    found = maps.scale_percentile(torch.from_numpy(raw)[None], q)[0].numpy()
    high, low = np.percentile(raw, q), raw.min()
    expected = np.clip((raw - low) / (high - low), 0, 1) if high - low > 1e-12 else np.zeros_like(raw)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("card", [CAM, GRADIENT, EDGE], ids=lambda card: card.id)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_map_becomes_zero(card: methods.MethodCard, value: float) -> None:
    raw = torch.full((1, 5, 5), value)
    assert torch.equal(maps.comparable(raw, card, (10, 10)), torch.zeros(1, 10, 10))


def test_scaling_goes_map_by_map() -> None:
    raw = torch.from_numpy(raw_of(3, 9, 9)) * torch.tensor([1.0, 1e3, 1e-3]).view(3, 1, 1)
    for scale in (maps.scale_minmax, maps.scale_percentile):
        together = scale(raw)
        alone = torch.cat([scale(part) for part in torch.split(raw, 1)])
        assert torch.equal(together, alone)


def test_a_flat_map_but_for_few_pixels_is_not_divided_by_zero() -> None:
    raw = torch.zeros(1, 100, 100)
    raw[0, 0, :5] = 1.0
    assert torch.equal(maps.scale_percentile(raw), torch.zeros_like(raw))
