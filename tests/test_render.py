"""What is shown of an exploration: the right places, and nothing computed anew."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from salviz import engine, render
from salviz.classifiers.preprocessing import Preprocessing
from salviz.colormaps import lookup
from salviz.exploration import Exploration
from salviz.exploring import explore
from salviz.images import Picture
from salviz.overlay import UNSEEN_COLOUR
from salviz.render import Display
from salviz.request import Request, request_for
from salviz.transforms import Variant
from tests.golden import cose_inputs
from tests.models import IMAGENET_MEAN, IMAGENET_STD, toy

PREP = Preprocessing((64, 64), 64, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
PLAIN = Display(range_mode="full", opacity=1.0, follows_value=False)


def picture_of(width: int, height: int) -> Picture:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture.from_rgb(Image.fromarray(pixels))


def hand_made(raw: torch.Tensor, size: tuple[int, int], method: str = "grad_cam") -> Exploration:
    """An exploration without a model: the clean map alone, on a photograph of `size` = (width, height)."""
    parameters = (("layer", ""),) if method == "grad_cam" else ()
    undefined = torch.tensor([float("nan")])
    return Exploration(
        request=Request(image="i", classifier="c", weights="w", method=method, parameters=parameters),
        frames=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        placement=PREP.placement(size),
        raw=raw[None],
        logits=torch.eye(3)[:1],
        classes=torch.zeros(1, dtype=torch.long),
        ssim=undefined,
        completeness=None,
        layer=None,
        seconds=0.0,
        passes=1.0,
    )


@pytest.fixture(scope="module")
def found() -> Exploration:
    picture = Picture.from_rgb(Image.fromarray(cose_inputs.image_u8(12, 32)))
    variants = [Variant.from_token(token) for token in ("translate_x:+8", "flip_lr")]
    return explore(toy(), picture, request_for(picture, toy(), method="gradient", variants=variants))


CELLS = [(0, 0), (3, 3), (1, 6), (6, 2)]


@pytest.mark.parametrize("size", [(128, 64), (64, 128), (200, 150)])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("is_smooth", [True, False])
def test_a_single_cell_shows_where_the_model_saw_it(
    size: tuple[int, int], cell: tuple[int, int], is_smooth: bool
) -> None:
    raw = torch.zeros(8, 8)
    raw[cell] = 1.0
    width, height = size
    scale = 2
    shown = render.on_photograph(
        hand_made(raw, size), (width * scale, height * scale), is_signed=False, is_smooth=is_smooth
    )
    left, top, right, bottom = (scale * edge for edge in PREP.placement(size).box)
    step_x, step_y = (right - left) / 8, (bottom - top) / 8
    y, x = np.mgrid[0 : height * scale, 0 : width * scale] + 0.5
    inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    np.testing.assert_array_equal(np.isfinite(shown), inside)
    weight = np.where(inside, np.nan_to_num(shown), 0.0)
    expected_x, expected_y = left + (cell[1] + 0.5) * step_x, top + (cell[0] + 0.5) * step_y
    on_edge = 0 in cell or 7 in cell  # there the interpolated blob is cut off, its centre moves inward
    reach = 0.5 if not on_edge else 0.5 * max(step_x, step_y)
    assert (weight * x).sum() / weight.sum() == pytest.approx(expected_x, abs=reach)
    assert (weight * y).sum() / weight.sum() == pytest.approx(expected_y, abs=reach)
    if not is_smooth:
        # An edge between cells is as sharp as the model's pixels, eight a cell.
        block = (abs(x - expected_x) < step_x * 3 / 8) & (abs(y - expected_y) < step_y * 3 / 8)
        around = (abs(x - expected_x) > step_x * 5 / 8) | (abs(y - expected_y) > step_y * 5 / 8)
        np.testing.assert_allclose(shown[block], 1.0, atol=1e-6)
        np.testing.assert_allclose(shown[around & inside], 0.0, atol=1e-6)


def test_a_flat_map_has_one_colour() -> None:
    picture = picture_of(128, 64)
    for value in (0.0, 0.3):
        shown = render.pictures(hand_made(torch.full((8, 8), value), picture.size), picture, PLAIN, width=128)
        assert np.unique(shown.map[:, 32:96].reshape(-1, 3), axis=0).tolist() == [lookup("inferno")[0].tolist()]
        assert (shown.map[:, :32] == UNSEEN_COLOUR).all()
        assert shown.low == shown.high == pytest.approx(value)


def test_the_three_pictures_show_the_whole_photograph() -> None:
    picture = picture_of(128, 64)
    exploration = hand_made(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)), picture.size)
    shown = render.pictures(exploration, picture, PLAIN, width=128)
    np.testing.assert_array_equal(shown.photo, picture.pixels())
    assert shown.map.shape == shown.overlay.shape == shown.photo.shape
    np.testing.assert_array_equal(shown.overlay[:, 32:96], shown.map[:, 32:96])
    clear = render.pictures(exploration, picture, dataclasses.replace(PLAIN, opacity=0.0), width=128)
    np.testing.assert_array_equal(clear.overlay[:, 32:96], shown.photo[:, 32:96])
    assert (shown.low, shown.high) == (exploration.raw.min().item(), exploration.raw.max().item())


@pytest.mark.parametrize(("width", "expected"), [(64, (32, 64)), (256, (128, 256)), (10**6, (128, 256))])
def test_photographs_are_at_most_doubled(width: int, expected: tuple[int, int]) -> None:
    assert render.photograph(picture_of(128, 64), width).shape == (*expected, 3)


def test_display_choices_ask_no_model(found: Exploration, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a display choice computed a map")

    monkeypatch.setattr(engine, "explain", refuse)
    monkeypatch.setattr(type(toy()), "forward", refuse)
    picture = Picture.from_rgb(Image.fromarray(cose_inputs.image_u8(12, 32)))
    before = found.raw.clone()
    displays = [
        Display(),
        Display(colormap="viridis", opacity=0.1),
        Display(is_signed=True, range_mode="symmetric", scale="shared"),
        Display(is_smooth=False, range_mode="percentile", follows_value=False),
    ]
    for display in displays:
        assert render.pictures(found, picture, display, width=64).overlay.dtype == np.uint8
        for row in range(3):
            assert render.row_card(found, row, display).shape == (32, 68, 3)
    assert torch.equal(found.raw, before)


def test_the_colormap_follows_the_sign() -> None:
    assert Display().colormap_id == "inferno"
    assert not Display().is_diverging
    assert Display(is_signed=True).colormap_id == "RdBu_r"
    assert Display(is_signed=True).is_diverging
    assert Display(colormap="gray", is_signed=True).colormap_id == "gray"


def test_a_signed_map_puts_zero_in_the_middle() -> None:
    raw = torch.zeros(8, 8)
    raw[2, 2], raw[5, 5] = -1.0, 3.0
    exploration = hand_made(raw, (64, 64), method="gradient")
    assert render.clean_limits(exploration, Display(is_signed=True, range_mode="full")) == (-3.0, 3.0)
    assert render.clean_limits(exploration, Display(range_mode="full")) == (0.0, 3.0)


def test_a_rows_map_lies_on_the_frame_it_belongs_to(found: Exploration) -> None:
    clear = Display(opacity=0.0)
    frames = found.frames.permute(0, 2, 3, 1).numpy()
    own = render.row_overlay(found, 1, clear, is_aligned=False)
    np.testing.assert_array_equal(own, frames[1])
    aligned = render.row_overlay(found, 1, clear, is_aligned=True)
    np.testing.assert_array_equal(aligned[:, :-8], frames[0][:, :-8])
    assert (aligned[:, -8:] != frames[0][:, -8:]).any(), "what moved out of the frame is veiled"
    card = render.row_card(found, 1, clear, background=7)
    np.testing.assert_array_equal(card[:, :32], frames[1])
    assert (card[:, 32:36] == 7).all()
    np.testing.assert_array_equal(card[:, 36:], aligned)


def test_a_shared_scale_is_the_clean_maps(found: Exploration) -> None:
    louder = dataclasses.replace(found, raw=found.raw * torch.tensor([1.0, 1e3, 1.0]).view(3, 1, 1, 1))
    shown = {
        scale: render.row_overlay(louder, 1, dataclasses.replace(PLAIN, scale=scale), is_aligned=False)
        for scale in ("map", "shared")
    }
    alone = render.row_overlay(found, 1, PLAIN, is_aligned=False)
    np.testing.assert_array_equal(shown["map"], alone)
    assert (shown["shared"] == lookup("inferno")[255]).all(axis=2).mean() > 0.9


def test_a_flat_map_that_is_turned_back_looks_as_flat_as_before(found: Exploration) -> None:
    """Along its edges it is mixed with the nothing outside; that must not become the low end of its colours."""
    request = dataclasses.replace(found.request, variants=("rotate:+27", "flip_lr"))
    flat = dataclasses.replace(found, raw=torch.ones_like(found.raw), request=request)
    clean, turned = (render.row_overlay(flat, row, PLAIN, is_aligned=True) for row in (0, 1))
    seen = flat.display_map(1, is_signed=False)[1].numpy()
    assert 0.5 < seen.mean() < 1
    assert len(np.unique(clean.reshape(-1, 3), axis=0)) == 1
    assert (turned[seen] == clean[seen]).all()


@pytest.mark.parametrize("is_signed", [False, True])
def test_one_scale_for_rows_holds_the_range_of_each(is_signed: bool) -> None:
    """The same value has the same colour in every row, and no row's end is cut off, whichever comes first."""
    rows = [hand_made(torch.linspace(low, high, 49).view(7, 7), (64, 64)) for low, high in ((1, 2), (0, 5), (-8, 3))]
    choices = dataclasses.replace(PLAIN, is_signed=is_signed)
    own = [render.clean_limits(row, choices) for row in rows]
    # Unsigned, Grad-CAM's positive part is shown; signed, zero stands in the middle.
    assert own == ([(-2, 2), (-5, 5), (-8, 8)] if is_signed else [(1, 2), (0, 5), (0, 3)])
    expected = (-8, 8) if is_signed else (0, 5)
    for order in (rows, rows[::-1]):
        assert render.common_limits(order, choices) == expected
    assert render.common_limits(rows[:1], choices) == own[0]
    picture = picture_of(64, 64)
    drawn = [
        render.compared(row, picture, choices, part="map", width=64, limits=render.common_limits(rows, choices))
        for row in rows
    ]
    table = lookup(choices.colormap_id)
    for row, pixels in zip(rows, drawn, strict=True):
        value = float(row.native_map(is_signed=is_signed)[6, 6])
        place = min(int((value - expected[0]) / (expected[1] - expected[0]) * 256), 255)
        assert pixels[-1, -1].tolist() == table[place].tolist()
