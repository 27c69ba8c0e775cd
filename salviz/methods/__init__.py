"""Saliency methods, one family a module. Importing this package fills the registry."""

from salviz.methods import cam, controls, gradients, paths, perturbation
from salviz.methods.card import FAMILIES, METHODS, Attribution, Method, MethodCard, Parameter, get

# Listed by family, whatever the order in which the modules were imported.
_sorted = sorted(METHODS.items(), key=lambda item: FAMILIES.index(item[1].card.family))
METHODS.clear()
METHODS.update(_sorted)

__all__ = [
    "FAMILIES",
    "METHODS",
    "Attribution",
    "Method",
    "MethodCard",
    "Parameter",
    "cam",
    "controls",
    "get",
    "gradients",
    "paths",
    "perturbation",
]
