"""How many images fit in one model pass: fewer than elsewhere where a net's activations are large for the memory.

On a CPU it must be known beforehand: many systems promise more memory than there is, and end a process that takes it.
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch

from salviz.classifiers.classifier import Classifier
from salviz.memory import total
from salviz.work import fitting, is_out_of_memory

_SHARE = 0.5
"""Of the memory that activations may take; the rest is for weights, results, the system and other programs."""

_TIMES = 2
"""What a pass takes, in what its forward keeps for its backward: gradients come on top, and what methods keep."""

_PIXEL = 6 * 2**10
"""Bytes that a forward keeps for a pixel of the input, more than most nets do (ResNet-50 1.7 kB, ViT-L/16 5.5 kB).

Where as much fits nothing is measured. Of a net that keeps up to twice as much, passes then still fit into memory.
"""

_known: WeakKeyDictionary[Classifier, dict[tuple[int, int], int]] = WeakKeyDictionary()


def images_in_pass(classifier: Classifier, size: tuple[int, int]) -> int:
    """Images in one model pass where nobody says how many: what suits the device, or as many as memory has room for.

    Depends on the machine's memory and not on what is free of it, so that equal runs have equal digits.

    Args:
        classifier: What is explained.
        size: `(height, width)` of the input.

    Returns:
        At least one.
    """
    most = fitting(classifier.device)
    room = _SHARE * _memory(classifier.device)
    if most * _TIMES * _PIXEL * size[0] * size[1] <= room:
        return most
    try:
        each = _TIMES * kept(classifier, size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 1
    return max(1, min(most, int(room // max(each, 1))))


def kept(classifier: Classifier, size: tuple[int, int]) -> int:
    """Bytes that a forward of one image keeps for its backward, weights left out; measured once a net and size.

    It is the net as published that is measured: the copy that passes run through keeps less, but some methods take the
    layers apart again.

    Args:
        classifier: Is run on a grey picture.
        size: `(height, width)` of it.
    """
    while classifier.like is not None:
        classifier = classifier.like
    sizes = _known.setdefault(classifier, {})
    if size not in sizes:
        with classifier.lock, torch.inference_mode(mode=False), torch.enable_grad():
            sizes[size] = _measured(classifier, size)
    return sizes[size]


def _measured(classifier: Classifier, size: tuple[int, int]) -> int:
    module = classifier.module
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # Several steps may keep the same one, or views of it.
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(1, 3, *size, device=classifier.device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # Held until all are counted, so that no two of them had the same place one after the other.
        logits = classifier.forward(x, is_published=True)
    del logits
    return sum(found.values())


def _memory(device: torch.device) -> float:
    """Bytes of memory where a device computes."""
    if device.type == "cpu":
        return total()
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(torch.mps.recommended_max_memory()) if device.type == "mps" else math.inf
