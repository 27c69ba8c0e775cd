"""DINO ViT-B/16 with its authors' linear ImageNet classifier: COSE's self-supervised transformer.

timm has the backbone as safetensors; the linear layer is published by the authors alone, as a `.pth`. It is opened
as tensors only (`weights_only=True`), and names and shapes must fit.
"""

from __future__ import annotations

import pickle
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from salviz.classifiers.building import building
from salviz.classifiers.classifier import Draft
from salviz.classifiers.downloads import fetch_from_hub, fetch_tensors
from salviz.classifiers.labels import Labels
from salviz.classifiers.preprocessing import Preprocessing
from salviz.classifiers.registry import DINO, DINO_HEAD, DINO_REPOSITORY
from salviz.classifiers.weights import fill, read_tensors
from salviz.errors import ClassifierError

TITLE = "DINO ViT-B/16"

_ARCHITECTURE = "vit_base_patch16_224"
_BACKBONE = "model.safetensors"
_HEAD_PREFIX = "module.linear."
_WIDTH, _CLASSES = 768, 1000


class TokenHead(nn.Module):
    """Linear classifier on the class token and the mean patch token (DINO's `eval_linear`, ViT-B setting).

    Args:
        width: Size of a token.
        classes: Number of classes.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(N, 1 + patches, width)` normed tokens -> `(N, classes)` logits."""
        # The two vectors lie feature by feature beside each other, as the weights were trained.
        both = torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=-1)
        logits: Tensor = self.linear(both.flatten(1))
        return logits


def build() -> nn.Module:
    """The architecture with random weights; module names are those of timm's ViT."""
    module = timm.create_model(_ARCHITECTURE, pretrained=False, num_classes=0, global_pool="")
    module.head = TokenHead(_WIDTH, _CLASSES)
    return module


def draft_dino() -> Draft:
    """The classifier, from the hub's cache and torch's, or from the network.

    Raises:
        ClassifierError: Not fetchable, too large, damaged, or not the published shapes.
    """
    (backbone,) = fetch_from_hub(DINO_REPOSITORY, (_BACKBONE,))
    head = _read_head()
    with building():
        module = build()
    fill(module, {**read_tensors(backbone, TITLE), **head}, TITLE)
    # `eval_linear`'s transforms: shorter side to 256, centre 224.
    preprocessing = Preprocessing.from_timm(
        {
            "input_size": (3, 224, 224),
            "interpolation": "bicubic",
            "crop_pct": 224 / 256,
            "crop_mode": "center",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
        }
    )
    labels = Labels.from_timm({}, _CLASSES)
    return Draft(DINO, TITLE, module, preprocessing, labels, f"timm:{_ARCHITECTURE}.dino", build)


def _read_head() -> dict[str, Tensor]:
    """The linear layer's tensors under this module's names."""
    path = fetch_tensors(DINO_HEAD, TITLE)
    try:
        published: Any = torch.load(path, map_location="cpu", weights_only=True)
        state = published["state_dict"]
        return {f"head.linear.{name.removeprefix(_HEAD_PREFIX)}": tensor for name, tensor in state.items()}
    except (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, AttributeError, EOFError, OSError) as error:
        path.unlink(missing_ok=True)
        raise ClassifierError(
            f"The classifying layer of {TITLE} arrived damaged and was removed from the cache; try again."
        ) from error
