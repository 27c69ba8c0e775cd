"""Labelled image sets: pictures opened one by one to run over, and, in `arrays`, whole tensors to train on."""

from salviz.datasets.pictures import Entry, PictureSet, open_set, sample

__all__ = ["Entry", "PictureSet", "open_set", "sample"]
