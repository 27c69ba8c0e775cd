"""Gradients of every block's own prediction with respect to its attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from salviz.classifiers.classifier import Classifier
from salviz.methods.attention.capture import AttentionMode, Layout, layout, needs_attention
from salviz.methods.card import Attribution, MethodCard, Parameter, register, two_passes
from salviz.targets import Target
from salviz.work import Work


@contextmanager
def _blocks_apart(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Cut the graph at the entry of every block and collect what leaves it: `(N, T, C)` each."""
    outputs: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs[0].detach(), *inputs[1:]

    def collect(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        outputs.append(output)

    handles = [block.register_forward_pre_hook(cut) for block in blocks]
    handles += [block.register_forward_hook(collect) for block in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _blocks_replaced(blocks: Sequence[nn.Module], tokens: Tensor) -> Iterator[None]:
    """Let the last block give `tokens` whatever comes in, and the blocks before it do nothing."""

    def skip(incoming: Tensor, *others: Any, **named: Any) -> Tensor:
        return incoming

    def give(incoming: Tensor, *others: Any, **named: Any) -> Tensor:
        return tokens

    try:
        for block in blocks:
            # An attribute of the instance hides the class's method until it is deleted.
            block.forward = give if block is blocks[-1] else skip
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


def block_gradients(
    classifier: Classifier, x: Tensor, target: Target, read: Layout, last: int
) -> tuple[list[Tensor], Tensor]:
    """Gradient of each block's own score with respect to its own attention (Bousselham et al., eq. 5 to 7).

    The tokens that leave a block go through the model's final norm, pooling and head as if it were the last block. That
    is done for all blocks in one go: the head is run once more with all their tokens as one batch, behind blocks that
    do nothing.

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)`.
        target: One entry an image.
        read: The classifier's layout.
        last: How many of the last blocks.

    Returns:
        `last` gradients `(N, heads, T, T)`, first block first; `(N, K)` logits of the whole model.
    """
    blocks = list(classifier.runtime.get_submodule(read.blocks).children())
    with torch.enable_grad():
        with _blocks_apart(blocks) as outputs, AttentionMode() as seen:
            logits = classifier.forward(x).detach()
        tokens, maps = torch.cat(outputs[-last:]), seen.kept[-last:]
        with _blocks_replaced(blocks, tokens):
            own = classifier.forward(x[:1])
        score = target.resolve(logits).repeat(last).score(own)
        return list(torch.autograd.grad(score.sum(), maps)), logits


def _needs_block_tokens(classifier: Classifier) -> str | None:
    """Why LeGrad cannot explain a classifier, or None."""
    refusal = needs_attention(classifier)
    if refusal is not None:
        return refusal
    read = layout(classifier)
    height, width = classifier.preprocessing.input_size
    blocks = list(classifier.runtime.get_submodule(read.blocks).children())
    with torch.no_grad(), _blocks_apart(blocks) as outputs:
        classifier.forward(torch.zeros(1, 3, height, width, device=classifier.device))
    if all(isinstance(output, Tensor) and output.shape[1:2] == read.queries.shape for output in outputs):
        return None
    return (
        f"The blocks of {classifier.title} hand on more than their tokens, so they cannot be classified one by one. "
        "Choose Transformer attribution instead."
    )


@register(
    MethodCard(
        id="legrad",
        title="LeGrad",
        family="attention",
        idea="Every block's tokens are classified as if the block were the last one. The map is how much that score "
        "grows with the block's attention to each patch, averaged over heads and blocks. Only growth counts: negative "
        "gradients are set to zero.",
        formula=r"M = \frac{1}{L}\sum_{l} \mathbb{E}_h\, q^\top \Big(\frac{\partial f_c(z^{(l)})}{\partial A^{(l)}}"
        r"\Big)^{+}",
        citation="Bousselham, Boggust, Chaybouti, Strobelt, Kuehne: LeGrad. arXiv 2404.03214, 2024.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        passes=two_passes,
        parameters=(
            Parameter(
                "blocks",
                0,
                "Number of last blocks that are averaged; 0 takes all.",
                low=0,
                high=200,
                step=1,
                unset="all",
            ),
        ),
        explains_predicted=True,
        failures="The head was never trained on the tokens of early blocks; what they say of a class may be noise.",
        refusal=_needs_block_tokens,
        needs="attention between all patches",
    )
)
def legrad(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    blocks: int,
) -> Attribution:
    """LeGrad: `(N, h, w)`; read from the class token, or as the mean over the tokens that the head reads."""
    read = layout(classifier)
    last = min(blocks, read.depth) or read.depth
    gradients, logits = block_gradients(classifier, x, target, read, last)
    work.tick(2 * len(x))
    total = torch.zeros(len(x), len(read.queries), device=x.device)
    for gradient in gradients:
        total += read.queries @ gradient.clamp(min=0).mean(dim=1)
    return Attribution(read.grid(total / last), logits)
