"""Names and colours that page and report share."""

from __future__ import annotations

from collections.abc import Iterable

from salviz import figures
from salviz.classifiers.registry import CARDS
from salviz.methods import METHODS
from salviz.metrics import Score
from salviz.metrics.cose import CONSISTENCY, COSE, SENSITIVITY
from salviz.overlay import decimals
from salviz.runs.measures import MEASURES
from salviz.runs.spec import Spec
from salviz.similarity.measures import MEASURES as SIMILARITIES

_COSE = {card.id: card.title for card in (CONSISTENCY, SENSITIVITY, COSE)}
_SETS = {"fashion": "Fashion-MNIST sample", "samples": "Sample photographs"}


def methods(ids: Iterable[str]) -> dict[str, str]:
    """Name of each method."""
    return {id: METHODS[id].card.title if id in METHODS else id for id in ids}


def colours(ids: Iterable[str]) -> dict[str, str]:
    """CSS colour of each method, the same on every page."""
    order = list(METHODS)
    return {id: figures.method_colour(METHODS[id].card.family, order.index(id)) for id in ids if id in METHODS}


def models(ids: Iterable[str]) -> dict[str, str]:
    """Name of each model."""
    known = {card.id: card.title for card in CARDS}
    return {id: known.get(id, id) for id in ids}


def metric(id: str) -> str:
    """Name of a metric."""
    return MEASURES[id].title if id in MEASURES else id


def score(of: str, quantity: str) -> str:
    """Name of a score.

    Args:
        of: Id of its metric.
        quantity: What was measured.
    """
    if of == "cose" and quantity in _COSE:
        return _COSE[quantity]
    return f"{metric(of)}: {SIMILARITIES[quantity].title if quantity in SIMILARITIES else quantity}"


def data(id: str) -> str:
    """Name of a data set, without its path."""
    kind, _, rest = id.partition(":")
    if kind == "torchvision":
        return rest.partition("@")[0]
    return _SETS.get(id) or id.rpartition("/")[2].rpartition(":")[2]


def run(spec: Spec) -> str:
    """A run in a few words."""
    return f"{data(spec.data)} · {', '.join(map(metric, spec.metrics))}"


def cell(value: Score) -> str:
    """`0.71 [0.66, 0.75]`, or without an interval where there is none."""
    if value.value != value.value:
        return "undefined"
    text = decimals(value.value)
    return text if value.low != value.low else f"{text} [{decimals(value.low)}, {decimals(value.high)}]"
