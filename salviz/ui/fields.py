"""The table of what a link holds: names, defaults, and how each is read and written.

Streamlit's own binding writes the texts of options into the URL; links here hold ids, which outlive texts.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from salviz.classifiers.choices import INITIALISATIONS, ORDERS, STATISTICS
from salviz.colormaps import COLORMAPS
from salviz.metrics.randomisation import CHECKED
from salviz.overlay import DisplayRange
from salviz.transforms import AUGMENTATIONS

COMPARED = (
    "grad_cam", "hires_cam", "eigen_cam", "gradient", "input_x_gradient", "guided_backprop", "deeplift", "lrp", "edge",
    "random",
)  # fmt: skip
"""The methods a first visit compares: cheap ones of several families, and the controls."""


PARTS = {
    "scores": "Scores",
    "spread": "Spread",
    "groups": "Groups",
    "strength": "Strength of change",
    "pictures": "Pictures",
}
"""Parts of a run's results, and their titles."""


@dataclass(frozen=True)
class Field:
    """One thing a link holds.

    Attributes:
        key: Name in the URL and key of the widget.
        default: Value a link leaves out.
        read: From the URL's text; raises `ValueError` or `SalvizError` where it makes no sense.
        write: To the URL's text.
        page: The page whose links hold it; empty for all.
    """

    key: str
    default: Any
    read: Callable[[str], Any] = str
    write: Callable[[Any], str] = str
    page: str = ""


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"it must be one of {', '.join(f'“{choice}”' for choice in choices)}")
        return text

    return read


def _between(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = float(text)
        if not low <= number <= high:
            raise ValueError(f"it must lie between {low:g} and {high:g}")
        return number

    return read


def _class_or(*words: str) -> Callable[[str], int | str]:
    return lambda text: text if text in words else _index(text)


def _index(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**31:
        raise ValueError(f"it must lie between 0 and {2**31 - 1}")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("it must be a finite number")
    return number


def _method(text: str) -> str:
    from salviz.methods import METHODS

    if text not in METHODS:
        raise ValueError(f"there is no method {text!r}")
    return text


def _device(text: str) -> str:
    from salviz.classifiers.store import devices

    return _one_of("auto", *devices())(text)


def _switch(text: str) -> bool:
    return {"1": True, "0": False}[text] if text in ("0", "1") else bool(_one_of("0", "1")(text))


class PartlyError(ValueError):
    """Part of a value makes no sense; the rest does."""

    def __init__(self, reason: str, rest: Any) -> None:
        super().__init__(reason)
        self.rest = rest


def _some_of(known: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        chosen = [part for part in text.split(",") if part]
        unknown = [part for part in chosen if part not in set(known())]
        if unknown:
            reason = f"there is no {' and no '.join(repr(part) for part in unknown[:3])}"
            if len(unknown) > 3:
                reason += f", and {len(unknown) - 3} more are unknown"
            raise PartlyError(reason, [part for part in chosen if part not in unknown])
        return chosen

    return read


def _methods() -> Iterable[str]:
    from salviz.methods import METHODS

    return METHODS


def _count(text: str) -> int:
    return int(_between(2, 10)(text))


FIELDS: tuple[Field, ...] = (
    Field("image", "sample:cat"),
    Field("model", "tf_efficientnet_lite0"),
    Field("method", "grad_cam", _method),
    Field("target", "predicted", _class_or("predicted")),
    Field("against", "none", _class_or("none", "runner_up")),
    Field("label", "unknown", _class_or("unknown")),
    Field("output", "logit", _one_of("logit", "probability")),
    Field("aug", list(AUGMENTATIONS), _some_of(lambda: AUGMENTATIONS), ",".join, page="explore"),
    Field("draw", "one", _one_of("one", "paper"), page="explore"),
    Field("twin", True, _switch, lambda value: str(int(value)), page="explore"),
    Field("range", "pair", _one_of("pair", "2.0"), page="explore"),
    Field("seed", 0, _index),
    Field("device", "auto", _device),
    Field("precision", "float32", _one_of("float32", "bf16", "fp16")),
    Field("cmap", "auto", _one_of("auto", *COLORMAPS)),
    Field("alpha", 0.7, _between(0, 1), lambda value: f"{value:g}"),
    Field("sign", "unsigned", _one_of("unsigned", "signed")),
    Field("span", "auto", _one_of("auto", *DisplayRange)),
    Field("veil", "value", _one_of("value", "even")),
    Field("scale", "map", _one_of("map", "shared")),
    Field("cells", "smooth", _one_of("smooth", "cells")),
    Field("rows", "methods", _one_of("methods", "models", "classes"), page="compare"),
    Field("methods", list(COMPARED), _some_of(_methods), ",".join, page="compare"),
    Field("models", [], lambda text: [part for part in text.split(",") if part], ",".join, page="compare"),
    Field("top", 5, _count, page="compare"),
    Field("alike", "spearman", _one_of("spearman", "ssim"), page="compare"),
    Field("checked", list(CHECKED), _some_of(_methods), ",".join, page="sanity"),
    Field("test", "weights", _one_of("weights", "labels", "class"), page="sanity"),
    Field("other", "", page="sanity"),
    Field("pictures", "one", _one_of("one", "many"), page="sanity"),
    Field("order", "top_down", _one_of(*ORDERS), page="sanity"),
    Field("start", "architecture", _one_of(*INITIALISATIONS), page="sanity"),
    Field("stats", "reset", _one_of(*STATISTICS), page="sanity"),
    Field("draws", 1, lambda text: int(_between(1, 10)(text)), page="sanity"),
    Field("copies", 1, lambda text: int(_between(1, 50)(text)), page="sanity"),
    Field("skip", False, _switch, lambda value: str(int(value)), page="sanity"),
    Field("rule", "original", _one_of("original", "argmax"), page="sanity"),
    Field("measure", "spearman_abs", page="sanity"),
    Field("shown", "gradient", page="sanity"),
    Field("stage", "trained", page="sanity"),
    Field("run", "", page="batch"),
    Field("part", "scores", _one_of(*PARTS), page="batch"),
    Field("score", "", page="batch"),
    Field("of", "", page="batch"),
    Field("by", "correct", _one_of("correct", "confidence", "class"), page="batch"),
    Field("sort", "", page="batch"),
    Field("first", "low", _one_of("low", "high"), page="batch"),
    Field("which", "all", _one_of("all", "right", "wrong"), page="batch"),
    Field("change", "", page="batch"),
    Field("figures", "svg", _one_of("svg", "png"), page="batch"),
    Field(
        "turn", "rotate", _one_of(*(key for key, card in AUGMENTATIONS.items() if card.has_magnitude)), page="explore"
    ),
    Field("at", 27.0, _finite, lambda value: f"{value:g}", page="explore"),
)

SETTING = "set."
"""Prefix of the keys that hold a method's settings: `set.samples`."""

LOOKS = (
    "cmap", "alpha", "sign", "span", "veil", "scale", "cells", "turn", "at", "alike", "measure", "shown", "stage",
    "part", "score", "of", "by", "sort", "first", "which", "change", "figures",
)  # fmt: skip
"""What changes how things look alone, so that a notice about the pick stays."""


_COMMAND_LINES = {
    "augment": "aug", "changes": "twin", "colormap": "cmap", "data-range": "range", "opacity": "alpha",
    "signed": "sign",
}  # fmt: skip
"""What the command line calls a thing that links have another name for."""


def meant(key: str, page: str) -> str | None:
    """The name that a link's unknown one was probably meant as; what hosts and advertisers add resembles none.

    Args:
        key: The unknown name.
        page: The page that the link opens: what only others hold is not meant.
    """
    here = {field.key for field in FIELDS if field.page in ("", page)}
    if key.startswith((SETTING, "_")) or any(field.key == key for field in FIELDS):
        return None
    alias = _COMMAND_LINES.get(key.lower().replace("_", "-"))
    close = difflib.get_close_matches(key.lower(), here, n=1, cutoff=0.7)
    return alias if alias in here else next(iter(close), None)


def text(value: Any) -> str:
    """A method's setting as links write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
