"""Small classifiers for tests: hand-made nets and timm's tiny test models with random weights."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from torch import nn
from torch.nn import functional as F

from salviz.classifiers.classifier import Classifier
from salviz.classifiers.labels import Labels
from salviz.classifiers.preprocessing import Preprocessing
from tests.golden import cose_inputs

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


SAMPLE = frozenset(
    {
        *(
            "gradient",
            "smoothgrad",
            "full_grad",
            "integrated_gradients",
            "deeplift",
            "grad_cam",
            "score_cam",
            "occlusion",
        ),
        *("rise", "lime", "meaningful_perturbation", "lrp", "attention_rollout", "legrad", "random"),
    }
)
"""Methods that stand for all of their kind where there are not minutes for every one."""


def sampled(cases: Iterable[Any]) -> list[Any]:
    """Methods, or parameters whose last value is one; all but those of `SAMPLE` run with `pytest -m slow`."""
    given = [case if isinstance(case, ParameterSet) else pytest.param(case) for case in cases]
    return [
        case
        if case.values[-1] in SAMPLE
        else pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.slow])
        for case in given
    ]


def classifier_of(module: nn.Module, *, size: int | tuple[int, int], classes: int, name: str = "toy") -> Classifier:
    """A classifier around a module, frozen and in eval mode."""
    height, width = (size, size) if isinstance(size, int) else size
    module.eval().requires_grad_(False)
    return Classifier(
        id=name,
        title=name,
        module=module,
        preprocessing=Preprocessing((height, width), (height, width), "bilinear", IMAGENET_MEAN, IMAGENET_STD),
        labels=Labels.numbered(classes),
        architecture=name,
        digest=name,
        rebuild=lambda: module,
    )


class ToyNet(nn.Module):
    """The toy CNN of the golden file: functional ReLU, CAM layer `features`."""

    def __init__(self) -> None:
        super().__init__()
        weights = cose_inputs.TinyNetWeights()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.linear = nn.Linear(16, 10)
        for layer, w, b in (
            (self.conv1, weights.w1, weights.b1),
            (conv2, weights.w2, weights.b2),
            (self.linear, weights.w3, weights.b3),
        ):
            layer.weight.data = torch.from_numpy(w.copy())
            layer.bias.data = torch.from_numpy(b.copy())
        self.features = nn.Sequential(conv2, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        return self.linear(self.features(x).mean(dim=(2, 3)))


class LinearNet(nn.Module):
    """A linear model of the pixels: every attribution has a closed form."""

    def __init__(self, size: int, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(classes, 3 * size * size, generator=generator) / size)
        self.bias = nn.Parameter(torch.randn(classes, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@functools.cache
def toy() -> Classifier:
    return classifier_of(ToyNet(), size=32, classes=10)


@functools.cache
def timm_model(name: str, size: int | None = None) -> Classifier:
    """A timm architecture with random weights, the batch norms' statistics randomised too."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {} if size is None else {"img_size": size}
        module = timm.create_model(name, pretrained=False, **options)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
            if isinstance(part, nn.Linear):
                # timm's heads start near zero, where every map is flat.
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
    side = size or module.pretrained_cfg["input_size"][1]
    return classifier_of(module, size=side, classes=module.num_classes, name=name)


def images(count: int, size: int | tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Smooth random pictures in model space: `(count, 3, H, W)`."""
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic") + 0.1 * torch.randn(
        count, 3, height, width, generator=generator
    )


Build = Callable[[], Classifier]
