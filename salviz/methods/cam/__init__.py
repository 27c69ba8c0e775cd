"""Class activation maps: weighted sums of a layer's channels."""

from salviz.methods.cam import ablated, closed, contrast, eigen, guided, masked, pooled

__all__ = ["ablated", "closed", "contrast", "eigen", "guided", "masked", "pooled"]
