"""Intersection of the most salient pixels of map pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from salviz.flatness import is_flat
from salviz.similarity.pairs import validated


def top_k(a: Tensor, b: Tensor, *, share: float = 0.05) -> Tensor:
    """Share of the most salient pixels that two maps have in common (Ghorbani et al. 2019, "top-k intersection").

    Args:
        a: `(N, H, W)` floating point, larger is more salient.
        b: `(N, H, W)` like `a`.
        share: Of the pixels that count as most salient, in (0, 1]; at least one does.

    Returns:
        `(N,)` in [0, 1]: `|A and B| / k`. Pixels that tie with the k-th count by the part of them that belongs there,
        so that the order of pixels decides nothing. NaN where a map is flat or not finite.

    Raises:
        ValueError: If the maps do not match or `share` lies outside.
    """
    validated(a, b, None)
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], not {share}")
    x, y = a.flatten(1), b.flatten(1)
    count = max(1, round(share * x.shape[1]))
    common = (_membership(x, count) * _membership(y, count)).sum(dim=1) / count
    empty = [is_flat(m.amin(dim=1), m.amax(dim=1)) | ~m.isfinite().all(dim=1) for m in (x, y)]
    return common.masked_fill(empty[0] | empty[1], torch.nan)


def _membership(values: Tensor, count: int) -> Tensor:
    """How much each value belongs to the `count` largest of its row: 1, 0, or an equal part among those that tie."""
    threshold = values.topk(count, dim=1).values[:, -1:]
    above, at = values > threshold, values == threshold
    left = count - above.sum(dim=1, keepdim=True)
    return above.to(values.dtype) + at.to(values.dtype) * (left / at.sum(dim=1, keepdim=True)).to(values.dtype)
