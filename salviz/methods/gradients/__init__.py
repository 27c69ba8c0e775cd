"""Derivatives of the score with respect to the input."""

from salviz.methods.gradients import plain, rectified, smooth

__all__ = ["plain", "rectified", "smooth"]
