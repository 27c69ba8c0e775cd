"""Film strips as one picture: names of nets that fit above their maps."""

import pytest
import torch

from salviz import filmstrip
from salviz.render import Display
from salviz.sanity.strip import Strip


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("conv1", ["conv1"]),
        ("Fashion CNN, permuted labels", ["Fashion CNN,", "permuted", "labels"]),
        ("up to blocks.10.mlp.fc2", ["up to", "….10.mlp.fc2"]),
        ("", []),
    ],
)
def test_names_are_wrapped_and_long_words_keep_their_end(name: str, lines: list[str]) -> None:
    assert filmstrip.wrapped(name, 12, len) == lines


def sheet(name: str):
    strip = Strip(torch.zeros(3, 8, 8, dtype=torch.uint8), ("trained", name))
    for _ in strip.places:
        strip.add({"gradient": torch.rand(3, 8, 8)}, torch.zeros(10), 0)
    return filmstrip.sheet(strip, {"gradient": "Gradient"}, strip.places, {"gradient": Display()})


def test_a_long_name_gets_the_lines_it_needs_and_stays_above_its_own_map() -> None:
    short, long = sheet("conv1"), sheet("Fashion CNN, same pictures, true labels")
    assert long.shape[1] == short.shape[1]
    grown = long.shape[0] - short.shape[0]
    assert grown >= 2 * 12
    # The gap between the headings stays white, and so does the right edge.
    ink = (long[: long.shape[0] - 112 - 12] < 128).any(axis=(0, 2))
    left = long.shape[1] - 2 * 112 - 6
    assert ink[left + 112 + 6 :].any()
    assert not ink[left + 112 : left + 112 + 6].any()
    assert not ink[-2:].any()
