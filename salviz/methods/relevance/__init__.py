"""Methods that hand the class score back from layer to layer."""

from salviz.methods.relevance import lrp

__all__ = ["lrp"]
