"""What can be loaded, described without loading anything: neither torch nor timm is imported here.

The app's first paint lists classifiers; importing torch for that would take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from salviz.assets import find_asset
from salviz.classifiers.packaged import PACKAGED, find_packaged, torch_checkpoints


@dataclass(frozen=True)
class ClassifierCard:
    """A suggested classifier.

    Attributes:
        id: As accepted by `salviz.load`.
        title: Name shown to people.
        family: The kind of architecture, for grouping.
        megabytes: Size of the weights in 10^6 bytes, rounded.
        source: `package` where a pip package carries the weights, `shipped` where they come with Salviz, `hub` where
            they are fetched once.
        licence: SPDX id of the weights' licence, or what is known of it.
        note: Where the papers behind Salviz use it, or why it stands here.
    """

    id: str
    title: str
    family: str
    megabytes: int
    source: Literal["package", "shipped", "hub"]
    licence: str
    note: str


DINO = "dino_vitb16"
"""DINO's ViT-B/16: a backbone from the hub and a classifying layer from its authors' site (see `dino`)."""
DINO_REPOSITORY = "timm/vit_base_patch16_224.dino"
DINO_HEAD = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_linearweights.pth"

TWINS: dict[str, str] = {
    "fashion_cnn_twin": "fashion_cnn_permuted",
    "fashion_vit_twin": "fashion_vit_permuted",
}
"""Nets and those that differ from them in nothing but permuted labels (Adebayo et al. 2018, section 5)."""


def shipped_file(id: str) -> str:
    """The asset that holds a shipped classifier."""
    return f"fashion/{id}.safetensors"


_FASHION = tuple(
    ClassifierCard(
        id=f"fashion_{kind}{end}", title=f"Fashion {title}{words}", family=family, megabytes=1, source="shipped",
        licence="MIT", note=note,
    )
    for kind, title, family in (("cnn", "CNN", "ResNet"), ("vit", "ViT", "ViT"))
    for end, words, note in (
        ("", "", "Fashion-MNIST at 28 pixels, with ten checkpoints of its training."),
        (
            "_twin",
            ", same pictures, true labels",
            "Learnt the pictures of its twin with permuted labels, with the true ones.",
        ),
        ("_permuted", ", permuted labels", "Knows ten thousand permuted labels by heart, and nothing about clothes."),
    )
)  # fmt: skip

SHIPPED: dict[str, ClassifierCard] = {card.id: card for card in _FASHION}
"""The classifiers whose weights come with Salviz."""

CARDS: tuple[ClassifierCard, ...] = (
    ClassifierCard(
        id="tf_efficientnet_lite0",
        title="EfficientNet-Lite0",
        family="EfficientNet",
        megabytes=19,
        source="package",
        licence="Apache-2.0",
        note="The default: small and fast, with weights that come with Salviz.",
    ),
    ClassifierCard(
        id="tf_efficientnet_lite1",
        title="EfficientNet-Lite1",
        family="EfficientNet",
        megabytes=22,
        source="package",
        licence="Apache-2.0",
        note="A deeper EfficientNet-Lite with input of 240 pixels.",
    ),
    ClassifierCard(
        id="tf_efficientnet_lite2",
        title="EfficientNet-Lite2",
        family="EfficientNet",
        megabytes=25,
        source="package",
        licence="Apache-2.0",
        note="The largest of the three packaged EfficientNet-Lites, with input of 260 pixels.",
    ),
    ClassifierCard(
        id="mobilenet_v2",
        title="MobileNetV2",
        family="MobileNet",
        megabytes=14,
        source="package",
        licence="BSD-3-Clause",
        note="torchvision's; another architecture that works without a hub.",
    ),
    *SHIPPED.values(),
    ClassifierCard(
        id="timm:resnet50.tv_in1k",
        title="ResNet-50",
        family="ResNet",
        megabytes=102,
        source="hub",
        licence="BSD-3-Clause",
        note="The network that nearly every saliency paper uses, with torchvision's first weights.",
    ),
    ClassifierCard(
        id="timm:convnext_tiny.fb_in1k",
        title="ConvNeXt-T",
        family="ConvNeXt",
        megabytes=114,
        source="hub",
        licence="Apache-2.0",
        note="The small sibling of the ConvNeXt-S in COSE.",
    ),
    ClassifierCard(
        id="timm:vit_base_patch16_224.augreg2_in21k_ft_in1k",
        title="ViT-B/16",
        family="ViT",
        megabytes=346,
        source="hub",
        licence="Apache-2.0",
        note="The supervised vision transformer of COSE's size, pretrained on ImageNet-21k.",
    ),
    ClassifierCard(
        id="timm:deit_small_patch16_224.fb_in1k",
        title="DeiT-S",
        family="ViT",
        megabytes=88,
        source="hub",
        licence="Apache-2.0",
        note="A small vision transformer trained on ImageNet-1k alone.",
    ),
    ClassifierCard(
        id="timm:swin_tiny_patch4_window7_224.ms_in1k",
        title="Swin-T",
        family="Swin",
        megabytes=113,
        source="hub",
        licence="MIT",
        note="COSE's windowed transformer, with Microsoft's own weights.",
    ),
    ClassifierCard(
        id=DINO,
        title="DINO ViT-B/16",
        family="ViT",
        megabytes=349,
        source="hub",
        licence="Apache-2.0",
        note="COSE's self-supervised vision transformer, with its authors' linear classifier on frozen features.",
    ),
)


def is_available_offline(id: str) -> bool:
    """Whether a classifier can be loaded without a network, as far as a look at the disk can tell.

    Cheap: files are looked for, not opened. For a timm name without a tag, and for torchvision names, cached
    weights of that architecture count whatever their version.

    Args:
        id: As accepted by `salviz.load`.
    """
    if id in PACKAGED:
        return find_packaged(id) is not None
    if id in SHIPPED:
        return find_asset(shipped_file(id)) is not None
    if id == DINO:
        return _in_hub_cache(DINO_REPOSITORY) and (torch_checkpoints() / DINO_HEAD.rpartition("/")[2]).is_file()
    library, _, name = id.partition(":")
    if library == "timm":
        return _in_hub_cache(f"timm/{name}") if "." in name else _any_in_hub_cache(f"timm/{name}.")
    if library == "hf-hub":
        return _in_hub_cache(name)
    if library == "torchvision":
        return any(torch_checkpoints().glob(f"{name.partition('.')[0].lower()}-*.pth"))
    path = Path(id.rpartition("@")[0] or id).expanduser()
    return path.suffix.lower() == ".safetensors" and path.is_file()


def _in_hub_cache(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name, _, revision = repository.partition("@")
    try:
        found = try_to_load_from_cache(name, "model.safetensors", revision=revision or None)
    except HFValidationError:
        return False
    return isinstance(found, str)


def _any_in_hub_cache(start: str) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob(f"models--{start.replace('/', '--')}*")
    return any(_in_hub_cache(folder.name.removeprefix("models--").replace("--", "/", 1)) for folder in folders)
