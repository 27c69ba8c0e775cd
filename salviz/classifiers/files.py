"""Classifiers from the user's own safetensors files."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from salviz.classifiers.architectures import Architecture, find_architecture
from salviz.classifiers.building import building
from salviz.classifiers.classifier import Checkpoint, Draft
from salviz.classifiers.labels import Labels
from salviz.classifiers.preprocessing import Preprocessing
from salviz.classifiers.weights import fill, read_header, read_tensors
from salviz.errors import ClassifierError

_CHECKPOINT = ".checkpoint-"


def draft_file(id: str, *, architecture: str | None = None) -> Draft:
    """A classifier from a `.safetensors` file.

    The number of classes is read from the file. Its header may hold, as strings: `title`; `labels`, a JSON
    list of names; `input_size`, a JSON number or `[height, width]` in pixels; `mean` and `std`, JSON lists of
    three numbers in units of [0, 1]. Without `input_size`, `mean` and `std` the architecture's own are taken.
    Files `<stem>.checkpoint-<label>.safetensors` beside it become its checkpoints, in natural order.

    Args:
        id: `path/to/file.safetensors@timm:<name>` (or `@torchvision:<name>`), or the path alone.
        architecture: `timm:<name>`, `torchvision:<name>` or `salviz:<name>`, where the id does not hold it.

    Raises:
        ClassifierError: Not safetensors, missing, damaged, not fitting the architecture, bad metadata.
    """
    path, architecture = _split(id, architecture)
    if not path.is_file():
        raise ClassifierError(f"There is no file {path.name}; check the path.")
    found = find_architecture(architecture)
    shapes, metadata = read_header(path, path.name)
    classes = _classes(shapes, found, path.name)
    preprocessing = _preprocessing(metadata, found.preprocessing, path.name)
    # Set only where it differs: not every architecture with a fixed size can be told one.
    size = preprocessing.input_size if preprocessing.input_size != found.preprocessing.input_size else None
    rebuild = partial(found.build, classes, size=size)
    with building():
        module = rebuild()
    fill(module, read_tensors(path, path.name), path.name)
    return Draft(
        id=f"{path}@{found.id}",
        title=metadata.get("title") or path.stem,
        module=module,
        preprocessing=preprocessing,
        labels=_labels(metadata, classes, path.name),
        architecture=found.id,
        rebuild=rebuild,
        checkpoints=find_checkpoints(path),
    )


def find_checkpoints(path: Path) -> tuple[Checkpoint, ...]:
    """Siblings `<stem>.checkpoint-<label>.safetensors` of a file, in natural order of their labels."""
    start = path.stem + _CHECKPOINT
    found = [
        (other.stem.removeprefix(start), other)
        for other in path.parent.iterdir()
        if other.suffix == ".safetensors" and other.stem.startswith(start)
    ]
    return tuple(Checkpoint(label, other) for label, other in sorted(found, key=lambda pair: _natural(pair[0])))


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key by which `epoch-9` comes before `epoch-10`."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def _split(id: str, architecture: str | None) -> tuple[Path, str]:
    """Path and architecture of an id."""
    # From the right, and only where a library's name follows: a folder may have an @ in its name.
    match = re.fullmatch(r"(?P<path>.+)@(?P<architecture>(?:timm|torchvision|salviz):.+)", id)
    text = match["path"] if match else id
    named = match["architecture"] if match else None
    path = Path(text).expanduser()
    if path.suffix.lower() != ".safetensors":
        raise ClassifierError(
            f"{path.name} may run code when opened, so Salviz reads .safetensors files only; convert it with"
            " safetensors.torch.save_file(model.state_dict(), path)."
        )
    if named and architecture and named != architecture:
        raise ClassifierError(f"Two architectures are given, {named} and {architecture}; give one of them.")
    chosen = named or architecture
    if chosen is None:
        raise ClassifierError(
            f"{path.name} holds weights only; add its architecture, as in"
            f" {path.name}@timm:resnet50 or @torchvision:resnet50."
        )
    return path, chosen


def _classes(shapes: dict[str, tuple[int, ...]], found: Architecture, name: str) -> int:
    """Number of classes: rows of the head's tensor."""
    for key in found.head:
        if shapes.get(key):
            return shapes[key][0]
    wanted = f" (a tensor {found.head[0]})" if found.head else ""
    raise ClassifierError(
        f"{name} does not hold the classifying layer{wanted} of {found.id}, so give the architecture that it"
        " was trained with."
    )


def _json(metadata: dict[str, str], key: str, name: str) -> Any:
    try:
        return json.loads(metadata[key])
    except ValueError as error:
        raise ClassifierError(
            f"The {key} in the header of {name} is not valid JSON; save the file with it written as JSON."
        ) from error


def _labels(metadata: dict[str, str], classes: int, name: str) -> Labels:
    if "labels" not in metadata:
        # A thousand classes without names are ImageNet's wherever people exchange such files.
        return (Labels.imagenet() if classes == 1000 else None) or Labels.numbered(classes)
    names = _json(metadata, "labels", name)
    if not isinstance(names, list) or not all(isinstance(text, str) for text in names):
        raise ClassifierError(f"The labels in the header of {name} must be a JSON list of names; save it so.")
    if len(names) != classes:
        raise ClassifierError(
            f"The header of {name} names {len(names)} classes and its weights have {classes}; give one name a class."
        )
    return Labels(tuple(names))


def _preprocessing(metadata: dict[str, str], published: Preprocessing, name: str) -> Preprocessing:
    """The architecture's preprocessing with what the header says otherwise."""
    numbers: dict[str, tuple[float, ...]] = {}
    for key, counts in (("input_size", (1, 2)), ("mean", (3,)), ("std", (3,))):
        if key in metadata:
            value = _json(metadata, key, name)
            values = value if isinstance(value, list) else [value]
            if len(values) not in counts or not all(type(item) in (int, float) for item in values):
                wanted = "a number or [height, width]" if key == "input_size" else "a list of three numbers"
                raise ClassifierError(f"The {key} in the header of {name} must be {wanted}; save it so.")
            numbers[key] = tuple(values)
    height, width = published.input_size
    resize = published.resize
    if "input_size" in numbers:
        sides = numbers["input_size"]
        new_height, new_width = int(sides[0]), int(sides[-1])
        # The resize keeps its ratio to the crop (224 of 256 becomes 112 of 128).
        if isinstance(resize, int) and new_height == new_width:
            resize = max(new_height, resize * new_height // height)
        else:
            before = (resize, resize) if isinstance(resize, int) else resize
            resize = (
                max(new_height, before[0] * new_height // height),
                max(new_width, before[1] * new_width // width),
            )
        height, width = new_height, new_width
    mean, std = numbers.get("mean", published.mean), numbers.get("std", published.std)
    return Preprocessing(
        input_size=(height, width),
        resize=resize,
        interpolation=published.interpolation,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        pad=published.pad,
        crop_mode=published.crop_mode,
    )
