"""Names and colours that page and report share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from salviz import figures
from salviz.classifiers.registry import CARDS
from salviz.methods import METHODS
from salviz.metrics import Score
from salviz.metrics.cose import CONSISTENCY, COSE, SENSITIVITY
from salviz.overlay import decimals
from salviz.runs.measures import MEASURES
from salviz.runs.spec import Spec
from salviz.similarity.measures import MEASURES as SIMILARITIES

if TYPE_CHECKING:
    from salviz.runs.summary import Counted

_COSE = {card.id: card.title for card in (CONSISTENCY, SENSITIVITY, COSE)} | {"similarity": "Similarity (SSIM)"}
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
    return _SETS.get(id) or id.rstrip("/").rpartition("/")[2].rpartition(":")[2]


def run(spec: Spec) -> str:
    """A run in a few words."""
    return f"{data(spec.data)} · {', '.join(map(metric, spec.metrics))}"


FEW = 10
"""Pictures below which a score says on how many it rests: an interval over so few is no more than a hint."""


def cell(value: Score, images: int | None = None) -> str:
    """`0.71 [0.66, 0.75]`, or without an interval where there is none.

    Args:
        value: The score.
        images: Pictures it rests on, where known: said where they are few.
    """
    if value.value != value.value:
        return "undefined"
    text = decimals(value.value)
    if value.low == value.low:
        text += f" [{decimals(value.low)}, {decimals(value.high)}]"
    few = images is not None and images < FEW
    return f"{text}, {images} picture{'' if images == 1 else 's'}" if few else text


def counted(found: Counted, model: str) -> str:
    """Which pictures COSE counts, in a sentence.

    Args:
        found: Of one model.
        model: Its name.
    """
    if found.unlabelled == found.images:
        return f"{model}: no picture has a label it knows; its prediction for the clean picture stands for one."
    text = f"{model}: {found.right:,} of {found.images - found.unlabelled:,} labelled pictures are predicted right"
    rest = f"; for {found.unlabelled:,} more the prediction stands for a label" if found.unlabelled else ""
    return f"{text} and count{rest}."


def counts(found: Iterable[Counted]) -> str:
    """Which pictures COSE counts under each model, in a few sentences.

    Args:
        found: Of each model.
    """
    each = list(found)
    names = models(one.model for one in each)
    told = " ".join(counted(one, names[one.model]) for one in each)
    return f"COSE counts pictures whose clean prediction is right. {told}"


def groups(by: str, present: Iterable[str], name: Callable[[int], str]) -> dict[str, str]:
    """Name of each group of pictures, in the order in which they stand.

    Args:
        by: `correct`, `confidence` or `class`.
        present: Groups that have pictures.
        name: Of a class.
    """
    there = set(present)
    if by == "correct":
        return {one: f"Prediction {one}" for one in ("right", "wrong") if one in there}
    if by == "confidence":
        return {one: f"{int(one) * 20} to {int(one) * 20 + 20} %" for one in sorted(there, key=int)}
    return {one: name(int(one)) for one in sorted(there, key=int)}
