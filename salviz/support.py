"""Which methods explain a classifier, and why the others do not: asked of their cards, then tried on one image."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from salviz import engine, methods
from salviz.classifiers.classifier import Classifier
from salviz.errors import Cancelled, SalvizError
from salviz.methods.card import MethodCard, Value
from salviz.work import Progress, silent

logger = logging.getLogger(__name__)

State = Literal["works", "refused", "fails"]


@dataclass(frozen=True)
class Support:
    """What became of one method.

    Attributes:
        method: Its id.
        state: `works`; `refused`, by a rule that knows why; or `fails`, which is a fault of Salviz.
        reason: One sentence where it does not work.
        layer: Target layer, where the method attaches to one.
        grid: `(h, w)` of its map.
        seconds: How long one image took, with the cheapest settings.
    """

    method: str
    state: State
    reason: str = ""
    layer: str = ""
    grid: tuple[int, int] | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class SupportTable:
    """One row a method."""

    rows: tuple[Support, ...]

    @property
    def nbytes(self) -> int:
        """Next to nothing."""
        return 1000 * len(self.rows)


def cheapest(card: MethodCard, classifier: Classifier) -> dict[str, Value]:
    """Settings that cost a classifier the fewest passes, found by trying the ends of each parameter's range.

    Args:
        card: Of the method.
        classifier: What is to be explained.
    """
    chosen: dict[str, Value] = dict(card.check_parameters(None))
    for parameter in card.parameters:
        if parameter.low is None or parameter.high is None or isinstance(parameter.default, bool | str):
            continue
        # A zero may stand for everything: what is one step above it may cost less.
        for end in (parameter.low, parameter.low + (parameter.step or 0), parameter.high):
            tried = {**chosen, parameter.name: parameter.check(type(parameter.default)(end))}
            if card.cost(classifier, tried) < card.cost(classifier, chosen):
                chosen = tried
    return chosen


def tries(classifier: Classifier) -> Iterator[Support]:
    """Try every method on one picture of noise, with the cheapest settings: each row as soon as it is found.

    Args:
        classifier: What is to be explained.
    """
    size = classifier.preprocessing.input_size
    noise = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = classifier.preprocessing.normalise(noise.to(classifier.device))
    for name, method in methods.METHODS.items():
        yield _try(classifier, x, name, cheapest(method.card, classifier))


def probe(classifier: Classifier, *, progress: Progress = silent) -> SupportTable:
    """All of `tries`.

    Args:
        classifier: What is to be explained.
        progress: Called with (methods done, methods); may raise `Cancelled`.
    """
    rows = []
    for row in tries(classifier):
        rows.append(row)
        progress(len(rows), len(methods.METHODS))
    return SupportTable(tuple(rows))


def _try(classifier: Classifier, x: torch.Tensor, name: str, settings: Mapping[str, Any]) -> Support:
    started = time.perf_counter()
    try:
        found = engine.explain(classifier, x, method=name, parameters=settings, digests=["probe"])
    except Cancelled:
        raise
    except SalvizError as error:
        return Support(name, "refused", str(error))
    except Exception:
        # Any fault of a method on a net nobody has tried: the table says so, the log says what.
        logger.exception("%s fails on %s", name, classifier.id)
        return Support(name, "fails", "It fails on this classifier, which is a fault of Salviz; the log says where.")
    if not bool(torch.isfinite(found.maps).all()):
        return Support(name, "fails", "Its map is not finite on this classifier, which is a fault of Salviz.")
    layer = ""
    if "layer" in settings:
        from salviz.classifiers.layers import target_layer

        layer = target_layer(classifier, str(settings["layer"]) or None).name
    height, width = int(found.maps.shape[-2]), int(found.maps.shape[-1])
    return Support(name, "works", layer=layer, grid=(height, width), seconds=time.perf_counter() - started)
