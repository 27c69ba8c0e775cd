"""Pieces of activations: every place once, whatever their layout."""

import pytest
import torch

from salviz import pieces as module
from salviz.pieces import parts, pieces

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a part": lambda x: torch.cat([x, x])[len(x) :],
    "one for all": lambda x: x[:1],
}


@pytest.mark.parametrize("size", [1, 500, 1000, 10**9])
@pytest.mark.parametrize("one", LAYOUTS)
@pytest.mark.parametrize("other", LAYOUTS)
def test_parts_are_the_same_images_of_all(size: int, one: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BYTES", size)
    first = torch.arange(3 * 5 * 6 * 4.0).view(3, 5, 6, 4)
    a, b, c = first.clone(), LAYOUTS[one](first * 10), LAYOUTS[other](first * 100)
    into = torch.full_like(a, torch.nan)
    found = list(parts(a, b, c, into))
    for a_, b_, c_, into_ in found:
        assert into_.isnan().all()
        torch.add(a_, b_, out=into_).add_(c_)
    assert torch.equal(into, a + b + c)
    # An image has 480 bytes.
    assert len(found) == {1: 3, 500: 3, 1000: 2, 10**9: 1}[size]


def test_pieces_of_vectors_of_nothing_and_elsewhere() -> None:
    assert list(pieces(torch.ones(5, 7))) == [slice(0, 74898)]
    assert [len(part) for (part,) in parts(torch.ones(0, 7))] == [0]
    # Nothing is gained by cutting up what another device has in its own memory.
    assert [len(part) for (part,) in parts(torch.ones(2, 2**21, device="meta"))] == [2]
