"""How alike several maps of one photograph are, pair by pair, and the tree that joins the most alike first.

Data flow: explorations -> comparable maps on common pixels -> pairwise Spearman and SSIM -> order and dendrogram.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salviz import maps, methods
from salviz.classifiers.preprocessing import Placement
from salviz.exploration import Exploration
from salviz.similarity import spearman, ssim

SIDE = 224
"""Longer side at which maps of different models are compared, in pixels of the photograph."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """Pairwise agreement of R maps.

    Attributes:
        spearman: `(R, R)` float64, 1 on the diagonal, NaN where a map is flat or two maps share no pixel.
        ssim: `(R, R)` likewise, but defined between a flat map and another.
    """

    spearman: NDArray[np.float64]
    ssim: NDArray[np.float64]

    def tree(self, measure: str = "spearman") -> Tree | None:
        """Average linkage of the distances 1 - agreement, with leaves in the order that puts the alike together.

        A flat map agrees with nothing and cannot be joined: it comes after the others and has no branch.

        Args:
            measure: `spearman` or `ssim`.

        Returns:
            None where no two rows have an agreement.
        """
        from scipy.cluster.hierarchy import dendrogram, linkage
        from scipy.spatial.distance import squareform

        values = self.spearman if measure == "spearman" else self.ssim
        joined_rows = _with_agreement(values)
        if len(joined_rows) < 2:
            return None
        distances = np.clip(1 - values[np.ix_(joined_rows, joined_rows)], 0, 2)
        np.fill_diagonal(distances, 0)
        joined = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
        drawn = dendrogram(joined, no_plot=True)
        # scipy draws leaf k at 10 k + 5.
        branches = [
            ([(place - 5) / 10 for place in places], list(heights))
            for places, heights in zip(drawn["icoord"], drawn["dcoord"], strict=True)
        ]
        leaves = [joined_rows[leaf] for leaf in drawn["leaves"]]
        alone = [row for row in range(len(values)) if row not in joined_rows]
        return Tree((*leaves, *alone), tuple(branches), joined)


def _with_agreement(values: NDArray[np.float64]) -> list[int]:
    """Rows of which every pair has an agreement.

    Flat maps go first; what is left lacks one where two models see different parts of the photograph, and there the
    row that lacks most goes.
    """
    rows = [row for row in range(len(values)) if np.isfinite(values[row, row])]
    while True:
        missing = [int((~np.isfinite(values[row, rows])).sum()) for row in rows]
        if not any(missing):
            return rows
        del rows[int(np.argmax(missing))]


@dataclass(frozen=True, eq=False)
class Tree:
    """A dendrogram.

    Attributes:
        order: Rows from one end to the other; those without a branch last.
        branches: Each as four places along the order and four heights (distances).
        linkage: `(J - 1, 4)` of the J rows that are joined, as `scipy.cluster.hierarchy` writes it.
    """

    order: tuple[int, ...]
    branches: tuple[tuple[list[float], list[float]], ...]
    linkage: NDArray[np.float64]


def agree(rows: Sequence[Exploration]) -> Agreement:
    """Pairwise Spearman and SSIM of the rows' comparable maps.

    Rows of one frame are compared on it; rows of different models on the part of the photograph both of them see.

    Args:
        rows: R explorations of one picture.
    """
    count = len(rows)
    rank, structure = np.eye(count), np.eye(count)
    known = [_comparable(row) for row in rows]
    for i, found in enumerate(known):
        # What was flat but for rounding comes without it.
        if float(found.max()) == float(found.min()):
            rank[i, i] = structure[i, i] = np.nan
    by_size: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for i, j in combinations(range(count), 2):
        by_size[_is_one_frame(rows[i], rows[j])].append((i, j))
    for i, j in by_size[True]:
        _note(rank, structure, i, j, known[i], known[j])
    for i, j in by_size[False]:
        _note(rank, structure, i, j, *_on_photograph(rows[i], rows[j], known[i], known[j]))
    return Agreement(rank, structure)


def _note(
    rank: NDArray[np.float64], structure: NDArray[np.float64], i: int, j: int, first: Tensor, second: Tensor
) -> None:
    rank[i, j] = rank[j, i] = float(spearman(first, second)[0])
    structure[i, j] = structure[j, i] = float(ssim(first, second)[0])


def _comparable(row: Exploration) -> Tensor:
    card = methods.get(row.request.method).card
    return maps.comparable(row.raw[:1], card, (int(row.frames.shape[2]), int(row.frames.shape[3])))


def _is_one_frame(first: Exploration, second: Exploration) -> bool:
    return first.frames.shape[2:] == second.frames.shape[2:] and first.placement == second.placement


def _on_photograph(first: Exploration, second: Exploration, *both: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps of different frames on the pixels of the photograph that both models see."""
    laid = [_small(row.placement).lay(found) for row, found in zip((first, second), both, strict=True)]
    seen = torch.isfinite(laid[0][0]) & torch.isfinite(laid[1][0])
    rows, columns = seen.any(dim=1).nonzero().flatten(), seen.any(dim=0).nonzero().flatten()
    if not len(rows) or not len(columns):
        nothing = both[0].new_full((1, 5, 5), float("nan"))
        return nothing, nothing
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return laid[0][:, top:bottom, left:right], laid[1][:, top:bottom, left:right]


def _small(placement: Placement) -> Placement:
    """The placement on the photograph scaled down to `SIDE`."""
    width, height = placement.size
    scale = min(1.0, SIDE / max(width, height))
    return placement.scaled((max(5, round(width * scale)), max(5, round(height * scale))))
