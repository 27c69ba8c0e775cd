"""Building modules with random weights without disturbing anybody's random numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.RLock()


@contextmanager
def building(seed: int | None = None) -> Iterator[None]:
    """Fork the CPU's global random state while a module is built.

    timm and torchvision draw initial weights from the global generator, which all threads share: builds are
    serialised, so that a seeded one is the same whatever else is loaded meanwhile. Fetch files before.

    Args:
        seed: For weights that matter; None for weights that will be overwritten.
    """
    with _lock, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
