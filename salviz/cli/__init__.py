"""The command line: what the app does, without a browser and to the same digits."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from salviz import __version__
from salviz.cli import explain, listing, runs, sanity, train
from salviz.cli.arguments import REFUSED, Parser
from salviz.errors import SalvizError
from salviz.memory import keep_freed

INTERRUPTED = 130
"""Exit code: stopped with Ctrl-C."""

_EPILOG = """examples:
  salviz explain photo.jpg --out results
  salviz explain sample:cat --method integrated_gradients --set steps=50 --target "tiger cat"
  salviz methods --model mobilenet_v2
  salviz sanity photos/ --methods gradient,guided_backprop --model mobilenet_v2
  salviz run --data fashion --models fashion_cnn,fashion_vit --images 100 --out RUN
"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = Parser(
        prog="salviz",
        description="Saliency maps of image classifiers, and how far they can be trusted.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"salviz {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in (explain, sanity, runs, listing, train):
        command.add(commands)
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
    if argv is None:
        # The process is this command's.
        keep_freed()
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
