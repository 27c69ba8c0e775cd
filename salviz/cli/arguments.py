"""What commands share: the parser that answers in one sentence, kinds of arguments, progress, printing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from salviz.errors import RequestError

if TYPE_CHECKING:
    from salviz.classifiers import Classifier, Labels
    from salviz.images import Picture

REFUSED = 2
"""Exit code: something was asked that cannot be done."""

Number = TypeVar("Number", int, float)


class Once(argparse.Action):
    """Keeps the value of an option, and refuses a second one: silently forgotten, it would be missed."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Take the value."""
        given = namespace.__dict__.setdefault("_given", set())
        if option is not None and self.dest in given:
            raise argparse.ArgumentError(self, "can be given once only")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of repeating the usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("action", None, Once)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        text = message.removeprefix("argument ").rstrip(".")
        self.exit(REFUSED, f"{text[:1].upper()}{text[1:]}; see {self.prog} --help.\n")


def computing(command: argparse.ArgumentParser) -> None:
    """Add the options of where and how passes are made."""
    how = where(command)
    how.add_argument("--autocast", metavar="TYPE", help="bf16 or fp16 for the masked passes of RISE and Score-CAM")
    how.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, help="memory layout (default: yes on the CPU)"
    )


def where(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of device and pass, and return their group for more."""
    how = command.add_argument_group("how it is computed")
    how.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    how.add_argument("--batch-size", type=positive, metavar="N", help="images a pass (default: what suits the device)")
    return how


def load_classifier(options: argparse.Namespace, id: str | None = None) -> Classifier:
    """The classifier of `--model`, or of another id, under the options of `computing`."""
    from salviz import load

    return load(
        id or options.model, device=options.device, autocast=options.autocast, channels_last=options.channels_last
    )


def open_picture(source: str) -> Picture:
    """The picture of a path, a sample, or one of Fashion-MNIST."""
    from salviz.images import NAMED, open_path, open_source

    return open_source(source) if source.startswith(NAMED) else open_path(source)


def split(text: str) -> tuple[str, ...]:
    """What commas separate."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def settings_of(given: Sequence[str]) -> dict[str, object]:
    """`name=value` texts as a method's settings; the card checks the values."""
    found: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise RequestError(f"A setting is given as --set name=value, not {text!r}.")
        found[name] = value
    return found


def class_of(labels: Labels, text: str) -> int:
    """A class by number, WordNet id or name; a name that fits several classes is refused with a choice."""
    if text.isdecimal():
        return int(text)
    found = labels.find(text)
    if not found:
        raise RequestError(f"No class is called {text!r}; give another name, a WordNet id or a number.")
    wanted = " ".join(text.casefold().split())
    names = (labels.names[found[0]].casefold().split(", "), labels.short(found[0]).casefold())
    is_exact = wanted in names[0] or wanted == names[1] or labels.index_of_wordnet(wanted) is not None
    if len(found) > 1 and not is_exact:
        choice = ", ".join(f"{labels.short(index)} ({index})" for index in found[:5])
        raise RequestError(f"{text!r} may mean {choice}{' or more' if len(found) > 5 else ''}; give the number.")
    return found[0]


class Counter:
    """A line of progress on stderr that is overwritten and finally erased; nothing where nobody watches."""

    def __init__(self, what: str = "Explaining: pass") -> None:
        """Nothing shown yet.

        Args:
            what: Said before the numbers.
        """
        self.what = what
        self.is_shown = sys.stderr.isatty()

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *reason: object) -> None:
        if self.is_shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def show(self, done: int, total: int, note: str = "") -> None:
        """Progress of long work, and what else is to be said of it."""
        if self.is_shown:
            print(f"\r\033[K{self.what} {done} of {total}{note}", end="", file=sys.stderr, flush=True)


def print_json(content: Any) -> None:
    """Print plain types for programs."""
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines as they come, each at once: the next may take a while."""
    for line in lines:
        print(line, flush=True)


def whole(text: str) -> int:
    """0, 1, 2, ..."""
    return _number(int, text, lambda value: value >= 0, "a whole number from 0")


def positive(text: str) -> int:
    """1, 2, 3, ..."""
    return _number(int, text, lambda value: value >= 1, "a whole number from 1")


def share(text: str) -> float:
    """A number in [0, 1]."""
    return _number(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _number(kind: Callable[[str], Number], text: str, fits: Callable[[Number], bool], meaning: str) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"must be {meaning}, not {text!r}")
    return value
