"""One rule for maps without contrast, for numbers and for tensors."""

import numpy as np
import pytest
import torch

from salviz.engine import Explained
from salviz.flatness import is_flat
from salviz.overlay import colorize

ENDS = [
    (0.0, 0.0, True),
    (2.0, 2.0, True),
    (-3.0, -3.0 - 2e-6, True),
    (2.0, 2.0 + 1.9e-6, True),
    (2.0, 2.0 + 2.1e-6, False),
    (0.0, 1e-30, False),  # nothing but its own size says what is small: methods know the scale of their scores
    (-1e-7, 1e-7, False),
    (float("nan"), 1.0, False),
]


@pytest.mark.parametrize(("low", "high", "expected"), ENDS)
def test_a_span_below_a_millionth_of_the_values_is_rounding(low: float, high: float, expected: bool) -> None:
    assert is_flat(low, high) is expected
    assert is_flat(high, low) is expected
    ends = [torch.tensor([end, 0.5], dtype=torch.float64) for end in (low, high)]
    assert is_flat(*ends).tolist() == [expected, True]


@pytest.mark.parametrize("step", [0, 1, 12])
def test_what_is_told_and_what_is_drawn_agree(step: int) -> None:
    """A map of two neighbouring float32 numbers has one colour and is told as flat; a dozen apart has two."""
    values = torch.full((1, 2, 2), 1.0)
    values[0, 0, 0] += step * torch.finfo(torch.float32).eps
    told = Explained(
        values, torch.zeros(1, 2), torch.zeros(1), None, None, None, None, 1.0, 0.0, (2, 2), (1.0,)
    ).is_flat
    colours = colorize(values[0].numpy(), "viridis", 1.0, float(values.max()))
    assert told.item() == (len(np.unique(colours.reshape(-1, 3), axis=0)) == 1) == (step < 12)
