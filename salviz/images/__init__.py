"""Photographs: decoded safely from bytes, from the sample gallery, or from a folder on the server.

Every way in ends in the same frozen `Picture`: upright, 8-bit RGB, without transparency, with the digest of
its pixels. Nothing here imports torch or streamlit, so a page can show its photograph before either model or
method is loaded.
"""

from salviz.images.decoding import (
    FORMATS,
    MAX_ASPECT,
    MAX_BYTES,
    MAX_LONGER_SIDE,
    MAX_PIXELS,
    MAX_SHORTER_SIDE,
    decode,
)
from salviz.images.fashion import fashion_index, fashion_title, open_fashion
from salviz.images.folder import (
    FOLDER_VARIABLE,
    SUFFIXES,
    folder_images,
    image_folder,
    open_from_folder,
    open_path,
)
from salviz.images.gallery import SAMPLES, Sample, open_sample, samples
from salviz.images.picture import Picture, thumbnail, wordnet_id
from salviz.images.sources import NAMED, open_source

__all__ = [
    "FOLDER_VARIABLE",
    "FORMATS",
    "MAX_ASPECT",
    "MAX_BYTES",
    "MAX_LONGER_SIDE",
    "MAX_PIXELS",
    "MAX_SHORTER_SIDE",
    "NAMED",
    "SAMPLES",
    "SUFFIXES",
    "Picture",
    "Sample",
    "decode",
    "fashion_index",
    "fashion_title",
    "folder_images",
    "image_folder",
    "open_fashion",
    "open_from_folder",
    "open_path",
    "open_sample",
    "open_source",
    "samples",
    "thumbnail",
    "wordnet_id",
]
