import math

import numpy as np
import pytest
import timm
import torch
import torchvision.models
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.nn import functional as F

from salviz.classifiers.preprocessing import Placement, Preprocessing
from salviz.errors import ClassifierError, ImageError

SIZES = [(301, 457), (457, 301), (640, 479), (1, 1), (7, 5), (224, 224), (256, 256), (223, 225), (33, 600)]

TIMM = {
    "center": {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"},
    "center_whole": {"input_size": (3, 96, 96), "crop_pct": 1.0, "interpolation": "bilinear"},
    "center_oblong": {"input_size": (3, 160, 96), "crop_pct": 0.9, "interpolation": "bicubic"},
    "squash": {
        "input_size": (3, 128, 128),
        "crop_pct": 0.95,
        "crop_mode": "squash",
        "interpolation": "bicubic",
    },
    "border": {
        "input_size": (3, 128, 128),
        "crop_pct": 0.9,
        "crop_mode": "border",
        "interpolation": "bicubic",
    },
    "border_whole": {"input_size": (3, 97, 131), "crop_pct": 1.0, "crop_mode": "border"},
}


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(size[0] * 1000 + size[1]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", TIMM)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_timm_to_the_last_bit(mode: str, size: tuple[int, int]) -> None:
    config = {**TIMM[mode], "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    if mode.startswith("border") and min(size) * 131 < max(size):
        pytest.skip("timm itself fails on a picture that shrinks to nothing")
    image = picture(size)
    reference = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
    ours = Preprocessing.from_timm(config)
    bare = reference.transforms[:-2]
    expected = image
    for step in bare:
        expected = step(expected)
    frame = ours.frame(image)
    assert frame.dtype == torch.uint8
    assert torch.equal(frame, torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert torch.equal(ours.normalise(frame[None])[0], reference(image))


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "swin_t", "efficientnet_b3", "inception_v3", "vit_h_14"])
@pytest.mark.parametrize("size", SIZES[:6], ids=lambda size: f"{size[0]}x{size[1]}")
def test_torchvision_to_the_last_bit(name: str, size: tuple[int, int]) -> None:
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    image = picture(size)
    ours = Preprocessing.from_torchvision(transform)
    assert torch.equal(ours.normalise(ours.frame(image)[None])[0], transform(image))


def test_torchvision_pads_a_frame_larger_than_the_resize_with_black() -> None:
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms(resize_size=90, crop_size=101)
    ours = Preprocessing.from_torchvision(transform)
    image = picture((120, 217))
    assert torch.equal(ours.normalise(ours.frame(image)[None])[0], transform(image))


def test_a_real_model_is_prepared_as_timm_prepares_it() -> None:
    model = timm.create_model("test_vit", pretrained=False)
    image = picture((301, 457))
    reference = create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    ours = Preprocessing.from_timm(model.pretrained_cfg)
    assert torch.equal(ours.normalise(ours.frame(image)[None])[0], reference(image))


def test_other_modes_become_rgb() -> None:
    ours = Preprocessing.from_timm(TIMM["center"])
    grey = picture((50, 40)).convert("L")
    assert torch.equal(ours.frame(grey), ours.frame(grey.convert("RGB")))


def test_denormalise_undoes_normalise_for_every_byte() -> None:
    ours = Preprocessing.from_timm({**TIMM["center"], "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.2)})
    frames = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    x = ours.normalise(frames)
    assert x.dtype == torch.float32
    assert torch.equal(ours.denormalise(x), frames)
    assert int(ours.denormalise(x + 100).min()) == 255


def test_a_strip_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(ImageError, match="too elongated"):
        Preprocessing.from_timm(TIMM["center"]).frame(Image.new("RGB", (2, 20_000)))


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": (1, 28, 28)},
        {"interpolation": "magic"},
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (0.5,)},
        {"input_size": (3, 0, 5)},
    ],
)
def test_unusable_configurations_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ClassifierError):
        Preprocessing.from_timm({**TIMM["center"], "mean": (0.5,) * 3, "std": (0.5,) * 3, **change})


# --- geometry ---------------------------------------------------------------------------------------------

GEOMETRIES = [
    ("center", (900, 640)),
    ("center", (311, 700)),
    ("center_whole", (640, 480)),
    ("center_oblong", (500, 900)),
    ("squash", (700, 300)),
    ("border", (800, 500)),
    ("border_whole", (450, 801)),
    ("center", (90, 120)),  # smaller than the frame
]


@pytest.mark.parametrize(("mode", "size"), GEOMETRIES)
@pytest.mark.parametrize("place", [(0.0, 0.0), (-0.29, -0.23), (0.26, -0.18), (-0.24, 0.29)])
def test_what_a_block_becomes_in_the_frame_is_laid_back_on_the_block(
    mode: str, size: tuple[int, int], place: tuple[float, float]
) -> None:
    ours = Preprocessing.from_timm({**TIMM[mode], "mean": (0.0,) * 3, "interpolation": "bilinear"})
    shorter, side = min(size), 13
    x, y = round(size[0] / 2 + shorter * place[0]), round(size[1] / 2 + shorter * place[1])
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y : y + side, x : x + side] = 255
    frame = ours.frame(Image.fromarray(pixels))[0].double()
    assert frame.max() > 60, "the block must be inside the frame for the test to say something"
    laid = ours.placement(size).lay(frame[None])[0]
    assert laid.shape == (size[1], size[0])
    laid = laid.nan_to_num(0.0)
    across = (laid.sum(0) * (torch.arange(size[0]) + 0.5)).sum() / laid.sum()
    down = (laid.sum(1) * (torch.arange(size[1]) + 0.5)).sum() / laid.sum()
    # A shift by half a frame pixel would be 0.8 to 4 original pixels here, but 0.25 for the small picture.
    assert abs(float(across) - (x + side / 2)) < 0.15
    assert abs(float(down) - (y + side / 2)) < 0.15


@pytest.mark.parametrize(("mode", "size"), GEOMETRIES[:-1])
def test_a_one_hot_map_lands_on_the_right_pixel(mode: str, size: tuple[int, int]) -> None:
    ours = Preprocessing.from_timm({**TIMM[mode], "mean": (0.0,) * 3, "interpolation": "bilinear"})
    x, y = size[0] // 2 - 37, size[1] // 2 + 29
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y, x] = 255
    frame = ours.frame(Image.fromarray(pixels))[0]
    assert int(frame.max()) > 0
    peak = int(frame.flatten().argmax())
    one_hot = torch.zeros(1, frame.numel())
    one_hot[0, peak] = 1
    laid = ours.placement(size).lay(one_hot.view(1, *frame.shape))[0].nan_to_num(-1.0)
    best = int(laid.flatten().argmax())
    # Neighbouring original pixels share a frame pixel, so the peak may be off by half a frame pixel.
    pitch = max(size[0] / frame.shape[1], size[1] / frame.shape[0], 1.0)
    assert abs(best % size[0] - x) <= math.ceil(pitch / 2)
    assert abs(best // size[0] - y) <= math.ceil(pitch / 2)


@pytest.mark.parametrize("size", [(640, 480), (1000, 96), (50, 40), (224, 224), (97, 300)])
def test_lay_over_the_whole_picture_is_torchs_antialiased_bilinear(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 96, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    laid = Placement(size, (0.0, 0.0, float(size[0]), float(size[1]))).lay(maps)
    expected = F.interpolate(maps[:, None], (size[1], size[0]), mode="bilinear", antialias=True)[:, 0]
    torch.testing.assert_close(laid, expected, rtol=1e-9, atol=1e-9)


def test_pixels_outside_the_frame_are_filled() -> None:
    placement = Preprocessing.from_timm(TIMM["center"]).placement((640, 480))
    # 640 x 480 -> 341 x 256 (the longer side is cut off to a whole pixel), crop 224 at (58, 16).
    scale_x, scale_y = 640 / 341, 480 / 256
    assert placement.box == pytest.approx((58 * scale_x, 16 * scale_y, 282 * scale_x, 240 * scale_y))
    seen = ~placement.lay(torch.zeros(1, 7, 7))[0].isnan()
    columns, rows = seen.any(0).nonzero().flatten(), seen.any(1).nonzero().flatten()
    assert (int(columns[0]), int(columns[-1])) == (109, 528)  # first and last centre inside the box
    assert (int(rows[0]), int(rows[-1])) == (30, 449)
    assert bool((placement.lay(torch.ones(1, 7, 7), fill=-5.0)[0][~seen] == -5.0).all())


def test_padding_reaches_outside_the_photograph_and_all_of_it_is_seen() -> None:
    placement = Preprocessing.from_timm(TIMM["border_whole"]).placement((800, 300))
    assert placement.box[1] < 0 < 300 < placement.box[3]
    assert not placement.lay(torch.ones(1, 97, 131)).isnan().any()


def test_an_undefined_value_stays_where_it_is() -> None:
    maps = torch.ones(1, 8, 8)
    maps[0, 2, 3] = float("nan")
    laid = Placement((80, 80), (0.0, 0.0, 80.0, 80.0)).lay(maps)[0]
    hit = laid.isnan().nonzero()
    assert len(hit) > 0
    assert hit.min(0).values.tolist() >= [15, 25]
    assert hit.max(0).values.tolist() <= [34, 44]


def test_lay_refuses_what_is_no_stack_of_maps() -> None:
    placement = Placement((8, 8), (0.0, 0.0, 8.0, 8.0))
    with pytest.raises(ValueError, match="floating point"):
        placement.lay(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="floating point"):
        placement.lay(torch.zeros(1, 4, 4, dtype=torch.uint8))
