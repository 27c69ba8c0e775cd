"""One image, several explanations of it side by side: methods, models, or the most probable classes.

Data flow: requests (no variants) -> those of one model and target in one `engine.explain_set`, and with them other
targets of the same methods where that saves passes -> an exploration each -> their agreement. A row is an exploration
like any other: what draws and exports one does so here, and its request opens it in Explore.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from salviz import engine, methods
from salviz.agreement import Agreement, agree
from salviz.classifiers.classifier import Classifier
from salviz.errors import Cancelled, RequestError, SalvizError
from salviz.exploration import Exploration, single
from salviz.images import Picture
from salviz.request import Request, precision_of
from salviz.targets import RUNNER_UP, PredictedTarget, together
from salviz.work import Parts, Progress, silent

logger = logging.getLogger(__name__)


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

    A request that cannot be answered (a method that cannot explain the model, or fails on it) costs the others nothing.
    Cheap methods come first.

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
    sets = _sets(classifiers, list(groups.values()))
    counter = Parts(progress, sum(_passes(classifiers[group[0].weights], group) for group in sets))

    def so_far() -> Comparison:
        return Comparison(tuple(requests), dict(found), dict(problems))

    for group in sets:
        classifier = classifiers[group[0].weights]
        refusals = {request: _refusal(classifier, request) for request in group}
        problems.update({request.digest: told for request, told in refusals.items() if told is not None})
        able = [request for request in group if refusals[request] is None]

        def attempt(chosen: list[Request], classifier: Classifier = classifier) -> str | None:
            try:
                _explain(classifier, picture, chosen, found, lambda: publish(so_far()), batch_size, counter.part)
            except Cancelled:
                raise
            except SalvizError as error:
                return str(error)
            except Exception:
                logger.exception("%s: failure on %s", ", ".join(request.method for request in chosen), classifier.id)
                return _fault(classifier)
            return None

        if able and attempt(able) is not None:
            # One of them failed on its way; who is to blame shows when the rest go alone.
            for request in (request for request in able if request.digest not in found):
                problem = attempt([request])
                if problem is not None:
                    problems[request.digest] = problem
        counter.end(_passes(classifier, group))
        publish(so_far())
    return so_far()


def _refusal(classifier: Classifier, request: Request) -> str | None:
    """Why a request cannot be answered, or None; a fault in finding out concerns that request alone."""
    try:
        return methods.get(request.method).refusal(classifier)
    except SalvizError as error:
        return str(error)
    except Exception:
        logger.exception("%s cannot say whether it explains %s", request.method, classifier.id)
        return _fault(classifier)


def _fault(classifier: Classifier) -> str:
    return f"It failed on {classifier.title}, which is a fault of Salviz; the log says where. Leave this row out."


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


def _sets(classifiers: Mapping[str, Classifier], groups: Sequence[list[Request]]) -> list[list[Request]]:
    """Groups that differ in their targets alone as one, where that saves passes; else each comes as soon as it can."""
    alike: dict[tuple[object, ...], list[list[Request]]] = {}
    for group in groups:
        one = group[0]
        asked = tuple(sorted((request.method, request.parameters) for request in group))
        key = (one.weights, one.against is None, one.output, one.seed, one.precision, asked)
        alike.setdefault(key, []).append(group)
    sets = []
    for parts in alike.values():
        classifier, whole = classifiers[parts[0][0].weights], [request for part in parts for request in part]
        saves = _passes(classifier, whole) < sum(_passes(classifier, part) for part in parts)
        sets.extend([whole] if saves else parts)
    return sets


def _passes(classifier: Classifier, group: Sequence[Request]) -> float:
    settings = {request.method: request.settings for request in group}
    return engine.passes(settings, classifier.preprocessing.input_size, classifier, len(_targets(group)))


def _targets(group: Sequence[Request]) -> list[PredictedTarget]:
    return list(dict.fromkeys(request.explained for request in group))


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
    targets = _targets(group)

    def take(method: str, explained: engine.Explained) -> None:
        for request in group:
            if request.method == method:
                own = explained.of_class(targets.index(request.explained), len(targets))
                found[request.digest] = single(classifier, picture, request, frame, own)
        tell()

    engine.explain_set(
        classifier,
        prep.normalise(frame),
        methods={request.method: request.settings for request in group},
        target=together(targets),
        digests=[picture.digest],
        seed=group[0].seed,
        batch_size=batch_size,
        progress=progress,
        publish=take,
    )


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
