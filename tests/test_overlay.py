from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.colors import Normalize
from PIL import Image

from salviz.colormaps import COLORMAPS, lookup
from salviz.errors import RequestError
from salviz.overlay import (
    UNSEEN_COLOUR,
    UNSEEN_OPACITY,
    DisplayRange,
    blend,
    colorize,
    format_probability,
    format_value,
    jpeg,
    limits,
    overlay,
    png,
    resize_for_display,
    scale_bar,
    side_by_side,
    value_weight,
)

RNG = np.random.default_rng(5)
SIGNED = np.array([[-2.0, -1.0], [0.5, 4.0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("mode", "diverging", "expected"),
    [
        ("full", False, (-2.0, 4.0)),
        ("symmetric", False, (-4.0, 4.0)),
        ("positive", False, (0.0, 4.0)),
        ("negative", False, (0.0, -2.0)),
        ("full", True, (-4.0, 4.0)),
        ("positive", True, (-4.0, 4.0)),
        ("negative", True, (-4.0, 4.0)),
    ],
)
def test_limits(mode: str, diverging: bool, expected: tuple[float, float]) -> None:
    assert limits(SIGNED, mode, diverging=diverging) == expected


def test_limits_ignore_what_is_not_finite_and_share_a_scale() -> None:
    other = np.array([np.nan, np.inf, -np.inf, 7.0])
    assert limits([SIGNED, other]) == (-2.0, 7.0)
    assert limits(other) == (7.0, 7.0)
    assert limits(np.full((2, 2), np.nan), "symmetric") == (0.0, 0.0)
    assert limits([]) == (0.0, 0.0)


def test_limits_at_percentiles() -> None:
    ramp = np.arange(101.0)
    assert limits(ramp, "percentile") == (1.0, 99.0)
    assert limits(ramp, "percentile", percentiles=(5, 90)) == (5.0, 90.0)
    assert limits(ramp - 50, "percentile", diverging=True, percentiles=(0, 100)) == (-50.0, 50.0)
    sparse = np.zeros(1000)
    sparse[0] = 3.0
    assert limits(sparse, "percentile") == (0.0, 3.0)
    assert limits(sparse, "percentile", diverging=True) == (-3.0, 3.0)


def test_custom_limits() -> None:
    assert limits(SIGNED, DisplayRange.CUSTOM, custom=(-1, 3)) == (-1.0, 3.0)
    assert limits(SIGNED, DisplayRange.CUSTOM, custom=(-1, 3), diverging=True) == (-3.0, 3.0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "automatic"},
        {"mode": "custom"},
        {"mode": "custom", "custom": (0.0, float("nan"))},
        {"mode": "percentile", "percentiles": (99, 1)},
        {"mode": "percentile", "percentiles": (-1, 99)},
    ],
)
def test_limits_refuse_what_makes_no_sense(arguments: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        limits(SIGNED, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_colours_are_matplotlibs(colormap: str) -> None:
    values = RNG.normal(size=(37, 41))
    expected = matplotlib.colormaps[colormap](Normalize(-1.5, 2.0, clip=True)(values), bytes=True)[..., :3]
    np.testing.assert_array_equal(colorize(values, colormap, -1.5, 2.0), expected)


def test_both_ends_and_what_lies_beyond() -> None:
    values = np.array([[-np.inf, -9.0, 0.0, 1.0, 9.0, np.inf]])
    table = lookup("viridis")
    np.testing.assert_array_equal(colorize(values, "viridis", 0, 1)[0], table[[0, 0, 0, 255, 255, 255]])


def test_a_range_may_run_downwards() -> None:
    low, high = limits(SIGNED, "negative")
    coloured = colorize(SIGNED, "inferno", low, high)
    np.testing.assert_array_equal(coloured[0, 0], lookup("inferno")[255])
    np.testing.assert_array_equal(coloured[1], lookup("inferno")[[0, 0]])


def test_zero_is_the_middle_of_a_diverging_range() -> None:
    low, high = limits(SIGNED, diverging=True)
    np.testing.assert_array_equal(colorize(np.zeros((1, 1)), "RdBu_r", low, high)[0, 0], lookup("RdBu_r")[128])


@pytest.mark.parametrize(("colormap", "entry"), [("inferno", 0), ("RdBu_r", 128)])
@pytest.mark.parametrize("value", [0.0, 3.0, -1e-30])
def test_flat_map_looks_flat(colormap: str, entry: int, value: float) -> None:
    flat = np.full((5, 6), value, dtype=np.float32)
    noisy = flat * (1 + np.float32(2e-7) * RNG.integers(-1, 2, flat.shape, dtype=np.int8))
    for map_ in (flat, noisy):
        coloured = colorize(map_, colormap, *limits(map_))
        assert (coloured == lookup(colormap)[entry]).all()


def test_flat_signed_map_has_one_colour_with_a_symmetric_range() -> None:
    flat = np.full((3, 3), 2.0)
    assert (colorize(flat, "RdBu_r", *limits(flat, diverging=True)) == lookup("RdBu_r")[255]).all()


def test_missing_values_are_grey() -> None:
    values = np.array([[np.nan, 0.0], [1.0, np.nan]], dtype=np.float32)
    coloured = colorize(values, "inferno", 0, 1)
    assert (coloured[np.isnan(values)] == UNSEEN_COLOUR).all()
    np.testing.assert_array_equal(coloured[1, 0], lookup("inferno")[255])
    assert (colorize(np.full((2, 2), np.nan), "inferno", 0, 0) == UNSEEN_COLOUR).all()
    assert np.isnan(values[0, 0])  # the map itself is left as it was


def test_colorize_refuses_other_shapes_and_ends() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        colorize(np.zeros((1, 2, 3)), "inferno", 0, 1)
    with pytest.raises(ValueError, match="finite"):
        colorize(np.zeros((2, 2)), "inferno", 0, float("nan"))


pictures = arrays(np.uint8, (3, 4, 3))


@given(photo=pictures, coloured=pictures, opacity=st.floats(0, 1))
def test_blend_closed_form(photo: np.ndarray, coloured: np.ndarray, opacity: float) -> None:
    exact = photo * (1 - opacity) + coloured * opacity
    assert np.abs(blend(photo, coloured, opacity) - exact).max() <= 0.5 + 1e-4


def test_blend_ends_are_exact() -> None:
    photo, coloured = RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(blend(photo, coloured, 0), photo)
    np.testing.assert_array_equal(blend(photo, coloured, 1), coloured)


def test_blend_with_weight_and_unseen() -> None:
    photo = np.full((2, 2, 3), 200, dtype=np.uint8)
    coloured = np.full((2, 2, 3), 100, dtype=np.uint8)
    weight = np.array([[0.0, 0.5], [1.0, 1.0]])
    seen = np.array([[True, True], [True, False]])
    mixed = blend(photo, coloured, 0.5, weight=weight, seen=seen)
    np.testing.assert_array_equal(mixed[..., 0], [[200, 175], [150, round(200 * 0.4 + 128 * 0.6)]])


@pytest.mark.parametrize(
    "arguments",
    [
        {"opacity": 1.1},
        {"opacity": float("nan")},
        {"coloured": np.zeros((2, 3, 3), np.uint8)},
        {"weight": np.zeros((3, 2))},
        {"seen": np.zeros((2, 2, 3), bool)},
    ],
)
def test_blend_refuses_what_does_not_fit(arguments: dict[str, object]) -> None:
    fitting = {
        "photo": np.zeros((2, 2, 3), np.uint8),
        "coloured": np.zeros((2, 2, 3), np.uint8),
        "opacity": 0.5,
    }
    with pytest.raises(ValueError, match=r"must|between"):
        blend(**(fitting | arguments))  # type: ignore[arg-type]


def test_value_weight() -> None:
    values = np.array([[-1.0, -0.5, 0.0, 1.0, 2.0, np.nan]])
    np.testing.assert_allclose(value_weight(values, 0, 2)[0], [0, 0, 0, 0.5, 1, 0])
    np.testing.assert_allclose(value_weight(values, -2, 2, diverging=True)[0], [0.5, 0.25, 0, 0.5, 1, 0])
    assert not value_weight(np.ones((2, 2)), 1, 1).any()
    assert not value_weight(np.zeros((2, 2)), 0, 0, diverging=True).any()


def test_overlay_is_colorize_and_blend() -> None:
    photo = RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    values = RNG.normal(size=(8, 9)).astype(np.float32)
    values[0, :3] = np.nan
    together = overlay(photo, values, "RdBu_r", -2, 2, 0.7)
    by_hand = blend(photo, colorize(values, "RdBu_r", -2, 2), 0.7)
    np.testing.assert_array_equal(together[1:], by_hand[1:])
    veiled = photo[0, :3] * (1 - UNSEEN_OPACITY) + np.array(UNSEEN_COLOUR) * UNSEEN_OPACITY
    assert np.abs(together[0, :3] - veiled).max() <= 0.5 + 1e-4
    following = overlay(photo, np.zeros((8, 9)), "RdBu_r", -2, 2, 0.7, follow_value=True)
    np.testing.assert_array_equal(following, photo)


def test_scale_bar_runs_through_the_whole_table() -> None:
    bar = scale_bar("inferno", -3, 8, 10)
    assert bar.shape == (10, 256, 3)
    np.testing.assert_array_equal(bar[0], bar[-1])
    np.testing.assert_array_equal(bar[0], lookup("inferno"))
    np.testing.assert_array_equal(scale_bar("inferno", 0, -1)[0], lookup("inferno"))
    assert (scale_bar("inferno", 2, 2) == lookup("inferno")[0]).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-0.0, "0"), (1.23456, "1.23"), (-0.5, "−0.5"), (1e-5, "1e−05"), (float("nan"), "undefined")],
)
def test_format_value(value: float, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"), (1e-12, "<0.01"), (0.0049, "<0.01"), (0.0051, "0.01"), (0.417, "0.42"), (0.9949, "0.99"),
        (0.9951, ">0.99"), (1 - 2**-24, ">0.99"), (1, "1.00"),
    ],
)  # fmt: skip
def test_a_probability_is_neither_never_nor_always_unless_it_is(value: float, text: str) -> None:
    assert format_probability(value) == text


def test_side_by_side() -> None:
    tall, wide = np.zeros((4, 2, 3), np.uint8), np.full((1, 3, 3), 9, np.uint8)
    row = side_by_side([tall, wide], gap=2)
    assert row.shape == (4, 7, 3)
    assert (row[:, :2] == 0).all()
    assert (row[:, 2:4] == 255).all()
    assert (row[0, 4:] == 9).all()
    assert (row[1:, 4:] == 255).all()
    with pytest.raises(ValueError, match="no picture"):
        side_by_side([])


def test_resizing_keeps_the_grid_or_smooths_it() -> None:
    grid = RNG.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_for_display(grid, 28, smooth=False), grid.repeat(4, axis=0).repeat(4, axis=1))
    smooth = resize_for_display(grid, 28)
    assert smooth.shape == (28, 28, 3)
    assert smooth.min() >= grid.min()
    assert smooth.max() <= grid.max()
    assert resize_for_display(np.zeros((10, 1000), np.uint8), 20).shape == (1, 20)
    with pytest.raises(ValueError, match="column"):
        resize_for_display(grid, 0)


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_png_is_lossless(shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(array)))), array)


def test_jpeg_keeps_neighbouring_colours_apart() -> None:
    """Halved colour resolution would mix columns of red and blue to purple."""
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 255, 255
    found = np.asarray(Image.open(io.BytesIO(jpeg(stripes)))).astype(int)
    assert np.abs(found - stripes).max() < 32
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    found = np.asarray(Image.open(io.BytesIO(jpeg(ramp)))).astype(int)
    assert np.abs(found - ramp).max() <= 3
