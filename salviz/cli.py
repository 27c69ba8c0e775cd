"""The command line: what the app does, without a browser and to the same digits."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from salviz import __version__
from salviz.errors import RequestError, SalvizError

if TYPE_CHECKING:
    from salviz.classifiers import Labels
    from salviz.images import Picture
    from salviz.transforms import Variant

REFUSED, INTERRUPTED = 2, 130
"""Exit codes: something was asked that cannot be done; stopped with Ctrl-C."""

Number = TypeVar("Number", int, float)

_EPILOG = """examples:
  salviz explain photo.jpg --out results
  salviz explain sample:cat --method integrated_gradients --set steps=50 --target "tiger cat"
  salviz methods --model mobilenet_v2
"""


class _Once(argparse.Action):
    """Keeps the value of an option, and refuses a second one: silently forgotten, it would be missed."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given = namespace.__dict__.setdefault("_given", set())
        if option is not None and self.dest in given:
            raise argparse.ArgumentError(self, "can be given once only")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of repeating the usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ").rstrip(".")
        self.exit(REFUSED, f"{text[:1].upper()}{text[1:]}; see {self.prog} --help.\n")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = _Parser(
        prog="salviz",
        description="Saliency maps of image classifiers, and how far they can be trusted.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"salviz {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    explain = commands.add_parser("explain", help="explain one image")
    explain.set_defaults(run=_explain)
    explain.add_argument("image", metavar="IMAGE", help="a file, or a sample such as sample:cat")
    what = explain.add_argument_group("what is explained")
    what.add_argument("--model", default="tf_efficientnet_lite0", metavar="ID", help="default: %(default)s")
    what.add_argument("--method", default="grad_cam", metavar="ID", help="default: %(default)s")
    what.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
        help="a setting of the method; may be repeated",
    )  # fmt: skip
    what.add_argument(
        "--target", default="predicted", metavar="CLASS",
        help="a class by number, WordNet id or name, or 'predicted' for each input's own (default)",
    )  # fmt: skip
    what.add_argument(
        "--against", metavar="CLASS",
        help="explain why the target and not this class; 'runner_up' for each input's most probable other class",
    )  # fmt: skip
    what.add_argument(
        "--label", metavar="CLASS",
        help="the image's true class, or 'unknown'; by default the WordNet id in the file's name",
    )  # fmt: skip
    what.add_argument("--output", default="logit", metavar="SCORE", help="logit (default) or probability")
    changes = explain.add_argument_group("what is changed")
    changes.add_argument(
        "--augment", default="default", metavar="TOKENS",
        help="none, default (thirteen), paper (48), or tokens such as rotate:+45,flip_lr",
    )  # fmt: skip
    changes.add_argument(
        "--changes", default="untrained", metavar="NAMES",
        help="changed models: untrained (default), checkpoint:LABEL, several by commas, or none",
    )  # fmt: skip
    changes.add_argument(
        "--data-range", default="pair", metavar="RANGE",
        help="of SSIM: pair (default, the released code), or a number (2.0: the published table)",
    )  # fmt: skip
    changes.add_argument("--seed", type=_whole, default=0, metavar="N", help="default: %(default)s")
    how = explain.add_argument_group("how it is computed")
    how.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    how.add_argument("--autocast", metavar="TYPE", help="bf16 or fp16 for the masked passes of RISE and Score-CAM")
    how.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, help="memory layout (default: yes on the CPU)"
    )
    how.add_argument("--batch-size", type=_positive, metavar="N", help="images a pass (default: what suits the device)")
    shown = explain.add_argument_group("what is written")
    shown.add_argument("--out", metavar="DIR", help="folder for pictures, arrays, table and manifest")
    shown.add_argument("--signed", action="store_true", help="draw the map with its sign")
    shown.add_argument("--colormap", default="auto", metavar="ID", help="of the pictures (default: %(default)s)")
    shown.add_argument("--opacity", type=_share, default=0.7, metavar="X", help="0 to 1 (default: %(default)s)")
    shown.add_argument("--json", action="store_true", help="print the manifest instead of a summary")

    models = commands.add_parser("models", help="list the suggested classifiers")
    models.set_defaults(run=_models)
    models.add_argument("--json", action="store_true", help="print the cards as JSON")

    methods = commands.add_parser("methods", help="list the methods")
    methods.set_defaults(run=_methods)
    methods.add_argument("--model", metavar="ID", help="also say which of them can explain this classifier")
    methods.add_argument("--json", action="store_true", help="print the cards as JSON")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; the process's own where None.

    Returns:
        Exit code: 0, 2 where something cannot be done (one sentence on stderr says what), 130 after Ctrl-C.

    Raises:
        SystemExit: After `--help` and `--version`, and for arguments that do not parse.
    """
    options = parser().parse_args(argv)
    try:
        options.run(options)
        sys.stdout.flush()
    except SalvizError as error:
        print(error, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; Python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _explain(options: argparse.Namespace) -> None:
    # The cheap checks come first: loading torch and a classifier takes seconds.
    from salviz.colormaps import colormap
    from salviz.transforms import default_variants, draw_variants

    if options.colormap != "auto":
        colormap(options.colormap)
    picture = _picture(options.image)
    data_range = _data_range(options.data_range)
    variants: Sequence[Variant]
    if options.augment == "paper":
        variants = draw_variants(options.seed, picture.digest)
    else:
        variants = default_variants() if options.augment == "default" else _variants(options.augment)

    from salviz import explore, export, load, summary
    from salviz.render import Display
    from salviz.request import request_for

    settings = _settings(options.settings)
    classifier = load(
        options.model, device=options.device, autocast=options.autocast, channels_last=options.channels_last
    )
    labels = classifier.labels
    request = request_for(
        picture,
        classifier,
        method=options.method,
        parameters=settings,
        target=None if options.target == "predicted" else _class(labels, options.target),
        against=_rival(labels, options.against),
        output=options.output,
        label=_label(labels, options.label, picture),
        variants=variants,
        changes=() if options.changes == "none" else _parts(options.changes),
        data_range=data_range,
        seed=options.seed,
    )
    with _Counter() as counter:
        found = explore(classifier, picture, request, batch_size=options.batch_size, progress=counter.show)
    files = []
    if options.out is not None:
        display = Display(colormap=options.colormap, opacity=options.opacity, is_signed=options.signed)
        files = export.save(found, classifier, picture, display, options.out)
    if options.json:
        written = {**export.manifest(found, classifier, picture), "files": [str(file) for file in files]}
        _print_json(written)
        return
    _print_lines(summary.lines(found, classifier, picture))
    if files:
        print(f"Wrote {', '.join(file.name for file in files)} to {options.out}")


def _picture(source: str) -> Picture:
    from salviz.images import open_path, open_source

    return open_source(source) if source.startswith("sample:") else open_path(source)


def _variants(text: str) -> tuple[Variant, ...]:
    from salviz.transforms import Variant

    return () if text == "none" else tuple(Variant.from_token(token) for token in _parts(text))


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _data_range(text: str) -> str | float:
    try:
        return text if text == "pair" else float(text)
    except ValueError:
        raise RequestError(f"SSIM's data range must be “pair” or a number such as 2.0, not {text!r}.") from None


def _settings(given: Sequence[str]) -> dict[str, object]:
    """`name=value` texts as a method's settings; the card checks the values."""
    found: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise RequestError(f"A setting is given as --set name=value, not {text!r}.")
        found[name] = value
    return found


def _rival(labels: Labels, given: str | None) -> int | Literal["runner_up"] | None:
    return None if given is None else "runner_up" if given == "runner_up" else _class(labels, given)


def _label(labels: Labels, given: str | None, picture: Picture) -> int | None:
    """The true class: as given, else as the file's name says, as in the app."""
    if given == "unknown":
        return None
    if given is not None:
        return _class(labels, given)
    return None if picture.wordnet_id is None else labels.index_of_wordnet(picture.wordnet_id)


def _class(labels: Labels, text: str) -> int:
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


class _Counter:
    """A line of progress on stderr that is overwritten and finally erased; nothing where nobody watches."""

    def __init__(self) -> None:
        self.is_shown = sys.stderr.isatty()

    def __enter__(self) -> _Counter:
        return self

    def __exit__(self, *reason: object) -> None:
        if self.is_shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def show(self, done: int, total: int) -> None:
        """Progress of `explore`."""
        if self.is_shown:
            print(f"\r\033[KExplaining: pass {done} of {total}", end="", file=sys.stderr, flush=True)


def _models(options: argparse.Namespace) -> None:
    from salviz import summary

    if options.json:
        _print_json(summary.classifier_dicts())
    else:
        _print_lines(summary.classifier_lines())


def _methods(options: argparse.Namespace) -> None:
    from salviz import load, summary

    classifier = None if options.model is None else load(options.model)
    if options.json:
        _print_json(summary.method_dicts(classifier))
    else:
        _print_lines(summary.method_lines(classifier))


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _whole(text: str) -> int:
    return _number(int, text, lambda value: value >= 0, "a whole number from 0")


def _positive(text: str) -> int:
    return _number(int, text, lambda value: value >= 1, "a whole number from 1")


def _share(text: str) -> float:
    return _number(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _number(kind: Callable[[str], Number], text: str, fits: Callable[[Number], bool], meaning: str) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"must be {meaning}, not {text!r}")
    return value
