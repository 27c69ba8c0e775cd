"""Architectures by name, `timm:<name>`, `torchvision:<name>`, `salviz:<name>`, and how they are built."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from torch import nn

from salviz.classifiers.preprocessing import Preprocessing
from salviz.classifiers.small import SIZE, SMALL
from salviz.errors import ClassifierError

# Where torchvision keeps one row a class. Of several that a model has, the first here is the last
# layer (VGG has classifier.0, .3 and .6).
_TORCHVISION_HEADS = (
    "fc.weight",
    "head.weight",
    "heads.head.weight",
    "classifier.6.weight",
    "classifier.5.weight",
    "classifier.3.weight",
    "classifier.2.weight",
    "classifier.1.weight",
    "classifier.weight",
)


@dataclass(frozen=True)
class TimmName:
    """A timm model that exists.

    Attributes:
        name: As given, with or without a tag.
        resolved: With the tag of its pretrained weights where it has any, e.g. `resnet50.a1_in1k`.
        config: timm's `pretrained_cfg` of it.
    """

    name: str
    resolved: str
    config: Mapping[str, Any]


def timm_name(name: str) -> TimmName:
    """Look a timm model up.

    Args:
        name: `resnet50` or `resnet50.a1_in1k`.

    Raises:
        ClassifierError: timm has no such architecture or no such weights; close matches are named.
    """
    base, _, tag = name.partition(".")
    if not re.fullmatch(r"[\w.-]+", name) or not timm.is_model(base):
        raise ClassifierError(f"timm has no model {name!r};{_suggestion('timm', name)}")
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ClassifierError(f"timm has no weights {tag!r} for {base};{_suggestion('timm', name)}") from error
    if config is None:
        return TimmName(name, name, {})
    resolved = f"{base}.{config.tag}" if config.tag else base
    return TimmName(name, resolved, config.to_dict())  # type: ignore[no-untyped-call]


def torchvision_name(name: str) -> tuple[str, Any]:
    """Look a torchvision classifier up.

    Args:
        name: `resnet50` (its best weights) or `resnet50.IMAGENET1K_V1`, in any case.

    Returns:
        Name of the architecture, and its member of torchvision's weights enumeration.

    Raises:
        ClassifierError: torchvision has no such classifier or no such weights; close matches are named.
    """
    import torchvision.models

    base, _, tag = name.lower().partition(".")
    if base not in _torchvision_names():
        raise ClassifierError(f"torchvision has no image classifier {name!r};{_suggestion('torchvision', name)}")
    published = torchvision.models.get_model_weights(base)
    if not tag:
        return base, published.DEFAULT
    for weights in published:
        if weights.name.lower() == tag:
            return base, weights
    known = ", ".join(f"torchvision:{base}.{weights.name}" for weights in published)
    raise ClassifierError(f"torchvision has no weights {tag!r} for {base}; there are {known}.")


@lru_cache(maxsize=1)
def _torchvision_names() -> tuple[str, ...]:
    import torchvision.models

    # Without the module, names of detection, segmentation and video models would come too.
    return tuple(torchvision.models.list_models(module=torchvision.models))


def _suggestion(library: str, name: str) -> str:
    """The end of a sentence: what may have been meant."""
    names = timm.list_models(pretrained=True) if library == "timm" else _torchvision_names()
    base, _, tag = name.partition(".")
    # Only the part before the tag is compared unless a tag was given: tags would drown a misspelt name.
    pool = list(names) if tag else list(dict.fromkeys(known.partition(".")[0] for known in names))
    close = difflib.get_close_matches(name.lower(), pool, n=3, cutoff=0.6)
    close = close or difflib.get_close_matches(base.lower(), pool, n=3, cutoff=0.5)
    if not close:
        return " search for a name in the model picker."
    return f" close names are {', '.join(f'{library}:{match}' for match in close)}."


@dataclass(frozen=True)
class Architecture:
    """Something to load weights into.

    Attributes:
        id: `timm:<name>`, `torchvision:<name>` or `salviz:<name>`.
        preprocessing: Of its published weights; the usual one where there are none.
        head: Names of the tensors that hold one row a class, the most likely first.
    """

    id: str
    preprocessing: Preprocessing
    head: tuple[str, ...]

    def build(self, classes: int, *, size: tuple[int, int] | None = None) -> nn.Module:
        """The architecture with random weights, from the global random state.

        Args:
            classes: Number of classes of the head.
            size: `(height, width)` of the input where it differs from the published weights'.

        Raises:
            ClassifierError: The architecture cannot be built for these.
        """
        library, name = self.id.split(":", 1)
        try:
            if library == "salviz":
                return SMALL[name][0](classes)
            if library == "torchvision":
                import torchvision.models

                # These two warn unless they are told to draw their weights.
                options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
                module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
                return module
            sized = size is not None and timm_name(name).config.get("fixed_input_size")
            return timm.create_model(name, pretrained=False, num_classes=classes, img_size=size if sized else None)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ClassifierError(
                f"{self.id} cannot be built with {classes} classes; check the architecture's name and the input size."
            ) from error


def find_architecture(id: str) -> Architecture:
    """An architecture by its id.

    Args:
        id: `timm:<name>`, `torchvision:<name>` or `salviz:<name>`.

    Raises:
        ClassifierError: Another library, or no such name.
    """
    library, _, name = id.partition(":")
    if library == "timm":
        found = timm_name(name)
        head = found.config.get("classifier") or ()
        names = (head,) if isinstance(head, str) else tuple(head)
        return Architecture(
            f"timm:{found.name}",
            Preprocessing.from_timm(found.config or {"num_classes": 0}),
            tuple(f"{part}.weight" for part in names),
        )
    if library == "torchvision":
        base, weights = torchvision_name(name)
        return Architecture(
            f"torchvision:{base}",
            Preprocessing.from_torchvision(weights.transforms()),
            _TORCHVISION_HEADS,
        )
    if library == "salviz":
        if name not in SMALL:
            known = " and ".join(f"salviz:{key}" for key in SMALL)
            raise ClassifierError(f"Salviz has no architecture {name!r} of its own; there are {known}.")
        return Architecture(id, Preprocessing.plain(SIZE), (SMALL[name][1],))
    raise ClassifierError(f"{id!r} does not name an architecture; write it as timm:<name> or torchvision:<name>.")
