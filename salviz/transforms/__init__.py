"""The thirteen augmentations of COSE: on frames, their inverse on maps, and where the inverse is valid.

Cards and variants need no torch, so pages can list them before torch is loaded; `augment`, `realign`,
`Realignment` and `Validity` load it on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from salviz.transforms.cards import AUGMENTATIONS, AugmentationCard
from salviz.transforms.variants import (
    Variant,
    default_variants,
    draw_variants,
    draw_variants_as_released,
    named_variants,
    sweep,
)

if TYPE_CHECKING:
    from salviz.transforms.alignment import Realignment, Validity, realign
    from salviz.transforms.frames import augment
else:
    _NEEDS_TORCH = {
        "augment": "frames", "realign": "alignment", "Realignment": "alignment", "Validity": "alignment",
    }  # fmt: skip

    def __getattr__(name: str) -> Any:
        if name not in _NEEDS_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)


__all__ = [
    "AUGMENTATIONS",
    "AugmentationCard",
    "Realignment",
    "Validity",
    "Variant",
    "augment",
    "default_variants",
    "draw_variants",
    "draw_variants_as_released",
    "named_variants",
    "realign",
    "sweep",
]
