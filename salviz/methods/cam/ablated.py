"""Class activation maps by switching channels off."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import TargetLayer, known_layer, target_layer
from salviz.methods.cam.channels import CHANNELS, strongest, weighted_sum
from salviz.methods.cam.closed import RECTIFIED, shares_head
from salviz.methods.cam.head import Head
from salviz.methods.cam.pooled import has_pooled_head
from salviz.methods.card import Attribution, MethodCard, one_pass, register
from salviz.methods.passes import LAYER, no_spatial_layer, shared_head, shared_trunk
from salviz.methods.sampling import beyond_rounding
from salviz.targets import ClassTarget, Target
from salviz.work import Work

_VERSIONS = 4
"""Versions of an activation in one run of the head, in multiples of the images in a pass: a head needs less memory."""


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the floating-point operations of convolutions, matrix products and attention.

    Attributes:
        count: So far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Loading its formulas takes longer than many a map.
        from torch.utils.flop_counter import flop_registry

        self.count, self._formulas = 0, flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let it happen, and count it."""
        output = func(*args, **(kwargs or {}))
        count = self._formulas.get(func._overloadpacket)
        if count is not None:
            self.count += count(*args, **(kwargs or {}), out_val=output)
        elif "scaled_dot_product" in str(func):
            # The CPU's has no formula: a product of queries and keys, and one with values, each of two operations.
            queries, keys = args[:2]
            self.count += 4 * queries.numel() * keys.shape[-2]
        return output


_shares: weakref.WeakKeyDictionary[nn.Module, dict[str, float]] = weakref.WeakKeyDictionary()


def share_behind(classifier: Classifier, where: TargetLayer) -> float:
    """The part of a net's operations that comes after a layer, from one pass of a blank image made once.

    Args:
        classifier: The model; its lock is held by the caller.
        where: The layer.
    """
    known = _shares.setdefault(classifier.module, {})
    if where.name not in known:
        before = []
        blank = torch.zeros(1, 3, *classifier.preprocessing.input_size, device=classifier.device)
        # With a gradient torch's attention is made of parts that have a formula; without, it is a single operation.
        with torch.enable_grad(), _Operations() as operations:
            layer = classifier.module.get_submodule(where.name)
            handle = layer.register_forward_hook(lambda *call: before.append(operations.count))
            try:
                classifier.forward(blank.requires_grad_(True), is_published=True)
            finally:
                handle.remove()
        known[where.name] = 1 - before[-1] / max(operations.count, 1)
    return known[where.name]


def _head_passes(classifier: Classifier, parameters: Mapping[str, Any]) -> float:
    """What running the head a channel comes to, in passes of the whole net.

    Of a transformer the head is its last block or more, and it runs once a channel. Where it is an average and a linear
    layer it need not run (but for probabilities, and then it costs next to nothing).
    """
    layer = str(parameters["layer"])
    where = known_layer(classifier, layer or None)
    # Nobody waits for an estimate: while others compute with a net that is not known yet, it is without the head.
    if where is None or not classifier.lock.acquire(blocking=False):
        return 0.0
    try:
        with torch.inference_mode(mode=False):
            if has_pooled_head(classifier, layer):
                return 0.0
            return where.run(int(parameters["channels"])) * share_behind(classifier, where)
    finally:
        classifier.lock.release()


@register(
    MethodCard(
        id="ablation_cam",
        title="Ablation-CAM",
        family="class activation maps",
        idea="Each channel of the last spatial layer is switched off in turn, and what the class score loses is the "
        "channel's weight. No gradient is used. Only the part after the layer runs again, from stored activations.",
        formula=r"M = \sum_k \big(f_c - f_c^{A^k=0}\big) A^k" + RECTIFIED,
        citation="Desai, Ramaswamy: Ablation-CAM. WACV 2020.",
        evidence="positive",
        scaling="minmax",
        signed=True,
        differentiates=False,
        passes=one_pass,
        more=_head_passes,
        parameters=(LAYER, CHANNELS),
        explains_predicted=True,
        failures="Channels that can stand in for each other all look unimportant, because one is removed at a time.",
        refusal=no_spatial_layer,
        needs="a layer with a spatial map",
        shares=shares_head,
        # The head's runs need what modules before the layer gave, and that can only be stored while they run.
        leads=True,
        all_classes=True,
    )
)
def ablation_cam(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    layer: str,
    channels: int,
) -> Attribution:
    """Ablation-CAM (eq. 4 and 5): `(N, h, w)`, before the final ReLU.

    The paper divides each loss by the score. That is one factor for the whole map, and turns it round where the score
    is negative, so it is left out. Of a transformer's tokens only those of the map lose the channel, not the class
    token. Runs of the head alone are no steps of progress; what they come to is estimated (see `_head_passes`).
    Where the head is an average and a linear layer none is needed: a channel's loss is its average times its weight.
    """
    where = target_layer(classifier, layer or None)
    # Meta tensors have no values to see that from; there the general way is taken.
    if x.device.type != "meta" and target.output == "logit" and has_pooled_head(classifier, layer):
        activation, gradient, logits = shared_head(classifier, x, target, layer, work)
        activation = activation.float()
        losses = (activation * gradient).sum(dim=(2, 3))
        chosen = strongest(activation, channels)
        return Attribution(weighted_sum(activation, losses.gather(1, chosen), chosen), logits)
    head = Head(classifier, where, work.images(x))
    trunk = shared_trunk(classifier, x, layer, work, head.recording())
    head.begin(trunk.leaf, trunk.logits)
    activation = where.channel_maps(head.activation)
    chosen = strongest(activation.float(), channels)
    logits = work.rows(head.logits)
    losses = _losses(head, where, target.resolve(logits), chosen, work)
    passes = 1.0 + _head_passes(classifier, {"layer": layer, "channels": channels})
    maps = weighted_sum(work.rows(activation.float()), losses, work.rows(chosen))
    return Attribution(maps, logits, passes=passes)


def _losses(head: Head, where: TargetLayer, target: ClassTarget, chosen: Tensor, work: Work) -> Tensor:
    """What each row's score loses without each of its image's chosen channels: `(N, k)`; zeros where it is rounding."""
    whole = target.score(work.rows(head.logits))
    losses, errors = (torch.zeros(len(whole), chosen.shape[1], device=chosen.device) for _ in range(2))
    versions = _VERSIONS * work.batch_size
    for image in range(len(chosen)):
        rows = slice(image * work.each, (image + 1) * work.each)
        own = target.part(rows)
        for start in range(0, chosen.shape[1], versions):
            off = chosen[image, start : start + versions]
            batch = head.activation[image : image + 1].repeat(len(off), *(1,) * (head.activation.ndim - 1))
            where.channel_maps(batch)[torch.arange(len(off), device=off.device), off] = 0
            without, copies = work.rows(head.run(image, batch)), own.repeat(len(off))
            scores, rounding = (
                values.view(len(off), work.each).T for values in (copies.score(without), copies.rounding(without))
            )
            losses[rows, start : start + len(off)] = whole[rows, None] - scores
            errors[rows, start : start + len(off)] = rounding
            # Not counted, but a moment to cancel.
            work.tick(0)
    return beyond_rounding(losses, errors)
