"""Inputs of the numbers in `cose.json`, which the released code of COSE computed from them.

Numpy's legacy generator makes them the same in every version. The order of draws is part of the definition.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import RandomState

from salviz.transforms import AUGMENTATIONS, Variant

RELEASED_NAMES = {
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "color",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "AutoContrast": "auto_contrast",
    "Equalize": "equalize",
    "FlipLR": "flip_lr",
    "FlipUD": "flip_ud",
    "Blur": "blur",
    "Smooth": "smooth",
}


@cache
def golden() -> dict:
    return json.loads(Path(__file__).with_name("cose.json").read_text())


def variant(name: str) -> Variant:
    """The variant of a golden name such as `Rotate_L07_neg` or `FlipLR`."""
    operation, *rest = name.split("_")
    card = AUGMENTATIONS[RELEASED_NAMES[operation]]
    if not rest:
        return Variant(card.id)
    level = card.levels[int(rest[0][1:]) - 1]
    return Variant(card.id, level if rest[1] == "pos" else -level)


def uniform(seed, n):
    return RandomState(seed).random_sample((n, n))


def blobs(seed, n, k=5):
    """Sum of k Gaussians, scaled to [0, 1]."""
    rs = RandomState(seed)
    y = np.arange(n, dtype=np.float64)[:, None]
    x = np.arange(n, dtype=np.float64)[None, :]
    m = np.zeros((n, n))
    for _ in range(k):
        cy = rs.random_sample() * n
        cx = rs.random_sample() * n
        s = (0.05 + 0.15 * rs.random_sample()) * n
        a = rs.random_sample()
        m += a * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2.0 * s * s))
    return (m - m.min()) / (m.max() - m.min())


def ternary(seed, n, cell=8):
    """Values in {-1, 0, 1}, constant on blocks, like a map of LIME."""
    t = RandomState(seed).randint(-1, 2, size=(n // cell, n // cell))
    return np.kron(t, np.ones((cell, cell))).astype(float)


def attribution3(seed, n):
    return RandomState(seed).standard_normal((n, n, 3))


def visualised(seed, n):
    """A random attribution as the released code shows it: absolute channel sum, clipped at 99 %."""
    grey = np.abs(attribution3(seed, n)).sum(axis=2)
    low, high = grey.min(), np.percentile(grey, 99)
    return np.clip((grey - low) / (high - low), 0, 1)


def image_u8(seed, n):
    return RandomState(seed).randint(0, 256, size=(n, n, 3)).astype(np.uint8)


def smooth_image_u8(n):
    y, x = np.mgrid[0:n, 0:n].astype(np.float64) / (n - 1)
    r = 40 + 180 * x
    g = 30 + 150 * y
    b = 128 + 90 * np.sin(6.0 * x) * np.cos(4.0 * y)
    return np.floor(np.stack([r, g, b], axis=2)).astype(np.uint8)


def block_image_u8(seed, n, cell=8):
    """A random colour for each block, so that superpixels exist."""
    t = RandomState(seed).randint(0, 256, size=(n // cell, n // cell, 3)).astype(np.uint8)
    return np.repeat(np.repeat(t, cell, axis=0), cell, axis=1)


def shift0(m, dx, dy):
    """Content moved right by dx and down by dy, zeros elsewhere."""
    out = np.zeros_like(m)
    h, w = m.shape[0] - abs(dy), m.shape[1] - abs(dx)
    out[max(dy, 0) :, max(dx, 0) :][:h, :w] = m[max(-dy, 0) :, max(-dx, 0) :][:h, :w]
    return out


def pair(name, n):
    """The two maps of a pair in the section `pairs`."""
    first = blobs(1, n)
    pairs = {
        "identical_blobs": lambda: (first, first),
        "blobs1_blobs2": lambda: (first, blobs(2, n)),
        "blobs1_noisy": lambda: (first, np.clip(first + 0.2 * (uniform(3, n) - 0.5), 0, 1)),
        "uniform3_uniform4": lambda: (uniform(3, n), uniform(4, n)),
        "blobs1_half": lambda: (first, first * 0.5),
        "blobs1_complement": lambda: (first, 1 - first),
        "blobs_float32": lambda: (first.astype(np.float32), blobs(2, n).astype(np.float32)),
        "ternary5_ternary6": lambda: (ternary(5, n), ternary(6, n)),
        "blobs1_zeros": lambda: (first, np.zeros((n, n))),
        "zeros_zeros": lambda: (np.zeros((n, n)), np.zeros((n, n))),
        "vis7_vis8": lambda: (visualised(7, n), visualised(8, n)),
        "blobs1_fliplr": lambda: (first, np.fliplr(first)),
        "tiny_range": lambda: (first * 1e-3, blobs(2, n) * 1e-3),
    }
    return pairs[name]()


def results_rows(seed, n_rows):
    """Rows (target, prediction, type, prediction of the variant, ssim) of the released code's table."""
    types = ["random", "mid_ckpt_e001", "mid_ckpt_e003", *RELEASED_NAMES]
    rs = RandomState(seed)
    rows = []
    for _ in range(n_rows):
        t = int(rs.randint(0, 4))
        p = t if rs.random_sample() < 0.8 else int(rs.randint(0, 4))
        kind = types[int(rs.randint(0, len(types)))]
        tp = p if rs.random_sample() < 0.6 else int(rs.randint(0, 4))
        rows.append((t, p, kind, tp, float(rs.random_sample())))
    return rows


class TinyNetWeights:
    """Weights of the small CNN behind the golden maps of methods."""

    def __init__(self):
        rs = RandomState(11)
        self.w1 = (rs.standard_normal((8, 3, 3, 3)) * 0.3).astype(np.float32)
        self.b1 = (rs.standard_normal(8) * 0.1).astype(np.float32)
        self.w2 = (rs.standard_normal((16, 8, 3, 3)) * 0.15).astype(np.float32)
        self.b2 = (rs.standard_normal(16) * 0.1).astype(np.float32)
        self.w3 = (rs.standard_normal((10, 16)) * 0.5).astype(np.float32)
        self.b3 = (rs.standard_normal(10) * 0.1).astype(np.float32)
