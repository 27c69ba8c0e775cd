"""What running work is given besides its inputs: how much fits in one pass, whom to tell, what others found already."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from salviz.memory import keeps_freed, total

Progress = Callable[[int, int], None]
"""Called with (done, total) model passes over one image; raises `Cancelled` to stop the work."""

Found = TypeVar("Found")

_FEW = 8
"""Images in a pass of a CPU whose memory comes fresh from the system."""
_PLENTY = 12 * 2**30
"""Bytes of memory with which twice as many are no risk."""


def fitting(device: torch.device) -> int:
    """Images in one model pass where nobody says how many and memory has room for them (see `footprint`).

    On a CPU the activations of more than eight images mostly wait for the system to clear memory for them. Where the
    process keeps what it has freed nothing waits, and what begins and ends every layer is shared by more images: as
    many more as a machine has memory for, whatever the model.
    """
    if device.type != "cpu":
        return 32
    return 2 * _FEW if keeps_freed() and total() >= _PLENTY else _FEW


def even(count: int, most: int) -> int:
    """Images in each of the fewest passes, so that all are about alike.

    Of 49 images and at most 8 in a pass it is 7: a last pass of 1 would take as long as 2.

    Args:
        count: Images in all.
        most: Images in a pass at the most.
    """
    return math.ceil(count / math.ceil(count / most))


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
)
"""What PyTorch says, in small letters, where it has no exception of its own for it: for CPUs on Linux and Windows, for
Apple's GPUs, and in the names of C++ and CUDA's libraries."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, so that fewer images at once may do.

    PyTorch has an exception for it on CUDA; on a CPU it raises a `RuntimeError` with the allocator's words, and NumPy a
    `MemoryError`.

    Args:
        error: What was raised.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def silent(done: int, total: int) -> None:
    """Progress nobody listens to."""


@dataclass
class Work:
    """Batch budget and progress of one piece of work.

    Attributes:
        total: Image passes the whole work will take (an estimate is enough).
        batch_size: Images in one model pass at the most.
        progress: Called after every pass.
        done: Image passes made so far.
        wanted: Names of what the methods of the set share (`MethodCard.shares`), so that a pass can be made for one
            that comes later to go on from.
        classes: How many classes every image of the batch is explained for.
        first: The first of those that are explained now.
        each: How many are explained now: rows that show the same image, side by side.
    """

    total: int = 0
    batch_size: int = _FEW
    progress: Progress = silent
    done: int = field(default=0)
    wanted: frozenset[Hashable] = frozenset()
    classes: int = 1
    first: int = 0
    each: int = 1
    _shared: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def tick(self, images: int) -> None:
        """Report that `images` more image passes were made; may raise `Cancelled`."""
        self.done += images
        self.progress(self.done, max(self.total, self.done))

    def images(self, rows: Tensor) -> Tensor:
        """One of the rows of every image: `(N, ...)` -> `(N / each, ...)`.

        Whatever does not depend on the class is to be computed of these alone, and handed on with `rows`.
        """
        return rows[:: self.each]

    def rows(self, images: Tensor) -> Tensor:
        """What belongs to images, for every row that shows them: `(I, ...)` -> `(I * each, ...)`."""
        return images if self.each == 1 else images.repeat_interleave(self.each, dim=0)

    def places(self, images: Tensor) -> Tensor:
        """The rows that show images: their `(I,)` numbers -> `(I * each,)`."""
        if self.each == 1:
            return images
        return (images[:, None] * self.each + torch.arange(self.each, device=images.device)).flatten()

    def chunks(self, count: int) -> Iterator[slice]:
        """Cut `count` images into slices that fit in one pass, all about alike."""
        step = even(count, self.batch_size) if count else 1
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def copies(self, images: int) -> int:
        """How many changed copies of a batch of `images` fit in one pass; at least one."""
        return max(1, self.batch_size // max(images, 1))

    def once(self, name: Hashable, compute: Callable[[], Found], *, is_of_images: bool = False) -> Found:
        """What `compute` returns, computed by the first of the methods that explain this batch together.

        Only for what depends on nothing but the classifier, the batch, the target and what `name` says; nobody may
        change it.

        Args:
            name: Says what it is, settings included.
            compute: Makes it, and ticks.
            is_of_images: It does not depend on the classes, so that it serves them all.
        """
        key = name if is_of_images else self._key(name)
        if key not in self._shared:
            self._shared[key] = compute()
        found: Found = self._shared[key]
        return found

    def found(self, name: Hashable) -> Any:
        """What `once` has computed under this name for these classes or for the images, or None."""
        return self._shared.get(self._key(name), self._shared.get(name))

    def _key(self, name: Hashable) -> Hashable:
        return (name, self.first, self.each)

    def forget(self) -> None:
        """Drop what was shared: another batch comes, or memory ran out."""
        self._shared.clear()


class Parts:
    """Progress of work in parts, as progress of the whole."""

    def __init__(self, progress: Progress, total: float) -> None:
        """Nothing is made yet.

        Args:
            progress: Called with (done, total) of the whole.
            total: Image passes that are promised of all parts.
        """
        self._progress, self._total, self._before, self._now = progress, total, 0, 0

    def part(self, done: int, total: int) -> None:
        """Passes of the part at hand; a `Progress`."""
        self._now = done
        self._tell(self._before + done)

    def end(self, promised: float) -> None:
        """A part is through, maybe with fewer passes than were promised of it."""
        self._total += self._now - promised
        self._before += self._now
        if self._now != round(promised):
            self._tell(self._before)
        self._now = 0

    def _tell(self, done: int) -> None:
        self._progress(done, max(round(self._total), done))


def has_room_beside(device: torch.device) -> bool:
    """Whether something else can be computed while a model computes on a device, and costs it nothing.

    Not where the model's own threads have every core: they wait for each other after each layer, so that whatever
    takes a core away from one of them holds up all.

    Args:
        device: The model's.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return device.type != "cpu" or torch.get_num_threads() < cores


def helper(name: str) -> ThreadPoolExecutor:
    """A thread to prepare things in while the calling thread goes on computing on the CPU.

    PyTorch gives every thread that computes a team of its own. As soon as the teams' threads outnumber the cores,
    OpenMP has them all sleep between two layers instead of waiting awake, and a forward of many small layers takes a
    sixth longer for as long as the second team exists, idle or not. So the helper works without one.

    Args:
        name: Of the thread.
    """
    count = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        pool.submit(_work_alone).result()
    finally:
        # The number counts for the thread that sets it, and for those that are yet to come.
        torch.set_num_threads(count)
    return pool


def _work_alone() -> None:
    # A thread's first look takes the number that the others have, so it must come first.
    torch.get_num_threads()
    torch.set_num_threads(1)
