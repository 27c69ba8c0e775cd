"""Class activation maps in closed form: the target layer's channels, weighted by the head's gradient."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import HEAD, Attribution, MethodCard, one_pass, register
from salviz.methods.passes import LAYER, no_spatial_layer, shared_head
from salviz.targets import Target
from salviz.work import Work

RECTIFIED = r",\quad \text{how much: }\mathrm{ReLU}(M)"
"""End of a formula whose ReLU belongs to how much a place counts: maps themselves are kept with their sign."""


def shares_head(parameters: Mapping[str, Any]) -> Mapping[Hashable, float]:
    """All maps of one layer come from one trunk pass and one gradient of the head."""
    return {(HEAD, parameters["layer"]): 1.0}


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
        activation, gradient, logits = shared_head(classifier, x, target, layer, work)
        return Attribution(weigh(activation, gradient).float(), logits)

    explain.__doc__ = f"{title}: `(N, h, w)` at the target layer's resolution, before the final ReLU."
    card = MethodCard(
        id=method_id,
        title=title,
        family="class activation maps",
        idea=idea,
        formula=formula + RECTIFIED,
        citation=citation,
        evidence="positive",
        scaling="minmax",
        signed=True,
        differentiates=False,
        passes=one_pass,
        parameters=(LAYER,),
        explains_predicted=True,
        failures=failures,
        refusal=no_spatial_layer,
        needs="a layer with a spatial map",
        shares=shares_head,
        all_classes=True,
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


def hires_cam_map(activation: Tensor, gradient: Tensor) -> Tensor:
    """HiResCAM (eq. 3, before the ReLU): `(N, C, h, w)` twice -> `(N, h, w)`."""
    return (gradient * activation).sum(dim=1)


def xgrad_cam_map(activation: Tensor, gradient: Tensor) -> Tensor:
    """XGrad-CAM (eq. 8, before the ReLU): `(N, C, h, w)` twice -> `(N, h, w)`.

    A channel whose activations cancel to nothing but rounding has no weight: the ratio is undefined there. On a layer
    of non-negative activations only dead channels are such.
    """
    total = activation.sum(dim=(2, 3))
    is_none = total.abs() <= 1e-5 * activation.abs().sum(dim=(2, 3))
    weight = (gradient * activation).sum(dim=(2, 3)) / torch.where(is_none, torch.ones_like(total), total)
    return torch.einsum("nchw,nc->nhw", activation, torch.where(is_none, torch.zeros_like(weight), weight))


_cam(
    "grad_cam",
    "Grad-CAM",
    "The last spatial layer's channels, each weighted by how much the class score grows with it on average. "
    "Places that hold the weighted channels light up. The map is coarse: one value a cell of that layer.",
    r"M = \sum_k \Big(\frac{1}{Z}\sum_{ij}\frac{\partial f_c}{\partial A^k_{ij}}\Big) A^k",
    "Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: Grad-CAM. ICCV 2017.",
    "Averaging the gradient loses where it was; several small objects may merge into one blob.",
    grad_cam_map,
)
_cam(
    "grad_cam_pp",
    "Grad-CAM++",
    "Like Grad-CAM, but every place has its own weight and only positive gradients count. It covers several "
    "objects of one class more evenly. It separates classes less.",
    r"M = \sum_k w_k A^k,\; w_k=\sum_{ij}\alpha^k_{ij}\,\mathrm{ReLU}\Big("
    r"\frac{\partial f_c}{\partial A^k_{ij}}\Big)",
    "Chattopadhay, Sarkar, Howlader, Balasubramanian: Grad-CAM++. WACV 2018.",
    "Close to the mean activation on modern nets, so it changes little with the class. After a ReLU nothing is below "
    "zero: no place speaks against the class.",
    grad_cam_pp_map,
)
_cam(
    "layer_cam",
    "LayerCAM",
    "Each activation times its own positive gradient, summed over channels. Unlike Grad-CAM the weight is "
    "not averaged over places. It therefore also works on earlier, finer layers.",
    r"M_{ij} = \sum_k \mathrm{ReLU}\Big(\frac{\partial f_c}{\partial A^k_{ij}}\Big) A^k_{ij}",
    "Jiang, Zhang, Hou, Cheng, Wei: LayerCAM. IEEE TIP 2021.",
    "On early layers it follows textures and edges. After a ReLU nothing is below zero: no place speaks against the "
    "class.",
    layer_cam_map,
)
_cam(
    "hires_cam",
    "HiResCAM",
    "Each activation times its own gradient, summed over channels; nothing is averaged. Where a linear layer follows, "
    "the map adds up to the score but for its bias. It cannot light up places the model did not use there.",
    r"M_{ij} = \sum_k \frac{\partial f_c}{\partial A^k_{ij}} A^k_{ij}",
    "Draelos, Carin: Use HiResCAM instead of Grad-CAM for Faithful Explanations of Convolutional Neural Networks. "
    "arXiv 2011.08891, 2020.",
    "Noisier than Grad-CAM where the head is deep, because single gradients are.",
    hires_cam_map,
)
_cam(
    "xgrad_cam",
    "XGrad-CAM",
    "Like Grad-CAM, but a channel's gradient is averaged with its own activations as weights. That keeps the sum of "
    "the map close to the score. On nets that end in a global average it is Grad-CAM.",
    r"M = \sum_k \Big(\sum_{ij}\frac{A^k_{ij}}{\sum_{uv} A^k_{uv}}\frac{\partial f_c}{\partial A^k_{ij}}\Big) A^k",
    "Fu, Hu, Dong, Guo, Gao, Li: Axiom-based Grad-CAM. BMVC 2020.",
    "Made for layers after a ReLU: where activations have both signs their sum can be near zero and the weight huge.",
    xgrad_cam_map,
)
