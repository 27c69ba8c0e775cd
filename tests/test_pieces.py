"""Pieces and strips of activations: every place once, whatever their layout."""

import pytest
import torch
from torch import Tensor

from salviz import pieces as module
from salviz.pieces import pieces, strips

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "neither": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "a part": lambda x: torch.cat([x, x])[len(x) :],
    "one for all": lambda x: x[:1],
}


@pytest.fixture(params=[4, 100, 1000, 10**9], ids="bytes={}".format)
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "_STRIP_BYTES", request.param)
    size: int = request.param
    return size


@pytest.mark.parametrize("one", LAYOUTS)
@pytest.mark.parametrize("other", LAYOUTS)
def test_strips_are_the_same_places_of_all(size: int, one: str, other: str) -> None:
    first = torch.arange(3 * 5 * 6 * 4.0).view(3, 5, 6, 4)
    a, b = LAYOUTS["channels last"](first.clone()), LAYOUTS[one](first * 10)
    c, into = LAYOUTS[other](first * 100), torch.full_like(a, torch.nan)
    expected = a + b + c
    found = list(strips(a, b, c, into))
    for a_, b_, c_, into_ in found:
        assert into_.isnan().all()
        torch.add(a_, b_, out=into_).add_(c_)
    assert torch.equal(into, expected)
    image = 4 * first[0].numel()
    if one == other == "channels last":
        assert len(found) == sum(-(-image * len(first[rows]) // size) for rows in pieces(first, size))


def test_strips_of_vectors_and_of_nothing() -> None:
    def seen(x: Tensor) -> int:
        return sum(len(part) for (part,) in strips(x))

    assert seen(torch.ones(5, 7)) == 5
    assert seen(torch.ones(0, 7)) == 0
    assert sum(part.numel() for (part,) in strips(torch.ones(2, 2**21, device="meta"))) == 2**22
