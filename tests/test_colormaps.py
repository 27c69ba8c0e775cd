from __future__ import annotations

import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from salviz.colormaps import COLORMAPS, DEFAULT_DIVERGING, DEFAULT_SEQUENTIAL, colormap, lookup
from salviz.errors import RequestError


@pytest.mark.parametrize("colormap_id", COLORMAPS)
def test_table_is_matplotlibs(colormap_id: str) -> None:
    table = lookup(colormap_id)
    # From matplotlib's floats, which its own 8-bit colours round downwards.
    floats = np.array([matplotlib.colormaps[colormap_id](index)[:3] for index in range(256)])
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    excess = floats * 255 - table
    assert excess.min() >= -1e-9
    assert excess.max() <= 1


def test_table_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        lookup("inferno")[0] = 0
    assert lookup("inferno") is lookup("inferno")


def test_defaults_fit_their_purpose() -> None:
    assert not COLORMAPS[DEFAULT_SEQUENTIAL].is_diverging
    assert COLORMAPS[DEFAULT_DIVERGING].is_diverging
    assert "not perceptually uniform" in COLORMAPS["jet"].note.lower()


def test_diverging_tables_are_nearly_colourless_in_the_middle() -> None:
    for card in COLORMAPS.values():
        if card.is_diverging:
            middle = lookup(card.id)[128].astype(int)
            assert np.ptp(middle) < 10
            assert middle.min() > 200


def test_unknown_colormap_is_refused_with_the_choices() -> None:
    with pytest.raises(RequestError, match="'rainbow': choose one of inferno"):
        colormap("rainbow")
    with pytest.raises(RequestError, match="rainbow"):
        lookup("rainbow")


def test_display_modules_stay_light() -> None:
    """The first paint imports them: neither torch nor streamlit, and matplotlib only with the first table."""
    code = (
        "import sys, salviz.images, salviz.colormaps, salviz.overlay; salviz.images.samples();"
        "heavy = {'torch', 'streamlit', 'matplotlib', 'skimage', 'sklearn', 'scipy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
