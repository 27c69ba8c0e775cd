"""FullGrad: the gradient at the input and at every bias, which together make up the score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.lean import clip_
from salviz.methods.card import Attribution, MethodCard, register, two_passes
from salviz.methods.gradients.terms import Bias, ClipWithTerms, FullGradTerms, under
from salviz.methods.rectifiers import HOMOGENEOUS, Activation, as_activation, as_product, overwrite, reads_attribute
from salviz.targets import Target
from salviz.work import Work

_ATTENTION = ("softmax", "scaled_dot_product_attention", "multi_head_attention_forward")


class _BiasMode(TorchFunctionMode):
    """Sees every function of a forward pass that adds a constant and has its gradient told to the terms.

    Besides the biases that layers hold there are the implicit ones of section 3: what a function adds to its own
    linear approximation at this picture, `phi(z) - phi'(z) z`. A batch norm, the cap of a ReLU6, a smooth activation,
    a LayerNorm and a gate have one.
    """

    def __init__(self, terms: FullGradTerms | None) -> None:
        super().__init__()
        self.terms = terms
        self.spatial = 0
        self.attention = False
        self.tokens = False
        # What linear layers and layer norms made of four dimensions has its channels last.
        self._is_last: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._biases: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call and watch what it adds."""
        kwargs = kwargs or {}
        if reads_attribute(func):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _ATTENTION:
            self.attention = True
        if name in ("conv2d", "linear"):
            out = func(*args, **kwargs)
            bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
            self._note(out, is_last=name == "linear")
            if bias is not None and self.terms is not None and self._is_picture(out):
                self._biases[out] = known = Bias(bias.detach())
                out.register_hook(partial(known.tell, self.terms))
            elif bias is not None:
                self._watch(out, lambda: bias)
            return out
        if func is F.batch_norm:
            out = func(*args, **kwargs)
            self._watch(out, lambda: _norm_bias(*args, **kwargs))
            return out
        if func in (F.layer_norm, F.group_norm):
            out = func(*args, **kwargs)
            self._note(out, is_last=func is F.layer_norm)
            self._watch(out, lambda: _centred_intercept(func, out.detach(), args, kwargs))
            return out
        activation = as_activation(func, args, kwargs)
        if activation is not None:
            # In place where the net does so: it may read what it has overwritten, and not the answer.
            bounds, x = activation.bounds, activation.x
            is_clip = bounds is not None and bounds[0] == 0.0
            # The intercept needs the input, and a hook on a view that was overwritten is never called.
            is_copied = activation.is_inplace and (not is_clip or x._is_view())
            given = x.clone() if is_copied else x
            if is_copied or bounds is None or not is_clip:
                out = activation.apply(given)
            elif self._overwrites(func, activation) and self._is_picture(x):
                return ClipWithTerms.apply(x, bounds[1], self.terms, self._biases.get(x))  # type: ignore[no-untyped-call]
            elif func is F.hardtanh and activation.is_inplace:
                out = clip_(x, *bounds)
            else:
                out = func(*args, **kwargs)
            self._note(out, is_last=x in self._is_last)
            if activation.name not in HOMOGENEOUS:
                z = given.detach()
                self._watch(out, lambda: _intercept(activation, z, out.detach()))
            return overwrite(activation, out) if is_copied else out
        factors = as_product(func, args)
        if factors is not None and all(factor.requires_grad for factor in factors):
            out = func(*args, **kwargs)
            self._note(out, is_last=any(factor in self._is_last for factor in factors))
            # The linear approximation of a product is twice the product.
            self._watch(out, lambda: -out.detach())
            return out
        return func(*args, **kwargs)

    @staticmethod
    def _overwrites(func: Any, call: Activation) -> bool:
        """Whether a rectifier writes over what a layer made, and nothing writes over its own output."""
        # Who calls ReLU6 as a function may do so: PyTorch's own keeps its input for that.
        is_known = func is F.hardtanh or call.name == "relu"
        return is_known and call.is_inplace and not (call.x.is_leaf or call.x._is_view())

    def _is_picture(self, out: Tensor) -> bool:
        """Whether terms are wanted of features `(N, C, h, w)` that have places."""
        wanted = self.terms is not None and out.requires_grad and out.ndim == 4
        return wanted and out not in self._is_last and out.shape[2] * out.shape[3] > 1

    def _note(self, out: Tensor, *, is_last: bool) -> None:
        if out.ndim == 4 and is_last:
            self._is_last[out] = True
        self.spatial += out.ndim == 4 and out.shape[1 if is_last else 2] > 1
        self.tokens |= out.ndim == 3

    def _watch(self, out: Tensor, constant: Callable[[], Tensor]) -> None:
        """Have the gradient of `out` times `constant()` counted: `(C,)` or of `out`'s shape."""
        terms = self.terms
        if terms is None or not out.requires_grad:
            return
        is_last = out in self._is_last
        # Made now: what follows may change `out` in place. The hook is called with the gradient at `out` as it is now.
        value = constant().detach()
        if value.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
            value = value.clone()
        is_flat = out.ndim != 4

        def hook(gradient: Tensor) -> None:
            if is_flat:
                terms.score += (gradient * value).flatten(1).sum(dim=1)
            elif is_last:
                terms.add(gradient.movedim(-1, 1), value if value.ndim == 1 else value.movedim(-1, 1))
            else:
                terms.add(gradient, value)

        out.register_hook(hook)  # type: ignore[no-untyped-call]


def _norm_bias(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`(C,)` constant that a batch norm in eval mode adds."""
    scale = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
    return -mean * scale + (0.0 if bias is None else bias)


def _centred_intercept(func: Any, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a layer or group norm adds to its own linear approximation.

    Without its epsilon the norm does not change with the scale of `x`, so the approximation takes `x` to nothing but
    the part that epsilon leaves: the intercept is all but `eps / (variance + eps)` of the normalised `x`.
    """

    def given(name: str, place: int) -> Any:
        return kwargs.get(name, args[place] if len(args) > place else None)

    x, bias, eps = args[0].detach(), given("bias", 3), given("eps", 4)
    eps = 1e-5 if eps is None else eps
    shift: Any = 0.0 if bias is None else bias
    if func is F.layer_norm:
        dims = tuple(range(-len(args[1] if len(args) > 1 else kwargs["normalized_shape"]), 0))
        variance = x.var(dim=dims, correction=0, keepdim=True)
    else:
        groups = args[1] if len(args) > 1 else kwargs["num_groups"]
        variance = x.reshape(len(x), groups, -1).var(dim=2, correction=0)
        variance = variance.repeat_interleave(x.shape[1] // groups, dim=1).view(
            len(x), x.shape[1], *(1,) * (x.ndim - 2)
        )
        shift = shift if bias is None else bias.view(1, -1, *(1,) * (x.ndim - 2))
    left = eps / (variance + eps)
    return torch.lerp(out, shift.expand_as(out), left.expand_as(out)) if bias is not None else out * (1 - left)


def _intercept(call: Activation, z: Tensor, out: Tensor) -> Tensor:
    """`phi(z) - phi'(z) z` of an activation."""
    if call.bounds is not None and call.bounds[0] == 0.0:
        # The cap where it holds, and nothing below.
        return F.threshold(out, under(call.bounds[1]), 0.0)
    with torch.enable_grad():
        leaf = z.requires_grad_(True)
        (slope,) = torch.autograd.grad(call.apply(leaf).sum(), leaf)
    return torch.addcmul(out, slope, z.detach(), value=-1)


def _no_places(classifier: Classifier) -> str | None:
    """Why FullGrad is undefined for a classifier, or None."""
    height, width = classifier.preprocessing.input_size
    blank = torch.zeros(1, 3, height, width, device=classifier.device)
    with classifier.lock, torch.no_grad(), _BiasMode(None) as seen:
        classifier.forward(blank)
    if seen.attention or seen.tokens:
        return (
            f"FullGrad needs biases that lie on the picture, and {classifier.title} works on tokens that mix the "
            "whole picture. Choose Integrated gradients or an attention method instead."
        )
    if not seen.spatial:
        return (
            f"FullGrad needs layers whose biases lie on the picture, and {classifier.title} has none. Choose Input × "
            "gradient instead."
        )
    return None


@register(
    MethodCard(
        id="full_grad",
        title="FullGrad",
        family="gradients",
        idea="A net is a chain of layers that multiply and add, so its score is split without remainder into what "
        "goes through the input and what every bias adds. Each layer's shares are drawn where they lie, and the layers "
        "are laid over each other. How far the shares add up to the score is shown as the completeness error.",
        formula=r"M = \psi\big(x \odot \nabla_x f_c\big) + \sum_{l}\sum_{k} \psi\big(b^l_k \odot "
        r"\nabla_{b^l_k} f_c\big),\quad \psi = \mathrm{resize} \circ \mathrm{rescale} \circ |\cdot|",
        citation="Srinivas, Fleuret: Full-Gradient Representation for Neural Network Visualization. NeurIPS 2019.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        completeness="the terms of the picture and of the biases, before they are drawn as the map, add up to {error} "
        "than {score}",
        passes=two_passes,
        explains_predicted=True,
        failures="Every layer counts alike whatever its share of the score, and edges of early layers dominate.",
        refusal=_no_places,
        needs="layers whose features lie on the picture",
    )
)
def full_grad(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """FullGrad: `(N, H, W)`, never negative; with the completeness error of the terms before post-processing.

    The raw map is the paper's saliency (eq. 8), with the rescaling of its authors' code: over all channels of a layer
    at once. A convolution and the batch norm folded into it are one layer. Biases without a place (linear layers after
    pooling) count for completeness alone, as in the paper. A probability's softmax is one more function with an
    implicit bias. What has no such bias here (a response norm, say) shows as completeness error.
    """
    terms = FullGradTerms(x)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        with _BiasMode(terms):
            logits = classifier.forward(leaf)
        top = logits.detach().requires_grad_(True)
        score = target.resolve(top).score(top)
        (at_logits,) = torch.autograd.grad(score.sum(), top)
        terms.score += score.detach() - (at_logits * top.detach()).sum(dim=1)
        (gradient,) = torch.autograd.grad(logits, leaf, at_logits)
    work.tick(2 * len(x))
    terms.add(gradient, leaf.detach())
    return Attribution(
        terms.saliency((x.shape[2], x.shape[3])), logits.detach(), completeness=terms.score - score.detach()
    )
