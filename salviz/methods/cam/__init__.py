"""Class activation maps: a layer's channels, weighted and summed up."""

from salviz.methods.cam import ablated, closed, contrast, eigen, guided, masked, pooled

__all__ = ["ablated", "closed", "contrast", "eigen", "guided", "masked", "pooled"]
