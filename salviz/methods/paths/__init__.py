"""Gradients collected on a way from a baseline to the image."""

from salviz.methods.paths import blur, deeplift, expected, guided, integrated

__all__ = ["blur", "deeplift", "expected", "guided", "integrated"]
