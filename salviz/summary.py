"""Results and registries in plain text and plain types, as the command line prints them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from salviz import methods
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.registry import CARDS, is_available_offline
from salviz.exploration import Exploration
from salviz.images import Picture
from salviz.methods import Method
from salviz.methods.sampling import remark
from salviz.overlay import format_probability
from salviz.scores import describe, scores
from salviz.support import Support, probe, tries
from salviz.work import Progress, silent


def lines(exploration: Exploration, classifier: Classifier, picture: Picture) -> list[str]:
    """An exploration in a few lines: what was explained, how the variants fared, the scores.

    Args:
        exploration: Complete or under way.
        classifier: What was explained.
        picture: The photograph.
    """
    request, labels = exploration.request, classifier.labels
    predicted = exploration.predicted.tolist()

    def named(index: int) -> str:
        return f"{labels.short(index)} ({index})"

    title = methods.get(request.method).card.title
    where = "" if exploration.layer is None else f" at {exploration.layer}"
    width, height = picture.size
    explained = "the class predicted for each input" if request.target is None else named(request.target)
    found = [
        f"{picture.name or 'Picture'}, {width} x {height}: {title}{where} of {classifier.title}",
        f"Predicted    {named(predicted[0])}, {format_probability(float(exploration.probabilities[0, predicted[0]]))}",
        f"Explained    {explained}",
    ]
    if request.against is not None:
        rival = named(request.against) if isinstance(request.against, int) else "each input's most probable other class"
        found.append(f"Rather than  {rival}")
    if request.label is not None:
        found.append(f"Label        {named(request.label)}")
    if exploration.completeness is not None:
        found.append(f"Completeness error {float(exploration.completeness[0]):.2g}")
    if exploration.standard_error is not None:
        error, after = float(exploration.standard_error[0]), ""
        if exploration.samples is not None:
            said = remark(error, float(request.settings.get("tolerance", 0)))
            after = f" after {int(exploration.samples[0]):,} samples{said and f', {said}'}"
        found.append(f"Standard error {error:.1%} of the map's spread{after}")
    if len(predicted) == 1:
        return found
    kept = [index == predicted[0] for index in predicted[1:]]
    count = len(exploration.variants)
    for heading, part in (("Variants", kept[:count]), ("Models", kept[count:])):
        if part:
            found.append(f"{heading:<13}{len(part)}, of which {sum(part)} kept the prediction")
    result = scores(exploration)
    found += [
        f"Consistency  {describe(result, 'consistency')}",
        f"Sensitivity  {describe(result, 'sensitivity')}",
        f"COSE         {describe(result, 'cose')}",
    ]
    if request.label is None:
        found.append("No label is known, so the clean prediction stands in for it.")
    return found


def classifier_dicts() -> list[dict[str, Any]]:
    """The suggested classifiers' cards in plain types, and whether their weights are at hand."""
    return [{**asdict(card), "available_offline": is_available_offline(card.id)} for card in CARDS]


def classifier_lines() -> Iterator[str]:
    """The suggested classifiers as a table."""
    rows = [
        (
            card["id"],
            card["title"],
            f"{card['megabytes']} MB",
            "at hand" if card["available_offline"] else card["source"],
        )
        for card in classifier_dicts()
    ]
    yield from _table(("id", "title", "size", "weights"), rows)
    yield ""
    yield "Other ids: timm:NAME, torchvision:NAME, hf-hub:ORGANISATION/NAME, FILE.safetensors@timm:NAME"


def method_dicts(classifier: Classifier | None, *, progress: Progress = silent) -> list[dict[str, Any]]:
    """The methods' cards in plain types.

    Args:
        classifier: Adds whether each method can explain it, and if not, why; every method is tried on it.
        progress: Called with (methods done, methods) while they are tried.

    Returns:
        One dictionary a method; `passes` holds for default settings and the classifier, or 224 x 224
        pixels; `needs` is empty where the method explains any classifier.
    """
    tried = {} if classifier is None else {row.method: row for row in probe(classifier, progress=progress).rows}
    return [_method_dict(method, classifier, tried.get(name)) for name, method in methods.METHODS.items()]


def _method_dict(method: Method, classifier: Classifier | None, tried: Support | None) -> dict[str, Any]:
    card = method.card
    plain = (
        "id", "title", "family", "idea", "formula", "citation", "evidence", "scaling", "signed", "needs", "failures",
    )  # fmt: skip
    found: dict[str, Any] = {name: getattr(card, name) for name in plain}
    found["parameters"] = [asdict(parameter) for parameter in card.parameters]
    usual = card.check_parameters(None)
    found["passes"] = card.passes(usual, (224, 224)) if classifier is None else card.cost(classifier, usual)
    if classifier is not None and tried is not None:
        works = tried.state == "works"
        found |= {
            "model": classifier.id,
            "explains_model": works,
            "refusal": None if works else tried.reason,
            "layer": tried.layer or None,
            "grid": None if tried.grid is None else list(tried.grid),
        }
    return found


def method_lines(classifier: Classifier | None) -> Iterator[str]:
    """The methods as a table.

    Args:
        classifier: Adds whether each method can explain it, and if not, why: every method is tried on it, and its line
            comes as soon as it was.
    """
    if classifier is None:
        cards = [method.card for method in methods.METHODS.values()]
        settings = [
            ", ".join(f"{parameter.name}={parameter.unset or parameter.default}" for parameter in card.parameters)
            for card in cards
        ]
        rows = [
            (card.id, card.title, card.family, card.sign, card.requirement, text)
            for card, text in zip(cards, settings, strict=True)
        ]
        yield from _table(("id", "title", "family", "map", "needs", "settings"), rows)
        return
    every = [method.card for method in methods.METHODS.values()]
    known = [("id", "title", "family"), *((card.id, card.title, card.family) for card in every)]
    widths = _widths(known)
    yield _line((*known[0], f"explains {classifier.title}"), widths)
    for cells, row in zip(known[1:], tries(classifier), strict=True):
        yield _line((*cells, _outcome(row)), widths)


def _outcome(row: Support) -> str:
    if row.grid is None:
        return row.reason
    where = f" at {row.layer}" if row.layer else ""
    return f"yes: {row.grid[1]} x {row.grid[0]}{where}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Left-aligned columns; the last one is not padded."""
    widths = _widths([heads, *rows])
    for row in (heads, *rows):
        yield _line(row, widths)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """A row of a table; what comes after the columns whose width is known is not padded."""
    padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    return "  ".join([*padded, *row[len(widths) :]]).rstrip()
