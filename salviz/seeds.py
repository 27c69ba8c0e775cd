"""Randomness that belongs to an image, not to its place in a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def seed_of(seed: int, image_digest: str, purpose: str) -> int:
    """A 63-bit seed from (seed, image, purpose): the same on every machine and in every order.

    Args:
        seed: The person's seed.
        image_digest: Content digest of the image.
        purpose: What the numbers are for, so that two uses never share a stream.
    """
    text = f"{seed}|{image_digest}|{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def tensor_digest(tensor: torch.Tensor) -> str:
    """Content digest of an image that came as a tensor: shape, type and values, whatever its device and layout."""
    content = tensor.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{tuple(content.shape)}|{content.dtype}|".encode(), digest_size=16)
    digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def generators(
    seed: int, image_digests: Sequence[str], purpose: str, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One generator an image, on `device`.

    The `meta` device has no generators; work placed there gets CPU ones, whose values are never read.
    """
    place = torch.device(device)
    made = []
    for digest in image_digests:
        generator = torch.Generator(device="cpu" if place.type == "meta" else place)
        generator.manual_seed(seed_of(seed, digest, purpose))
        made.append(generator)
    return made
