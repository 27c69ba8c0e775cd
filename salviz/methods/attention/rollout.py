"""Attention followed from block to block down to the patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from salviz.classifiers.classifier import Classifier
from salviz.methods.attention.capture import attention, layout, needs_attention, weighed_attention
from salviz.methods.card import Attribution, MethodCard, Parameter, one_pass, register, two_passes
from salviz.targets import Target
from salviz.work import Work

_NEEDS = "attention between all patches"
_RESIDUAL = Parameter(
    "residual",
    0.5,
    "Share of each block's skip connection, against its attention.",
    low=0.0,
    high=0.99,
    step=0.05,
)
_DISCARD = Parameter(
    "discard", 0.0, "Share of the weakest attentions of each block set to zero.", low=0.0, high=0.99, step=0.05
)
_FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean(dim=1),
    "max": lambda maps: maps.amax(dim=1),
    "min": lambda maps: maps.amin(dim=1),
}


def roll_out(queries: Tensor, blocks: Sequence[Tensor], residual: float, discard: float) -> Tensor:
    """Attention of the queries to every token through all blocks (Abnar and Zuidema, eq. 1 and sec. 3).

    A vector is multiplied with the blocks from the last to the first, so no product of two matrices is needed. What is
    carried is the difference from the start, in which weak attention does not drown in the ones of the diagonal.

    Args:
        queries: `(T,)` share of each token at the top.
        blocks: `(N, T, T)` attention of each block with heads fused, never negative; first block first.
        residual: Share of the skip connection.
        discard: Share of each matrix's weakest entries that is set to zero.

    Returns:
        `(N, T)` the rollout minus `queries`: rows sum to 0.
    """
    start = queries.expand(len(blocks[0]), 1, -1)
    gained = torch.zeros_like(start)
    for block in reversed(blocks):
        if discard:
            weakest = block.flatten(1).sort(dim=1).values[:, int(discard * block[0].numel()), None, None]
            block = torch.where(block < weakest, torch.zeros_like(block), block)
        sums = block.sum(dim=-1)
        total = residual + (1 - residual) * sums
        # A row of the matrix is (residual I + (1 - residual) block) / total, its sum 1; what follows is that minus I.
        share = (start + gained).squeeze(1) * (1 - residual) / torch.where(total > 0, total, torch.ones_like(total))
        gained = gained + share.unsqueeze(1) @ block - (share * sums).unsqueeze(1)
    return gained.squeeze(1)


@register(
    MethodCard(
        id="attention_rollout",
        title="Attention rollout",
        family="attention",
        idea="How much each patch is attended to, directly or through other patches, from the first block to the "
        "last. Each block mixes its heads' attention with the skip connection, and the blocks are multiplied. It asks "
        "only where the model looked, not for which class.",
        formula=r"M = q^\top \prod_{l=L}^{1} \big(\rho\, I + (1-\rho)\,\bar A^{(l)}\big)",
        citation="Abnar, Zuidema: Quantifying Attention Flow in Transformers. ACL 2020.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        differentiates=False,
        passes=one_pass,
        parameters=(
            Parameter("fusion", "mean", "How the heads of a block are joined.", choices=tuple(_FUSIONS)),
            _RESIDUAL,
            _DISCARD,
        ),
        explains_predicted=True,
        has_target=False,
        failures="The same for every class; patches that act as registers may outshine the object.",
        refusal=needs_attention,
        needs=_NEEDS,
        shares=lambda parameters: {("attention", parameters["fusion"]): 1.0},
    )
)
def attention_rollout(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    fusion: str,
    residual: float,
    discard: float,
) -> Attribution:
    """Attention rollout: `(N, h, w)`, one value a patch.

    Read from the class token where the head reads it alone, else as the mean over the tokens that it reads.
    """
    read = layout(classifier)
    blocks, logits = attention(classifier, x, work, fusion, _FUSIONS[fusion])
    rolled = read.queries + roll_out(read.queries, blocks, residual, discard)
    return Attribution(read.grid(rolled), logits)


@register(
    MethodCard(
        id="grad_attention_rollout",
        title="Gradient attention rollout",
        family="attention",
        idea="Attention rollout in which every attention counts as much as the class score grows with it. What "
        "speaks against the class is set to zero. The map therefore depends on the class.",
        formula=r"M = q^\top \prod_{l=L}^{1} \mathrm{norm}\Big(\rho\, I + (1-\rho)\,\mathrm{ReLU}\,\mathbb{E}_h\Big["
        r"\frac{\partial f_c}{\partial A^{(l)}} \odot A^{(l)}\Big]\Big)",
        citation="Abnar, Zuidema, ACL 2020, with the gradient weights of Chefer, Gur, Wolf: Transformer "
        "Interpretability Beyond Attention Visualization. CVPR 2021.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        passes=two_passes,
        parameters=(_RESIDUAL, _DISCARD),
        explains_predicted=True,
        failures="Heads for and against a class cancel before the product, so a class may keep little of its evidence.",
        refusal=needs_attention,
        needs=_NEEDS,
        shares=lambda parameters: {"attention gradients": 2.0},
    )
)
def grad_attention_rollout(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    residual: float,
    discard: float,
) -> Attribution:
    """Gradient-weighted rollout: `(N, h, w)`, without the identity that it starts from.

    Read as `attention_rollout` is: from the class token, or as the mean over the tokens that the head reads.
    """
    read = layout(classifier)
    blocks, logits = weighed_attention(classifier, x, target, work)
    rolled = roll_out(read.queries, [block.mean.clamp(min=0) for block in blocks], residual, discard)
    return Attribution(read.grid(rolled), logits)


@register(
    MethodCard(
        id="transformer_attribution",
        title="Transformer attribution",
        family="attention",
        idea="Relevance starts at the class token and is handed on by every block's attention, as far as the class "
        "score grows with it. Positive parts are taken head by head, and added to what the skip connections carry. "
        "The map depends on the class.",
        formula=r"R \leftarrow R + \mathbb{E}_h\Big[\Big(\frac{\partial f_c}{\partial A^{(l)}} \odot A^{(l)}"
        r"\Big)^{+}\Big] R,\quad M = q^\top R",
        citation="Chefer, Gur, Wolf: Generic Attention-model Explainability. ICCV 2021.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        passes=two_passes,
        explains_predicted=True,
        failures="Evidence against the class is cut off, and what the feed-forward layers do is not seen.",
        refusal=needs_attention,
        needs=_NEEDS,
        shares=lambda parameters: {"attention gradients": 2.0},
    )
)
def transformer_attribution(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Chefer's generic rule (eq. 5 and 6): `(N, h, w)`, without the identity that R starts from.

    Read as `attention_rollout` is: from the class token, or as the mean over the tokens that the head reads.
    """
    read = layout(classifier)
    blocks, logits = weighed_attention(classifier, x, target, work)
    start = read.queries.expand(len(x), 1, -1)
    # The rows of the product that are read, from the last block to the first; only what is added to the start is
    # carried, so that small relevance does not drown in it.
    gained = torch.zeros_like(start)
    for block in reversed(blocks):
        gained = gained + (start + gained) @ block.positive
    return Attribution(read.grid(gained.squeeze(1)), logits)
