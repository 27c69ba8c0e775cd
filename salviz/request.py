"""Everything that determines a result, with one digest for caches, links, exports and stored runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from salviz import __version__, methods
from salviz.changes import known_changes
from salviz.classifiers.classifier import Classifier
from salviz.errors import RequestError
from salviz.images import Picture
from salviz.targets import RUNNER_UP, Output, PredictedTarget, class_index
from salviz.transforms import Variant, default_variants


@dataclass(frozen=True)
class Request:
    """One exploration, fully specified.

    Attributes:
        image: Content digest of the picture.
        classifier: Id of the classifier.
        weights: Content digest of its weights.
        method: Id of the method.
        parameters: Its settings, all of them, sorted by name.
        target: Explained class everywhere, or None for the class predicted for each input (as in COSE).
        against: Rival of a contrast (why the target and not this one): a class, `runner_up` for the most probable
            other class of each input, or None for the target's score alone.
        output: `logit` or `probability`.
        label: The image's true class, or None where it is not known.
        variants: Tokens of the augmentations.
        changes: Changed models: `untrained` or `checkpoint:<label>`.
        data_range: SSIM's data range: `pair` (the released code) or a number (2.0: the published table).
        seed: Seeds everything random.
        precision: Of passes that need no gradient: `float32`, `bfloat16` or `float16`.
        version: Version of the code.
    """

    image: str
    classifier: str
    weights: str
    method: str
    parameters: tuple[tuple[str, Any], ...] = ()
    target: int | None = None
    against: int | Literal["runner_up"] | None = None
    output: Output = "logit"
    label: int | None = None
    variants: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    data_range: str | float = "pair"
    seed: int = 0
    precision: str = "float32"
    version: str = __version__

    def __post_init__(self) -> None:
        # Equal requests must have equal digests, and 2 equals 2.0 but is written otherwise.
        if not isinstance(self.data_range, str):
            object.__setattr__(self, "data_range", float(self.data_range))
        object.__setattr__(self, "parameters", tuple(sorted(self.parameters)))

    @property
    def explained(self) -> PredictedTarget:
        """What the maps explain."""
        return PredictedTarget(self.output, self.against, self.target)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The method's settings as a mapping."""
        return dict(self.parameters)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            **asdict(self),
            "parameters": dict(self.parameters),
            "variants": list(self.variants),
            "changes": list(self.changes),
        }

    @property
    def digest(self) -> str:
        """Hex digest of the canonical JSON: equal exactly for equal requests."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def data_range_of(text: str) -> str | float:
    """SSIM's data range from a text.

    Args:
        text: `pair` or a positive number.

    Raises:
        RequestError: It is neither.
    """
    try:
        number = text if text == "pair" else float(text)
    except ValueError:
        number = math.nan
    if isinstance(number, float) and not 0 < number < math.inf:
        raise RequestError(f"SSIM's data range must be “pair” or a positive number, not {text!r}.")
    return number


def request_for(
    picture: Picture,
    classifier: Classifier,
    *,
    method: str = "grad_cam",
    parameters: dict[str, object] | None = None,
    target: int | None = None,
    against: int | Literal["runner_up"] | None = None,
    output: str = "logit",
    label: int | None = None,
    variants: Sequence[Variant] | None = None,
    changes: Sequence[str] = (),
    data_range: str | float = "pair",
    seed: int = 0,
) -> Request:
    """The request for an exploration, checked before anything runs.

    Args:
        picture: The photograph.
        classifier: The model.
        method: Id of the method.
        parameters: Settings that differ from the defaults.
        target: Class to explain everywhere, or None for the one predicted for each input.
        against: Rival of a contrast, a class or `runner_up`; None for none.
        output: `logit` or `probability`.
        label: True class of the image, where known.
        variants: Augmentations; the thirteen of `default_variants` where None.
        changes: `untrained` and `checkpoint:<label>`.
        data_range: SSIM's data range, `pair` or a positive number.
        seed: Seeds everything random.

    Raises:
        MethodError: Unknown method or setting, or the method cannot explain this classifier.
        RequestError: A class, change or option that does not exist.
    """
    target = None if target is None else class_index(target)
    label = None if label is None else class_index(label)
    against = against if against is None or isinstance(against, str) else class_index(against)
    chosen = methods.get(method)
    settings = chosen.card.check_parameters(parameters)
    for name, index in (("target", target), ("rival", against), ("label", label)):
        if isinstance(index, int) and not 0 <= index < len(classifier.labels):
            raise RequestError(
                f"The {name} {index} is no class of {classifier.title}; it knows classes 0 to "
                f"{len(classifier.labels) - 1}."
            )
    if against is not None and against == target:
        raise RequestError("A contrast needs two different classes. Choose another rival.")
    if isinstance(against, str) and against != RUNNER_UP:
        raise RequestError(f"The rival must be a class or {RUNNER_UP}, not {against!r}.")
    if output not in ("logit", "probability"):
        raise RequestError(f"The output must be logit or probability, not {output!r}.")
    if data_range != "pair" and not (isinstance(data_range, int | float) and 0 < data_range < math.inf):
        raise RequestError(f"SSIM's data range must be “pair” or a positive number, not {data_range!r}.")
    known = known_changes(classifier)
    for change in changes:
        if change not in known:
            raise RequestError(f"{classifier.title} has no change {change!r}; it has {', '.join(known)}.")
    chosen_variants = default_variants() if variants is None else tuple(variants)
    return Request(
        image=picture.digest,
        classifier=classifier.id,
        weights=classifier.digest,
        method=method,
        parameters=tuple(settings.items()),
        target=target,
        against=against,
        output=output,  # type: ignore[arg-type]
        label=label,
        variants=tuple(variant.token for variant in chosen_variants),
        changes=tuple(changes),
        data_range=data_range,
        seed=seed,
        precision=precision_of(classifier),
    )


def precision_of(classifier: Classifier) -> str:
    """Of passes that need no gradient: `float32`, `bfloat16` or `float16`."""
    return str(classifier.autocast or torch.float32).removeprefix("torch.")
