"""What a run will cost, from a timed probe of its own models and methods."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from salviz import durations, engine, methods
from salviz.classifiers.store import Loaded
from salviz.errors import Cancelled, MethodError
from salviz.runs import measures
from salviz.runs.spec import Spec
from salviz.work import Progress, silent

Settings = Mapping[str, Any]

PATIENT_PASSES = 60
"""Methods of more passes a map are not tried; their time is that of their passes."""

_IMAGES, _ENOUGH_SECONDS = 4, 1.0


@dataclass(frozen=True)
class Estimate:
    """What a run will cost on this machine.

    Attributes:
        seconds: Of all its maps; comparing them takes some tenth of that more.
        maps: To be made.
        images: Pictures.
        refused: Why a method does not work with a model, by model and method: it costs nothing.
    """

    seconds: float
    maps: int
    images: int
    refused: Mapping[tuple[str, str], str]

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return 1024


def estimate(spec: Spec, images: int, load: Callable[[str], Loaded], *, progress: Progress = silent) -> Estimate:
    """Time each model's methods on noise, and multiply.

    Args:
        spec: What is asked.
        images: How many pictures that is.
        load: Loads a classifier.
        progress: Called with (models done, models); may raise `Cancelled`.

    Raises:
        SalvizError: A model cannot be loaded, or a setting does not exist.
    """
    seconds, maps = 0.0, 0
    refused: dict[tuple[str, str], str] = {}
    for place, model in enumerate(spec.models):
        progress(place, len(spec.models))
        loaded = load(model)
        classifier = loaded.classifier
        able: dict[str, Settings] = {}
        for name, settings in spec.methods.items():
            reason = methods.get(name).refusal(classifier)
            if reason is None:
                able[name] = methods.get(name).card.check_parameters(dict(settings))
            else:
                refused[model, name] = reason
        each = sum(
            measures.get(name).maps(classifier, measures.get(name).settings(given))
            for name, given in spec.metrics.items()
        )
        maps += images * each * len(able)
        if able:
            seconds += images * each * _seconds(loaded, able)
    progress(len(spec.models), len(spec.models))
    return Estimate(seconds, maps, images, refused)


def _seconds(loaded: Loaded, able: Mapping[str, Settings]) -> float:
    """Seconds that one map of each method takes: cheap ones together, as they share passes, and measured."""
    size = loaded.classifier.preprocessing.input_size
    each = {name: engine.passes({name: given}, size, loaded.classifier) for name, given in able.items()}
    cheap = {name: given for name, given in able.items() if each[name] <= PATIENT_PASSES}
    dear = {name: given for name, given in able.items() if name not in cheap}
    seconds = durations.seconds(loaded, dear) if dear else 0.0
    if cheap:
        seconds += _timed(loaded, cheap) / _IMAGES
    return seconds


def _timed(loaded: Loaded, chosen: Mapping[str, Settings]) -> float:
    classifier = loaded.classifier
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_IMAGES, 3, *classifier.preprocessing.input_size, generator=generator).to(classifier.device)
    digests = [f"probe {place}" for place in range(_IMAGES)]
    taken, spent = math.inf, 0.0
    # What is made ready once is made for a single picture, and not counted: it can take longer than the whole run. Then
    # the quickest of many, because a server that has just started does much else beside.
    images = 1
    while spent < _ENOUGH_SECONDS:
        started = time.perf_counter()
        try:
            engine.explain_set(classifier, x[:images], methods=chosen, target=None, digests=digests[:images])
        except Cancelled:
            raise
        except MethodError:
            # It will be the run's to say for which picture it does not work.
            return _IMAGES * durations.seconds(loaded, chosen)
        if images == _IMAGES:
            taken = min(taken, time.perf_counter() - started)
            spent += time.perf_counter() - started
        images = _IMAGES
    return taken
