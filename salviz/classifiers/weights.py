"""Safetensors files: reading them and filling a module with them, strictly."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from salviz.errors import ClassifierError


def read_header(path: Path, name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """What a safetensors file says of itself, without reading tensors.

    Args:
        path: The file.
        name: What to call it in messages.

    Returns:
        Shapes by tensor name, and the metadata of its header.

    Raises:
        ClassifierError: It is missing or not a sound safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            return shapes, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise ClassifierError(_damaged(name)) from error


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        ClassifierError: It is missing or not a sound safetensors file.
    """
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise ClassifierError(_damaged(name)) from error


def _damaged(name: str) -> str:
    return f"{name} is not a sound safetensors file (cut short, damaged or another format); get it again."


def fill(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Copy tensors into a module: every name and every shape must fit.

    Only counters of batches may be absent on either side; they play no part in eval mode. Half-precision
    tensors are widened to the module's dtype.

    Args:
        module: Filled in place.
        state: Tensors by name.
        name: What to call their source in messages.

    Raises:
        ClassifierError: A tensor is missing, superfluous or of another shape or kind.
    """
    own = module.state_dict()
    wanted = {key for key in own if not key.endswith("num_batches_tracked")}
    given = {key for key in state if not key.endswith("num_batches_tracked")}
    for key in sorted(wanted & given):
        if own[key].shape != state[key].shape:
            raise ClassifierError(
                f"{name} does not fit its architecture: tensor {key} has shape {_shape(state[key])} where"
                f" {_shape(own[key])} is needed, so use the architecture that it was trained with."
            )
        if own[key].is_floating_point() != state[key].is_floating_point():
            raise ClassifierError(
                f"{name} does not fit its architecture: tensor {key} is {state[key].dtype}, so give"
                " unquantised weights."
            )
    if wanted != given:
        missing, extra = sorted(wanted - given), sorted(given - wanted)
        what = f"{len(missing)} tensors are missing" if missing else f"{len(extra)} tensors are unknown to it"
        raise ClassifierError(
            f"{name} does not fit its architecture: {what} (such as {(missing or extra)[0]}), so give the"
            " architecture that it was trained with."
        )
    with torch.no_grad():
        module.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "scalar"
