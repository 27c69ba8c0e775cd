"""One method on one batch: resolves the target, cuts the work to memory, leaves the model as it was."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salviz import methods
from salviz.classifiers.classifier import Classifier
from salviz.errors import MethodError, RequestError
from salviz.methods.card import Attribution, Method
from salviz.seeds import generators
from salviz.targets import ClassTarget, PredictedTarget, Target
from salviz.work import Progress, Work, silent


@dataclass(frozen=True)
class Explained:
    """Maps of a batch and what was learned on the way.

    Attributes:
        maps: `(N, h, w)` or `(N, C, h, w)` float32, raw, on the classifier's device.
        logits: `(N, K)` float32 of the plain images.
        classes: `(N,)` int64, the explained class of each image.
        completeness: `(N,)` completeness error, or None where the method promises none.
        passes: Image passes the card counts for the batch.
        seconds: Wall time.
    """

    maps: Tensor
    logits: Tensor
    classes: Tensor
    completeness: Tensor | None
    passes: float
    seconds: float


def explain(
    classifier: Classifier,
    x: Tensor,
    *,
    method: str,
    target: Target | None = None,
    parameters: Mapping[str, Any] | None = None,
    digests: Sequence[str],
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = silent,
) -> Explained:
    """Explain a batch of images with one method.

    The result for an image depends neither on the batch it comes in nor on `batch_size`. On an out-of-memory
    error the batch is halved and tried again.

    Args:
        classifier: What is explained; locked while this runs.
        x: `(N, 3, H, W)` float32 in model space, on the classifier's device.
        method: Id of a registered method.
        target: What is explained; the predicted class by default.
        parameters: Settings that differ from the card's defaults.
        digests: Content digest of every image: it seeds the image's random numbers.
        seed: The person's seed.
        batch_size: Images in one model pass at the most.
        progress: Called with (done, total) image passes; may raise `Cancelled`.

    Raises:
        MethodError: Unknown method or setting, or the method cannot explain this classifier.
        RequestError: Inputs that do not fit together.
    """
    chosen = methods.get(method)
    settings = chosen.card.check_parameters(parameters)
    if x.ndim != 4 or x.shape[1] != 3 or len(x) == 0:
        raise RequestError(f"Images must come as (N, 3, H, W) with N at least 1, not {tuple(x.shape)}.")
    if len(digests) != len(x):
        raise RequestError(f"There are {len(x)} images but {len(digests)} digests; give one for every image.")
    if batch_size < 1:
        raise RequestError(f"A model pass needs at least one image; the batch size cannot be {batch_size}.")
    target = target or PredictedTarget()
    if isinstance(target, ClassTarget):
        if len(target.classes) != len(x):
            raise RequestError(f"There are {len(x)} images but {len(target.classes)} target classes.")
        if not target.classes.is_meta:
            target.check(len(classifier.labels))
    started = time.perf_counter()
    passes = chosen.card.passes(settings, (int(x.shape[2]), int(x.shape[3]))) * len(x)
    # Inference tensors cannot enter autograd, so inference mode is left and such an input copied.
    with classifier.lock, torch.inference_mode(mode=False):
        refusal = chosen.refusal(classifier)
        if refusal is not None:
            raise MethodError(refusal)
        x = x.clone() if x.is_inference() else x.detach()
        work = Work(total=round(passes), batch_size=batch_size, progress=progress)
        parts = []
        start = 0
        while start < len(x):
            rows = slice(start, min(start + work.batch_size, len(x)))
            try:
                parts.append(
                    _explain_part(classifier, x[rows], target.part(rows), chosen, settings, digests[rows], seed, work)
                )
            except torch.OutOfMemoryError as error:
                if work.batch_size == 1:
                    raise MethodError(
                        f"{chosen.card.title} does not fit into memory even for a single image. Choose a "
                        "smaller classifier or a method with fewer passes."
                    ) from error
                work.batch_size = max(1, work.batch_size // 2)
                continue
            start = rows.stop
    complete = [part.completeness for part in parts if part.completeness is not None]
    return Explained(
        maps=torch.cat([part.maps for part in parts]),
        logits=torch.cat([part.logits for part in parts]),
        classes=torch.cat([part.classes for part in parts]),
        completeness=torch.cat(complete) if complete else None,
        passes=passes,
        seconds=time.perf_counter() - started,
    )


def _explain_part(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    method: Method,
    settings: Mapping[str, Any],
    digests: Sequence[str],
    seed: int,
    work: Work,
) -> Explained:
    logits = None
    if isinstance(target, PredictedTarget) and not method.card.explains_predicted:
        logits = classifier.predict(x)
        target = target.resolve(logits)
    # Made here, so that a part tried again after an out-of-memory error draws the same numbers.
    streams = generators(seed, digests, method.card.id, x.device)
    found: Attribution = method.explain(classifier, x, target, generators=streams, work=work, **settings)
    if found.logits is not None:
        logits = found.logits
    elif logits is None:
        logits = classifier.predict(x)
    return Explained(
        found.maps.float(),
        logits.float(),
        target.resolve(logits).classes.to(x.device),
        found.completeness,
        0.0,
        0.0,
    )


def predict(classifier: Classifier, x: Tensor, *, batch_size: int = 16) -> Tensor:
    """Float32 logits `(N, K)` of `(N, 3, H, W)` images, in chunks, under the classifier's lock."""
    with classifier.lock:
        return torch.cat([classifier.predict(part) for part in torch.split(x, batch_size)])
