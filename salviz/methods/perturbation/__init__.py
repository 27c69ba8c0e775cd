"""What the score loses when parts of the image are hidden."""

from salviz.methods.perturbation import ablation, occlusion, rise, surrogate, xrai

__all__ = ["ablation", "occlusion", "rise", "surrogate", "xrai"]
