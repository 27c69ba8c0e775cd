"""`salviz sanity`: what becomes of maps when the net's weights are randomised."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salviz.cli.arguments import (
    Counter,
    computing,
    load_classifier,
    open_picture,
    positive,
    print_json,
    print_lines,
    split,
    whole,
)
from salviz.errors import RequestError
from salviz.metrics.randomisation import CHECKED
from salviz.plain import json_text, write_files

if TYPE_CHECKING:
    from salviz.classifiers import Classifier
    from salviz.images import Picture
    from salviz.sanity import Checked, Intervention

_METHODS = ",".join(CHECKED)
_MEASURES = "spearman_abs,spearman_signed,ssim"


def add(commands: Any) -> None:
    """Add the command.

    Args:
        commands: What `add_subparsers` returned.
    """
    sanity = commands.add_parser(
        "sanity", help="randomise weights, labels or the class and compare maps (Adebayo et al. 2018)"
    )
    sanity.set_defaults(run=_sanity)
    sanity.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders of pictures, or samples such as sample:cat"
    )
    what = sanity.add_argument_group("what is explained")
    what.add_argument("--model", default="tf_efficientnet_lite0", metavar="ID", help="default: %(default)s")
    what.add_argument("--methods", default=_METHODS, metavar="IDS", help="default: %(default)s")
    what.add_argument(
        "--target", default="original", choices=("original", "argmax"),
        help="the class that the trained net predicts (default), or the one the randomised net does",
    )  # fmt: skip
    test = sanity.add_argument_group("what is randomised")
    test.add_argument(
        "--test", default="weights", choices=("weights", "labels", "class"),
        help="the net's weights (default), the labels it learnt, or the class that is asked for",
    )  # fmt: skip
    test.add_argument(
        "--twin", metavar="ID", help="for labels: the net that learnt other labels (default: that of a shipped model)"
    )
    how = sanity.add_argument_group("how weights are randomised")
    how.add_argument(
        "--order", default="top_down", metavar="ORDER", help="top_down (default), bottom_up, independent, full"
    )
    how.add_argument(
        "--init", default="architecture", metavar="HOW",
        help="architecture (default), module, truncated_normal, permute, moments",
    )  # fmt: skip
    how.add_argument(
        "--statistics", default="reset", metavar="HOW", help="of batch norms: reset (default), keep, estimate"
    )
    how.add_argument(
        "--draws", type=positive, default=1, metavar="N", help="draws of random weights or classes (default: 1)"
    )
    how.add_argument("--seed", type=whole, default=0, metavar="N", help="default: %(default)s")
    compared = sanity.add_argument_group("how maps are compared")
    compared.add_argument("--measures", default=_MEASURES, metavar="IDS", help="default: %(default)s")
    compared.add_argument(
        "--skip-baseline",
        action="store_true",
        help="leave black pixels and those of the mean colour out of correlations",
    )
    compared.add_argument(
        "--copies", type=positive, default=1, metavar="N",
        help="average maps over this many noisy copies: smooth MPRT takes 50 (default: 1)",
    )  # fmt: skip
    compared.add_argument(
        "--noise", type=float, default=0.1, metavar="SHARE", help="of the copies, in units of the image's range"
    )
    computing(sanity)
    shown = sanity.add_argument_group("what is written")
    shown.add_argument("--out", metavar="DIR", help="folder for scores.csv, manifest.json, strips.png and maps.npz")
    shown.add_argument("--json", action="store_true", help="print the manifest instead of a summary")


def _sanity(options: argparse.Namespace) -> None:
    pictures = _pictures(options.images)
    from salviz.sanity import Check, check_pictures, report

    twin = _twin(options)
    check = Check(
        dict.fromkeys(split(options.methods)), _intervention(options, twin), draws=options.draws,
        target=options.target, measures=split(options.measures), skips_baseline=options.skip_baseline,
        copies=options.copies, noise=options.noise, seed=options.seed,
    )  # fmt: skip
    classifier = load_classifier(options)
    with Counter("Randomising: step") as counter:
        found = check_pictures(
            classifier,
            pictures,
            check,
            keeps_strip=options.out is not None,
            batch_size=options.batch_size,
            progress=counter.show,
            twin=twin,
        )
    named = [(shown.name, shown.digest) for shown in pictures]
    written = report.manifest(found, classifier, named)
    if options.out is not None:
        table = report.scores_csv(found, [shown.name for shown in pictures])
        write_files(
            options.out,
            {
                "scores.csv": table.encode(),
                "manifest.json": (json_text(written, indent=2) + "\n").encode(),
                "strips.png": _strips(found, classifier),
                "maps.npz": report.archive(found, classifier, named),
            },
        )
    if options.json:
        print_json(written)
        return
    print_lines(report.lines(found, classifier, len(pictures)))
    if options.out is not None:
        print(f"Wrote scores.csv, manifest.json, strips.png, maps.npz to {options.out}")


def _strips(found: Checked, classifier: Classifier) -> bytes:
    """The first picture's film strips as one PNG."""
    from salviz import filmstrip, methods
    from salviz.overlay import png
    from salviz.render import Display
    from salviz.sanity import report

    assert found.strip is not None  # noqa: S101 - it was asked for
    titles = {method: methods.get(method).card.title for method in found.methods}
    choices = dict.fromkeys(titles, Display())
    return png(filmstrip.sheet(found.strip, titles, report.net_names(found, classifier.labels), choices))


def _twin(options: argparse.Namespace) -> Classifier | None:
    """The net that learnt other labels, where one is asked for."""
    from salviz.classifiers.registry import TWINS

    if options.test != "labels":
        if options.twin is not None:
            raise RequestError("--twin belongs to --test labels.")
        return None
    other = options.twin or TWINS.get(options.model)
    if other is None:
        raise RequestError(
            f"Which net learnt other labels than {options.model}? Name it with --twin, or take one of "
            f"{', '.join(TWINS)} as the model."
        )
    return load_classifier(options, other)


def _intervention(options: argparse.Namespace, twin: Classifier | None) -> Intervention:
    from salviz.classifiers.randomising import Randomisation
    from salviz.sanity import OtherClass, Twin

    if twin is not None:
        return Twin.of(twin)
    if options.test == "class":
        return OtherClass(options.seed)
    return Randomisation(options.order, options.init, options.statistics, options.seed)


def _pictures(sources: list[str]) -> list[Picture]:
    """The pictures of files, samples and folders, in order, each once."""
    from salviz.images import NAMED, folder_images, open_path

    found: dict[str, Picture] = {}
    for source in sources:
        folder = Path(source)
        if not source.startswith(NAMED) and folder.is_dir():
            names = folder_images(folder)
            if not names:
                raise RequestError(f"There is no picture in {source}.")
            opened = [open_path(folder / name) for name in names]
        else:
            opened = [open_picture(source)]
        for shown in opened:
            found.setdefault(shown.digest, shown)
    return list(found.values())
