"""Files that come with Salviz: those of a checkout, or where a wheel has put them."""

from __future__ import annotations

import sysconfig
from pathlib import Path


def find_asset(name: str) -> Path | None:
    """A file of `assets/`.

    Args:
        name: Its path below `assets/`, with forward slashes.

    Returns:
        Its path, or None where it is in neither place.
    """
    checkout = Path(__file__).parents[1] / "assets"
    installed = Path(sysconfig.get_path("data")) / "share" / "salviz"
    return next((path / name for path in (checkout, installed) if (path / name).is_file()), None)
