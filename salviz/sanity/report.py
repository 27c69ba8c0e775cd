"""A randomisation test in words, as a table and in plain types."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salviz import __version__, methods
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.labels import Labels
from salviz.classifiers.randomising import EVERYTHING, Randomisation
from salviz.errors import RequestError
from salviz.metrics import Score
from salviz.metrics.randomisation import CALIBRATION, verdict
from salviz.plain import digits, json_text, packed, plain_number
from salviz.sanity.checks import Check, Checked
from salviz.sanity.interventions import Intervention, OtherClass, Twin, is_cumulative
from salviz.similarity.measures import find_measure

COLUMNS = (
    "image",
    "method",
    "measure",
    "draw",
    "place",
    "stage",
    "similarity",
    "with_itself",
    "entropy_before",
    "entropy_after",
    "logit_spread",
    "same_prediction",
)
"""Columns of `scores_csv`."""


def scores_csv(found: Checked, images: Sequence[str]) -> str:
    """One line an image, method, measure, draw and stage, after a line of `COLUMNS` (RFC 4180, comma, CRLF).

    Numbers have all their digits; undefined ones are empty.

    Args:
        found: Complete or under way.
        images: A name each.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row, method in enumerate(found.methods):
        for column, measure in enumerate(found.check.measures):
            for draw in range(found.check.draws):
                for place, stage in enumerate(found.stages):
                    for i, image in enumerate(images):
                        numbers = (
                            found.scores[row, column, draw, place, i],
                            found.itself[row, column, i],
                            found.entropy[row, i],
                            found.entropies[row, draw, place, i],
                            found.spread[draw, place, i],
                            found.agrees[draw, place, i],
                        )
                        shown = [digits(float(value)) for value in numbers]
                        writer.writerow((image, method, measure, draw, place, stage, *shown))
    return text.getvalue()


def verdicts(found: Checked, measure: str) -> dict[str, list[str]]:
    """What was measured of each method, in words (see `metrics.randomisation.verdict`)."""
    floor = found.curve("random", measure)
    adds = is_cumulative(found.check.how)
    names = ["the whole net" if name == EVERYTHING else name for name in found.stages]
    return {
        method: verdict(found.curve(method, measure), names, floor=floor, is_cumulative=adds)
        for method in found.methods
        if method not in CALIBRATION
    }


def net_names(found: Checked, labels: Labels) -> list[str]:
    """What stands in each place of a strip that is there: the net; or the class, where one net is asked for another.

    Args:
        found: With a strip.
        labels: Of the classifier.
    """
    strip = found.strip
    assert strip is not None  # noqa: S101 - whoever asks draws it
    known = len(strip.top)
    if not isinstance(found.check.how, OtherClass):
        return list(strip.places[:known])
    ways = ("predicted", "drawn at random")[:known]
    return [f"{labels.short(index)} ({way})" for way, index in zip(ways, strip.explained, strict=False)]


def lines(found: Checked, classifier: Classifier, images: int) -> Iterator[str]:
    """A test in a few lines: a table of means a measure, and a verdict a method.

    Args:
        found: Complete.
        classifier: Whose net was randomised.
        images: How many pictures.
    """
    draws = "" if found.check.draws == 1 else f", {found.check.draws} draws"
    copies = "" if found.check.copies == 1 else f", maps averaged over {found.check.copies} noisy copies"
    pictures = f"{images} {'picture' if images == 1 else 'pictures'}"
    yield f"{classifier.title}, {pictures}{draws}{copies}: {_in_words(found.check.how)}"
    places = _places(len(found.stages))
    names = [found.stages[place] for place in places]
    for measure in found.check.measures:
        yield ""
        yield find_measure(measure).title
        width = max(len(methods.get(method).card.title) for method in found.methods)
        columns = [max(len(name), 5) for name in names]
        yield "  ".join(["".ljust(width), *(name.rjust(size) for name, size in zip(names, columns, strict=True))])
        told = verdicts(found, measure)
        for method in found.methods:
            stages = found.curve(method, measure).stages
            values = [number(stages[place].value).rjust(size) for place, size in zip(places, columns, strict=True)]
            words = "; ".join(told.get(method, ["what passes" if method == "random" else "what fails"]))
            yield "  ".join([methods.get(method).card.title.ljust(width), *values, words])
    for method, reason in found.refused.items():
        yield f"Left out: {methods.get(method).card.title}. {reason}"
    yield ""
    # Over orders of magnitude: a random net's logits may all but vanish.
    spread = [f"{float(found.spread[:, place].mean()):.2g}" for place in places]
    agrees = [number(float(found.agrees[:, place].mean())) for place in places]
    yield f"Spread of the logits beside the trained net's: {', '.join(spread)}"
    yield f"Share of pictures with the same prediction: {', '.join(agrees)}"


def _in_words(how: Intervention) -> str:
    """What was put in the trained net's place."""
    if isinstance(how, Twin):
        return f"{how.title} in its place"
    if isinstance(how, OtherClass):
        return "asked for another class"
    order, initialisation = (text.replace("_", " ") for text in (how.order, how.initialisation))
    return f"{order}, initialisation {initialisation}, statistics {how.statistics}"


def described(check: Check) -> dict[str, Any]:
    """A check in plain types, with every parameter: equal checks have equal descriptions."""
    return {
        "methods": {name: methods.get(name).card.check_parameters(given) for name, given in check.rows.items()},
        "test": {Randomisation: "weights", Twin: "labels", OtherClass: "class"}[type(check.how)],
        "how": asdict(check.how),
        "draws": check.draws,
        "target": check.target,
        "measures": list(check.measures),
        "skips_baseline": check.skips_baseline,
        "copies": check.copies,
        "noise": check.noise if check.copies > 1 else None,
        "seed": check.seed,
    }


def _places(count: int) -> list[int]:
    """At most eight stages, the first and the last among them."""
    most = 8
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def number(value: float) -> str:
    """Two decimals; a dash where undefined."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def manifest(found: Checked, classifier: Classifier, images: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Everything that determines a test, and its means, in plain types ready for JSON; undefined is None.

    Args:
        found: Complete.
        classifier: Whose net was randomised.
        images: Name and content digest of each picture.
    """
    check = found.check
    return {
        "version": __version__,
        "classifier": classifier.id,
        "weights": classifier.digest,
        "images": [{"name": name, "digest": digest} for name, digest in images],
        "check": described(check),
        "refused": dict(found.refused),
        "stages": list(found.stages),
        "spread": _plain(found.spread.mean(axis=(0, 2))),
        "agreement": _plain(found.agrees.mean(axis=(0, 2))),
        "efficient_mprt": {method: _plain(row) for method, row in zip(found.methods, found.efficient_mprt, strict=True)}
        if isinstance(check.how, Randomisation)
        else None,
        "curves": {
            measure: {method: _curve(found, method, measure) for method in found.methods} for measure in check.measures
        },
        "verdicts": {measure: verdicts(found, measure) for measure in check.measures},
    }


def archive(found: Checked, classifier: Classifier, images: Sequence[tuple[str, str]]) -> bytes:
    """The maps of the film strips and the manifest as a compressed `.npz`.

    Args:
        found: With a strip.
        classifier: Whose net was randomised.
        images: Name and content digest of each picture; the strip is of the first.

    Returns:
        A file with, by method id, `(1 + S, h, w)` float32 signed maps at native resolution, channels summed, the
        trained net's first, in the method's own values up to half precision's digits; `stages`, their names; `frame`
        (`(3, H, W)` uint8); and `manifest` (JSON text).

    Raises:
        RequestError: No strip was kept.
    """
    if found.strip is None:
        raise RequestError("No maps were kept of this test; ask for its film strips.")
    arrays: dict[str, NDArray[Any]] = {
        method: np.stack([found.strip.map(method, place, is_signed=True) for place in range(len(found.strip.top))])
        for method in found.methods
    }
    arrays["stages"] = np.array(found.strip.places[: len(found.strip.top)])
    arrays["frame"] = found.strip.frame.numpy()
    arrays["manifest"] = np.array(json_text(manifest(found, classifier, images)))
    return packed(arrays)


def _curve(found: Checked, method: str, measure: str) -> dict[str, Any]:
    curve = found.curve(method, measure)
    return {
        "stages": [_score(score) for score in curve.stages],
        "with_itself": _score(curve.itself),
        "area": _score(curve.area),
    }


def _score(score: Score) -> dict[str, Any]:
    return {name: plain_number(value) if isinstance(value, float) else value for name, value in asdict(score).items()}


def _plain(values: NDArray[np.floating]) -> list[float | None]:
    return [plain_number(value) for value in values.tolist()]
