"""Ratios of times measured in one run, turn by turn, so that whatever else the machine does falls on both sides."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """A cost measured against another.

    Attributes:
        title: What is measured.
        against: What it is measured against.
        seconds: Median of the measured side.
        reference: Median of the other side.
        ratio: Median of the repetitions' ratios.
        bound: What the ratio has to meet.
        is_at_least: Whether the bound is the smallest allowed ratio, not the largest.
    """

    title: str
    against: str
    seconds: float
    reference: float
    ratio: float
    bound: float
    is_at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the ratio keeps its bound."""
        return self.ratio >= self.bound if self.is_at_least else self.ratio <= self.bound


def measure(named: dict[str, Callable[[], object]], repeat: int, *, is_warm: bool = False) -> dict[str, list[float]]:
    """Seconds of every repetition, all tasks taking turns; the first round warms up and is not counted.

    Every other round goes backwards, so that neither side of a ratio always has the warm caches.

    Args:
        named: The tasks.
        repeat: Repetitions that count.
        is_warm: Whether all have been run before, so that none has to warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for round_ in range(1 if is_warm else 0, repeat + 1):
        for name, task in list(named.items())[:: -1 if round_ % 2 else 1]:
            start = time.perf_counter()
            task()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(
    seconds: dict[str, list[float]],
    name: str,
    against: str,
    titles: tuple[str, str],
    bound: float,
    *,
    least: bool = False,
) -> Ratio:
    """The median of the repetitions' ratios of two tasks.

    Args:
        seconds: From `measure`.
        name: The measured task.
        against: What it is measured against.
        titles: Of both.
        bound: What the ratio has to meet.
        least: Whether the bound is the smallest allowed ratio.
    """
    pairs = zip(seconds[name], seconds[against], strict=True)
    median = statistics.median(one / other for one, other in pairs)
    both = (statistics.median(seconds[part]) for part in (name, against))
    return Ratio(*titles, *both, median, bound, least)


def table(rows: Sequence[Ratio]) -> list[str]:
    """Markdown lines of the ratios."""
    lines = ["| What | Measured against | ms | ms | Ratio | Bound | Met |", "|---|---|---:|---:|---:|---:|---|"]
    for row in rows:
        sign = "≥" if row.is_at_least else "≤"
        lines.append(
            f"| {row.title} | {row.against} | {1000 * row.seconds:.0f} | {1000 * row.reference:.0f} "
            f"| {row.ratio:.2f} | {sign} {row.bound:g} | {'yes' if row.is_met else 'no'} |"
        )
    return lines


def conditions(repeat: int) -> str:
    """How it was measured, as the beginning of a sentence."""
    threads = f"{torch.get_num_threads()} threads with {instructions()}"
    return f"Medians of {repeat} interleaved repetitions, {threads}, torch {torch.__version__}"


def instructions() -> str:
    """The widest vector instructions that PyTorch uses on this processor, such as `AVX2`."""
    return torch.backends.cpu.get_cpu_capability()
