"""The pairs of maps behind `adebayo.json`, made again from its recipe."""

import json
from functools import cache
from pathlib import Path

import numpy as np


@cache
def golden():
    return json.loads((Path(__file__).parent / "adebayo.json").read_text())


@cache
def pairs(size):
    """Name -> two `(H, W, 3)` float32 maps."""
    rng = np.random.RandomState(1810 + size)
    A, B, U, V = (rng.standard_normal((size, size, 3)) for _ in range(4))
    y, x = np.mgrid[:size, :size].astype(float)

    def blob(cy, cx, s):
        found = np.exp(-((y - cy * size) ** 2 + (x - cx * size) ** 2) / (2 * (s * size) ** 2))
        return np.repeat(found[..., None], 3, axis=2)

    disc = (y - size / 2) ** 2 + (x - size / 2) ** 2 < (0.4 * size) ** 2
    X = np.where(disc, 0.25 + 0.75 * (np.floor(16 * x / size) % 2), 0.0)
    dy, dx = np.zeros_like(X), np.zeros_like(X)
    dy[1:-1] = X[2:] - X[:-2]
    dx[:, 1:-1] = X[:, 2:] - X[:, :-2]
    E = np.hypot(dy, dx)[..., None]
    cam = blob(0.40, 0.45, 0.15)
    found = {
        "identical": (A, A),
        "independent": (A, B),
        "mix_0.7_0.3": (A, 0.7 * A + 0.3 * B),
        "sign_flip": (A, -A),
        "cam_blobs": (cam, blob(0.60, 0.55, 0.20)),
        "input_x_noise": (X[..., None] * U, X[..., None] * V),
        "edge_plus_noise": (E + 0.05 * U, E + 0.05 * V),
        "cam_vs_zero": (cam, np.zeros_like(cam)),
    }
    return {name: tuple(m.astype(np.float32) for m in pair) for name, pair in found.items()}
