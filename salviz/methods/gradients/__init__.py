"""Derivatives of the score with respect to the input."""

from salviz.methods.gradients import full_grad, plain, rectified, smooth

__all__ = ["full_grad", "plain", "rectified", "smooth"]
