"""Methods on a batch: resolves the target, shares passes, cuts the work to memory, leaves the model as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.errors import ClassifierError, MethodError, Refusal, RequestError
from salviz.flatness import is_flat
from salviz.footprint import images_in_pass
from salviz.maps import resize, signed
from salviz.methods.card import Attribution
from salviz.methods.passes import shared_logits
from salviz.seeds import generators
from salviz.steps import Settings, Step, checked, passes, plan, total
from salviz.targets import ClassTarget, PredictedTarget, Target, class_indices
from salviz.work import Progress, Work, even, is_out_of_memory, silent

__all__ = ["Explained", "Settings", "check_images", "explain", "explain_set", "passes", "predict"]


@dataclass(frozen=True)
class Explained:
    """Maps of a batch and what was learned on the way; one row an image, or as many as classes of it were explained.

    Attributes:
        maps: `(N, h, w)` or `(N, C, h, w)` float32, raw, on the classifier's device.
        logits: `(N, K)` float32 of the plain images.
        classes: `(N,)` int64, the explained class of each row.
        rivals: `(N,)` int64, the class each contrast is against, or None.
        completeness: `(N,)` completeness error, or None where the method promises none.
        standard_error: `(N,)` of sampling methods, as a share of the map's own spread, or None.
        samples: `(N,)` samples behind it, or None.
        passes: Image passes the batch took, as if the method were alone.
        seconds: Wall time, without what another method of the set had found before.
        size: `(height, width)` of the input.
        alone: Image passes each row would take by itself: where several rows show an image, `passes` may be fewer.
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
    alone: tuple[float, ...]

    def of_class(self, place: int, classes: int) -> Explained:
        """The rows of one class of every image, with the passes they take by themselves and an even share of the time.

        Args:
            place: Of the class among an image's rows.
            classes: Rows of every image.
        """
        if classes == 1:
            return self
        rows = slice(place, None, classes)
        alone = self.alone[rows]
        chosen: dict[str, Any] = {name: getattr(self, name) for name in _TENSORS}
        chosen = {name: None if value is None else value[rows] for name, value in chosen.items()}
        return replace(
            self,
            **chosen,
            passes=sum(alone),
            seconds=self.seconds * len(alone) / len(self.alone),
            alone=alone,
        )

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


_TENSORS = ("maps", "logits", "classes", "rivals", "completeness", "standard_error", "samples")
"""Of `Explained`: those with one entry a row."""

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
    SmoothGrad's noise one set of noisy copies. Where several classes of every image are explained, what does not depend
    on the class is run once an image: all views of a method that only asks for scores. The result of
    a method for an image depends neither on the set, nor on the batch it comes in, nor on `batch_size`. Cheap methods
    come first. On an out-of-memory error the batch is halved and tried again.

    Args:
        classifier: What is explained; locked while this runs.
        x: `(N, 3, H, W)` float32 in model space, on the classifier's device.
        methods: Settings that differ from the card's defaults, by method id.
        target: What is explained; the predicted class by default. With several entries an image (`targets.TopTarget`,
            `targets.SeveralTargets`) results have as many rows an image, image by image.
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
    chosen = checked(methods)
    _check(classifier, x, target, digests, batch_size)
    size = _size(x)
    # Methods pick from it by what they compute where the images are.
    target = target.to(x.device)
    # Inference tensors cannot enter autograd, so inference mode is left and such an input copied.
    with classifier.lock, torch.inference_mode(mode=False):
        steps = plan(chosen, size, classifier)
        for step in steps:
            refusal = step.method.refusal(classifier)
            if refusal is not None:
                raise Refusal(refusal)
        x = x.clone() if x.is_inference() else x.detach()
        work = Work(
            total=round(total(steps, classifier, target.each) * len(x)), progress=progress, classes=target.each,
            batch_size=batch_size or images_in_pass(classifier, size),
            wanted=frozenset(name for step in steps for name in step.shared()),
        )  # fmt: skip
        parts: dict[str, list[Explained]] = {step.name: [] for step in steps}
        found: dict[str, Explained] = {}
        start = 0
        while start < len(x):
            images = slice(start, start + even(len(x) - start, max(1, work.batch_size // target.each)))
            work.forget()
            # Images of a part that did not fit are tried again with all their methods.
            for step in steps:
                try:
                    part = _explain_images(
                        classifier, x[images], target.part(images), step, digests[images], seed, work
                    )
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
                if images.stop == len(x):
                    found[step.name] = _join(parts[step.name])
                    publish(step.name, found[step.name])
            else:
                start = images.stop
                continue
            for step in steps:
                done = sum(len(part.maps) for part in parts[step.name])
                if done > start * target.each:
                    parts[step.name].pop()
    return {name: found[name] for name in methods}


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


def _explain_images(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    step: Step,
    digests: Sequence[str],
    seed: int,
    work: Work,
) -> Explained:
    """Images with all their classes, together or, where a pass has no room for a row of each, some after the others."""
    classes, most = work.classes, work.batch_size
    work.first, work.each = 0, classes
    rows, names = work.rows(x), [digest for digest in digests for _ in range(classes)]
    if step.method.card.all_classes or classes <= most:
        return _explain_part(classifier, rows, target, step, names, seed, work)
    resolved = target.resolve(shared_logits(classifier, rows, work))
    found = []
    for part in work.chunks(classes):
        work.first, work.each = part.start, part.stop - part.start
        found.append(_explain_part(classifier, rows[part], resolved.part(part), step, names[part], seed, work))
    joined = _join(found)
    # What does not depend on the class was found with the first of them.
    return replace(joined, passes=joined.passes - (len(found) - 1) * step.common)


def _explain_part(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    step: Step,
    digests: Sequence[str],
    seed: int,
    work: Work,
) -> Explained:
    card = step.method.card
    logits = None
    if not isinstance(target, ClassTarget) and not card.explains_predicted:
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
    taken, alone = step.made(found, work.each)
    promised = step.for_classes(work.each) * (len(x) // work.each)
    if taken != promised and step.settings.get("tolerance"):
        # It stopped early: what was promised of it is no longer to come.
        work.total += round(taken - promised)
        work.tick(0)
    return Explained(
        found.maps.float(),
        logits.float(),
        resolved.classes.to(x.device),
        None if resolved.against is None else resolved.against.to(x.device),
        found.completeness,
        found.standard_error,
        found.samples,
        taken,
        seconds,
        _size(x),
        tuple(alone),
    )


def _join(parts: Sequence[Explained]) -> Explained:
    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    return Explained(
        **{name: joined(name) for name in _TENSORS},
        passes=sum(part.passes for part in parts),
        seconds=sum(part.seconds for part in parts),
        size=parts[0].size,
        alone=tuple(passes for part in parts for passes in part.alone),
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
