"""What a saliency map explains: a scalar of the logits, one entry an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from salviz.errors import RequestError

Output = Literal["logit", "probability"]


@dataclass(frozen=True)
class ClassTarget:
    """The score of one class an image.

    Attributes:
        classes: `(N,)` int64 class indices.
        output: `logit`, or `probability` for the softmax output (what COSE's path methods differentiate).
    """

    classes: Tensor
    output: Output = "logit"

    def score(self, logits: Tensor) -> Tensor:
        """The explained scalar of every row: `(N, K)` logits -> `(N,)`."""
        values = logits.softmax(dim=1) if self.output == "probability" else logits
        return values.gather(1, self.classes.to(logits.device).unsqueeze(1)).squeeze(1)

    def resolve(self, logits: Tensor) -> ClassTarget:
        """The target itself: its classes are known."""
        return self

    def check(self, classes: int) -> None:
        """Refuse a class the classifier does not have.

        Reads the indices on the host: call it once, not a pass.

        Args:
            classes: K, the number of classes.

        Raises:
            RequestError: A class index outside `0..K-1`.
        """
        wrong = [index for index in self.classes.tolist() if not 0 <= index < classes]
        if wrong:
            raise RequestError(
                f"There is no class {wrong[0]}: this classifier knows classes 0 to {classes - 1}. "
                "Choose one of them as the target."
            )

    def part(self, rows: slice) -> ClassTarget:
        """The target of a slice of the batch."""
        return ClassTarget(self.classes[rows], self.output)


@dataclass(frozen=True)
class PredictedTarget:
    """The class the model predicts for each image; known after a forward pass."""

    output: Output = "logit"

    def resolve(self, logits: Tensor) -> ClassTarget:
        """The predicted classes of `(N, K)` logits."""
        return ClassTarget(logits.detach().argmax(dim=1), self.output)

    def part(self, rows: slice) -> PredictedTarget:
        """The target of a slice of the batch."""
        return self


Target = ClassTarget | PredictedTarget
