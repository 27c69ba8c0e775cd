"""What leaves Salviz: pictures, arrays, tables and the manifest that says how to get them again.

The app's downloads and the command line use the same functions, so both give the same digits.
"""

from __future__ import annotations

import csv
import io
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from salviz import __version__, changes, render
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.labels import Labels
from salviz.errors import RequestError
from salviz.exploration import Exploration
from salviz.images import Picture
from salviz.metrics import Score
from salviz.metrics.cose import CoseResult, Split
from salviz.overlay import png
from salviz.plain import digits, json_text, packed, plain_number, write_files
from salviz.render import Display
from salviz.scores import DRAWS, kinds, scores

COLUMNS = (
    "row",
    "token",
    "label",
    "kind",
    "predicted_class",
    "predicted_name",
    "probability",
    "clean_class",
    "kept",
    "explained_class",
    "ssim",
    "spearman",
)
"""Columns of `similarities_csv`."""

TOP = 5
"""Classes listed in a manifest."""

Part = Literal["photo", "map", "overlay"]


def similarities_csv(exploration: Exploration, labels: Labels) -> str:
    """One line a variant or changed model, after a line of `COLUMNS` (RFC 4180, comma, CRLF).

    Numbers have all their digits; undefined ones are empty.

    Args:
        exploration: Complete or under way.
        labels: Names of the classifier's classes.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    predicted = exploration.predicted.tolist()
    titles = [variant.label for variant in exploration.variants] + [changes.title(c) for c in exploration.changes]
    tokens = [variant.token for variant in exploration.variants] + list(exploration.changes)
    for row, (token, title, kind) in enumerate(zip(tokens, titles, kinds(exploration), strict=True), start=1):
        index = predicted[row]
        writer.writerow(
            (
                row,
                token,
                title,
                kind,
                index,
                labels.short(index),
                repr(float(exploration.probabilities[row, index])),
                predicted[0],
                "true" if index == predicted[0] else "false",
                int(exploration.classes[row]),
                digits(float(exploration.ssim[row])),
                digits(float(exploration.spearman[row])),
            )
        )
    return text.getvalue()


def manifest(exploration: Exploration, classifier: Classifier, picture: Picture) -> dict[str, Any]:
    """Everything needed to reproduce and to read a result, in plain types ready for JSON.

    Undefined numbers are None, as JSON has no NaN.

    Args:
        exploration: Complete or under way (`complete` says which).
        classifier: What was explained.
        picture: The photograph.
    """
    prep, request = classifier.preprocessing, exploration.request
    probabilities, best = exploration.probabilities[0].topk(min(TOP, len(classifier.labels)))
    return {
        "request": request.as_dict(),
        "digest": request.digest,
        "complete": exploration.is_complete,
        "versions": {
            "salviz": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "timm", "numpy", "pillow")},
        },
        "classifier": {
            "id": classifier.id,
            "title": classifier.title,
            "architecture": classifier.architecture,
            "weights": classifier.digest,
            "classes": len(classifier.labels),
            "input_size": list(prep.input_size),
            "device": str(classifier.device),
            "channels_last": classifier.channels_last,
            "autocast": None if classifier.autocast is None else str(classifier.autocast),
        },
        "picture": {
            "name": picture.name,
            "source": picture.source,
            "digest": picture.digest,
            "size": list(picture.size),
            "placement": list(exploration.placement.box),
        },
        "layer": exploration.layer,
        "grid": list(exploration.grid),
        "explained_classes": exploration.classes.tolist(),
        "rival_classes": None if exploration.rivals is None else exploration.rivals.tolist(),
        "predicted_classes": exploration.predicted.tolist(),
        "top": [
            {"class": index, "name": classifier.labels.short(index), "probability": probability}
            for index, probability in zip(best.tolist(), probabilities.tolist(), strict=True)
        ],
        "completeness": _numbers(exploration.completeness),
        "standard_error": _numbers(exploration.standard_error),
        "samples": _numbers(exploration.samples),
        "scores": scores_dict(scores(exploration), seed=request.seed),
        "passes": exploration.passes,
        "seconds": exploration.seconds,
    }


def scores_dict(result: CoseResult, *, seed: int, draws: int = DRAWS, level: float = 0.95) -> dict[str, Any]:
    """Scores in plain types ready for JSON: overall with intervals, by kind of variant without.

    Args:
        result: What `salviz.scores.scores` returned.
        seed: Of the bootstrap.
        draws: Of the bootstrap.
        level: Coverage of the intervals.
    """
    return {
        **_split(result, with_interval=True),
        "splits": {name: _split(split, with_interval=False) for name, split in result.splits.items()},
        "rows": result.rows,
        "misclassified": result.misclassified,
        "kept_by_model": result.kept_by_model,
        "without_label": result.without_label,
        "bootstrap": {"unit": "row", "draws": draws, "level": level, "seed": seed},
    }


def archive(exploration: Exploration, classifier: Classifier, picture: Picture) -> bytes:
    """The arrays and the manifest as a compressed `.npz` that `numpy.load` reads with `allow_pickle=False`.

    Row 0 is the clean image, then come the variants, then the changed models; the manifest's `request` names
    them. Equal results give equal bytes.

    Args:
        exploration: Complete or under way.
        classifier: What was explained.
        picture: The photograph.

    Returns:
        A file with `raw` (`(R, h, w)` or `(R, C, h, w)` float32), `signed` (`(R, H, W)` float32: `raw` with its
        channels added up, at the input's resolution), `frames` (`(1 + V, 3, H, W)` uint8),
        `ssim` and `spearman` (`(R,)` float32, NaN where undefined), `logits` (`(R, K)` float32), `classes`
        (`(R,)` int64), `map_on_photograph` (`(height, width)` float32, NaN where the model saw nothing) and
        `manifest` (JSON text).
    """
    arrays: dict[str, NDArray[Any]] = {
        "raw": exploration.raw.numpy(),
        "signed": exploration.signed_maps().numpy(),
        "frames": exploration.frames.numpy(),
        "ssim": exploration.ssim.numpy(),
        "spearman": exploration.spearman.numpy(),
        "logits": exploration.logits.numpy(),
        "classes": exploration.classes.numpy(),
        "map_on_photograph": render.on_photograph(exploration, picture.size, is_signed=False),
        "manifest": np.array(json_text(manifest(exploration, classifier, picture))),
    }
    return packed(arrays)


def overlay_png(
    exploration: Exploration,
    picture: Picture,
    display: Display,
    *,
    part: Part = "overlay",
    width: int | None = None,
) -> bytes:
    """A picture of the clean map as PNG.

    Args:
        exploration: The result.
        picture: The photograph.
        display: Display choices.
        part: The photograph, the map alone on it, or the map over it.
        width: In pixels; the photograph's own where None.

    Raises:
        RequestError: No such part.
    """
    found = render.pictures(exploration, picture, display, width=width or picture.size[0])
    choices = {"photo": found.photo, "map": found.map, "overlay": found.overlay}
    if part not in choices:
        raise RequestError(f"There is no picture called {part!r}; choose one of {', '.join(choices)}.")
    return png(choices[part])


def save(
    exploration: Exploration, classifier: Classifier, picture: Picture, display: Display, folder: Path | str
) -> list[Path]:
    """Write `map.png`, `overlay.png`, `maps.npz`, `manifest.json` and `similarities.csv` into a folder.

    Each file appears whole or not at all; files of these names are replaced.

    Args:
        exploration: The result.
        classifier: What was explained.
        picture: The photograph.
        display: Display choices of the pictures.
        folder: Created where it does not exist.

    Returns:
        The files' paths, in the order above.

    Raises:
        RequestError: The folder cannot be made or written to.
    """
    contents = {
        "map.png": overlay_png(exploration, picture, display, part="map"),
        "overlay.png": overlay_png(exploration, picture, display),
        "maps.npz": archive(exploration, classifier, picture),
        "manifest.json": (json_text(manifest(exploration, classifier, picture), indent=2) + "\n").encode(),
        "similarities.csv": similarities_csv(exploration, classifier.labels).encode(),
    }
    return write_files(folder, contents)


def _split(split: Split, *, with_interval: bool) -> dict[str, Any]:
    names = ("consistency", "sensitivity", "cose")
    return {name: _score(getattr(split, name), with_interval=with_interval) for name in names}


def _score(score: Score, *, with_interval: bool) -> dict[str, Any]:
    counted = {"value": plain_number(score.value), "count": score.count, "undefined": score.undefined}
    if not with_interval:
        return counted
    return {
        **counted,
        "low": plain_number(score.low),
        "high": plain_number(score.high),
        "undefined_draws": score.undefined_draws,
    }


def _numbers(values: Tensor | None) -> list[float | None] | None:
    return None if values is None else [plain_number(value) for value in values.tolist()]


def _version(distribution: str) -> str | None:
    try:
        return installed_version(distribution)
    except PackageNotFoundError:
        return None
