"""Layer-wise relevance propagation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salviz.classifiers.classifier import Classifier
from salviz.errors import MethodError
from salviz.methods.card import Attribution, MethodCard, Parameter, register, two_passes
from salviz.methods.relevance import rules
from salviz.methods.relevance.propagation import Composite, PropagationMode
from salviz.methods.relevance.rules import NoRuleError
from salviz.targets import ClassTarget, Target
from salviz.work import Work

_STANDARD = "standard"


@dataclass(frozen=True)
class _Settings:
    """What the rules of a composite are built from; see the card's parameters."""

    epsilon: float = 0.0
    gamma: float = 0.25
    linear_gamma: float = 0.05
    bias_share: bool = True


def _plus(settings: _Settings) -> rules.Rule:
    return rules.z_plus(settings.bias_share)


def _epsilon(settings: _Settings) -> rules.Rule:
    return rules.epsilon(settings.epsilon)


_COMPOSITES: dict[str, Callable[[_Settings], Composite]] = {
    "epsilon_plus_flat": lambda s: Composite(_plus(s), _epsilon(s), rules.flat),
    "epsilon_plus": lambda s: Composite(_plus(s), _epsilon(s), rules.as_elsewhere(_plus(s))),
    "epsilon_gamma_box": lambda s: Composite(rules.gamma(s.gamma), _epsilon(s), rules.z_box),
    "epsilon_alpha2_beta1_flat": lambda s: Composite(rules.alpha_beta(2.0, 1.0, s.bias_share), _epsilon(s), rules.flat),
    "epsilon": lambda s: Composite(_epsilon(s), _epsilon(s), rules.as_elsewhere(_epsilon(s))),
    "gamma": lambda s: Composite(
        rules.gamma(s.gamma), rules.gamma(s.linear_gamma), rules.as_elsewhere(rules.gamma(s.gamma))
    ),
}

_transformers: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def propagate(
    classifier: Classifier, x: Tensor, target: Target, composite: Composite
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Relevance of every pixel, from one forward and one backward pass.

    Args:
        classifier: The model; its lock is held by the caller.
        x: `(N, 3, H, W)` float32 in model space.
        target: One entry an image.
        composite: Which rule acts where.

    Returns:
        `(N, 3, H, W)` relevance; `(N,)` the relevance that was handed to the logits, which is the score for a logit or
        a contrast of logits; `(N, K)` logits; and whether the net has attention.

    Raises:
        NoRuleError: The net does something that has no rule.
    """
    x = x.detach()
    bounds = [torch.full_like(x, value, dtype=torch.uint8) for value in (0, 255)]
    low, high = (classifier.preprocessing.normalise(bound) for bound in bounds)
    with torch.enable_grad():
        gate = torch.ones_like(x).requires_grad_(True)
        with PropagationMode(composite, rules.Pixels(x, gate, low, high)) as mode:
            logits = classifier.forward(x)
        if not logits.requires_grad:
            raise NoRuleError("nothing that carries relevance from the image to the scores")
        top = logits.detach().requires_grad_(True)
        resolved = target.resolve(top)
        (start,) = torch.autograd.grad(resolved.score(top).sum(), top)
        (relevance,) = torch.autograd.grad(logits, gate, grad_outputs=start)
    logits = logits.detach()
    return relevance, (logits * start).sum(dim=1), logits, mode.has_attention


def _is_transformer(classifier: Classifier) -> bool:
    """Whether a net has attention; probed once, with a blank image.

    Raises:
        NoRuleError: The net does something that has no rule.
    """
    if classifier.module not in _transformers:
        height, width = classifier.preprocessing.input_size
        blank = torch.zeros(1, 3, height, width, device=classifier.device)
        target = ClassTarget(torch.zeros(1, dtype=torch.long, device=classifier.device))
        composite = _COMPOSITES["epsilon_plus_flat"](_Settings())
        _transformers[classifier.module] = propagate(classifier, blank, target, composite)[3]
    return _transformers[classifier.module]


def _refusal(classifier: Classifier) -> str | None:
    """Why relevance cannot be propagated through a classifier, or None."""
    try:
        _is_transformer(classifier)
    except NoRuleError as error:
        return (
            f"Relevance propagation has no rule for {error}, which {classifier.title} uses. "
            "Choose Integrated gradients or another gradient method instead."
        )
    except MethodError as error:
        return str(error)
    return None


@register(
    MethodCard(
        id="lrp",
        title="Layer-wise relevance propagation",
        family="relevance",
        idea="The class score is handed back from layer to layer, to each input in the share it had in the output. "
        "Which share that is, is set by a rule for each kind of layer, as a composite. What arrives at the pixels adds "
        "up to the score, less what biases and rules keep.",
        formula=r"R_i = \sum_j \frac{\rho(z_{ij})}{\sum_{i'} \rho(z_{i'j})}\, R_j,\quad z_{ij} = x_i w_{ij}",
        citation="Bach, Binder, Montavon, Klauschen, Müller, Samek: On Pixel-Wise Explanations. PLoS ONE 2015. "
        "Composites: Montavon et al., 2019; Kohlbrenner et al., IJCNN 2020. Transformers: Achtibat et al.: AttnLRP. "
        "ICML 2024.",
        evidence="positive",
        scaling="percentile",
        signed=True,
        completeness="the map adds up to {error} than {linear}",
        passes=two_passes,
        parameters=(
            Parameter(
                "composite",
                _STANDARD,
                "Rules by layer; `standard` is epsilon_plus_flat for nets without attention and gamma (AttnLRP) for "
                "transformers.",
                choices=(_STANDARD, *_COMPOSITES),
            ),
            Parameter(
                "epsilon",
                1e-6,
                "Stabiliser of the epsilon rule, in units of the layer's output.",
                low=0.0,
                high=10.0,
            ),
            Parameter(
                "gamma",
                0.25,
                "Extra weight of contributions with the output's sign, in convolutions.",
                low=0.0,
                high=100.0,
            ),
            Parameter(
                "linear_gamma",
                0.05,
                "The same in linear layers, for the composite `gamma`.",
                low=0.0,
                high=100.0,
            ),
            Parameter(
                "bias_share",
                True,
                "Whether biases keep their share of relevance under the rules plus and alpha2_beta1; if not, all is "
                "handed on.",
            ),
        ),
        explains_predicted=True,
        failures="The map depends on the rules as much as on the net; rules that favour positive weights hardly depend "
        "on the class. Biases can keep most of the score to themselves; the completeness error beside a map says how "
        "much.",
        refusal=_refusal,
        needs="layers that have a rule",
    )
)
def lrp(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    composite: str,
    epsilon: float,
    gamma: float,
    linear_gamma: float,
    bias_share: bool,
) -> Attribution:
    """LRP: `(N, 3, H, W)`; with the completeness error, the sum of the map minus the score.

    One forward and one backward, in which rules that tell signs apart compute a second and third product a layer.

    In transformers the rules of AttnLRP act whatever the composite: softmax and its products as their first-order
    expansion with half of the relevance for each factor, norms with a constant scale, activations as identity.
    """
    if composite == _STANDARD:
        composite = "gamma" if _is_transformer(classifier) else "epsilon_plus_flat"
    settings = _Settings(epsilon, gamma, linear_gamma, bias_share)
    maps, start, logits, _ = propagate(classifier, x, target, _COMPOSITES[composite](settings))
    work.tick(2 * len(x))
    return Attribution(maps, logits, completeness=maps.sum(dim=(1, 2, 3)) - start)
