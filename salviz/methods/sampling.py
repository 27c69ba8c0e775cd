"""Samples of an image and of its score: their means, how sure these are, when to stop, and whether they differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salviz import kernels
from salviz.methods.card import Parameter
from salviz.work import Work

CHECK = 8
"""Samples between two looks at the error: a number of samples, not of passes, so that batches do not matter."""

TOLERANCE = Parameter(
    "tolerance",
    0.0,
    "Stop once the map's standard error is below this share of its own spread; 0 takes all samples.",
    low=0.0,
    high=1.0,
    step=0.01,
)
"""Setting of every sampling method."""


def remark(error: float, tolerance: float) -> str:
    """What to say of a map's standard error, as the end of a sentence about it; empty where it may be left alone.

    Args:
        error: As a share of the map's own spread (`Estimate.error`); NaN where one sample tells nothing of it.
        tolerance: The share that was asked for; 0 for none.
    """
    said = []
    if error > 1:
        said.append("the map is mostly noise")
    if 0 < tolerance < error:
        # With nothing that could still be drawn it ends above what was asked for.
        said.append(f"above the {float(f'{100 * tolerance:.2g}'):g} % asked for")
    if not said:
        return ""
    more = "allow more samples"
    return f"{', '.join(said)}: {more if tolerance else f'{more}, and a tolerance to stop once they are enough'}"


class Estimate:
    """Mean and variance of a stream of samples, every image with its own count (Welford's recurrence).

    Attributes:
        count: `(N,)` samples so far.
    """

    _ORDER = 2
    """The highest power of the samples' deviations that is summed."""

    def __init__(self, like: Tensor) -> None:
        """Start empty.

        Args:
            like: `(N, ...)` of a sample's shape, type and device.
        """
        self._moments = [torch.zeros_like(like) for _ in range(self._ORDER)]
        self.count = torch.zeros(len(like), device=like.device)

    @property
    def mean(self) -> Tensor:
        """`(N, ...)`."""
        return self._moments[0]

    def add(self, sample: Tensor, rows: Tensor | None = None) -> None:
        """Take one more sample.

        Args:
            sample: `(N, ...)`, or `(R, ...)` for some rows.
            rows: `(R,)` indices of the images it belongs to; all where None.
        """
        is_part = rows is not None and len(rows) < len(self.count)
        chosen = rows if is_part else slice(None)
        self.count[chosen] += 1
        count = self.count[chosen]
        # In two orders of memory each step takes several times as long.
        layout = kernels.layout(sample)
        moments = [moment[chosen].contiguous(memory_format=layout) for moment in self._moments]
        if not kernels.add_sample(sample, count, *moments):
            _take(sample, self._wide(count), *moments)
        if is_part:
            for moment, taken in zip(self._moments, moments, strict=True):
                moment[chosen] = taken
        else:
            self._moments = moments

    def variance(self, *, ddof: int = 1) -> Tensor:
        """`(N, ...)` variance of the samples; zero before there are enough."""
        return self._moments[1] / self._wide((self.count - ddof).clamp(min=1))

    def error(self) -> Tensor:
        """`(N,)` standard error of the mean, as a share of the mean map's own spread over its places.

        The root mean square of the places' standard errors over the standard deviation of the map: 0.1 means that
        noise makes up a tenth of the contrast that is seen. NaN before the second sample, 0 for a map without noise.
        """
        noise = (self.variance() / self._wide(self.count.clamp(min=1))).flatten(1).mean(dim=1).sqrt()
        return relative_error(noise, self.mean, self.count)

    def _wide(self, values: Tensor) -> Tensor:
        return values.view(-1, *(1,) * (self.mean.ndim - 1))


def _take(sample: Tensor, count: Tensor, mean: Tensor, squares: Tensor, *further: Tensor) -> None:
    """As `kernels.add_sample`, of whatever PyTorch computes with; `count` has a sample's dimensions."""
    delta = sample - mean
    step = delta / count
    if further:
        cubes, fourths = further
        term = delta * step * (count - 1)
        fourths += (
            term * step.square() * (count * count - 3 * count + 3) + 6 * step.square() * squares - 4 * step * cubes
        )
        cubes += term * step * (count - 2) - 3 * step * squares
    mean += step
    squares.addcmul_(delta, sample - mean)


class VarianceEstimate(Estimate):
    """Also how sure the variance is, from the third and fourth central moments (Pébay, SAND2008-6212, eq. 2.1)."""

    _ORDER = 4

    def variance_error(self) -> Tensor:
        """`(N,)` standard error of `variance(ddof=0)`, as a share of that map's own spread; see `Estimate.error`.

        The jackknife's (Efron & Stein, The Jackknife Estimate of Variance, 1981). Without sample i the variance with
        n - 2 below it differs by `-n / ((n - 1) (n - 2))` times what the squared deviation of i is above their mean, so
        that its squared error is `n^2 / ((n - 1) (n - 2)^2) (m4 - m2^2)` with the central moments `m2` and `m4`.
        NaN before the third sample.
        """
        n = self._wide(self.count)
        _, squares, _, fourths = self._moments
        spread = (fourths / n - (squares / n).square()).clamp(min=0)
        # With n below the variance instead of n - 1 it is smaller by that factor, and its error too.
        errors = spread * (n - 1) / (n - 2).square()
        noise = errors.flatten(1).mean(dim=1).sqrt()
        found = relative_error(noise, self.variance(ddof=0), self.count)
        return torch.where(self.count >= 3, found, torch.full_like(found, float("nan")))


def alike(scores: Tensor, errors: Tensor) -> Tensor:
    """Images whose copies all have the same score: what was done to them makes no difference, and there is no map.

    What is left to tell the copies apart is rounding, and a map made of that would look like any other.

    Args:
        scores: `(N, S)` scores of every image's copies, or the lowest and the highest alone.
        errors: `(N, S)` what rounding may come to in each (`targets.ClassTarget.rounding`), or the largest alone.

    Returns:
        `(N,)` bool.
    """
    return scores.amax(dim=1) - scores.amin(dim=1) <= errors.amax(dim=1)


def beyond_rounding(losses: Tensor, errors: Tensor) -> Tensor:
    """What an image's score loses without each of its pieces, `(N, K)`: zeros where all of it is but rounding.

    Args:
        losses: `(N, K)`; without nothing the score loses nothing.
        errors: `(N, K)` as `alike` takes them.
    """
    is_flat = alike(torch.nn.functional.pad(losses, (0, 1)), errors)
    return losses.masked_fill(is_flat[:, None], 0.0)


def relative_error(noise: Tensor, maps: Tensor, count: Tensor) -> Tensor:
    """Noise as a share of a map's spread; see `Estimate.error`.

    Args:
        noise: `(N,)` root mean square standard error of the places.
        maps: `(N, ...)` the estimated maps.
        count: `(N,)` samples.
    """
    spread = maps.flatten(1).std(dim=1)
    share = noise / spread.clamp(min=torch.finfo(maps.dtype).tiny)
    share = torch.where(noise == 0, torch.zeros_like(share), share)
    return torch.where(count >= 2, share, torch.full_like(share, float("nan")))


@dataclass(frozen=True)
class Sampled:
    """What gets more samples: an image as long as one of its rows needs them, and then those rows alone.

    Attributes:
        images: Places among the images.
        shown: Places among the batch's rows, of all that show these images.
        wanted: Places among those, of the rows that need samples.
        rows: Places of the same among the batch's rows.
    """

    images: Tensor | slice
    shown: Tensor | slice
    wanted: Tensor | slice
    rows: Tensor | slice


def sampled(active: Tensor, count: int, work: Work) -> Sampled:
    """What is sampled next.

    Reads the device's memory only where some rows are done.

    Args:
        active: `(A,)` rows that need samples, in rising order.
        count: N, all rows.
        work: Knows which rows show the same image.
    """
    everything = slice(None)
    if len(active) == count:
        return Sampled(everything, everything, everything, everything)
    images = active if work.each == 1 else torch.unique_consecutive(active // work.each)
    shown = work.places(images)
    return Sampled(
        images, shown, everything if len(shown) == len(active) else torch.searchsorted(shown, active), active
    )


def unfinished(active: Tensor, error: Tensor, tolerance: float) -> Tensor:
    """The images that still need samples: `(A,)` indices, all of them where the tolerance is 0.

    Reads the device's memory only where a tolerance was asked for.

    Args:
        active: `(A,)` indices of images that were sampled last.
        error: `(N,)` from `Estimate.error`.
        tolerance: Share below which an image is done.
    """
    if tolerance <= 0:
        return active
    # A NaN is no small error.
    return active[~(error[active] <= tolerance)]
