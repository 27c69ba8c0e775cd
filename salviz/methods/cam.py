"""Class activation maps: the target layer's channels, weighted by the head's gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import cut_at, target_layer
from salviz.errors import MethodError
from salviz.methods.card import Attribution, MethodCard, Parameter, register
from salviz.targets import Target
from salviz.work import Work

LAYER = Parameter("layer", "", "Layer to attach to; empty for the one the rule finds.")


def head_gradient(classifier: Classifier, x: Tensor, target: Target, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Activation of the target layer, the score's gradient at it, and the logits, from one forward pass.

    The trunk runs without a graph and only the head is differentiated (see `cut_at`).

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)` float32 in model space.
        target: One entry an image.
        layer: Dotted name, or empty for the rule's.

    Returns:
        `(N, C, h, w)` activation, `(N, C, h, w)` gradient, `(N, K)` logits; none has a graph.
    """
    where = target_layer(classifier, layer or None)
    with torch.enable_grad(), cut_at(classifier, where) as capture:
        logits = classifier.forward(x, is_published=where.is_published)
        assert capture.activation is not None  # noqa: S101 - the hook ran
        score = target.resolve(logits).score(logits)
        (gradient,) = torch.autograd.grad(score.sum(), capture.activation)
    activation = capture.activation.detach()
    return where.channel_maps(activation), where.channel_maps(gradient), logits.detach()


def no_spatial_layer(classifier: Classifier) -> str | None:
    """Why class activation maps do not exist for a classifier, or None."""
    try:
        target_layer(classifier)
    except MethodError as error:
        return str(error)
    return None


def _one_pass(parameters: Mapping[str, Any], size: tuple[int, int]) -> float:
    return 1.0


def _cam(
    method_id: str,
    title: str,
    idea: str,
    formula: str,
    citation: str,
    failures: str,
    weigh: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Register a method of the family: `weigh(activation, gradient)` gives the signed map."""

    def explain(
        classifier: Classifier,
        x: Tensor,
        target: Target,
        *,
        generators: Sequence[torch.Generator],
        work: Work,
        layer: str,
    ) -> Attribution:
        activation, gradient, logits = head_gradient(classifier, x, target, layer)
        work.tick(len(x))
        return Attribution(weigh(activation, gradient).float(), logits)

    explain.__doc__ = f"{title}: `(N, h, w)` at the target layer's resolution, before the final ReLU."
    card = MethodCard(
        id=method_id,
        title=title,
        family="class activation maps",
        idea=idea,
        formula=formula,
        citation=citation,
        evidence="positive",
        scaling="minmax",
        signed=True,
        passes=_one_pass,
        parameters=(LAYER,),
        explains_predicted=True,
        failures=failures,
        refusal=no_spatial_layer,
    )
    register(card)(explain)


def grad_cam_map(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM (eq. 1 and 2, before the ReLU): `(N, C, h, w)` twice -> `(N, h, w)`."""
    return torch.einsum("nchw,nc->nhw", activation, gradient.mean(dim=(2, 3)))


def grad_cam_pp_map(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++ (eq. 19 in the form for an exponential score): `(N, C, h, w)` twice -> `(N, h, w)`."""
    square = gradient.square()
    total = activation.sum(dim=(2, 3), keepdim=True)
    alpha = square / (2 * square + total * square * gradient + 1e-6)
    alpha = torch.where(gradient != 0, alpha, torch.zeros_like(alpha))
    weight = (alpha * gradient.clamp(min=0)).sum(dim=(2, 3))
    return torch.einsum("nchw,nc->nhw", activation, weight)


def layer_cam_map(activation: Tensor, gradient: Tensor) -> Tensor:
    """LayerCAM (eq. 4 and 5, before the ReLU): `(N, C, h, w)` twice -> `(N, h, w)`."""
    return (gradient.clamp(min=0) * activation).sum(dim=1)


_cam(
    "grad_cam",
    "Grad-CAM",
    "The last spatial layer's channels, each weighted by how much the class score grows with it on average. "
    "Places that hold the weighted channels light up. The map is coarse: one value a cell of that layer.",
    r"M = \mathrm{ReLU}\Big(\sum_k \Big(\frac{1}{Z}\sum_{ij}\frac{\partial f_c}{\partial A^k_{ij}}"
    r"\Big) A^k\Big)",
    "Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: Grad-CAM. ICCV 2017.",
    "Averaging the gradient loses where it was; several small objects may merge into one blob.",
    grad_cam_map,
)
_cam(
    "grad_cam_pp",
    "Grad-CAM++",
    "Like Grad-CAM, but every place has its own weight and only positive gradients count. It covers several "
    "objects of one class more evenly. It separates classes less.",
    r"M = \mathrm{ReLU}\Big(\sum_k w_k A^k\Big),\; w_k=\sum_{ij}\alpha^k_{ij}\,\mathrm{ReLU}\Big("
    r"\frac{\partial f_c}{\partial A^k_{ij}}\Big)",
    "Chattopadhay, Sarkar, Howlader, Balasubramanian: Grad-CAM++. WACV 2018.",
    "Close to the mean activation on modern nets, so it changes little with the class.",
    grad_cam_pp_map,
)
_cam(
    "layer_cam",
    "LayerCAM",
    "Each activation times its own positive gradient, summed over channels. Unlike Grad-CAM the weight is "
    "not averaged over places. It therefore also works on earlier, finer layers.",
    r"M_{ij} = \mathrm{ReLU}\Big(\sum_k \mathrm{ReLU}\Big(\frac{\partial f_c}{\partial A^k_{ij}}\Big) "
    r"A^k_{ij}\Big)",
    "Jiang, Zhang, Hou, Cheng, Wei: LayerCAM. IEEE TIP 2021.",
    "On early layers it follows textures and edges.",
    layer_cam_map,
)
