"""`salviz train`: the small classifiers of the sanity checks, made again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from salviz.cli.arguments import Counter, whole
from salviz.errors import RequestError


def add(commands: Any) -> None:
    """Add the command.

    Args:
        commands: What `add_subparsers` returned.
    """
    train = commands.add_parser("train", help="train the small Fashion-MNIST classifiers of the sanity checks")
    train.set_defaults(run=_train)
    train.add_argument("recipes", nargs="*", metavar="ID", help="which; all where none is named")
    train.add_argument("--out", required=True, metavar="DIR", help="folder for weights, checkpoints and cards")
    train.add_argument(
        "--data", metavar="DIR", help="folder with Fashion-MNIST's four .gz files; else Debian's, or fetched"
    )
    train.add_argument("--seed", type=whole, metavar="N", help="another seed than the recipe's")


def _train(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from salviz.datasets.arrays import fashion_mnist
    from salviz.training import RECIPES, card, train, write, write_sample

    unknown = [name for name in options.recipes if name not in RECIPES]
    if unknown:
        raise RequestError(f"There is no recipe {unknown[0]!r}; there are {', '.join(RECIPES)}.")
    folder = None if options.data is None else Path(options.data)
    train_set, test_set = fashion_mnist("train", folder=folder), fashion_mnist("test", folder=folder)
    out = Path(options.out)
    unwritable = RequestError(f"Nothing can be written to {out}; choose another folder.")
    try:
        # First of all: a folder that takes nothing should not be found out after an hour.
        write_sample(test_set, out)
    except OSError as error:
        raise unwritable from error
    for name in options.recipes or RECIPES:
        recipe = RECIPES[name] if options.seed is None else replace(RECIPES[name], seed=options.seed)
        with Counter(f"{name}: step") as counter:

            def progress(step: int, steps: int, loss: float, counter: Counter = counter) -> None:
                counter.show(step, steps, f", loss {loss:.3f}")

            trained = train(recipe, train_set, test_set, progress=progress)
        try:
            files = write(trained, out)
        except OSError as error:
            raise unwritable from error
        about = card(trained)
        print(
            f"{name}: {about['train_accuracy']:.1%} of its training labels, {about['test_accuracy']:.1%} of "
            f"the test set, {about['seconds']} s; {len(files)} files"
        )
