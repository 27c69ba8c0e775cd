"""The thirteen augmentations on batches of uint8 frames, bit for bit what Pillow computes.

COSE's released code applies Pillow to the cropped frame, so Pillow's arithmetic is the definition:
truncating blends in single precision, integer luma, lookup tables from histograms, filters that copy the
border, nearest-neighbour rotation in 16.16 fixed point. Each operation below states where its arithmetic
comes from.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from salviz.transforms.variants import Variant


def augment(frames: Tensor, variants: Sequence[Variant]) -> Tensor:
    """Each frame under its variant (Daroya et al. 2023, section 3; released code, `_apply_op`).

    Variants of one augmentation are computed together; the order of the result is that of `variants`, and a
    frame's result does not depend on the others.

    Args:
        frames: `(N, 3, H, W)` uint8 RGB, or one frame `(3, H, W)` or `(1, 3, H, W)` for all variants.
        variants: One a frame; any number for a single frame.

    Returns:
        `(len(variants), 3, H, W)` uint8 on the frames' device.

    Raises:
        ValueError: If the frames are not uint8 RGB or their number does not fit the variants.
    """
    batch = frames.unsqueeze(0) if frames.ndim == 3 else frames
    if batch.ndim != 4 or batch.shape[1] != 3 or batch.dtype != torch.uint8:
        raise ValueError(f"frames must be (N, 3, H, W) uint8, not {tuple(frames.shape)} {frames.dtype}")
    if batch.shape[0] == 1:
        batch = batch.expand(len(variants), -1, -1, -1)
    if batch.shape[0] != len(variants):
        raise ValueError(f"{batch.shape[0]} frames do not fit {len(variants)} variants")
    groups: dict[str, list[int]] = defaultdict(list)
    for place, variant in enumerate(variants):
        groups[variant.augmentation].append(place)
    out = torch.empty(batch.shape, dtype=torch.uint8, device=batch.device)
    for augmentation, places in groups.items():
        index = torch.tensor(places, device=batch.device)
        magnitudes = [variants[place].magnitude or 0.0 for place in places]
        out[index] = _OPERATIONS[augmentation](batch[index], magnitudes)
    return out


def _translate_x(frames: Tensor, magnitudes: Sequence[float]) -> Tensor:
    return _shift(frames, [(int(pixels), 0) for pixels in magnitudes])


def _translate_y(frames: Tensor, magnitudes: Sequence[float]) -> Tensor:
    return _shift(frames, [(0, int(pixels)) for pixels in magnitudes])


def _shift(frames: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Content moved right and down by whole pixels, black elsewhere."""
    out = torch.zeros_like(frames)
    height, width = frames.shape[-2:]
    for place, (dx, dy) in enumerate(offsets):
        rows, columns = max(height - abs(dy), 0), max(width - abs(dx), 0)
        source = frames[place, :, max(-dy, 0) :, max(-dx, 0) :][:, :rows, :columns]
        out[place, :, max(dy, 0) :, max(dx, 0) :][:, :rows, :columns] = source
    return out


def _rotate(frames: Tensor, degrees: Sequence[float]) -> Tensor:
    """`Image.rotate`, nearest neighbour, no expansion: the source of each pixel in 16.16 fixed point.

    Pillow transposes at multiples of 90 degrees; its fixed-point path gives the same pixels there, so one
    path does.
    """
    count, channels, height, width = frames.shape
    matrices = [_fixed_point_rotation(angle, width, height) for angle in degrees]
    a0, a1, a2, a3, a4, a5 = (
        torch.tensor(matrices, dtype=torch.int32, device=frames.device).view(count, 6, 1, 1).unbind(1)
    )
    x = torch.arange(width, dtype=torch.int32, device=frames.device)
    y = torch.arange(height, dtype=torch.int32, device=frames.device).view(-1, 1)
    source_x = (a0 * x + a1 * y + a2) >> 16
    source_y = (a3 * x + a4 * y + a5) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    index = torch.where(inside, source_y * width + source_x, 0).long().view(count, 1, -1)
    moved = frames.flatten(2).gather(2, index.expand(-1, channels, -1))
    return moved.masked_fill(~inside.view(count, 1, -1), 0).view_as(frames)


def _fixed_point_rotation(degrees: float, width: int, height: int) -> list[int]:
    """Matrix from destination to source pixel: `Image.rotate`, then `affine_fixed` in `Geometry.c`."""
    angle = -math.radians(degrees % 360.0)
    # Rounding to 15 digits is Pillow's: it makes right angles exact.
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    centre_x, centre_y = width / 2, height / 2
    shift_x = cos * -centre_x + sin * -centre_y + centre_x
    shift_y = -sin * -centre_x + cos * -centre_y + centre_y
    # Half a pixel more, because Pillow samples at pixel centres.
    real = (
        (cos, sin, shift_x + cos * 0.5 + sin * 0.5),
        (-sin, cos, shift_y + -sin * 0.5 + cos * 0.5),
    )
    return [math.floor(value * 65536.0 + 0.5) for row in real for value in row]


def _flip_lr(frames: Tensor, _: Sequence[float]) -> Tensor:
    return frames.flip(-1)


def _flip_ud(frames: Tensor, _: Sequence[float]) -> Tensor:
    return frames.flip(-2)


def _brightness(frames: Tensor, magnitudes: Sequence[float]) -> Tensor:
    """`ImageEnhance.Brightness`: blend with black."""
    return _blend(torch.zeros_like(frames[:, :1]), frames, magnitudes)


def _color(frames: Tensor, magnitudes: Sequence[float]) -> Tensor:
    """`ImageEnhance.Color`: blend with the greyscale frame."""
    return _blend(_luma(frames), frames, magnitudes)


def _contrast(frames: Tensor, magnitudes: Sequence[float]) -> Tensor:
    """`ImageEnhance.Contrast`: blend with the mean grey, rounded half up."""
    pixels = frames.shape[-2] * frames.shape[-1]
    total = _luma(frames).sum(dim=(1, 2, 3), keepdim=True)
    return _blend((2 * total + pixels) // (2 * pixels), frames, magnitudes)


def _sharpness(frames: Tensor, magnitudes: Sequence[float]) -> Tensor:
    """`ImageEnhance.Sharpness`: blend with the smoothed frame."""
    return _blend(_smooth(frames, magnitudes), frames, magnitudes)


def _blend(degenerate: Tensor, frames: Tensor, magnitudes: Sequence[float]) -> Tensor:
    """`Image.blend(degenerate, frame, 1 + magnitude)`: `d + factor * (f - d)`, clipped and truncated.

    Single precision with the product and the sum rounded one after the other, as in `Blend.c`: a fused or
    double computation truncates to other values.
    """
    factors = torch.tensor([1.0 + magnitude for magnitude in magnitudes], dtype=torch.float32, device=frames.device)
    base = degenerate.float()
    product = (frames.float() - base) * factors.view(-1, 1, 1, 1)
    return (product + base).clamp(0, 255).to(torch.uint8)


def _luma(frames: Tensor) -> Tensor:
    """`Image.convert("L")`: `(N, 1, H, W)` int32, ITU-R 601 weights in 16-bit fixed point (`Convert.c`)."""
    red, green, blue = (frames[:, channel : channel + 1].int() for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _auto_contrast(frames: Tensor, _: Sequence[float]) -> Tensor:
    """`ImageOps.autocontrast`: each channel's darkest value to 0, its lightest to 255."""
    # Pillow builds the table in double precision and truncates, so the table needs doubles. MPS has none:
    # there, and only there, two numbers a channel go to the host.
    flat = frames.flatten(2)
    exact = torch.device("cpu") if frames.device.type == "mps" else frames.device
    low = flat.amin(dim=2, keepdim=True).to(device=exact, dtype=torch.float64)
    high = flat.amax(dim=2, keepdim=True).to(device=exact, dtype=torch.float64)
    values = torch.arange(256, dtype=torch.float64, device=exact)
    # A true division: torch turns `255.0 / tensor` into a product with the reciprocal, which rounds twice.
    scale = torch.full_like(low, 255.0) / (high - low)
    table = (values * scale + -low * scale).clamp(0, 255)
    table = torch.where(high > low, table, values).to(torch.uint8)
    return _look_up(table.to(frames.device), frames)


def _equalize(frames: Tensor, _: Sequence[float]) -> Tensor:
    """`ImageOps.equalize`: each channel through its cumulative histogram, in integers."""
    flat = frames.flatten(2).long()
    histogram = torch.zeros((*flat.shape[:2], 256), dtype=torch.int64, device=frames.device)
    histogram.scatter_add_(2, flat, torch.ones((), dtype=torch.int64, device=frames.device).expand_as(flat))
    of_lightest = histogram.gather(2, flat.amax(dim=2, keepdim=True))
    step = (flat.shape[2] - of_lightest) // 255
    below = histogram.cumsum(dim=2) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    unchanged = torch.arange(256, device=frames.device)
    return _look_up(torch.where(step > 0, table, unchanged).to(torch.uint8), frames)


def _look_up(table: Tensor, frames: Tensor) -> Tensor:
    """Every value through its channel's table, `(N, 3, 256)` uint8."""
    return table.gather(2, frames.flatten(2).long()).view_as(frames)


def _blur(frames: Tensor, _: Sequence[float]) -> Tensor:
    """`ImageFilter.BLUR`: mean of the 16 pixels on the ring of a 5x5 window, a border of 2 copied."""
    if min(frames.shape[-2:]) < 5:
        return frames.clone()
    values = frames.short()
    ring = _box_sum(values, 5) - _box_sum(values, 3)[..., 1:-1, 1:-1]
    return _inside(frames, ring, 16, 2)


def _smooth(frames: Tensor, _: Sequence[float]) -> Tensor:
    """`ImageFilter.SMOOTH`: 3x3 mean with a centre of weight 5, a border of 1 copied."""
    if min(frames.shape[-2:]) < 3:
        return frames.clone()
    values = frames.short()
    return _inside(frames, _box_sum(values, 3) + 4 * values[..., 1:-1, 1:-1], 13, 1)


def _inside(frames: Tensor, sums: Tensor, weight: int, border: int) -> Tensor:
    """The frames with `sums / weight`, rounded, inside a border.

    Pillow adds nine or sixteen products in single precision and truncates after adding a half. For weight 16
    that is exact; for 13 the true value is never nearer than 1/26 to a whole number, far more than the error
    of such a sum. So any accurate way of rounding gives Pillow's value.
    """
    out = frames.clone()
    out[..., border:-border, border:-border] = ((sums.float() + weight / 2) / weight).to(torch.uint8)
    return out


def _box_sum(values: Tensor, size: int) -> Tensor:
    """Sums over the `size` x `size` windows inside, `(..., H - size + 1, W - size + 1)`."""
    rows, columns = values.shape[-2] - size + 1, values.shape[-1] - size + 1
    across = values[..., :columns]
    for offset in range(1, size):
        across = across + values[..., offset : offset + columns]
    down = across[..., :rows, :]
    for offset in range(1, size):
        down = down + across[..., offset : offset + rows, :]
    return down


_OPERATIONS: dict[str, Callable[[Tensor, Sequence[float]], Tensor]] = {
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "flip_lr": _flip_lr,
    "flip_ud": _flip_ud,
    "blur": _blur,
    "smooth": _smooth,
}
