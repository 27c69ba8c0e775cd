"""`load`: from an id to a frozen classifier on a device; and the changed models made from it."""

from __future__ import annotations

import difflib
import re
import threading
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from salviz.assets import find_asset
from salviz.classifiers.building import building
from salviz.classifiers.classifier import Checkpoint, Classifier, Draft
from salviz.classifiers.digests import weights_digest
from salviz.classifiers.labels import Labels
from salviz.classifiers.packaged import PACKAGED, draft_packaged
from salviz.classifiers.registry import CARDS, DINO, SHIPPED, shipped_file
from salviz.classifiers.weights import fill, read_tensors
from salviz.errors import ClassifierError

_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".tar", ".th", ".npz", ".joblib", ".h5")
_CHANGE = re.compile(r"(?P<id>.+)#(?:untrained-(?P<seed>\d+)|checkpoint-(?P<label>[^#]+))")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def load(
    id: str,
    *,
    device: str | torch.device = "auto",
    architecture: str | None = None,
    channels_last: bool | None = None,
    autocast: str | None = None,
) -> Classifier:
    """Load a classifier.

    Args:
        id: One of
            `tf_efficientnet_lite0`, `..._lite1`, `..._lite2`, `mobilenet_v2` (weights from pip packages),
            `fashion_cnn`, `fashion_vit` and their twins (28 pixels; weights come with Salviz),
            `dino_vitb16` (backbone from timm's hub, classifying layer from its authors),
            `timm:<name>`, `torchvision:<name>` or `torchvision:<name>.<weights>`,
            `hf-hub:<org/name>` (timm's format), `path/to/file.safetensors@timm:<name>` (or `@torchvision:`);
            any of them followed by `#untrained-<seed>` or `#checkpoint-<label>`.
        device: `auto` (CUDA, else MPS, else CPU) or what torch accepts, e.g. `cuda:1`.
        architecture: Of a `.safetensors` file whose id does not hold it.
        channels_last: Lay weights and inputs out channels-last. None does so on the CPU, where convolutions gain
            about a quarter, and leaves other devices as the model came.
        autocast: `bf16` or `fp16` for the passes of methods whose ranks survive it (RISE, Score-CAM); None for float32.

    Raises:
        ClassifierError: It cannot be found, fetched, trusted or built, or is not an image classifier.
    """
    where = _device(device)
    if autocast is not None and autocast not in _AUTOCAST:
        raise ClassifierError(f"autocast is {autocast!r}; give 'bf16', 'fp16' or None.")
    options: dict[str, Any] = {
        "device": where,
        "channels_last": where.type == "cpu" if channels_last is None else channels_last,
        "autocast": None if autocast is None else _AUTOCAST[autocast],
    }
    change = _CHANGE.fullmatch(id)
    if change is None:
        return _finish(_draft(id, architecture), **options)
    original = _finish(_draft(change["id"], architecture), **options)
    if change["seed"] is not None:
        return untrained(original, seed=int(change["seed"]))
    for checkpoint in original.checkpoints:
        if checkpoint.label == change["label"]:
            return at_checkpoint(original, checkpoint)
    raise ClassifierError(
        f"{original.title} has no checkpoint {change['label']!r}; name its file"
        " <stem>.checkpoint-<label>.safetensors and keep it beside the weights."
    )


def untrained(classifier: Classifier, *, seed: int = 0) -> Classifier:
    """The same architecture with fresh random weights, head included.

    Deterministic in `seed`; the global random state is left as it was.

    Args:
        classifier: Any classifier; not changed.
        seed: Of the weights.
    """
    with building(seed):
        module = classifier.rebuild()
        _fill_zero_head(module)
    return _changed(classifier, module, f"untrained-{seed}", f"{classifier.title}, untrained")


def at_checkpoint(classifier: Classifier, checkpoint: Checkpoint) -> Classifier:
    """The same architecture with weights saved during training.

    Args:
        classifier: Any classifier; not changed.
        checkpoint: One of `classifier.checkpoints`.

    Raises:
        ClassifierError: The file is missing, damaged or does not fit the architecture.
    """
    with building():
        module = classifier.rebuild()
    fill(module, read_tensors(checkpoint.path, checkpoint.path.name), checkpoint.path.name)
    title = f"{classifier.title}, checkpoint {checkpoint.label}"
    return _changed(classifier, module, f"checkpoint-{checkpoint.label}", title)


def _changed(classifier: Classifier, module: nn.Module, change: str, title: str) -> Classifier:
    """A classifier like `classifier` with other weights and its own lock."""
    _freeze(module, classifier.device, channels_last=classifier.channels_last)
    return replace(
        classifier,
        id=f"{classifier.id}#{change}",
        title=title,
        module=module,
        digest=weights_digest(module),
        checkpoints=(),
        lock=threading.RLock(),
    )


def _shipped(id: str) -> Draft:
    """One of the small classifiers that come with Salviz."""
    from salviz.classifiers.files import draft_file
    from salviz.classifiers.weights import read_header

    path = find_asset(shipped_file(id))
    if path is None:
        raise ClassifierError(f"The weights of {id} are missing from this installation; install Salviz again.")
    return replace(draft_file(str(path), architecture=read_header(path, path.name)[1]["architecture"]), id=id)


def _draft(id: str, architecture: str | None) -> Draft:
    """The classifier of an id as its source gives it."""
    library, _, name = id.partition(":")
    is_file = ".safetensors" in id or id.lower().partition("@")[0].endswith(_PICKLES)
    if architecture is not None and not is_file:
        raise ClassifierError(f"{id!r} has an architecture of its own; leave the architecture out.")
    if id in PACKAGED:
        return draft_packaged(id)
    if id in SHIPPED:
        return _shipped(id)
    if id == DINO:
        from salviz.classifiers.dino import draft_dino

        return draft_dino()
    # Imported here, as timm takes seconds and a wrong device should be said before.
    if library in ("timm", "torchvision", "hf-hub") and name:
        from salviz.classifiers import hub

        return {
            "timm": hub.draft_timm,
            "torchvision": hub.draft_torchvision,
            "hf-hub": hub.draft_hub,
        }[library](name)
    if is_file:
        from salviz.classifiers.files import draft_file

        return draft_file(id, architecture=architecture)
    known = [*PACKAGED, *(card.id for card in CARDS)]
    close = difflib.get_close_matches(id, known, n=1, cutoff=0.7)
    hint = f"did you mean {close[0]}?" if close else f"for one of timm's, write timm:{id}."
    raise ClassifierError(f"There is no classifier {id!r}; {hint}")


def _finish(draft: Draft, *, device: torch.device, channels_last: bool, autocast: torch.dtype | None) -> Classifier:
    """Freeze, place and probe."""
    digest = weights_digest(draft.module)
    _freeze(draft.module, device, channels_last=channels_last)
    classifier = Classifier(
        id=draft.id,
        title=draft.title,
        module=draft.module,
        preprocessing=draft.preprocessing,
        labels=draft.labels,
        architecture=draft.architecture,
        digest=digest,
        rebuild=draft.rebuild,
        checkpoints=draft.checkpoints,
        channels_last=channels_last,
        autocast=autocast,
    )
    classes = _probe(classifier)
    return classifier if classes == len(draft.labels) else replace(classifier, labels=Labels.numbered(classes))


def _freeze(module: nn.Module, device: torch.device, *, channels_last: bool) -> None:
    module.eval().requires_grad_(False)
    try:
        module.to(device)
    except (RuntimeError, AssertionError) as error:  # out of memory, or torch built without the device
        raise ClassifierError(
            f"The classifier could not be placed on {device}; free its memory or choose the CPU."
        ) from error
    if channels_last:
        module.to(memory_format=torch.channels_last)


def _probe(classifier: Classifier) -> int:
    """Number of classes, from one forward of a grey picture."""
    height, width = classifier.preprocessing.input_size
    try:
        logits = classifier.predict(torch.zeros(1, 3, height, width, device=classifier.device))
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
        NotImplementedError,
    ) as error:
        raise ClassifierError(
            f"{classifier.title} cannot process an RGB picture of {width} x {height} pixels on"
            f" {classifier.device}; check its input size or choose another device."
        ) from error
    if logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
        raise ClassifierError(
            f"{classifier.title} is not an image classifier: it gives {tuple(logits.shape)} numbers"
            " instead of one a class; pick one that does."
        )
    if not bool(logits.isfinite().all()):
        raise ClassifierError(
            f"{classifier.title} gives undefined numbers for a grey picture; its weights are damaged, or need"
            " autocast left out."
        )
    return int(logits.shape[1])


def _device(device: str | torch.device) -> torch.device:
    """The device meant, if it is there."""
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ClassifierError(f"There is no device {device!r}; give 'auto', 'cuda' or 'cpu'.") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        is_there = (chosen.index or 0) < count
    elif chosen.type == "mps":
        is_there = torch.backends.mps.is_available()
    else:
        is_there = chosen.type == "cpu"
    if not is_there:
        raise ClassifierError(f"This machine has no device {str(device)!r}; choose 'auto' or 'cpu'.")
    return chosen


def _fill_zero_head(module: nn.Module) -> None:
    """Give a classifying layer that its architecture starts at zero the usual random start.

    With zeros all logits of an untrained model are equal for every picture, and its maps undefined.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear) and not bool(part.weight.any()):
            nn.init.trunc_normal_(part.weight, std=0.02)
