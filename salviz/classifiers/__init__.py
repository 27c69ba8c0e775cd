"""What is explained: image classifiers, where they come from, and how pictures reach them and maps come back.

Names are imported when they are first used: the list of suggestions needs neither torch nor timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salviz.classifiers.classifier import Checkpoint, Classifier
    from salviz.classifiers.hub import timm_names
    from salviz.classifiers.labels import Labels
    from salviz.classifiers.loading import at_checkpoint, load, untrained
    from salviz.classifiers.preprocessing import Placement, Preprocessing
    from salviz.classifiers.registry import CARDS, ClassifierCard, is_available_offline

__all__ = [
    "CARDS",
    "Checkpoint",
    "Classifier",
    "ClassifierCard",
    "Labels",
    "Placement",
    "Preprocessing",
    "at_checkpoint",
    "is_available_offline",
    "load",
    "timm_names",
    "untrained",
]

_HOMES = {
    "CARDS": "registry",
    "Checkpoint": "classifier",
    "Classifier": "classifier",
    "ClassifierCard": "registry",
    "Labels": "labels",
    "Placement": "preprocessing",
    "Preprocessing": "preprocessing",
    "at_checkpoint": "loading",
    "is_available_offline": "registry",
    "load": "loading",
    "timm_names": "hub",
    "untrained": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
