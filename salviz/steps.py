"""The methods of a set in the order in which they run, and the passes they cost."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salviz import methods as registry
from salviz.classifiers.classifier import Classifier
from salviz.errors import RequestError
from salviz.methods.card import Attribution, Method, is_of_images
from salviz.methods.passes import is_one_way

Settings = Mapping[str, Any]

_ONE_PASS = 2.5
"""Image passes below which a method makes one way through the net, forward and back, and what little it adds."""


@dataclass(frozen=True)
class Step:
    """A method of the set with all its settings.

    Attributes:
        name: Its id.
        method: The method.
        settings: All of them.
        size: `(height, width)` of the input.
        passes: What an image costs it alone, explained for one class.
    """

    name: str
    method: Method
    settings: Settings
    size: tuple[int, int]
    passes: float

    @property
    def common(self) -> float:
        """Those of its passes that all classes of an image have in common, where not all are."""
        return self.method.card.common(self.settings)

    def for_classes(self, classes: int) -> float:
        """The same where an image is explained for several classes."""
        return self.method.card.for_classes(self.settings, self.passes, classes)

    def shared(self, classes: int = 1) -> Mapping[Hashable, float]:
        """Those of its passes that it has in common with others, by their name."""
        shares = self.method.card.shares(self.settings)
        return {name: passes * (1 if is_of_images(name) else classes) for name, passes in shares.items()}

    def made(self, found: Attribution, classes: int) -> tuple[float, list[float]]:
        """Image passes a batch took, and what each of its rows takes alone: as many as its samples cost.

        Args:
            found: What the method returned.
            classes: Rows an image has.
        """
        card, rows = self.method.card, len(found.maps)
        if found.samples is None or not self.settings.get("tolerance"):
            one = self.passes if found.passes is None else found.passes
            return card.for_classes(self.settings, one, classes) * (rows // classes), [one] * rows
        # A tolerance may have stopped it.
        alone = [card.passes({**self.settings, "samples": n}, self.size) for n in found.samples.tolist()]
        if not card.all_classes:
            return sum(alone), alone
        return sum(max(alone[start : start + classes]) for start in range(0, rows, classes)), alone


def checked(chosen: Mapping[str, Settings | None]) -> dict[str, Settings]:
    """All settings of the methods.

    Raises:
        MethodError: Unknown method or setting.
        RequestError: There is none.
    """
    if not chosen:
        raise RequestError("No method was chosen. Choose at least one.")
    return {name: registry.get(name).card.check_parameters(parameters) for name, parameters in chosen.items()}


def plan(chosen: Mapping[str, Settings], size: tuple[int, int], classifier: Classifier | None) -> list[Step]:
    """The methods, cheap ones first.

    Args:
        chosen: All settings by method id.
        size: `(height, width)` of the input.
        classifier: What is explained, where it is at hand.
    """
    steps = []
    for name, settings in chosen.items():
        card = registry.get(name).card
        settled = settings if classifier is None else card.settled(classifier, settings)
        steps.append(Step(name, registry.get(name), settings, size, card.passes(settled, size)))
    # What asks no net stands behind what asks it once: its result holds the net's logits all the same.
    return sorted(steps, key=lambda step: (step.passes or _ONE_PASS, not step.method.card.leads))


def total(steps: Sequence[Step], classifier: Classifier | None, classes: int) -> float:
    """Image passes of the whole set for an image: what is shared counts once.

    Args:
        steps: The methods.
        classifier: What is explained, where it is at hand.
        classes: How many classes of an image are explained.
    """
    shared: dict[Hashable, float] = {}
    for step in steps:
        shared |= step.shared(classes)
    own = sum(step.for_classes(classes) - sum(step.shared(classes).values()) for step in steps)
    return own + sum(shared.values()) - classes * is_one_way(shared, classifier)


def passes(
    chosen: Mapping[str, Settings | None],
    size: tuple[int, int],
    classifier: Classifier | None = None,
    classes: int = 1,
) -> float:
    """Image passes a set of methods costs, with what they share counted once.

    Args:
        chosen: As for `engine.explain_set`.
        size: `(height, width)` of the input.
        classifier: What is to be explained, where it is at hand: some methods run as many channels as its layer has.
        classes: How many classes of an image are explained.
    """
    return total(plan(checked(chosen), size, classifier), classifier, classes)
