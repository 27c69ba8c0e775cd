"""One image's maps and predictions along the stages of a randomisation test: what a film strip shows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from salviz import maps as map_kinds
from salviz import methods

TOP = 5
"""Classes kept of every net's prediction."""


@dataclass(eq=False)
class Strip:
    """Film strips of one image, the trained net first; a net appears once all its maps are there.

    Attributes:
        frame: `(3, H, W)` uint8, what the model sees.
        places: Names: `trained`, then the stages.
        top: For each net that is through, the most probable classes and their probabilities.
        explained: For each net that is through, the class that its maps explain.
    """

    frame: Tensor
    places: tuple[str, ...]
    top: list[tuple[list[int], list[float]]] = field(default_factory=list)
    explained: list[int] = field(default_factory=list)
    _maps: dict[str, list[tuple[NDArray[np.float16], NDArray[np.float16], float, float]]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that the maps take."""
        kept = [part for row in self._maps.values() for found in row for part in found[:2]]
        return int(sum(part.nbytes for part in kept)) + self.frame.nbytes

    def add(self, raw: dict[str, Tensor], logits: Tensor, explained: int) -> None:
        """Take the next net's maps.

        Args:
            raw: `(h, w)` or `(C, h, w)` raw map at native resolution, by method.
            logits: `(K,)` of the net.
            explained: The class that the maps explain.
        """
        for method, found in raw.items():
            evidence = methods.get(method).card.evidence
            kept = [
                _halved(part[0].cpu().numpy())
                for part in (map_kinds.signed(found[None]), map_kinds.unsigned(found[None], evidence))
            ]
            self._maps.setdefault(method, []).append((kept[0][0], kept[1][0], kept[0][1], kept[1][1]))
        probabilities = logits.float().softmax(dim=0)
        best = probabilities.topk(min(TOP, len(probabilities)))
        self.explained.append(explained)
        # Last: whoever draws the strip meanwhile counts the nets by their predictions.
        self.top.append((best.indices.tolist(), best.values.tolist()))

    def map(self, method: str, place: int, *, is_signed: bool) -> NDArray[np.float32]:
        """A map at its native resolution, `(h, w)`, in the method's own values up to half precision's digits.

        Args:
            method: Its id.
            place: 0 for the trained net.
            is_signed: With its sign; else in the method's unsigned form.
        """
        signed, unsigned, signed_scale, unsigned_scale = self._maps[method][place]
        values, scale = (signed, signed_scale) if is_signed else (unsigned, unsigned_scale)
        return values.astype(np.float32) * np.float32(scale)


def _halved(values: NDArray[np.float32]) -> tuple[NDArray[np.float16], float]:
    """A map in half precision and the scale it is in units of: gradients of random nets leave its range."""
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    scale = largest if 0 < largest < float("inf") else 1.0
    return (values / scale).astype(np.float16), scale
