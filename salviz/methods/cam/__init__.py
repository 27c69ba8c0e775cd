"""Class activation maps: weighted sums of a layer's channels."""

from salviz.methods.cam import closed

__all__ = ["closed"]
