"""One image, several explanations of it side by side: methods, models, or the most probable classes.

Data flow: requests (no variants) -> those of one model and target in one `engine.explain_set` -> an exploration each ->
comparable maps on common pixels -> pairwise Spearman and SSIM -> order and dendrogram. A row is an exploration like any
other: what draws and exports one does so here, and its request opens it in Explore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salviz import engine, maps, methods
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.preprocessing import Placement
from salviz.errors import Cancelled, RequestError, SalvizError
from salviz.exploration import Exploration, single
from salviz.images import Picture
from salviz.request import Request, precision_of
from salviz.similarity import spearman, ssim
from salviz.targets import RUNNER_UP
from salviz.work import Progress, silent

SIDE = 224
"""Longer side at which maps of different models are compared, in pixels of the photograph."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Explanations of one image, as far as they are known.

    Attributes:
        requests: What was asked, in the order of the rows.
        found: Explorations by the request's digest.
        problems: One sentence for each request that could not be answered, by its digest.
    """

    requests: tuple[Request, ...]
    found: Mapping[str, Exploration]
    problems: Mapping[str, str]

    @property
    def rows(self) -> list[Exploration]:
        """What is known, in the order asked for."""
        return [self.found[request.digest] for request in self.requests if request.digest in self.found]

    @property
    def is_complete(self) -> bool:
        """Whether every request is answered or refused."""
        return len(self.found) + len(self.problems) == len({request.digest for request in self.requests})

    @property
    def nbytes(self) -> int:
        """Memory its tensors take."""
        return sum(row.nbytes for row in self.found.values())

    @cached_property
    def agreement(self) -> Agreement:
        """How alike the maps of the rows are, pair by pair."""
        return agree(self.rows)


@dataclass(frozen=True, eq=False)
class Agreement:
    """Pairwise agreement of R maps.

    Attributes:
        spearman: `(R, R)` float64, 1 on the diagonal, NaN where a map is flat.
        ssim: `(R, R)` likewise.
    """

    spearman: NDArray[np.float64]
    ssim: NDArray[np.float64]

    def tree(self, measure: str = "spearman") -> Tree | None:
        """Average linkage of the distances 1 - agreement, with leaves in the order that puts the alike together.

        Args:
            measure: `spearman` or `ssim`.

        Returns:
            None with fewer than two rows or where an agreement is undefined.
        """
        from scipy.cluster.hierarchy import dendrogram, linkage
        from scipy.spatial.distance import squareform

        values = self.spearman if measure == "spearman" else self.ssim
        if len(values) < 2 or not np.isfinite(values).all():
            return None
        distances = np.clip(1 - values, 0, 2)
        np.fill_diagonal(distances, 0)
        joined = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
        drawn = dendrogram(joined, no_plot=True)
        # scipy draws leaf k at 10 k + 5.
        branches = [
            ([(place - 5) / 10 for place in places], list(heights))
            for places, heights in zip(drawn["icoord"], drawn["dcoord"], strict=True)
        ]
        return Tree(tuple(drawn["leaves"]), tuple(branches), joined)


@dataclass(frozen=True, eq=False)
class Tree:
    """A dendrogram.

    Attributes:
        order: Rows from one end to the other.
        branches: Each as four places along the order and four heights (distances).
        linkage: `(R - 1, 4)`, as `scipy.cluster.hierarchy` writes it.
    """

    order: tuple[int, ...]
    branches: tuple[tuple[list[float], list[float]], ...]
    linkage: NDArray[np.float64]


Publish = Callable[[Comparison], None]


def compare(
    classifiers: Mapping[str, Classifier],
    picture: Picture,
    requests: Sequence[Request],
    *,
    known: Mapping[str, Exploration] | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
    publish: Publish = lambda comparison: None,
) -> Comparison:
    """Explain an image as several requests ask, in the fewest passes, and compare the maps.

    A request that cannot be answered (a method that cannot explain the model) costs the others nothing. Cheap methods
    come first.

    Args:
        classifiers: The models by weights digest.
        picture: The photograph.
        requests: Without variants and changed models; all of this picture.
        known: Rows that need no work, by their request's digest; others among them are left out.
        batch_size: Images in one model pass at the most; None for what suits the device.
        progress: Called with (done, total) image passes; may raise `Cancelled`.
        publish: Called with what is known so far, as it comes.

    Raises:
        RequestError: No request, or one that does not belong here.
    """
    _check(classifiers, picture, requests)
    found = {request.digest: known[request.digest] for request in requests if known and request.digest in known}
    problems: dict[str, str] = {}
    groups: dict[tuple[object, ...], list[Request]] = {}
    for request in dict.fromkeys(requests):
        if request.digest not in found:
            groups.setdefault(_group(request, groups), []).append(request)
    total = sum(_passes(classifiers[group[0].weights], group) for group in groups.values())
    before = 0.0

    def so_far() -> Comparison:
        return Comparison(tuple(requests), dict(found), dict(problems))

    for group in groups.values():
        classifier = classifiers[group[0].weights]
        able = []
        for request in group:
            refusal = methods.get(request.method).refusal(classifier)
            if refusal is None:
                able.append(request)
            else:
                problems[request.digest] = refusal
        ahead = _after(progress, before, total)
        try:
            if able:
                _explain(classifier, picture, able, found, lambda: publish(so_far()), batch_size, ahead)
        except Cancelled:
            raise
        except SalvizError:
            # One of them failed on its way; who is to blame shows when the rest go alone.
            for request in (request for request in able if request.digest not in found):
                try:
                    _explain(classifier, picture, [request], found, lambda: publish(so_far()), batch_size, ahead)
                except Cancelled:
                    raise
                except SalvizError as error:
                    problems[request.digest] = str(error)
        before += _passes(classifier, group)
        publish(so_far())
    return so_far()


def _after(progress: Progress, before: float, total: float) -> Progress:
    """Progress of a part as progress of the whole."""
    return lambda done, _: progress(round(before + done), max(round(total), round(before + done)))


def _check(classifiers: Mapping[str, Classifier], picture: Picture, requests: Sequence[Request]) -> None:
    if not requests:
        raise RequestError("There is nothing to compare. Choose at least one row.")
    for request in requests:
        classifier = classifiers.get(request.weights)
        is_known = classifier is not None and precision_of(classifier) == request.precision
        if request.image != picture.digest or not is_known:
            raise RequestError("A row belongs to another picture or another model; make its request anew.")
        if request.variants or request.changes:
            raise RequestError("Rows of a comparison have no variants; leave them out of the request.")


def _group(request: Request, groups: Mapping[tuple[object, ...], list[Request]]) -> tuple[object, ...]:
    """What requests must have in common to share passes; one set holds each method once."""
    shared = (request.weights, request.target, request.against, request.output, request.seed, request.precision)
    place = 0
    while any(other.method == request.method for other in groups.get((*shared, place), [])):
        place += 1
    return (*shared, place)


def _passes(classifier: Classifier, group: Sequence[Request]) -> float:
    return engine.passes({request.method: request.settings for request in group}, classifier.preprocessing.input_size)


def _explain(
    classifier: Classifier,
    picture: Picture,
    group: Sequence[Request],
    found: dict[str, Exploration],
    tell: Callable[[], None],
    batch_size: int | None,
    progress: Progress,
) -> None:
    prep = classifier.preprocessing
    frame = prep.frame(picture.image).to(classifier.device).unsqueeze(0)
    by_method = {request.method: request for request in group}

    def take(method: str, explained: engine.Explained) -> None:
        request = by_method[method]
        found[request.digest] = single(classifier, picture, request, frame, explained)
        tell()

    engine.explain_set(
        classifier,
        prep.normalise(frame),
        methods={request.method: request.settings for request in group},
        target=group[0].explained,
        digests=[picture.digest],
        seed=group[0].seed,
        batch_size=batch_size,
        progress=progress,
        publish=take,
    )


def agree(rows: Sequence[Exploration]) -> Agreement:
    """Pairwise Spearman and SSIM of the rows' comparable maps.

    Rows of one frame are compared on it; rows of different models on the part of the photograph both of them see.

    Args:
        rows: R explorations of one picture.
    """
    count = len(rows)
    rank, structure = np.eye(count), np.eye(count)
    known = [_comparable(row) for row in rows]
    for i, found in enumerate(known):
        if float(found.max()) == float(found.min()):
            rank[i, i] = structure[i, i] = np.nan
    by_size: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for i, j in combinations(range(count), 2):
        by_size[_is_one_frame(rows[i], rows[j])].append((i, j))
    for i, j in by_size[True]:
        _note(rank, structure, i, j, known[i], known[j])
    for i, j in by_size[False]:
        _note(rank, structure, i, j, *_on_photograph(rows[i], rows[j], known[i], known[j]))
    return Agreement(rank, structure)


def _note(
    rank: NDArray[np.float64], structure: NDArray[np.float64], i: int, j: int, first: Tensor, second: Tensor
) -> None:
    rank[i, j] = rank[j, i] = float(spearman(first, second)[0])
    structure[i, j] = structure[j, i] = float(ssim(first, second)[0])


def _comparable(row: Exploration) -> Tensor:
    card = methods.get(row.request.method).card
    return maps.comparable(row.raw[:1], card, (int(row.frames.shape[2]), int(row.frames.shape[3])))


def _is_one_frame(first: Exploration, second: Exploration) -> bool:
    return first.frames.shape[2:] == second.frames.shape[2:] and first.placement == second.placement


def _on_photograph(first: Exploration, second: Exploration, *both: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps of different frames on the pixels of the photograph that both models see."""
    laid = [_small(row.placement).lay(found) for row, found in zip((first, second), both, strict=True)]
    seen = torch.isfinite(laid[0][0]) & torch.isfinite(laid[1][0])
    rows, columns = seen.any(dim=1).nonzero().flatten(), seen.any(dim=0).nonzero().flatten()
    if not len(rows) or not len(columns):
        nothing = both[0].new_full((1, 5, 5), float("nan"))
        return nothing, nothing
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return laid[0][:, top:bottom, left:right], laid[1][:, top:bottom, left:right]


def _small(placement: Placement) -> Placement:
    """The placement on the photograph scaled down to `SIDE`."""
    width, height = placement.size
    scale = min(1.0, SIDE / max(width, height))
    return placement.scaled((max(5, round(width * scale)), max(5, round(height * scale))))


def comparison_digest(requests: Sequence[Request], top: int = 0) -> str:
    """Hex digest of a comparison: equal exactly for equal rows in equal order.

    Args:
        requests: One a row.
        top: Where the rows are the most probable classes: how many.
    """
    text = "|".join([str(top), *(request.digest for request in requests)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def for_top_classes(classifier: Classifier, picture: Picture, request: Request, count: int) -> list[Request]:
    """The request once for each of the most probable classes, the most probable first.

    Args:
        classifier: The model the request names.
        picture: The photograph.
        request: Its target is replaced; a rival that is the class itself becomes the runner-up.
        count: How many classes; as many as there are at the most.
    """
    prep = classifier.preprocessing
    frame = prep.frame(picture.image).to(classifier.device).unsqueeze(0)
    logits = engine.predict(classifier, prep.normalise(frame))[0]
    classes = logits.topk(min(count, len(logits))).indices.tolist()
    return [
        replace(request, target=index, against=RUNNER_UP if request.against == index else request.against)
        for index in classes
    ]
