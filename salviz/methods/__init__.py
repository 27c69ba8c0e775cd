"""Saliency methods, one family a module or package. Importing this package fills the registry."""

from salviz.methods import attention, cam, controls, gradients, masks, paths, perturbation, relevance
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
    "attention",
    "cam",
    "controls",
    "get",
    "gradients",
    "masks",
    "paths",
    "perturbation",
    "relevance",
]
