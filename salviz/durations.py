"""How long work will take: passes of its methods, each at the speed that is known of them. Waits for nobody's lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from salviz import engine, methods
from salviz.classifiers.store import Loaded
from salviz.exploration import Exploration


def seconds(loaded: Loaded, chosen: Mapping[str, Mapping[str, Any] | None], classes: int = 1) -> float:
    """Wall seconds that a map of each of some methods will take together, about.

    A method of no pass takes as long as the prediction.

    Args:
        loaded: What is to be explained.
        chosen: Settings that differ from the defaults, by method id.
        classes: How many classes of an image are explained.

    Raises:
        MethodError: An unknown method or setting, or a value out of its range.
    """
    classifier, speed = loaded.classifier, loaded.speed
    cards = {name: methods.get(name).card for name in chosen}
    price = {name: speed.of(name, differentiates=card.differentiates) for name, card in cards.items()}
    total, before = 0.0, 0.0
    together: dict[str, Mapping[str, Any] | None] = {}
    # A pass that methods share is the slowest that one of them needs, and the others have it for nothing.
    for name in sorted(chosen, key=price.__getitem__, reverse=True):
        together[name] = chosen[name]
        made = engine.passes(together, classifier.preprocessing.input_size, classifier, classes)
        more = cards[name].more(classifier, cards[name].check_parameters(chosen[name]))
        total += price[name] * (made - before + more * (1 if cards[name].all_classes else classes))
        before = made
    return max(speed.forward, total)


def learn(loaded: Loaded, found: Exploration, *, is_alone: bool = True) -> None:
    """Correct the known speed by work that was done.

    Args:
        loaded: What was explained.
        found: What was found, with its time.
        is_alone: Whether no other method was explained with it: else one that shares passes took less time than its
            own, and says nothing.
    """
    card = methods.get(found.request.method).card
    if not is_alone and card.shares(found.request.settings):
        return
    loaded.speed.learn(
        card.id, differentiates=card.differentiates, passes=found.passes, seconds=found.seconds,
        images=len(found.raw), usual=card.cost(loaded.classifier, card.check_parameters(None)),
    )  # fmt: skip
