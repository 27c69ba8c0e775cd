"""Loaded classifiers shared by everybody who asks for them, the least used one dropped first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import torch

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.loading import load
from salviz.classifiers.speed import Speed, probe

Key = tuple[str, str, str | None]
"""Id, device and autocast, as given to `ClassifierStore.get`."""


@dataclass(frozen=True)
class Loaded:
    """A classifier and how long its image passes take here.

    Attributes:
        classifier: The shared classifier.
        speed: Measured when it was loaded, and corrected by real work.
        key: What `ClassifierStore.get` was called with.
    """

    classifier: Classifier
    speed: Speed
    key: Key


@dataclass
class ClassifierStore:
    """Keeps the classifiers used last.

    Attributes:
        capacity: How many to keep.
    """

    capacity: int = 3
    _kept: OrderedDict[Key, Loaded] = field(default_factory=OrderedDict)
    _loading: dict[Key, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, id: str, device: str = "auto", autocast: str | None = None) -> Loaded:
        """The classifier of an id, loaded by the first who asks while others wait.

        Raises:
            ClassifierError: It cannot be loaded; the next call tries again.
        """
        key = (id, device, autocast)
        with self._lock:
            turn = self._loading.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            classifier = load(id, device=device, autocast=autocast)
            loaded = Loaded(classifier, probe(classifier), key)
            with self._lock:
                self._kept[key] = loaded
                while len(self._kept) > self.capacity:
                    self._kept.popitem(last=False)
            return loaded

    def is_loaded(self, id: str, device: str = "auto", autocast: str | None = None) -> bool:
        """Whether `get` would answer at once."""
        with self._lock:
            return (id, device, autocast) in self._kept


def devices() -> tuple[str, ...]:
    """Devices of this machine a classifier can be placed on, the CPU last."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return (*found, "cpu")
