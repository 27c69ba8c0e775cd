"""DeepLIFT: differences from a baseline, handed back through the net by finite-difference slopes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from salviz.classifiers.classifier import Classifier
from salviz.errors import MethodError
from salviz.methods.card import Attribution, MethodCard, register, two_passes
from salviz.methods.passes import blank_like
from salviz.methods.paths.integrated import BASELINE
from salviz.methods.paths.rescale import as_pooling, rescaled, rescaled_norm, rescaled_pool, rescaled_product
from salviz.methods.rectifiers import Activation, as_activation, as_product, overwrite, reads_attribute
from salviz.targets import ClassTarget, Target
from salviz.work import Work

_NODES = 32
"""Gauss-Legendre points on the straight way between two vectors of logits, for a softmax on top of them."""

_TWO_WAYS = (
    "DeepLIFT compares the net's activations for the picture with those for the baseline, and this net takes another "
    "way for each or overwrites them. Choose Integrated gradients instead."
)


class _NeedsEveryBaseline(Exception):  # noqa: N818 - no error: another way is taken
    """The net cuts its batch up (in windows, say), so one baseline cannot stand for all pictures."""


class _Differences(TorchFunctionMode):
    """Sees the activations, max poolings, norms and products of a forward pass, however they are called.

    The first pass, of the baseline and without a graph, notes what each was given. The second, of the picture, gives
    each the slope between the two. Calls are told apart by their order alone, so modules may be used again. What is
    none of these and not linear (attention's softmax and products) keeps its gradient at the picture.
    """

    def __init__(self, *, is_single: bool) -> None:
        """Nothing seen yet.

        Args:
            is_single: Whether the baseline's pass holds one baseline for all pictures.
        """
        super().__init__()
        self.is_single = is_single
        self._seen: list[tuple[str, int, tuple[Tensor, ...]]] = []
        # Which of these lie in which memory.
        self._places: dict[int, list[int]] = defaultdict(list)
        self._next: int | None = None

    def rewind(self) -> None:
        """The baseline's pass is over; the picture's begins."""
        self._next = 0

    def finish(self) -> None:
        """The picture's pass is over.

        Raises:
            MethodError: The baseline's had more calls.
        """
        if self._next != len(self._seen):
            raise MethodError(_TWO_WAYS)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note a call of the baseline's pass; replace one of the picture's."""
        kwargs = kwargs or {}
        if reads_attribute(func):
            return func(*args, **kwargs)
        call = as_activation(func, args, kwargs)
        if call is not None:
            before = self._pair(call.name, call.x)
            if before is None:
                # Over its input, as in the picture's pass: the net may read that, and not the answer.
                self._keep(call)
                if call.is_inplace and call.bounds is not None:
                    return call.x.clamp_(*call.bounds)
                return overwrite(call, call.apply(call.x))
            return rescaled(call, before[0])
        pooling = as_pooling(func, args, kwargs)
        if pooling is not None:
            before = self._pair("max pooling", pooling[0])
            return func(*args, **kwargs) if before is None else rescaled_pool(*pooling, before[0])
        if func in (F.layer_norm, F.group_norm):
            before = self._pair("norm", args[0])
            return func(*args, **kwargs) if before is None else rescaled_norm(func, before[0], *args, **kwargs)
        factors = as_product(func, args)
        if factors is not None:
            before = self._pair("product", *factors)
            if before is not None and all(factor.requires_grad for factor in factors):
                return rescaled_product(*factors, *before)
        return func(*args, **kwargs)

    def _keep(self, call: Activation) -> None:
        """Copy what was noted of the tensor that a call of the baseline's pass is about to overwrite."""
        if not call.is_inplace:
            return
        for row in self._places.pop(_place(call.x), ()):
            name, version, given = self._seen[row]
            if version == sum(part._version for part in given):
                self._seen[row] = (name, 0, tuple(part.clone() for part in given))

    def _pair(self, name: str, *given: Tensor) -> tuple[Tensor, ...] | None:
        """What the baseline gave to this call, or None in the baseline's own pass."""
        if self._next is None:
            # Kept as they are: should the net change them in place later, their version tells.
            for part in given:
                self._places[_place(part)].append(len(self._seen))
            self._seen.append((name, sum(part._version for part in given), tuple(part.detach() for part in given)))
            return None
        found, version, before = self._seen[self._next] if self._next < len(self._seen) else ("", 0, ())
        shapes = [part.shape for part in given]
        if self.is_single and found == name and [(1, *shape[1:]) for shape in shapes] != [p.shape for p in before]:
            raise _NeedsEveryBaseline
        is_same = self.is_single or [part.shape for part in before] == shapes
        if not is_same or found != name or version != sum(part._version for part in before):
            raise MethodError(_TWO_WAYS)
        # Each is needed once.
        self._seen[self._next] = ("", 0, ())
        self._next += 1
        return before


def _place(tensor: Tensor) -> int:
    """Of its memory."""
    return tensor.untyped_storage().data_ptr()


def _two_ways(classifier: Classifier) -> str | None:
    """Why the activations for the mean colour and for noise cannot be paired, or None."""
    noise = torch.randn(1, 3, *classifier.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    noise, _ = noise.to(classifier.device), classifier.runtime
    # Both pictures are single: a net that cuts them up gets a baseline for each all the same.
    differences = _Differences(is_single=False)
    try:
        with classifier.lock, torch.no_grad():
            with differences:
                classifier.forward(torch.zeros_like(noise))
            differences.rewind()
            with differences:
                classifier.forward(noise)
            differences.finish()
    except MethodError as error:
        return str(error)
    return None


def _head_slope(target: ClassTarget, logits: Tensor, logits0: Tensor) -> Tensor:
    """`(N, K)` mean gradient of the score on the straight way between two vectors of logits.

    For a logit it is its gradient; for a probability it makes the changes of the logits add up to the score's.
    """
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    at = torch.tensor((points + 1) / 2, dtype=logits.dtype, device=logits.device)
    with torch.enable_grad():
        leaf = torch.lerp(logits0, logits, at.view(-1, 1, 1)).flatten(0, 1).requires_grad_(True)
        (gradient,) = torch.autograd.grad(target.repeat(_NODES).score(leaf).sum(), leaf)
    total = torch.zeros_like(logits)
    # One by one: a matrix product would add up in an order that depends on the batch.
    for part, weight in zip(gradient.view(_NODES, *logits.shape), (weights / 2).tolist(), strict=True):
        total.add_(part, alpha=weight)
    return total


def _multiplier(
    classifier: Classifier, x: Tensor, blank: Tensor, target: Target, *, is_single: bool
) -> tuple[Tensor, Tensor, Tensor, ClassTarget]:
    """Both passes and the way back.

    Args:
        classifier: The net.
        x: `(N, 3, H, W)` pictures.
        blank: One baseline for all of them, or one for each.
        target: What is explained.
        is_single: Whether `_NeedsEveryBaseline` may still be raised.

    Returns:
        `(N, 3, H, W)` multipliers, `(N, K)` logits of pictures and of baselines, and the classes.
    """
    _ = classifier.runtime  # Made now: folding batch norms runs pictures through the net, which must not be noted.
    differences = _Differences(is_single=is_single)
    with torch.no_grad(), differences:
        logits0 = classifier.forward(blank)
    differences.rewind()
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        with differences:
            logits = classifier.forward(leaf)
        differences.finish()
        resolved = target.resolve(logits)
        logits0 = logits0.expand_as(logits)
        slope = _head_slope(resolved, logits.detach(), logits0)
        (multiplier,) = torch.autograd.grad(logits, leaf, slope)
    return multiplier, logits.detach(), logits0, resolved


@register(
    MethodCard(
        id="deeplift",
        title="DeepLIFT",
        family="paths",
        idea="The picture and a blank one are sent through the net, and the difference of their scores is handed back "
        "layer by layer. Each activation passes on its change in proportion to its input's change, however large, so "
        "saturation hides nothing. How far the values add up to the change of score is shown as the completeness "
        "error.",
        formula=r"M = (x-x_0)\odot m_x,\quad m_z = m_y\,\frac{y-y_0}{z-z_0}\ \text{at every activation } y=\phi(z)",
        citation="Shrikumar, Greenside, Kundaje: Learning Important Features Through Propagating Activation "
        "Differences. ICML 2017.",
        evidence="magnitude",
        scaling="percentile",
        signed=True,
        completeness="the map adds up to {error} than the change of {score} from the blank image",
        passes=two_passes,
        parameters=(BASELINE,),
        explains_predicted=True,
        failures="Depends on the baseline; attention has no such rule, so in transformers the values do not add up.",
        refusal=_two_ways,
        needs="the same way through the net for every picture",
    )
)
def deeplift(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    baseline: str,
) -> Attribution:
    """DeepLIFT with the Rescale rule: `(N, 3, H, W)`; with the completeness error.

    The paper's rule covers elementwise activations (section 3.5.1). Three rules are ours, and exact: a max pooling
    hands the change to the place that decides it, a product of two features (a gate) is split at the mean of both
    ends, and a LayerNorm is taken as the product and the chain of activations that it is. Attention's softmax and
    products keep their gradient at the picture: see the completeness error.
    """
    blank = blank_like(classifier, x, baseline)
    # The baseline's pass is one for the whole batch, and not worth counting.
    passes = None
    try:
        multiplier, logits, logits0, resolved = _multiplier(classifier, x, blank[:1], target, is_single=True)
    except _NeedsEveryBaseline:
        multiplier, logits, logits0, resolved = _multiplier(classifier, x, blank, target, is_single=False)
        passes = 3.0
    work.tick(2 * len(x))
    maps = multiplier * (x - blank)
    gained = resolved.score(logits) - resolved.score(logits0)
    return Attribution(maps, logits, completeness=maps.sum(dim=(1, 2, 3)) - gained, passes=passes)
