"""Running moments of samples."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import increment_version

from salviz.kernels import arrays


def add_sample(sample: Tensor, counts: Tensor, mean: Tensor, squares: Tensor, *further: Tensor) -> bool:
    """Take one more sample of every image into its moments (Welford 1962; Pébay, SAND2008-6212, eq. 2.1).

    Args:
        sample: `(N, ...)`.
        counts: `(N,)` samples of each image, this one among them.
        mean: `(N, ...)` of the samples, overwritten.
        squares: Sums of their deviations squared, overwritten.
        *further: Those of the third power and of the fourth, or nothing.

    Returns:
        Whether it was done; else nothing was.
    """
    moments = (mean, squares, *further)
    if not arrays.is_free(sample, counts, *moments) or counts.shape != (len(sample),) or not counts.is_contiguous():
        return False
    if any(moment.shape != sample.shape for moment in moments):
        return False
    held = arrays.images_alike(sample, *moments)
    if held is None:
        return False
    from salviz.kernels import compiled

    take = compiled.add_sample_to_four if further else compiled.add_sample
    take(len(sample), held[0], arrays.row(counts), *held[1:])
    increment_version(moments)
    return True
