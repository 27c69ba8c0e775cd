"""The ways of randomising a net, by id: what `randomising` can do and pages offer, without loading torch."""

from __future__ import annotations

ORDERS: dict[str, str] = {
    "top_down": "From the logits down",
    "bottom_up": "From the input up",
    "independent": "One at a time",
    "full": "All at once",
}
"""In which order stages become random; the first two stage upon stage."""

INITIALISATIONS: dict[str, str] = {
    "architecture": "As before training",
    "module": "Each layer's default",
    "truncated_normal": "Truncated normal",
    "permute": "Shuffled weights",
    "moments": "Same mean and spread",
}
"""Where new values come from: the architecture's own start; each layer's `reset_parameters`; by fan-in, with norms 1
and biases 0; the trained values of each tensor in random order; normal with the trained tensor's mean and deviation."""

STATISTICS: dict[str, str] = {"reset": "Reset", "keep": "Kept", "estimate": "Measured on the picture"}
"""What becomes of the running statistics of randomised batch norms: mean 0 and variance 1, those of training, or those
of the images."""
