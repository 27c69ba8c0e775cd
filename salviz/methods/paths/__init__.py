"""Gradients collected on a way from a baseline to the image."""

from salviz.methods.paths import blur, integrated

__all__ = ["blur", "integrated"]
