"""Saliency methods, one family a module. Importing this package fills the registry."""

from salviz.methods import cam, controls, gradients, paths, perturbation
from salviz.methods.card import METHODS, Attribution, Method, MethodCard, Parameter, get

__all__ = [
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
