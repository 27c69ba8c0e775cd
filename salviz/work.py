"""What running work is given besides its inputs: how much fits in one pass, and whom to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Progress = Callable[[int, int], None]
"""Called with (done, total) model passes over one image; raises `Cancelled` to stop the work."""


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
    """

    total: int = 0
    batch_size: int = 16
    progress: Progress = silent
    done: int = field(default=0)

    def tick(self, images: int) -> None:
        """Report that `images` more image passes were made; may raise `Cancelled`."""
        self.done += images
        self.progress(self.done, max(self.total, self.done))

    def chunks(self, count: int) -> Iterator[slice]:
        """Cut `count` images into slices that fit in one pass."""
        for start in range(0, count, self.batch_size):
            yield slice(start, min(start + self.batch_size, count))
