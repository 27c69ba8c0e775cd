"""`salviz models` and `salviz methods`: the registries."""

from __future__ import annotations

import argparse
from typing import Any

from salviz.cli.arguments import Counter, print_json, print_lines


def add(commands: Any) -> None:
    """Add the commands.

    Args:
        commands: What `add_subparsers` returned.
    """
    models = commands.add_parser("models", help="list the suggested classifiers")
    models.set_defaults(run=_models)
    models.add_argument("--json", action="store_true", help="print the cards as JSON")

    methods = commands.add_parser("methods", help="list the methods")
    methods.set_defaults(run=_methods)
    methods.add_argument("--model", metavar="ID", help="also say which of them can explain this classifier")
    methods.add_argument("--json", action="store_true", help="print the cards as JSON")


def _models(options: argparse.Namespace) -> None:
    from salviz import summary

    if options.json:
        print_json(summary.classifier_dicts())
    else:
        print_lines(summary.classifier_lines())


def _methods(options: argparse.Namespace) -> None:
    from salviz import load, summary

    classifier = None if options.model is None else load(options.model)
    if options.json:
        with Counter("Trying methods:") as counter:
            cards = summary.method_dicts(classifier, progress=counter.show)
        print_json(cards)
    else:
        print_lines(summary.method_lines(classifier))
