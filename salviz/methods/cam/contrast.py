"""Class activation maps of what sets a class apart from its likes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import target_layer
from salviz.methods.cam.closed import RECTIFIED, grad_cam_map, shares_head
from salviz.methods.card import Attribution, MethodCard, Parameter, one_pass, register
from salviz.methods.passes import LAYER, no_spatial_layer, shared_trunk
from salviz.targets import ClassTarget, Target
from salviz.work import Work


def similar_classes(logits: Tensor, classes: Tensor, count: int) -> Tensor:
    """The classes whose logits lie closest to the explained one's: `(N, K)`, `(N,)` -> `(N, count)`, itself not among.

    Fewer where there are no more classes.
    """
    own = logits.gather(1, classes.unsqueeze(1))
    distance = (logits - own).abs().scatter(1, classes.unsqueeze(1), torch.inf)
    return distance.topk(min(count, logits.shape[1] - 1), dim=1, largest=False).indices


def finer_score(logits: Tensor, target: ClassTarget, strength: float, references: int) -> Tensor:
    """Score less a share of the mean score of its likes (eq. 5): `(N, K)` -> `(N,)`.

    A contrast names its rival, which then is the only reference.
    """
    classes = target.classes.to(logits.device)
    own = ClassTarget(classes, target.output).score(logits)
    if target.against is not None:
        return own - strength * ClassTarget(target.against, target.output).score(logits)
    values = logits.softmax(dim=1) if target.output == "probability" else logits
    return own - strength * values.gather(1, similar_classes(logits.detach(), classes, references)).mean(dim=1)


@register(
    MethodCard(
        id="finer_cam",
        title="Finer-CAM",
        family="class activation maps",
        idea="Grad-CAM of the class score less a share of the mean score of the most similar classes. What all of them "
        "have in common cancels, and the details that tell them apart stay. With a named rival that one alone is the "
        "reference.",
        formula=r"M = \sum_k \Big(\frac{1}{Z}\sum_{ij}\frac{\partial}{\partial A^k_{ij}}"
        r"\Big(f_c - \frac{\alpha}{T}\sum_{t=1}^{T} f_{d_t}\Big)\Big) A^k" + RECTIFIED,
        citation="Zhang, Gu, Chowdhury, Mai, Carlyn, Berger-Wolf, Su, Chao: Finer-CAM. CVPR 2025.",
        evidence="positive",
        scaling="minmax",
        signed=True,
        differentiates=False,
        passes=one_pass,
        parameters=(
            LAYER,
            Parameter(
                "strength",
                0.6,
                "Share of the similar classes' score that is taken off; 0 is Grad-CAM.",
                low=0.0,
                high=2.0,
                step=0.1,
            ),
            Parameter(
                "references",
                3,
                "Number of similar classes, those with the closest logits.",
                low=1,
                high=100,
                step=1,
            ),
        ),
        explains_predicted=True,
        failures="Closest in score need not be alike: a confident model's runners-up may be arbitrary classes.",
        refusal=no_spatial_layer,
        needs="a layer with a spatial map",
        shares=shares_head,
        all_classes=True,
    )
)
def finer_cam(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    layer: str,
    strength: float,
    references: int,
) -> Attribution:
    """Finer-CAM on Grad-CAM: `(N, h, w)`, before the final ReLU."""
    where = target_layer(classifier, layer or None)
    trunk = shared_trunk(classifier, x, layer, work)
    with torch.enable_grad():
        logits = work.rows(trunk.logits)
        scores = finer_score(logits, target.resolve(logits), strength, references)
    activation, gradient = work.rows(trunk.leaf.detach()), trunk.gradient(scores)
    maps = grad_cam_map(where.channel_maps(activation), where.channel_maps(gradient))
    return Attribution(maps.float(), logits.detach())
