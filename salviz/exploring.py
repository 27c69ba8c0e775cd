"""Explaining an image, its variants and changed models, with one method or several, and comparing the maps.

Data flow: picture -> `prepare`: frame (uint8, model's crop) and augmented frames -> one batch through
`engine.explain_set` -> comparable maps -> realigned -> SSIM against the clean map -> an `Exploration` a method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from salviz import engine, maps, methods
from salviz.changes import changed
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.preprocessing import Placement
from salviz.errors import RequestError
from salviz.exploration import Exploration, collected
from salviz.images import Picture
from salviz.request import Request, precision_of, request_for
from salviz.similarity import ssim
from salviz.targets import PredictedTarget, together
from salviz.transforms import Realignment, Variant, augment
from salviz.work import Parts, Progress, silent

SLOW_PASSES = 4.0
"""Methods above this many passes an image show the clean map first and the variants as they come."""

GROUP = 4
"""Variants explained between two partial results of a slow method."""

Publish = Callable[[Exploration], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a model sees of a picture and its variants; needs no pass, so it can be made ahead of the model.

    Attributes:
        frames: `(1 + V, 3, H, W)` uint8 on the classifier's device, the clean one first.
        variants: Of the frames after the first.
        placement: Where the frame lies on the photograph.
    """

    frames: Tensor
    variants: tuple[Variant, ...]
    placement: Placement


def prepare(classifier: Classifier, picture: Picture, variants: Sequence[str]) -> Prepared:
    """Crop a picture for a classifier and augment it.

    Args:
        classifier: Decides on crop, size and device.
        picture: The picture.
        variants: Tokens of the augmentations.
    """
    prep = classifier.preprocessing
    clean = prep.frame(picture.image).to(classifier.device).unsqueeze(0)
    chosen = tuple(Variant.from_token(token) for token in variants)
    varied = augment(clean.expand(len(chosen), -1, -1, -1), chosen) if chosen else clean[:0]
    return Prepared(torch.cat([clean, varied]), chosen, prep.placement(picture.image.size))


def explore(
    classifier: Classifier,
    picture: Picture,
    request: Request | None = None,
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
    publish: Publish = lambda exploration: None,
) -> Exploration:
    """Explain an image, its variants and the changed models, and compare the maps.

    Args:
        classifier: The model the request names.
        picture: The picture the request names.
        request: What to do; the defaults of `request_for` where None.
        batch_size: Images in one model pass at the most; None for what suits the device.
        progress: Called with (done, total) image passes; may raise `Cancelled`.
        publish: Called with what is known so far, as it comes, where the method takes more than `SLOW_PASSES`.

    Raises:
        SalvizError: One plain sentence.
    """
    request = request_for(picture, classifier) if request is None else request
    (found,) = explore_set(
        classifier, picture, [request], batch_size=batch_size, progress=progress, publish=publish
    )  # fmt: skip
    return found


def explore_set(
    classifier: Classifier,
    picture: Picture,
    requests: Sequence[Request],
    *,
    prepared: Prepared | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
    publish: Publish = lambda exploration: None,
) -> list[Exploration]:
    """`explore` with several methods or classes on the same frames: passes that these can share are made once.

    Args:
        classifier: The model the requests name.
        picture: The picture the requests name.
        requests: They differ in their methods and in what is explained, target and rival, and in nothing else. Each
            method once with everything that is explained.
        prepared: What `prepare` made of the picture and the variants; made here where None.
        batch_size: Images in one model pass at the most; None for what suits the device.
        progress: Called with (done, total) image passes; may raise `Cancelled`.
        publish: As for `explore`, for every method that takes more than `SLOW_PASSES`.

    Returns:
        In the order of the requests.

    Raises:
        SalvizError: One plain sentence.
    """
    _check(classifier, picture, requests)
    first = requests[0]
    targets = tuple(dict.fromkeys(request.explained for request in requests))
    seen = prepare(classifier, picture, first.variants) if prepared is None else prepared
    size = classifier.preprocessing.input_size
    rows = 1 + len(first.variants) + len(first.changes)
    # What is slow shows the clean map first; quick work comes as a whole: a page that is drawn twice within a second
    # sends its pictures twice.
    slow = [request for request in requests if _passes(request, size) > SLOW_PASSES]
    quick = [request for request in requests if request not in slow]
    runs = [
        _Run(classifier, quick, targets, seen, batch_size, None),
        _Run(classifier, slow, targets, seen, batch_size, publish),
    ]
    counter = Parts(progress, sum(rows * run.passes for run in runs))
    found: dict[Request, Exploration] = {}
    for run in runs:
        if run.requests:
            found |= run.all(counter)
    return [found[request] for request in requests]


def _check(classifier: Classifier, picture: Picture, requests: Sequence[Request]) -> None:
    if not requests:
        raise RequestError("No method was chosen. Choose at least one.")
    known = (picture.digest, classifier.digest, precision_of(classifier))
    if any((request.image, request.weights, request.precision) != known for request in requests):
        raise RequestError(
            "The request belongs to another picture, other weights or another precision; make a new one with "
            "request_for."
        )
    if len({replace(request, method="", parameters=(), target=None, against=None) for request in requests}) > 1:
        raise RequestError(
            "Requests that are explored together may differ in their methods and targets and nothing else."
        )
    targets = {request.explained for request in requests}
    asked = {(request.method, request.parameters) for request in requests}
    if len({(request.method, request.explained) for request in requests}) < len(requests) or len(asked) > len(
        {request.method for request in requests}
    ):
        raise RequestError("A method can be asked for once in a set; explore its other settings in a set of their own.")
    if len(requests) < len(asked) * len(targets):
        raise RequestError("Requests that are explored together ask every method for the same targets.")


def _passes(request: Request, size: tuple[int, int]) -> float:
    """Image passes a row costs alone."""
    return methods.get(request.method).card.passes(request.settings, size)


class _Run:
    """Explorations under way: collects the rows of each method and compares them with its row 0."""

    def __init__(
        self,
        classifier: Classifier,
        requests: Sequence[Request],
        targets: tuple[PredictedTarget, ...],
        prepared: Prepared,
        batch_size: int | None,
        publish: Publish | None,
    ) -> None:
        self.classifier, self.requests, self.prepared = classifier, requests, prepared
        self.target = together(targets)
        self.asked = {(request.method, targets.index(request.explained)): request for request in requests}
        self.batch_size, self.publish = batch_size, publish
        self.settings = {request.method: request.settings for request in requests}
        self.passes = 0.0
        if requests:
            size = classifier.preprocessing.input_size
            self.passes = engine.passes(self.settings, size, classifier, self.target.each)
        self.parts: dict[Request, list[engine.Explained]] = {request: [] for request in requests}
        self.ssim: dict[Request, list[Tensor]] = {request: [] for request in requests}
        self.clean: dict[Request, Tensor] = {}

    def all(self, counter: Parts) -> dict[Request, Exploration]:
        """All rows of all requests."""
        request, count = self.requests[0], len(self.prepared.frames)
        cuts = [0, 1, *range(1 + GROUP, count, GROUP), count] if self.publish and count > 1 else [0, count]
        for start, stop in pairwise(cuts):
            self._explain(self.classifier, slice(start, stop), counter)
        for change in request.changes:
            self._explain(changed(self.classifier, change, request.seed), slice(0, 1), counter)
        return {request: self._result(request) for request in self.requests}

    def _explain(self, classifier: Classifier, rows: slice, counter: Parts) -> None:
        """Explain some frames under a model and compare the maps with the clean ones."""
        frames, seed = self.prepared.frames[rows], self.requests[0].seed
        found = engine.explain_set(
            classifier,
            classifier.preprocessing.normalise(frames),
            methods=self.settings,
            target=self.target,
            digests=self._names(classifier, rows),
            seed=seed,
            batch_size=self.batch_size,
            progress=counter.part,
        )
        size = (int(frames.shape[2]), int(frames.shape[3]))
        back = None
        if classifier is self.classifier:
            # The clean frame is not among the variants.
            variants = self.prepared.variants[max(rows.start - 1, 0) : rows.stop - 1]
            back = Realignment(variants, size, frames.device)
        for (name, place), one in self.asked.items():
            explained = found[name].of_class(place, self.target.each)
            self._compare(one, maps.comparable(explained.maps, methods.get(name).card, size), back)
            self.parts[one].append(explained)
        counter.end(self.passes * len(frames))
        if self.publish is not None:
            for one in self.requests:
                self.publish(self._result(one))

    def _names(self, classifier: Classifier, rows: slice) -> list[str]:
        """What seeds each row's random numbers: a variant is another image, a changed model too."""
        request = self.requests[0]
        if classifier is not self.classifier:
            return [f"{request.image}|{classifier.id}"]
        tokens = ("", *request.variants)[rows]
        return [f"{request.image}|{token}" if token else request.image for token in tokens]

    def _compare(self, request: Request, compared: Tensor, back: Realignment | None) -> None:
        """SSIM of some maps of a request with its clean one; of variants once they are laid back."""
        if request not in self.clean:
            self.clean[request] = compared[:1]
            self.ssim[request].append(compared.new_full((1,), float("nan")))
            compared = compared[1:]
        if not len(compared):
            return
        valid = None
        if back is not None:
            compared, valid = back(compared), back.validity
        clean = self.clean[request].expand_as(compared)
        self.ssim[request].append(ssim(clean, compared, valid=valid, data_range=request.data_range))  # type: ignore[arg-type]

    def _result(self, request: Request) -> Exploration:
        """What is known of a request so far, on the CPU."""
        seen = self.prepared
        parts, similarity = self.parts[request], torch.cat(self.ssim[request])
        return collected(self.classifier, request, seen.frames, seen.placement, parts, similarity)
