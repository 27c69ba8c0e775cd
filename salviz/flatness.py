"""When a map is flat: one rule for what is computed, drawn and told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-6
"""Below this share of the values' own size a difference is float32 rounding, not evidence."""


@overload
def is_flat(low: float, high: float) -> bool: ...
@overload
def is_flat(low: Tensor, high: Tensor) -> Tensor: ...
def is_flat(low: Any, high: Any) -> Any:
    """Whether a map's values differ by no more than rounding.

    Args:
        low: The lowest value, or the first end of a display range; of several maps a tensor.
        high: The highest value, or the other end, which may lie below.

    Returns:
        A truth value a map; false where an end is NaN.
    """
    span = abs(high - low)
    return (span <= ROUNDING * abs(low)) | (span <= ROUNDING * abs(high))
