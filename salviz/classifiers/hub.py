"""Published classifiers by name: timm's, torchvision's, and Hugging Face repositories in timm's format.

Weights are safetensors, or a `.pth` whose SHA-256 its publisher put into its name. No code of a repository
runs.
"""

from __future__ import annotations

import difflib
import json
import pickle
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from torch import nn

from salviz.classifiers.architectures import timm_name, torchvision_name
from salviz.classifiers.building import building
from salviz.classifiers.classifier import Draft
from salviz.classifiers.downloads import check_size, fetch_from_hub, fetch_official
from salviz.classifiers.labels import Labels
from salviz.classifiers.preprocessing import Preprocessing
from salviz.classifiers.weights import fill, read_header, read_tensors
from salviz.errors import ClassifierError

_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
# What timm raises for a configuration or weights that do not fit together.
_UNFIT = (
    pickle.UnpicklingError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def draft_timm(name: str) -> Draft:
    """A pretrained timm model.

    Args:
        name: With or without a tag: `resnet50`, `resnet50.a1_in1k`.

    Raises:
        ClassifierError: Unknown, not a classifier, too large, not fetchable, or damaged.
    """
    found = timm_name(name)
    config = found.config
    repository, url = config.get("hf_hub_id"), config.get("url")
    if not repository and not url:
        raise ClassifierError(f"timm publishes no weights for {name}; pick a name that has them.")
    _require_classes(name, config.get("num_classes"))
    preprocessing = Preprocessing.from_timm(config)
    if repository:
        filename = config.get("hf_hub_filename") or _WEIGHTS
        if not filename.endswith(".safetensors"):
            raise ClassifierError(f"timm has no safetensors of {name}; pick another of its names.")
        (path,) = fetch_from_hub(repository, (filename,))
        _require_sound(path, name)
        _require_head(path, config, name)
    else:
        path = fetch_official(str(url), name)
    # timm reads the fetched file as if it had fetched it: with its own renaming and label offsets.
    overlay = {"file": str(path), "custom_load": False}
    module = _create(name, found.name, pretrained=True, pretrained_cfg_overlay=overlay)
    return Draft(
        id=f"timm:{name}",
        title=found.resolved,
        module=module,
        preprocessing=preprocessing,
        labels=Labels.from_timm(config, int(config["num_classes"])),
        architecture=f"timm:{found.resolved}",
        rebuild=partial(timm.create_model, found.name, pretrained=False),
    )


def draft_hub(repository: str) -> Draft:
    """A classifier from a Hugging Face repository in timm's format: `config.json` and `model.safetensors`.

    Args:
        repository: `org/name` or `org/name@revision`.

    Raises:
        ClassifierError: Unknown, gated, too large, without safetensors, not timm's format, not a classifier,
            damaged, or its weights do not fit its configuration.
    """
    own = repository.removeprefix("timm/")
    if own != repository and own in _pretrained_names():
        # The installed timm knows how to read its own weights, including those of older namings.
        return replace(draft_timm(own), id=f"hf-hub:{repository}")
    weights, config_file = fetch_from_hub(repository, (_WEIGHTS, _CONFIG))
    _require_sound(weights, repository)
    if weights.parent != config_file.parent:
        raise ClassifierError(f"{repository} changed while it was being fetched; try again.")
    return draft_folder(config_file.parent, id=f"hf-hub:{repository}", name=repository)


def draft_folder(folder: Path, *, id: str, name: str) -> Draft:
    """A classifier from a local folder in timm's format.

    Args:
        folder: Holds `config.json` and `model.safetensors`.
        id: Id of the classifier.
        name: What to call it in messages and as its title.

    Raises:
        ClassifierError: See `draft_hub`.
    """
    architecture = _read_architecture(folder / _CONFIG, name)
    read_header(folder / _WEIGHTS, name)
    source = f"local-dir:{folder}"
    module = _create(name, source, pretrained=False)
    config: Mapping[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    classes = _require_classes(name, module.num_classes)
    preprocessing = Preprocessing.from_timm(config)
    # timm exports its models under their native names, so nothing may be missing or left over.
    fill(module, read_tensors(folder / _WEIGHTS, name), name)
    return Draft(
        id=id,
        title=name,
        module=module,
        preprocessing=preprocessing,
        labels=Labels.from_timm(config, classes),
        architecture=f"timm:{architecture}",
        rebuild=partial(timm.create_model, source, pretrained=False),
    )


def _read_architecture(path: Path, name: str) -> str:
    """Name of the architecture in timm's `config.json`, after checking that timm can be given the rest."""
    foreign = f"{name} is not in timm's format; pick a repository made with timm, or one of timm's own names."
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClassifierError(foreign) from error
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str):
        raise ClassifierError(foreign)
    if not timm.is_model(architecture):
        raise ClassifierError(
            f"The installed timm {timm.__version__} has no architecture {architecture!r}, which {name} needs;"
            " install a newer timm."
        )
    options = config.get("model_args", {})
    # Arguments of timm's loader among those of the model could make it fetch other files.
    if not isinstance(options, dict) or any(key.startswith(("pretrained", "checkpoint")) for key in options):
        raise ClassifierError(foreign)
    return architecture


def _create(name: str, source: str, **options: Any) -> nn.Module:
    """`timm.create_model` with one sentence for what it raises."""
    try:
        with building():
            return timm.create_model(source, **options)
    except _UNFIT as error:
        raise ClassifierError(
            f"The weights or the configuration of {name} do not fit the architecture in the installed timm"
            f" {timm.__version__}; install another timm version or pick another classifier."
        ) from error


def _require_classes(name: str, classes: Any) -> int:
    """Number of classes, which must be a classifier's."""
    if not isinstance(classes, int) or classes < 2:
        raise ClassifierError(
            f"{name} is not an image classifier: its weights have no classifying layer, so pick weights that"
            " were fine-tuned for classification."
        )
    return classes


def _require_sound(path: Path, name: str) -> None:
    """Refuse a damaged file of the cache, and remove it, as the cache would be used again next time."""
    try:
        read_header(path, name)
    except ClassifierError as error:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise ClassifierError(
            f"The weights of {name} arrived damaged and were removed from the cache; try again, or pick"
            " another classifier if that does not help."
        ) from error


def _require_head(path: Path, config: Mapping[str, Any], name: str) -> None:
    """Refuse weights whose head timm would silently replace by random numbers."""
    shapes, _ = read_header(path, name)
    heads = config.get("classifier") or ()
    rows = int(config["num_classes"]) + int(config.get("label_offset") or 0)
    for head in (heads,) if isinstance(heads, str) else heads:
        shape = shapes.get(f"{head}.weight")
        if shape is not None and shape[0] != rows:
            raise ClassifierError(
                f"The weights of {name} have {shape[0]} classes where {rows} are expected; pick another classifier."
            )


def draft_torchvision(name: str) -> Draft:
    """A pretrained torchvision classifier.

    Args:
        name: `resnet50` (its best weights) or `resnet50.IMAGENET1K_V1`.

    Raises:
        ClassifierError: Unknown, too large, not fetchable, or damaged.
    """
    import torchvision.models

    base, weights = torchvision_name(name)
    check_size(name, float(weights.meta.get("_file_size", 0)))
    fetch_official(weights.url, name)
    try:
        # torchvision's own loader finds the checked file in torch's cache, and knows what else a model needs
        # (Inception and GoogLeNet transform their input only when they come with weights).
        with building():
            module = torchvision.models.get_model(base, weights=weights)
    except _UNFIT as error:
        raise ClassifierError(
            f"The weights of {name} do not fit the installed torchvision; install another version of it."
        ) from error
    options = {key: getattr(module, key) for key in ("transform_input", "aux_logits") if hasattr(module, key)}
    if options:
        options["init_weights"] = True
    return Draft(
        id=f"torchvision:{name}",
        title=f"{base} ({weights.name})",
        module=module,
        preprocessing=Preprocessing.from_torchvision(weights.transforms()),
        labels=Labels.from_categories(weights.meta["categories"]),
        architecture=f"torchvision:{base}.{weights.name}",
        rebuild=partial(torchvision.models.get_model, base, weights=None, **options),
    )


def timm_names(query: str | None = None, *, classifiers_only: bool = False) -> list[str]:
    """Names of timm's pretrained weights, without the `timm:` of an id.

    Args:
        query: Words in any order, as a person types them: `resnet50`, `vit base 16`, `convnxt tiny`. None or
            empty lists every name in alphabetical order.
        classifiers_only: Leave out backbones, whose weights have no classifying layer.

    Returns:
        Matching names, best first: the architecture of exactly that name, architectures and names beginning
        with it, names containing it, names containing all its words; where none does, names spelt like it.
    """
    names = _classifier_names() if classifiers_only else _pretrained_names()
    wanted = _squeeze(query or "")
    if not wanted:
        return list(names)
    words = [_squeeze(word) for word in re.split(r"[\s_./-]+", query or "") if word]
    ranked: list[tuple[int, int, int, str]] = []
    variants = Counter(name.partition(".")[0] for name in names)
    for position, name in enumerate(names):
        base, whole = _squeeze(name.partition(".")[0]), _squeeze(name)
        if base == wanted or whole == wanted:
            rank = 0
        elif base.startswith(wanted):
            rank = 1
        elif whole.startswith(wanted):
            rank = 2
        elif wanted in whole:
            rank = 3
        elif all(word in whole for word in words):
            rank = 4 if base.startswith(words[0]) else 5
        else:
            continue
        # Among equals the architecture with most weights is the best known; then timm's own natural order.
        ranked.append((rank, -variants[name.partition(".")[0]], position, name))
    if ranked:
        return [name for _, _, _, name in sorted(ranked)]
    bases = {_squeeze(name.partition(".")[0]): None for name in names}
    close = difflib.get_close_matches(wanted, list(bases), n=5, cutoff=0.7)
    return [name for match in close for name in names if _squeeze(name.partition(".")[0]) == match]


def _squeeze(text: str) -> str:
    """Letters and digits alone: people write `vit-b/16`, timm `vit_base_patch16`."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


@lru_cache(maxsize=1)
def _pretrained_names() -> tuple[str, ...]:
    return tuple(timm.list_models(pretrained=True))


@lru_cache(maxsize=1)
def _classifier_names() -> tuple[str, ...]:
    configs = ((name, get_pretrained_cfg(name)) for name in _pretrained_names())
    return tuple(name for name, config in configs if config is not None and (config.num_classes or 0) > 1)
