"""`salviz explain`: one image, as the Explore page shows it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from salviz.cli.arguments import (
    Counter,
    class_of,
    computing,
    load_classifier,
    open_picture,
    print_json,
    print_lines,
    settings_of,
    share,
    split,
    whole,
)
from salviz.errors import RequestError

if TYPE_CHECKING:
    from salviz.classifiers import Labels
    from salviz.images import Picture

TOP = "top:"
"""Begins a target that stands for the most probable classes."""


def add(commands: Any) -> None:
    """Add the command.

    Args:
        commands: What `add_subparsers` returned.
    """
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
        help="a class by number, WordNet id or name, 'predicted' for each input's own (default), or 'top:3' for the "
        "picture's three most probable ones, or all where there are fewer",
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
    changes.add_argument("--seed", type=whole, default=0, metavar="N", help="default: %(default)s")
    computing(explain)
    shown = explain.add_argument_group("what is written")
    shown.add_argument("--out", metavar="DIR", help="folder for pictures, arrays, table and manifest")
    shown.add_argument("--signed", action="store_true", help="draw the map with its sign")
    shown.add_argument("--colormap", default="auto", metavar="ID", help="of the pictures (default: %(default)s)")
    shown.add_argument("--opacity", type=share, default=0.7, metavar="X", help="0 to 1 (default: %(default)s)")
    shown.add_argument("--json", action="store_true", help="print the manifest instead of a summary")


def _explain(options: argparse.Namespace) -> None:
    # The cheap checks come first: loading torch and a classifier takes seconds.
    from salviz.colormaps import colormap
    from salviz.request import data_range_of
    from salviz.transforms import named_variants

    if options.colormap != "auto":
        colormap(options.colormap)
    picture = open_picture(options.image)
    data_range = data_range_of(options.data_range)
    variants = named_variants(options.augment, options.seed, picture.digest)

    count = _top(options.target)

    from salviz import export, summary
    from salviz.comparison import for_top_classes
    from salviz.exploring import explore_set
    from salviz.render import Display
    from salviz.request import request_for

    settings = settings_of(options.settings)
    classifier = load_classifier(options)
    labels = classifier.labels
    request = request_for(
        picture,
        classifier,
        method=options.method,
        parameters=settings,
        target=None if count or options.target == "predicted" else class_of(labels, options.target),
        against=_rival(labels, options.against),
        output=options.output,
        label=_label(labels, options.label, picture),
        variants=variants,
        changes=() if options.changes == "none" else split(options.changes),
        data_range=data_range,
        seed=options.seed,
    )
    requests = for_top_classes(classifier, picture, request, count) if count else [request]
    if len(requests) < count:
        print(
            f"{classifier.title} knows only {len(requests)} classes, not {count}: all of them are explained.",
            file=sys.stderr,
        )
    with Counter() as counter:
        results = explore_set(
            classifier, picture, requests, batch_size=options.batch_size, progress=counter.show
        )  # fmt: skip
    display = Display(colormap=options.colormap, opacity=options.opacity, is_signed=options.signed)
    told = []
    for rank, found in enumerate(results, start=1):
        files, folder = [], options.out
        if folder is not None:
            # Ranks first, so that folders stand in the order of the classes.
            folder = Path(folder) / f"{rank}_class_{found.request.target}" if count else folder
            files = export.save(found, classifier, picture, display, folder)
        if options.json:
            told.append({**export.manifest(found, classifier, picture), "files": [str(file) for file in files]})
            continue
        print_lines([""] if rank > 1 else [])
        print_lines(summary.lines(found, classifier, picture))
        if files:
            print(f"Wrote {', '.join(file.name for file in files)} to {folder}")
    if options.json:
        print_json(told if count else told[0])


def _top(target: str) -> int:
    """How many of the most probable classes `top:3` asks for; 0 where the target is something else."""
    if not target.startswith(TOP):
        return 0
    number = target.removeprefix(TOP)
    if not number.isdecimal() or int(number) < 1:
        raise RequestError(f"The most probable classes are asked for as --target top:3, not {target!r}.")
    return int(number)


def _rival(labels: Labels, given: str | None) -> int | Literal["runner_up"] | None:
    return None if given is None else "runner_up" if given == "runner_up" else class_of(labels, given)


def _label(labels: Labels, given: str | None, picture: Picture) -> int | None:
    """The true class: as given, else as the file's name says, as in the app."""
    if given == "unknown":
        return None
    if given is not None:
        return class_of(labels, given)
    return None if picture.wordnet_id is None else labels.index_of_wordnet(picture.wordnet_id)
