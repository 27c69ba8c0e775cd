"""Changed models: the untrained twin and training checkpoints, to which a map should be sensitive (COSE)."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.loading import at_checkpoint, untrained

UNTRAINED = "untrained"
CHECKPOINT = "checkpoint:"


def known_changes(classifier: Classifier) -> tuple[str, ...]:
    """The changes a classifier has: `untrained`, and `checkpoint:<label>` for each of its checkpoints."""
    return (UNTRAINED, *(CHECKPOINT + checkpoint.label for checkpoint in classifier.checkpoints))


def title(change: str) -> str:
    """For people: `untrained twin`, `checkpoint epoch 3`."""
    return "untrained twin" if change == UNTRAINED else f"checkpoint {change.removeprefix(CHECKPOINT)}"


def kind(change: str) -> str:
    """As `metrics.cose.KINDS` names it."""
    return "untrained" if change == UNTRAINED else "checkpoint"


_twins: WeakKeyDictionary[Classifier, dict[tuple[str, int], Classifier]] = WeakKeyDictionary()


def changed(classifier: Classifier, change: str, seed: int) -> Classifier:
    """The classifier with other weights; built once while the classifier lives.

    Args:
        classifier: The original.
        change: `untrained` or `checkpoint:<label>`.
        seed: Seeds the untrained weights.
    """
    twins = _twins.setdefault(classifier, {})
    key = (change, seed)
    if key not in twins:
        if change == UNTRAINED:
            twins[key] = untrained(classifier, seed=seed)
        else:
            label = change.removeprefix(CHECKPOINT)
            (checkpoint,) = [c for c in classifier.checkpoints if c.label == label]
            # One checkpoint's model at a time: ten ViTs would not fit.
            for other in [k for k in twins if k[0].startswith(CHECKPOINT)]:
                del twins[other]
            twins[key] = at_checkpoint(classifier, checkpoint)
    return twins[key]
