"""What every optimised mask is made of: smooth masks, images blurred by a mask, and the descent itself.

A mask says how salient each place is: 1 is salient, 0 is not. The two pictures it makes carry the names of the masking
literature: `masked_in` keeps the salient places and blurs the rest, `masked_out` blurs the salient places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from salviz import kernels
from salviz.work import Work

LEVELS = 8
"""Blurs in the pyramid, the image itself among them."""
_NOTHING = 1e-20
"""A weight of a blur that changes no pixel."""
TIE = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Values of a mask nearer than this are equal: rounding stays below it, whatever a gradient does is above."""


def precise(x: Tensor) -> torch.dtype:
    """The type of a mask whose values are ranked: float64, but for Apple's GPUs, which have none."""
    return x.dtype if x.device.type == "mps" else torch.float64


@lru_cache(maxsize=512)
def upsampling(cells: int, size: int, sigma: float = 0.0, shift: float = 0.0) -> Tensor:
    """What takes a row of mask cells to pixels: linear interpolation, then a Gaussian blur.

    Cells and pixels have their centres at half-integers, and the outermost cells go on beyond the border.

    Args:
        cells: Cells along the axis.
        size: Pixels along it.
        sigma: Standard deviation of the blur, in pixels; none at 0.
        shift: Pixels by which the mask is moved towards the start of the axis.

    Returns:
        `(size, cells)` float64 on the CPU, with rows that sum to 1. It is shared: do not write to it.
    """
    radius = math.ceil(4 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma).square()) if radius else torch.ones_like(offsets)
    centres = torch.arange(size, dtype=torch.float64) + 0.5 + shift
    places = ((centres[:, None] + offsets) * (cells / size) - 0.5).clamp(0, cells - 1)
    hats = (1 - (places[:, :, None] - torch.arange(cells)).abs()).clamp_min(0)
    return torch.einsum("pok,o->pk", hats, weights / weights.sum())


def upsample(cells: Tensor, size: tuple[int, int], sigma: float = 0.0) -> Tensor:
    """A mask of a few cells as a smooth mask of pixels: `(N, h, w)` -> `(N, *size)`; see `upsampling`."""
    rows = upsampling(cells.shape[1], size[0], sigma).to(cells)
    columns = upsampling(cells.shape[2], size[1], sigma).to(cells)
    return rows @ cells @ columns.T


@lru_cache(maxsize=512)
def _blurring(size: int, sigma: float) -> Tensor:
    """`(size, size)` float64 matrix that blurs an axis; weights are normalised inside the image."""
    place = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / sigma).square())
    # Far below what rounding leaves of a sum; numbers so small that they are stored otherwise take ten times as long.
    weights[weights < _NOTHING] = 0
    return weights / weights.sum(dim=1, keepdim=True)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `(N, C, H, W)` that keeps flat colours, borders included.

    The weights are normalised over the pixels there are, as in Fong, Patrick, Vedaldi 2019, so no dark frame
    creeps in.

    Args:
        x: Images.
        sigma: Standard deviation in pixels; the image itself at 0.
    """
    if sigma <= 0:
        return x
    # Differences to one pixel are blurred, so that an even image stays even to the last bit.
    first = x[..., :1, :1]
    return first + _blurring(x.shape[2], sigma).to(x) @ (x - first) @ _blurring(x.shape[3], sigma).to(x).T


class _Between(torch.autograd.Function):
    """Colours between the two nearest blurs: `(N, H, W)` and `(LEVELS, N, H, W, 3)` -> `(N, H, W, 3)`."""

    @staticmethod
    def forward(ctx: Any, strength: Tensor, levels: Tensor) -> Tensor:
        found = kernels.between(strength.contiguous(), levels)
        if found is None:
            place = strength * (len(levels) - 1)
            below = place.long().clamp_(0, len(levels) - 2)
            index = below[None, ..., None].expand(1, *levels.shape[1:])
            read, above = levels.gather(0, index)[0], levels.gather(0, index + 1)[0]
            step = above.sub_(read)
            found = torch.addcmul(read, step, (place - below).unsqueeze(-1)), step
        colours, step = found
        ctx.save_for_backward(step)
        ctx.scale = len(levels) - 1
        return colours

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (step,) = ctx.saved_tensors
        back = kernels.dots(grad.contiguous(), step, ctx.scale)
        return (grad * step).sum(dim=-1).mul_(ctx.scale) if back is None else back, None


class BlurPyramid:
    """Images that can be blurred by another amount at every pixel, with a gradient towards the amount.

    The exact operator takes a Gaussian of its own width at every pixel. Here `LEVELS` blurs of evenly spaced widths
    are made once and a pixel is read between the two nearest.
    """

    def __init__(self, x: Tensor, sigma: float) -> None:
        """Blur the images.

        Args:
            x: `(N, 3, H, W)` in model space.
            sigma: Standard deviation of the strongest blur, in pixels.
        """
        # Masks are smooth, so neighbours mostly read the same level: it lies in one piece.
        self._levels = torch.stack(
            [blur(x, sigma * level / (LEVELS - 1)).permute(0, 2, 3, 1) for level in range(LEVELS)]
        )

    def blurred(self, strength: Tensor) -> Tensor:
        """Every pixel blurred by its own share of the strongest blur.

        Args:
            strength: `(N, H, W)` in [0, 1].

        Returns:
            `(N, 3, H, W)`, differentiable with respect to `strength`.
        """
        blurred: Tensor = _Between.apply(strength, self._levels)
        return blurred.permute(0, 3, 1, 2)

    def masked_in(self, mask: Tensor) -> Tensor:
        """The salient places kept and the rest blurred: `(N, H, W)` in [0, 1] -> `(N, 3, H, W)`."""
        return self.blurred(1 - mask)

    def masked_out(self, mask: Tensor) -> Tensor:
        """The salient places blurred and the rest kept: `(N, H, W)` in [0, 1] -> `(N, 3, H, W)`."""
        return self.blurred(mask)


def total_variation(mask: Tensor, power: float) -> Tensor:
    """Sum over the mask of its slope's power: `(N, h, w)` -> `(N,)` (Fong, Vedaldi 2017, eq. 4).

    The slope is the difference to the next cell down and to the next one right.
    """
    down = (mask[:, 1:] - mask[:, :-1]).abs().pow(power)
    right = (mask[:, :, 1:] - mask[:, :, :-1]).abs().pow(power)
    return down.sum(dim=(1, 2)) + right.sum(dim=(1, 2))


def area_loss(mask: Tensor, area: Tensor) -> Tensor:
    """How far a mask is from being 1 on a given share of its places and 0 on the others, wherever these lie.

    The sorted mask is compared with as many zeros as are wanted, then ones: `||vecsort(m) - r_a||^2` (Fong, Patrick,
    Vedaldi 2019), as a mean over places so that its weight does not depend on the resolution. Equal values have no
    order: each is compared with the mean of what their ranks ask for, or else a flat mask would be torn apart in the
    order of memory.

    Args:
        mask: `(N, h, w)` in [0, 1].
        area: `(N,)` share of ones.

    Returns:
        `(N,)`, 0 where the area is exact.
    """
    ordered = mask.flatten(1).sort(dim=1).values
    count = ordered.shape[1]
    with torch.no_grad():
        place = torch.arange(count, device=mask.device)
        is_new = ordered[:, 1:] - ordered[:, :-1] > TIE[mask.dtype]
        edge = torch.ones_like(is_new[:, :1]) if count > 1 else torch.ones_like(ordered, dtype=torch.bool)
        first = torch.where(torch.cat([edge, is_new], dim=1), place, 0).cummax(dim=1).values
        last = torch.where(torch.cat([is_new, edge], dim=1), place + 1, count)
        last = last.flip(1).cummin(dim=1).values.flip(1)
        # The wanted values of the first i ranks add up to max(i - zeros, 0).
        zeros = ((1 - area) * count).unsqueeze(1)
        wanted = ((last - zeros).clamp_min(0) - (first - zeros).clamp_min(0)) / (last - first)
    return (ordered - wanted).square().mean(dim=1)


class Rule(Protocol):
    """How one step of a descent goes; it remembers the steps before."""

    def step(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The values after one more step, every row on its own."""


class Adam:
    """Kingma and Ba's rule: every value has its own step."""

    def __init__(self, rate: float, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self._rate, self._betas, self._epsilon = rate, betas, epsilon
        self._mean: Tensor | None = None
        self._square: Tensor | None = None
        self._count = 0

    def step(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The values after one more step."""
        first, second = self._betas
        if self._mean is None or self._square is None:
            self._mean, self._square = torch.zeros_like(values), torch.zeros_like(values)
        self._count += 1
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        mean = self._mean / (1 - first**self._count)
        spread = (self._square / (1 - second**self._count)).sqrt_().add_(self._epsilon)
        return values - self._rate * mean / spread


class Momentum:
    """Gradient descent that keeps part of the last step."""

    def __init__(self, rate: float, momentum: float = 0.9) -> None:
        self._rate, self._momentum = rate, momentum
        self._velocity: Tensor | None = None

    def step(self, values: Tensor, gradient: Tensor) -> Tensor:
        """The values after one more step."""
        self._velocity = gradient if self._velocity is None else self._momentum * self._velocity + gradient
        return values - self._rate * self._velocity


Loss = Callable[[Tensor, int], Tensor]
"""`(N, h, w)` values in [0, 1] and the number of the iteration -> `(N,)`, one loss a row, from one model pass."""


def descend(values: Tensor, loss: Loss, rule: Rule, iterations: int, work: Work) -> Tensor:
    """Lower every row's own loss, staying in [0, 1].

    The losses are summed for one backward pass. No row's loss reads another row, so neither does its gradient.

    Args:
        values: `(N, h, w)` start.
        loss: See `Loss`.
        rule: New, without memory.
        iterations: Steps; a forward and a backward pass of every row each.
        work: Told after every step.

    Returns:
        `(N, h, w)` in [0, 1], without a graph.
    """
    for iteration in range(iterations):
        with torch.enable_grad():
            leaf = values.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(leaf, iteration).sum(), leaf)
        values = rule.step(leaf.detach(), gradient).clamp_(0, 1)
        work.tick(2 * len(values))
    return values
