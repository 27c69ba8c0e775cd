"""Masks optimised for one image."""

from salviz.methods.masks import extremal, machinery, meaningful

__all__ = ["extremal", "machinery", "meaningful"]
