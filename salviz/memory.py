"""How a process of Salviz' own treats memory that it has freed."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of its settings (`malloc.h`)."""

_NEVER = -1
_LARGE = (2**30, 2**25)
"""Bytes; glibc before 2.35 refuses more than the second."""

_kept = False

_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Files of a container's limit, by version of the kernel's control groups."""


def keep_freed() -> bool:
    """Have what is freed kept for what is wanted next, instead of given back to the system.

    Activations of tens of megabytes come and go with every layer. C's library gives each back at once and has the
    system clear the next one, page by page, while all threads wait. The process' size stays what it was at its largest.
    For programs that compute for a while and end, not for a library: it holds for all that runs in the process. It is
    the main thread that gains; what other threads free goes back as before. Passes are larger from then on, see
    `work.fitting`.

    Returns:
        Whether there was something to set: nothing is where the library is not glibc.
    """
    global _kept
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # One without the other would be slower than neither: it ends the library's own adapting.
    _kept = any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGE) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
    return _kept


def keeps_freed() -> bool:
    """Whether `keep_freed` has been called, and there was something to set."""
    return _kept


@cache
def total(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process may have: the machine's, or fewer in a container that is given fewer.

    Args:
        groups: Where the kernel tells of containers.
    """
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in _LIMITS:
        # No such file, or one that says `max`.
        with suppress(OSError, ValueError):
            found = min(found, int((groups / name).read_text()))
    return found
