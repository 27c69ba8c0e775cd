"""Salviz: saliency maps of image classifiers, and how far they can be trusted.

Importing this package is cheap: torch and the model libraries are loaded on first use.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from salviz.errors import SalvizError

__version__ = "0.1.0"

# PyTorch asks once, at its first tensor: on Linux a batch's activations then lie in huge pages. Without them the kernel
# clears a small net's memory page by page, layer for layer, for a fifth of its time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from salviz.classifiers.loading import load
    from salviz.comparison import compare
    from salviz.explaining import explain
    from salviz.exploring import explore
    from salviz.request import Request

_LAZY = {
    "load": "salviz.classifiers.loading",
    "compare": "salviz.comparison",
    "explain": "salviz.explaining",
    "explore": "salviz.exploring",
    "Request": "salviz.request",
}

__all__ = ["Request", "SalvizError", "__version__", "compare", "explain", "explore", "load"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'salviz' has no attribute {name!r}")
