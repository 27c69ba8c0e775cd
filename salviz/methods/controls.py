"""Maps that know nothing of the model: what a good method must differ from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from salviz.classifiers.classifier import Classifier
from salviz.methods.card import Attribution, MethodCard, Parameter, no_pass, register
from salviz.targets import Target
from salviz.work import Work


@register(
    MethodCard(
        id="edge",
        title="Edge detector (control)",
        family="controls",
        idea="The strength of the picture's edges; the model is never asked. It follows every change of the "
        "image and no change of the model. A method that scores no better than this explains the picture, "
        "not the model.",
        formula=r"M = \sqrt{\tfrac{1}{2}\,\big((S_x * Y)^2 + (S_y * Y)^2\big)}",
        citation="Sobel, Feldman, 1968; as a control: Adebayo et al.: Sanity Checks for Saliency Maps. NeurIPS 2018.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        differentiates=False,
        passes=no_pass,
        has_target=False,
        failures="By construction insensitive to the model.",
    )
)
def edge(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Sobel magnitude of the luminance: `(N, H, W)`, in [0, 1]."""
    prep = classifier.preprocessing
    std = x.new_tensor(prep.std).view(1, 3, 1, 1)
    mean = x.new_tensor(prep.mean).view(1, 3, 1, 1)
    luminance = ((x * std + mean) * x.new_tensor((0.2125, 0.7154, 0.0721)).view(1, 3, 1, 1)).sum(1, keepdim=True)
    # One pixel of border repeated: scikit-image's "reflect" for a 3x3 kernel.
    padded = F.pad(luminance, (1, 1, 1, 1), mode="replicate")
    smooth, slope = x.new_tensor((0.25, 0.5, 0.25)), x.new_tensor((1.0, 0.0, -1.0))
    kernels = torch.stack([torch.outer(slope, smooth), torch.outer(smooth, slope)]).unsqueeze(1)
    across = F.conv2d(padded, kernels)
    return Attribution(across.square().sum(dim=1).div(2).sqrt())


@register(
    MethodCard(
        id="random",
        title="Random (control)",
        family="controls",
        idea="A map of random numbers, drawn once an image; the model is never asked. No agreement with it "
        "can mean anything. Scores of other methods are read against this floor.",
        formula=r"M_{ij} \sim \mathcal{U}(0, 1)",
        citation="As a control: Tomsett et al.: Sanity Checks for Saliency Metrics. AAAI 2020.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        differentiates=False,
        passes=no_pass,
        has_target=False,
        failures="By construction says nothing.",
    )
)
def random(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Uniform noise in [0, 1): `(N, H, W)`, one stream an image."""
    maps = [torch.rand(x.shape[2:], generator=g, device=g.device).to(x.device) for g in generators]
    return Attribution(torch.stack(maps))


@register(
    MethodCard(
        id="center",
        title="Centre (control)",
        family="controls",
        idea="A bump in the middle of the frame, the same for every picture; the model is never asked. Photographers "
        "put their subject in the middle, so it is often near the object. A method that finds objects no better than "
        "this has found the habit of photographers.",
        formula=r"M_{ij} = e^{-\frac{1}{2\sigma^2}\big((i/H-1/2)^2+(j/W-1/2)^2\big)}",
        citation="As a control: Judd, Durand, Torralba: A Benchmark of Computational Models of Saliency to Predict "
        "Human Fixations. MIT technical report, 2012.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        differentiates=False,
        passes=no_pass,
        parameters=(
            Parameter(
                "width",
                0.25,
                "Standard deviation of the bump, as a share of each side.",
                low=0.01,
                high=2.0,
                step=0.05,
            ),
        ),
        has_target=False,
        failures="By construction insensitive to the picture and the model.",
    )
)
def center(
    classifier: Classifier,
    x: Tensor,
    target: Target,
    *,
    generators: Sequence[torch.Generator],
    work: Work,
    width: float,
) -> Attribution:
    """Gaussian bump in the middle: `(N, H, W)`, in (0, 1]."""
    sides = []
    for length in x.shape[2:]:
        place = (torch.arange(length, device=x.device, dtype=x.dtype) + 0.5) / length - 0.5
        sides.append((-place.square() / (2 * width**2)).exp())
    return Attribution(torch.outer(*sides).repeat(len(x), 1, 1))


@register(
    MethodCard(
        id="constant",
        title="Constant (control)",
        family="controls",
        idea="The same value everywhere; neither the picture nor the model is asked. Every place is as good as any "
        "other. Scores of other methods are read against what a metric says of no information at all.",
        formula=r"M_{ij} = 1",
        citation="As a control: Fresz, Lörcher, Huber: Classification Metrics for Image Explanations. FAccT 2024.",
        evidence="as_is",
        scaling="minmax",
        signed=False,
        differentiates=False,
        passes=no_pass,
        has_target=False,
        failures="By construction says nothing; metrics that need contrast are undefined for it.",
    )
)
def constant(
    classifier: Classifier, x: Tensor, target: Target, *, generators: Sequence[torch.Generator], work: Work
) -> Attribution:
    """Ones: `(N, H, W)`."""
    return Attribution(torch.ones(len(x), *x.shape[2:], device=x.device))
