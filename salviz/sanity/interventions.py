"""What is put in the trained net's place: nets with random weights, a twin with other labels, or another question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.randomising import Randomisation, randomised
from salviz.classifiers.stages import find_stages
from salviz.errors import RequestError
from salviz.seeds import generators, seed_of
from salviz.targets import ClassTarget, Target


@dataclass(frozen=True)
class Twin:
    """A net that learnt other labels, in the place of the one that learnt the true ones (Adebayo et al., section 5).

    Attributes:
        id: Of the other classifier.
        digest: Of its weights.
        title: For people.
    """

    id: str
    digest: str
    title: str

    @classmethod
    def of(cls, classifier: Classifier) -> Twin:
        """A classifier as the other net."""
        return cls(classifier.id, classifier.digest, classifier.title)


@dataclass(frozen=True)
class OtherClass:
    """The same net asked for another class, drawn anew for each image: the random-logit test (Sixt et al., ICML 2020).

    Attributes:
        seed: Of the classes.
    """

    seed: int = 0


Intervention = Randomisation | Twin | OtherClass


def stage_names(classifier: Classifier, how: Intervention) -> tuple[str, ...]:
    """The names of what is compared with the trained net, in order."""
    if isinstance(how, Randomisation):
        return tuple(name for name, _ in how.plan(find_stages(classifier)))
    return (how.title,) if isinstance(how, Twin) else ("another class",)


def is_cumulative(how: Intervention) -> bool:
    """Whether each stage adds to those before it."""
    return isinstance(how, Randomisation) and how.order in ("top_down", "bottom_up")


def checked_twin(classifier: Classifier, how: Intervention, twin: Classifier | None) -> Classifier | None:
    """The other net, where one is asked for.

    Raises:
        RequestError: It is missing, or its maps cannot be laid beside those of the first.
    """
    if not isinstance(how, Twin):
        return None
    if twin is None or (twin.id, twin.digest) != (how.id, how.digest):
        raise RequestError("The net with other labels is missing. Load it and hand it over.")
    if twin.digest == classifier.digest:
        raise RequestError(f"{classifier.title} cannot be compared with itself. Choose another net.")
    if twin.preprocessing != classifier.preprocessing:
        raise RequestError(
            f"{twin.title} prepares pictures differently from {classifier.title}, so their maps cannot be compared. "
            "Choose nets that differ in their training alone."
        )
    if len(twin.labels) != len(classifier.labels):
        raise RequestError(
            f"{twin.title} knows {len(twin.labels)} classes and {classifier.title} {len(classifier.labels)}. "
            "Choose nets that differ in their training alone."
        )
    return twin


def interventions(
    classifier: Classifier,
    how: Intervention,
    draw: int,
    *,
    images: Tensor,
    digests: Sequence[str],
    classes: Tensor,
    twin: Classifier | None,
) -> Iterator[tuple[Classifier, Target | None]]:
    """The nets to explain, in the order of `stage_names`.

    Args:
        classifier: The trained net; not changed.
        how: What is done.
        draw: Which draw of random weights or classes.
        images: `(N, 3, H, W)` in model space.
        digests: Of the images.
        classes: `(N,)` what the trained net predicts.
        twin: As `checked_twin` returned it.

    Yields:
        Each net, and what is to be explained where the intervention decides that.
    """
    if isinstance(how, Randomisation):
        drawn = how if draw == 0 else replace(how, seed=seed_of(how.seed, str(draw), "draw"))
        for net in randomised(classifier, drawn, images=images):
            yield net, None
    elif isinstance(how, Twin):
        assert twin is not None  # noqa: S101 - checked_twin has seen to it
        yield twin, None
    else:
        # One of the other classes, the same whatever stands beside the image.
        count = len(classifier.labels)
        streams = generators(how.seed, digests, f"another class {draw}", torch.device("cpu"))
        steps = torch.cat([torch.randint(1, count, (1,), generator=stream) for stream in streams])
        yield classifier, ClassTarget((classes + steps.to(classes.device)) % count)
