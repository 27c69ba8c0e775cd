"""Methods on a batch: resolves the target, shares passes, cuts the work to memory, leaves the model as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salviz import methods as registry
from salviz.classifiers.classifier import Classifier
from salviz.errors import ClassifierError, MethodError, Refusal, RequestError
from salviz.flatness import is_flat
from salviz.footprint import images_in_pass
from salviz.maps import resize, signed
from salviz.methods.card import Attribution, Method
from salviz.methods.passes import is_one_way, shared_logits
from salviz.seeds import generators
from salviz.targets import ClassTarget, PredictedTarget, Target, class_indices
from salviz.work import Progress, Work, even, is_out_of_memory, silent

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Explained:
    """Maps of a batch and what was learned on the way.

    Attributes:
        maps: `(N, h, w)` or `(N, C, h, w)` float32, raw, on the classifier's device.
        logits: `(N, K)` float32 of the plain images.
        classes: `(N,)` int64, the explained class of each image.
        rivals: `(N,)` int64, the class each contrast is against, or None.
        completeness: `(N,)` completeness error, or None where the method promises none.
        standard_error: `(N,)` of sampling methods, as a share of the map's own spread, or None.
        samples: `(N,)` samples behind it, or None.
        passes: Image passes the batch took, as if the method were alone.
        seconds: Wall time, without what another method of the set had found before.
        size: `(height, width)` of the input.
    """

    maps: Tensor
    logits: Tensor
    classes: Tensor
    rivals: Tensor | None
    completeness: Tensor | None
    standard_error: Tensor | None
    samples: Tensor | None
    passes: float
    seconds: float
    size: tuple[int, int]

    def at_input(self) -> Tensor:
        """`(N, H, W)` signed maps at the input's resolution: channels added up, then interpolated (`maps.resize`).

        No values are scaled or clipped.
        """
        return resize(signed(self.maps), self.size)

    @property
    def is_flat(self) -> Tensor:
        """`(N,)` bool: maps without any contrast, which say nothing."""
        values = self.maps.flatten(1)
        return is_flat(values.amin(dim=1), values.amax(dim=1))


Publish = Callable[[str, Explained], None]
"""Called with a method's id and its result, as soon as it is complete."""


def explain(
    classifier: Classifier,
    x: Tensor,
    *,
    method: str,
    target: Target | None = None,
    parameters: Settings | None = None,
    digests: Sequence[str],
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Explained:
    """Explain a batch of images with one method: `explain_set` of one.

    Args:
        classifier: What is explained; locked while this runs.
        x: `(N, 3, H, W)` float32 in model space, on the classifier's device.
        method: Id of a registered method.
        target: What is explained; the predicted class by default.
        parameters: Settings that differ from the card's defaults.
        digests: Content digest of every image: it seeds the image's random numbers.
        seed: The person's seed.
        batch_size: Images in one model pass at the most; None for what suits device and memory.
        progress: Called with (done, total) image passes; may raise `Cancelled`.

    Raises:
        MethodError: Unknown method or setting, or the method cannot explain this classifier.
        RequestError: Inputs that do not fit together.
    """
    found = explain_set(
        classifier, x, methods={method: parameters}, target=target, digests=digests, seed=seed,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
    return found[method]


def explain_set(
    classifier: Classifier,
    x: Tensor,
    *,
    methods: Mapping[str, Settings | None],
    target: Target | None = None,
    digests: Sequence[str],
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = silent,
    publish: Publish = lambda method, explained: None,
) -> dict[str, Explained]:
    """Explain a batch of images with several methods in the fewest passes.

    Methods that need the same passes share them: all class activation maps of a layer one trunk and one head gradient,
    gradient and input x gradient one backward, which begins at that trunk's forward where there is one, the three of
    SmoothGrad's noise one set of noisy copies. The result of
    a method for an image depends neither on the set, nor on the batch it comes in, nor on `batch_size`. Cheap methods
    come first. On an out-of-memory error the batch is halved and tried again.

    Args:
        classifier: What is explained; locked while this runs.
        x: `(N, 3, H, W)` float32 in model space, on the classifier's device.
        methods: Settings that differ from the card's defaults, by method id.
        target: What is explained; the predicted class by default.
        digests: Content digest of every image: it seeds the image's random numbers.
        seed: The person's seed.
        batch_size: Images in one model pass at the most; None for what suits device and memory.
        progress: Called with (done, total) image passes; may raise `Cancelled`.
        publish: Called with a method's id and result once it is complete.

    Returns:
        Results by method id, in the order asked for.

    Raises:
        MethodError: Unknown method or setting, or a method cannot explain this classifier.
        RequestError: Inputs that do not fit together.
    """
    target = target or PredictedTarget()
    chosen = _checked(methods)
    _check(classifier, x, target, digests, batch_size)
    size = _size(x)
    # Methods pick from it by what they compute where the images are.
    target = target.to(x.device)
    # Inference tensors cannot enter autograd, so inference mode is left and such an input copied.
    with classifier.lock, torch.inference_mode(mode=False):
        plan = _plan(chosen, size, classifier)
        for step in plan:
            refusal = step.method.refusal(classifier)
            if refusal is not None:
                raise Refusal(refusal)
        x = x.clone() if x.is_inference() else x.detach()
        work = Work(
            total=round(_total(plan, classifier) * len(x)), batch_size=batch_size or images_in_pass(classifier, size),
            progress=progress, wanted=frozenset(name for step in plan for name in step.shared),
        )  # fmt: skip
        parts: dict[str, list[Explained]] = {step.name: [] for step in plan}
        found: dict[str, Explained] = {}
        start = 0
        while start < len(x):
            rows = slice(start, start + even(len(x) - start, work.batch_size))
            work.forget()
            # Rows of a part that did not fit are tried again with all their methods.
            for step in plan:
                try:
                    part = _explain_part(classifier, x[rows], target.part(rows), step, digests[rows], seed, work)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if work.batch_size == 1:
                        raise MethodError(
                            f"{step.method.card.title} does not fit into memory even for a single image. Choose a "
                            "smaller classifier or a method with fewer passes."
                        ) from error
                    work.batch_size = max(1, work.batch_size // 2)
                    break
                parts[step.name].append(part)
                if rows.stop == len(x):
                    found[step.name] = _join(parts[step.name])
                    publish(step.name, found[step.name])
            else:
                start = rows.stop
                continue
            for step in plan:
                done = sum(len(part.maps) for part in parts[step.name])
                if done > start:
                    parts[step.name].pop()
    return {name: found[name] for name in methods}


_ONE_PASS = 2.5
"""Image passes below which a method makes one way through the net, forward and back, and what little it adds."""


@dataclass(frozen=True)
class _Step:
    """A method of the set with all its settings, and the passes an image costs it alone."""

    name: str
    method: Method
    settings: Settings
    passes: float

    @property
    def shared(self) -> Mapping[Hashable, float]:
        """Those of its passes that it has in common with others, by their name."""
        return self.method.card.shares(self.settings)


def _checked(chosen: Mapping[str, Settings | None]) -> dict[str, Settings]:
    """All settings of the methods."""
    if not chosen:
        raise RequestError("No method was chosen. Choose at least one.")
    return {name: registry.get(name).card.check_parameters(parameters) for name, parameters in chosen.items()}


def _plan(chosen: Mapping[str, Settings], size: tuple[int, int], classifier: Classifier | None) -> list[_Step]:
    """The methods, cheap ones first."""
    steps = []
    for name, settings in chosen.items():
        card = registry.get(name).card
        settled = settings if classifier is None else card.settled(classifier, settings)
        steps.append(_Step(name, registry.get(name), settings, card.passes(settled, size)))
    # What asks no net stands behind what asks it once: its result holds the net's logits all the same.
    return sorted(steps, key=lambda step: (step.passes or _ONE_PASS, not step.method.card.leads))


def _total(plan: Sequence[_Step], classifier: Classifier | None) -> float:
    """Image passes of the whole set: what is shared counts once."""
    shared: dict[Hashable, float] = {}
    for step in plan:
        shared |= step.shared
    own = sum(step.passes - sum(step.shared.values()) for step in plan)
    return own + sum(shared.values()) - is_one_way(shared, classifier)


def passes(chosen: Mapping[str, Settings | None], size: tuple[int, int], classifier: Classifier | None = None) -> float:
    """Image passes a set of methods costs, with what they share counted once.

    Args:
        chosen: As for `explain_set`.
        size: `(height, width)` of the input.
        classifier: What is to be explained, where it is at hand: some methods run as many channels as its layer has.
    """
    return _total(_plan(_checked(chosen), size, classifier), classifier)


def _size(x: Tensor) -> tuple[int, int]:
    """`(height, width)` of `(N, 3, H, W)` images."""
    return int(x.shape[2]), int(x.shape[3])


def check_images(x: Tensor) -> None:
    """Refuse what is no batch of images.

    Raises:
        RequestError: Not `(N, 3, H, W)` with N at least 1.
    """
    if x.ndim != 4 or x.shape[1] != 3 or len(x) == 0:
        raise RequestError(f"Images must come as (N, 3, H, W) with N at least 1, not {tuple(x.shape)}.")


def _check_batch(x: Tensor, batch_size: int | None) -> None:
    check_images(x)
    if batch_size is not None and batch_size < 1:
        raise RequestError(f"A model pass needs at least one image; the batch size cannot be {batch_size}.")


def _check(classifier: Classifier, x: Tensor, target: Target, digests: Sequence[str], batch_size: int | None) -> None:
    _check_batch(x, batch_size)
    if len(digests) != len(x):
        raise RequestError(f"There are {len(x)} images but {len(digests)} digests; give one for every image.")
    if isinstance(target, ClassTarget):
        for classes in (target.classes, target.against):
            if classes is not None and len(class_indices(classes)) != len(x):
                raise RequestError(f"There are {len(x)} images but {len(classes)} target classes.")
        if target.classes.is_meta:
            return
    target.check(len(classifier.labels))


def _explain_part(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    step: _Step,
    digests: Sequence[str],
    seed: int,
    work: Work,
) -> Explained:
    card = step.method.card
    logits = None
    if isinstance(target, PredictedTarget) and not card.explains_predicted:
        # The prediction belongs to no method: it is neither counted nor timed.
        logits = shared_logits(classifier, x, work)
        target = target.resolve(logits)
    started = time.perf_counter()
    # Made here, so that a part tried again after an out-of-memory error draws the same numbers.
    streams = generators(seed, digests, card.stream or card.id, x.device)
    found: Attribution = step.method.explain(classifier, x, target, generators=streams, work=work, **step.settings)
    seconds = time.perf_counter() - started
    if found.logits is not None:
        logits = found.logits
    elif logits is None:
        logits = shared_logits(classifier, x, work)
    resolved = target.resolve(logits)
    passes = _made(step, found, x)
    if passes != step.passes * len(x) and step.settings.get("tolerance"):
        # It stopped early: what was promised of it is no longer to come.
        work.total += round(passes - step.passes * len(x))
        work.tick(0)
    return Explained(
        found.maps.float(),
        logits.float(),
        resolved.classes.to(x.device),
        None if resolved.against is None else resolved.against.to(x.device),
        found.completeness,
        found.standard_error,
        found.samples,
        passes,
        seconds,
        _size(x),
    )


def _made(step: _Step, found: Attribution, x: Tensor) -> float:
    """Image passes a batch took: each image as many as its samples cost, where a tolerance may have stopped it."""
    if found.passes is not None:
        return found.passes * len(x)
    if found.samples is None or not step.settings.get("tolerance"):
        return step.passes * len(x)
    card, size = step.method.card, _size(x)
    return sum(card.passes({**step.settings, "samples": count}, size) for count in found.samples.tolist())


def _join(parts: Sequence[Explained]) -> Explained:
    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    return Explained(
        joined("maps"),
        joined("logits"),
        joined("classes"),
        joined("rivals"),
        joined("completeness"),
        joined("standard_error"),
        joined("samples"),
        passes=sum(part.passes for part in parts),
        seconds=sum(part.seconds for part in parts),
        size=parts[0].size,
    )


def predict(classifier: Classifier, x: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Float32 logits `(N, K)` of `(N, 3, H, W)` images, in chunks, under the classifier's lock.

    On an out-of-memory error the chunk is halved and tried again.

    Args:
        classifier: What predicts.
        x: `(N, 3, H, W)` float32 in model space, on the classifier's device.
        batch_size: Images in one model pass at the most; None for what suits device and memory.

    Raises:
        ClassifierError: Not even a single image fits into memory.
        RequestError: Inputs that are no images.
    """
    _check_batch(x, batch_size)
    most = batch_size or images_in_pass(classifier, _size(x))
    found: list[Tensor] = []
    start = 0
    with classifier.lock:
        while start < len(x):
            part = x[start : start + most]
            try:
                found.append(classifier.predict(part))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise ClassifierError(
                        f"{classifier.title} does not fit into memory even for a single image. Choose a smaller "
                        "classifier."
                    ) from error
                most = max(1, len(part) // 2)
            else:
                start += len(part)
    return torch.cat(found)
