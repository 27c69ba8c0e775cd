"""What a saliency map explains: a scalar of the logits, one entry an image, or several where it has several rows."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from salviz.errors import RequestError

Output = Literal["logit", "probability"]
RUNNER_UP: Literal["runner_up"] = "runner_up"
"""The second most probable class, as the rival in a contrast."""
_ROUNDED = 16 * torch.finfo(torch.float32).eps
"""Of the largest logit, what rounding may take or add."""


def whole(value: object) -> int | None:
    """A whole number as Python's, whoever's it was: NumPy's, a tensor's without dimensions. None where it is none.

    Truth values are no numbers here, nor are floats without a fraction: who gives one has mistaken something.
    """
    is_truth = isinstance(value, bool) or str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool"
    if is_truth or getattr(value, "ndim", None):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def class_index(value: object) -> int:
    """The index of a class, as `whole` reads it.

    Raises:
        RequestError: It is no whole number.
    """
    found = whole(value)
    if found is None:
        said = repr(value) if not getattr(value, "ndim", None) else f"numbers of shape {tuple(value.shape)}"  # type: ignore[attr-defined]
        raise RequestError(f"A class is given by its index, a whole number, not {said}.")
    return found


def class_indices(values: Tensor | Iterable[object]) -> Tensor:
    """`(N,)` int64 indices of classes, on the tensor's device, or else on the CPU.

    Args:
        values: A tensor, array or list of one dimension.

    Raises:
        RequestError: More dimensions, or something that is no whole number.
    """
    if isinstance(values, Tensor | np.ndarray) and values.ndim != 1:
        raise RequestError(f"Target classes come in one dimension, one an image, not as {tuple(values.shape)}.")
    if isinstance(values, Tensor):
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise RequestError(f"Target classes are whole numbers, not {str(values.dtype).removeprefix('torch.')}.")
        return values.long()
    return torch.tensor([class_index(value) for value in values], dtype=torch.long)


@dataclass(frozen=True)
class ClassTarget:
    """The score of one class an image, or how much it exceeds another's.

    Attributes:
        classes: `(N,)` int64 class indices.
        output: `logit`, or `probability` for the softmax output (what COSE's path methods differentiate).
        against: `(N,)` int64 rivals: the score is then the difference `f_A - f_B`, which asks why it is A and not B.
            None for the class's score alone.
    """

    classes: Tensor
    output: Output = "logit"
    against: Tensor | None = None

    @property
    def each(self) -> int:
        """Rows that an image has: one."""
        return 1

    def to(self, device: torch.device) -> ClassTarget:
        """The same target with its classes on a device."""
        against = None if self.against is None else self.against.to(device)
        return ClassTarget(self.classes.to(device), self.output, against)

    def score(self, logits: Tensor) -> Tensor:
        """The explained scalar of every row: `(N, K)` logits -> `(N,)`."""
        values = logits.softmax(dim=1) if self.output == "probability" else logits
        score = values.gather(1, self.classes.to(logits.device).unsqueeze(1)).squeeze(1)
        if self.against is None:
            return score
        return score - values.gather(1, self.against.to(logits.device).unsqueeze(1)).squeeze(1)

    def rounding(self, logits: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
        """How far apart rounding can bring the scores of equal pictures: `(N, K)` logits -> `(N,)`.

        Equal pictures at different places of batches of different sizes are added up in another order. Over seven
        nets, from MobileNetV2 to vision transformers, that moved logits by up to 6e-7 of the largest.

        Args:
            logits: Of one of them.
            precision: What the net computed in.
        """
        share = _ROUNDED if precision is torch.float32 else 2 * torch.finfo(precision).eps
        error = share * logits.abs().amax(dim=1)
        if self.output == "logit":
            return error if self.against is None else 2 * error
        values = logits.softmax(dim=1)
        total = torch.zeros_like(error)
        for classes in (self.classes, self.against):
            if classes is not None:
                p = values.gather(1, classes.to(logits.device).unsqueeze(1)).squeeze(1)
                # What the softmax makes of the logits' errors, and its own.
                total += 2 * error * p * (1 - p) + 4 * torch.finfo(p.dtype).eps * p
        return total

    def resolve(self, logits: Tensor) -> ClassTarget:
        """The target itself: its classes are known."""
        return self

    def check(self, classes: int) -> None:
        """Refuse a class the classifier does not have, and a contrast of a class with itself.

        Reads the indices on the host: call it once, not a pass.

        Args:
            classes: K, the number of classes.

        Raises:
            RequestError: A class index outside `0..K-1`, or a rival that is the class itself.
        """
        rivals = [] if self.against is None else self.against.tolist()
        for index in [*self.classes.tolist(), *rivals]:
            if not 0 <= index < classes:
                raise RequestError(
                    f"There is no class {index}: this classifier knows classes 0 to {classes - 1}. "
                    "Choose one of them as the target."
                )
        if self.against is not None and bool((self.classes == self.against).any()):
            raise RequestError("A contrast needs two different classes. Choose another rival.")

    def part(self, rows: slice | Tensor) -> ClassTarget:
        """The target of some rows of the batch."""
        return ClassTarget(self.classes[rows], self.output, None if self.against is None else self.against[rows])

    def repeat(self, times: int) -> ClassTarget:
        """The target of `torch.cat([x] * times)`."""
        against = None if self.against is None else self.against.repeat(times)
        return ClassTarget(self.classes.repeat(times), self.output, against)


class _ToCome:
    """A target whose classes are known after a forward pass: it has no tensors, and is the same for every image."""

    def to(self, device: torch.device) -> Self:
        """The target itself."""
        return self

    def part(self, rows: slice | Tensor) -> Self:
        """The target itself."""
        return self


@dataclass(frozen=True)
class PredictedTarget(_ToCome):
    """A target that depends on what the model predicts for each image; known after a forward pass.

    Attributes:
        output: See `ClassTarget`.
        against: A rival for all images, or `runner_up`: the most probable of the other classes. None for no contrast.
            Where the rival is itself the explained class, the runner-up takes its place.
        chosen: Class explained for all images, or None for each image's predicted one.
    """

    output: Output = "logit"
    against: int | Literal["runner_up"] | None = None
    chosen: int | None = None

    def __post_init__(self) -> None:
        if self.chosen is not None:
            object.__setattr__(self, "chosen", class_index(self.chosen))
        if self.against is not None and self.against != RUNNER_UP:
            object.__setattr__(self, "against", class_index(self.against))

    @property
    def each(self) -> int:
        """Rows that an image has: one."""
        return 1

    def resolve(self, logits: Tensor) -> ClassTarget:
        """The classes of `(N, K)` logits."""
        top = logits.detach().topk(2, dim=1).indices
        classes = top[:, 0] if self.chosen is None else torch.full_like(top[:, 0], self.chosen)
        if self.against is None:
            return ClassTarget(classes, self.output)
        rivals = torch.where(top[:, 0] == classes, top[:, 1], top[:, 0])
        if self.against != RUNNER_UP:
            wanted = torch.full_like(rivals, self.against)
            rivals = torch.where(wanted == classes, rivals, wanted)
        return ClassTarget(classes, self.output, rivals)

    def check(self, classes: int) -> None:
        """Refuse classes the classifier does not have.

        Raises:
            RequestError: A class index outside `0..K-1`.
        """
        named = [index for index in (self.chosen, self.against) if isinstance(index, int)]
        ClassTarget(torch.tensor(named, dtype=torch.long)).check(classes)


@dataclass(frozen=True)
class TopTarget(_ToCome):
    """Each of the most probable classes of every image, explained one by one: as many rows an image, side by side.

    Attributes:
        count: How many classes an image.
        output: See `ClassTarget`.
    """

    count: int
    output: Output = "logit"

    @property
    def each(self) -> int:
        """Rows that an image has."""
        return self.count

    def resolve(self, logits: Tensor) -> ClassTarget:
        """The classes, the most probable first, from the `(N * count, K)` logits of the rows."""
        return ClassTarget(logits[:: self.count].detach().topk(self.count, dim=1).indices.flatten(), self.output)

    def check(self, classes: int) -> None:
        """Refuse more classes than the classifier has.

        Raises:
            RequestError: Not a positive whole number, or more than there are classes.
        """
        count = whole(self.count)
        if count is None or not 1 <= count <= classes:
            raise RequestError(f"The most probable {self.count} classes cannot be explained; there are {classes}.")


@dataclass(frozen=True)
class SeveralTargets(_ToCome):
    """Several targets of every image, explained one by one: as many rows an image, side by side.

    Attributes:
        targets: In the order of an image's rows. All of one output, and all contrasts or none.

    Raises:
        RequestError: None at all, or targets that differ in that.
    """

    targets: tuple[PredictedTarget, ...]

    def __post_init__(self) -> None:
        if len({(target.output, target.against is None) for target in self.targets}) != 1:
            raise RequestError("Targets that are explained together are all of one output, and all contrasts or none.")

    @property
    def each(self) -> int:
        """Rows that an image has."""
        return len(self.targets)

    @property
    def output(self) -> Output:
        """See `ClassTarget`."""
        return self.targets[0].output

    def resolve(self, logits: Tensor) -> ClassTarget:
        """The classes from the `(N * each, K)` logits of the rows."""
        found = [target.resolve(logits[place :: self.each]) for place, target in enumerate(self.targets)]
        classes = torch.stack([one.classes for one in found], dim=1).flatten()
        rivals = [one.against for one in found if one.against is not None]
        return ClassTarget(classes, found[0].output, torch.stack(rivals, dim=1).flatten() if rivals else None)

    def check(self, classes: int) -> None:
        """Refuse classes the classifier does not have.

        Raises:
            RequestError: A class index outside `0..K-1`.
        """
        for target in self.targets:
            target.check(classes)


Target = ClassTarget | PredictedTarget | TopTarget | SeveralTargets


def together(targets: Sequence[PredictedTarget]) -> PredictedTarget | SeveralTargets:
    """Targets as one: themselves, where there is but one."""
    return targets[0] if len(targets) == 1 else SeveralTargets(tuple(targets))


def target_of(given: object) -> Target:
    """The target that is meant by a class's index, for all images, or by a list of indices, one an image.

    Args:
        given: Whole numbers in any form; a target is returned as it is.

    Raises:
        RequestError: It is nothing of the kind.
    """
    if isinstance(given, ClassTarget | PredictedTarget | TopTarget | SeveralTargets):
        return given
    if isinstance(given, Iterable) and not isinstance(given, str) and getattr(given, "ndim", None) != 0:
        return ClassTarget(class_indices(given))
    return PredictedTarget(chosen=class_index(given))
