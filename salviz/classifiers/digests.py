"""Content digests: of files that must be the published ones, and of a model's weights."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, computed once a process as long as the file does not change."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Hex digest of what a model computes with: names, shapes, dtypes and bytes of its state dict.

    It depends neither on the device nor on the memory layout nor on the order of the entries.

    Args:
        module: Any module.

    Returns:
        64 hex digits (BLAKE2b of 32 bytes).
    """
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()
