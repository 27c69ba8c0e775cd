"""What the score loses when parts of the image are hidden."""

from salviz.methods.perturbation import occlusion

__all__ = ["occlusion"]
