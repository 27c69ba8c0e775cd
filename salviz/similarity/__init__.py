"""How alike two saliency maps are: batched, masked where that has a meaning, on the maps' device.

All functions take `(N, H, W)` pairs and return `(N,)` on the same device in the same dtype, without a host
round trip. What is undefined - a constant map, no valid pixel, no range - is NaN.
"""

from salviz.similarity.correlation import cosine, pearson, spearman
from salviz.similarity.hog import hog
from salviz.similarity.overlap import top_k
from salviz.similarity.structural import ssim

__all__ = ["cosine", "hog", "pearson", "spearman", "ssim", "top_k"]
