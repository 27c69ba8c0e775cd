"""From a photograph to the model's input, and from a map back to the photograph.

The pixels are those of the library the weights come from, to the last bit (`timm.data.create_transform`,
torchvision's `weights.transforms()`), because a model's published accuracy is only reproduced by its own
preprocessing. Unlike those transforms this one keeps the geometry, so that a map of the model's input can be
laid on the original photograph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salviz.errors import ClassifierError, ImageError

CropMode = Literal["center", "squash", "border"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

# The published transforms resize before they crop, so a 10 x 20 000 pixel strip would grow to 256 x 512 000
# first. Nothing that deserves the name photograph comes near this many pixels.
_MAX_RESIZED_PIXELS = 100_000_000


@dataclass(frozen=True)
class Placement:
    """Where the model's input frame lies on the original photograph.

    Attributes:
        size: `(width, height)` of the original in pixels.
        box: `(left, top, right, bottom)` of the frame in the original's continuous pixel coordinates
            (0 is the left edge of the first pixel); may reach outside where preprocessing padded.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]

    def scaled(self, size: tuple[int, int]) -> Placement:
        """The same frame on the photograph drawn at another size.

        Args:
            size: `(width, height)` in pixels.
        """
        across, down = size[0] / self.size[0], size[1] / self.size[1]
        left, top, right, bottom = self.box
        return Placement(size, (left * across, top * down, right * across, bottom * down))

    def lay(self, maps: Tensor, *, fill: float = float("nan")) -> Tensor:
        """Resample maps of the frame onto the original photograph.

        Pixel centres lie at half-integers (`align_corners=False`). Where the original is finer than the map
        this is bilinear interpolation; where it is coarser the triangle is widened to one original pixel, so
        that no part of the map is skipped. A NaN or an infinity makes the pixels it reaches NaN, no others.

        Args:
            maps: `(N, h, w)` float; any resolution that covers the whole frame.
            fill: Value of original pixels whose centre the model did not see.

        Returns:
            `(N, height, width)` float of the maps' dtype, on their device.

        Raises:
            ValueError: `maps` is not three-dimensional floating point.
        """
        if maps.ndim != 3 or not maps.is_floating_point():
            raise ValueError(f"Maps must be (N, h, w) floating point, not {tuple(maps.shape)} {maps.dtype}.")
        width, height = self.size
        left, top, right, bottom = self.box
        rows, seen_rows = _shares(maps.shape[1], length=height, start=top, stop=bottom)
        columns, seen_columns = _shares(maps.shape[2], length=width, start=left, stop=right)
        rows, columns = rows.to(maps.device, maps.dtype), columns.to(maps.device, maps.dtype)
        defined = maps.isfinite()
        if bool(defined.all()):
            laid = rows @ maps @ columns.T
        else:
            # In a product 0 * NaN is NaN: undefined values are carried apart, to the pixels they reach.
            laid = rows @ maps.where(defined, 0) @ columns.T
            reached = (rows > 0).to(maps.dtype) @ (~defined).to(maps.dtype) @ (columns > 0).to(maps.dtype).T
            laid = laid.masked_fill(reached > 0, float("nan"))
        seen = (seen_rows[:, None] & seen_columns[None, :]).to(maps.device)
        return laid.masked_fill(~seen, fill)


def _shares(count: int, *, length: int, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """How much each map pixel adds to each original pixel along one axis.

    Args:
        count: Map pixels, which span [start, stop] of the original axis.
        length: Original pixels.
        start: Where the map begins, in original pixels.
        stop: Where it ends.

    Returns:
        `(length, count)` float64 with rows that sum to 1, and `(length,)` bool: whether a pixel's centre lies
        in the span; both on the CPU (MPS has no float64).
    """
    density = count / (stop - start)  # map pixels per original pixel
    centre = torch.arange(length, dtype=torch.float64) + 0.5
    seen = (centre >= start) & (centre <= stop)
    # Centres outside get the share of the nearest edge, so that every row has a sum; they are filled later.
    place = ((centre - start) * density).clamp(0, count)
    distance = (place[:, None] - torch.arange(count, dtype=torch.float64) - 0.5).abs()
    shares = (1 - distance / max(density, 1.0)).clamp_min(0)
    return shares / shares.sum(1, keepdim=True), seen


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalisation of a model, with the geometry kept.

    Attributes:
        input_size: `(height, width)` of the model's input in pixels.
        resize: Target of the resize step: an int (shorter side) or `(height, width)`.
        interpolation: `bilinear`, `bicubic`, `nearest`, `lanczos`, `box` or `hamming`, as Pillow does it
            (antialiased).
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].
        pad: Whether room left around a picture smaller than the input is filled with the mean colour
            (as timm's `border` mode does) or with black (as torchvision's centre crop does).
        crop_mode: What a `(height, width)` resize means: `center` keeps the aspect ratio and covers it,
            `border` keeps the aspect ratio and fits inside it, `squash` stretches to it.
    """

    input_size: tuple[int, int]
    resize: int | tuple[int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: bool = False
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        """Refuse what no picture could be prepared with.

        Raises:
            ClassifierError: A size, an interpolation, a crop mode, the mean or the std is unusable.
        """
        targets = (self.resize,) if isinstance(self.resize, int) else self.resize
        usable = (
            len(self.input_size) == 2
            and len(targets) in (1, 2)
            and all(isinstance(side, int) and 0 < side <= 8192 for side in (*self.input_size, *targets))
            and self.interpolation in _RESAMPLING
            and self.crop_mode in ("center", "squash", "border")
            and len(self.mean) == len(self.std) == 3
            and all(math.isfinite(value) for value in (*self.mean, *self.std))
            and all(value > 0 for value in self.std)
        )
        if not usable:
            raise ClassifierError(
                "The classifier's preprocessing (input size, interpolation, crop mode, mean or std) is none"
                " that Salviz knows for RGB pictures, so pick another classifier."
            )

    @classmethod
    def plain(cls, size: int) -> Preprocessing:
        """A square picture of `size` pixels a side, whole and bilinear, with values in [-1, 1]."""
        half = (0.5, 0.5, 0.5)
        return cls((size, size), size, "bilinear", half, half)

    @classmethod
    def from_timm(cls, pretrained_cfg: Mapping[str, Any]) -> Preprocessing:
        """Preprocessing of a timm model, as `create_transform(**resolve_model_data_config(model))` does it.

        Args:
            pretrained_cfg: timm's dictionary of that name (`model.pretrained_cfg`).

        Raises:
            ClassifierError: The model does not take RGB pictures of a fixed size.
        """
        from timm.data.config import resolve_data_config

        config: dict[str, Any] = resolve_data_config(  # type: ignore[no-untyped-call]
            pretrained_cfg=dict(pretrained_cfg)
        )
        channels, height, width = config["input_size"]
        if channels != 3:
            raise ClassifierError(
                f"This classifier takes {channels} channels instead of three; pick one for RGB pictures."
            )
        modes: dict[str, CropMode] = {"squash": "squash", "border": "border"}
        mode = modes.get(config["crop_mode"], "center")
        target = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
        # timm resizes by the shorter side only where the target is square (the two roundings differ).
        resize = target[0] if mode == "center" and target[0] == target[1] else target
        return cls(
            input_size=(height, width),
            resize=resize,
            interpolation=config["interpolation"],
            mean=_three(config["mean"]),
            std=_three(config["std"]),
            pad=mode == "border",
            crop_mode=mode,
        )

    @classmethod
    def from_torchvision(cls, transform: Any) -> Preprocessing:
        """Preprocessing of torchvision weights.

        Args:
            transform: `weights.transforms()`, an `ImageClassification` preset.
        """
        crop, size = transform.crop_size, transform.resize_size
        height, width = (crop[0], crop[0]) if len(crop) == 1 else (crop[0], crop[1])
        return cls(
            input_size=(height, width),
            resize=size[0] if len(size) == 1 else (size[0], size[1]),
            interpolation=transform.interpolation.value,
            mean=_three(transform.mean),
            std=_three(transform.std),
            # A pair of sides means exactly these to torchvision.
            crop_mode="center" if len(size) == 1 else "squash",
        )

    def frame(self, image: Image.Image) -> Tensor:
        """Resized and cropped picture, as the model sees it before normalisation.

        Args:
            image: Any mode; converted to RGB.

        Returns:
            `(3, H, W)` uint8 on the CPU.

        Raises:
            ImageError: The picture is so elongated that resizing it would fill the memory.
        """
        width, height = self._resized(image.size)
        if width * height > _MAX_RESIZED_PIXELS:
            raise ImageError(
                f"This picture of {image.width} x {image.height} pixels is too elongated for the classifier;"
                " crop it to a more usual shape first."
            )
        picture = image if image.mode == "RGB" else image.convert("RGB")
        if picture.size != (width, height):
            picture = picture.resize((width, height), _RESAMPLING[self.interpolation])
        left, top = self._corner((width, height))
        frame_height, frame_width = self.input_size
        box = (left, top, left + frame_width, top + frame_height)
        if left >= 0 and top >= 0 and box[2] <= width and box[3] <= height:
            cropped = picture.crop(box)
        else:
            colour = tuple(round(255 * value) for value in self.mean) if self.pad else (0, 0, 0)
            cropped = Image.new("RGB", (frame_width, frame_height), colour)
            cropped.paste(picture, (-left, -top))
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous()

    def placement(self, size: tuple[int, int]) -> Placement:
        """Where the frame of a picture of `size` = (width, height) lies on it."""
        width, height = self._resized(size)
        left, top = self._corner((width, height))
        frame_height, frame_width = self.input_size
        # Original pixels per resized pixel; the two differ slightly, as sides are rounded to whole pixels.
        x, y = size[0] / width, size[1] / height
        return Placement(size, (left * x, top * y, (left + frame_width) * x, (top + frame_height) * y))

    def normalise(self, frames: Tensor) -> Tensor:
        """`(N, 3, H, W)` uint8 -> float32 in model space, on the frames' device."""
        mean, std = self._constants(frames.device)
        return (frames.float() / 255).sub_(mean).div_(std)

    def denormalise(self, x: Tensor) -> Tensor:
        """`(N, 3, H, W)` float in model space -> `(N, 3, H, W)` uint8, rounded, on the same device."""
        mean, std = self._constants(x.device)
        return ((x.float() * std + mean) * 255).round_().clamp_(0, 255).to(torch.uint8)

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        return mean, torch.tensor(self.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """`(width, height)` after the resize step; the roundings are the libraries' own."""
        width, height = size
        if isinstance(self.resize, int):
            shorter, longer = min(size), max(size)
            scaled = int(self.resize * longer / shorter)
            return (self.resize, scaled) if width <= height else (scaled, self.resize)
        target_height, target_width = self.resize
        if self.crop_mode == "squash":
            return target_width, target_height
        ratios = height / target_height, width / target_width
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        # A hair-thin picture fitted inside the target keeps one pixel; the libraries would raise here.
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _corner(self, resized: tuple[int, int]) -> tuple[int, int]:
        """`(left, top)` of the frame on the resized picture; negative where the picture is smaller."""
        height, width = self.input_size
        return _offset(resized[0], width), _offset(resized[1], height)


def _offset(side: int, frame: int) -> int:
    """Start of a centred frame; padding puts the odd pixel last, cropping rounds half to even."""
    return -((frame - side) // 2) if frame > side else round((side - frame) / 2.0)


def _three(values: Any) -> tuple[float, float, float]:
    """Mean or std as three numbers; a wrong count is left to the dataclass to refuse."""
    return tuple(float(value) for value in values)  # type: ignore[return-value]
