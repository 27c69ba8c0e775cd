"""`salviz run`, `resume`, `status`, `cancel`, `report` and `work`: runs over data sets."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salviz.cli.arguments import Counter, positive, print_json, print_lines, split, where, whole
from salviz.errors import Cancelled, RequestError

if TYPE_CHECKING:
    from salviz.runs import Spec
    from salviz.runs.bench import Options
    from salviz.runs.execution import Engine
    from salviz.runs.folder import RunFolder
    from salviz.runs.store import Store


def add(commands: Any) -> None:
    """Add the commands.

    Args:
        commands: What `add_subparsers` returned.
    """
    run = commands.add_parser("run", help="measure methods over a data set; what is written is never lost")
    run.set_defaults(run=_run)
    run.add_argument("--spec", metavar="FILE", help="a JSON file with all that follows, instead of it")
    what = run.add_argument_group("what is measured")
    what.add_argument(
        "--data", metavar="SET",
        help="fashion, samples, a folder, a zip file, torchvision:CLASS@FOLDER?option=value (such as "
        "torchvision:CIFAR10@data?train=false), or hf:NAME@REVISION?option=value with the options split, config, "
        "image, label, labels and stream (such as hf:uoft-cs/cifar10?split=test)",
    )  # fmt: skip
    what.add_argument("--models", metavar="IDS", help="default: tf_efficientnet_lite0")
    what.add_argument("--methods", metavar="IDS", help="default: grad_cam,gradient")
    what.add_argument("--metrics", metavar="IDS", help="cose (default), randomisation")
    what.add_argument(
        "--set", action="append", default=[], metavar="NAME.SETTING=VALUE", dest="settings",
        help="of a method or a metric, such as cose.augmentations=paper; may be repeated",
    )  # fmt: skip
    what.add_argument("--images", type=positive, metavar="N", help="pictures drawn from the set (default: all)")
    what.add_argument("--classes", metavar="LABELS", help="only pictures of these classes, as the set calls them")
    what.add_argument("--stratified", action="store_true", help="as many pictures of each class as there are")
    what.add_argument("--seed", type=whole, metavar="N", help="default: 0")
    what.add_argument("--maps", choices=("none", "clean", "all"), help="which of COSE's maps are kept (default: none)")
    what.add_argument("--group", type=positive, metavar="N", help="pictures a file (default: 16)")
    run.add_argument("--out", required=True, metavar="RUN", help="the run's folder")
    run.add_argument("--prepare", action="store_true", help="write the plan and stop: workers then resume the run")
    _computing(run)
    resume = commands.add_parser("resume", help="make what is missing of a run")
    resume.set_defaults(run=_resume)
    _computing(resume)
    for name, action, words in (
        ("status", _status, "how far a run is"),
        ("cancel", _cancel, "ask a run to stop after the pass at hand"),
        ("report", _report, "what a run found"),
    ):
        command = commands.add_parser(name, help=words)
        command.set_defaults(run=action)
        if name == "status":
            command.add_argument("--json", action="store_true", help="for programs")
        if name == "report":
            command.add_argument("--html", metavar="FILE", help="write scores and charts as one HTML page too")
        command.add_argument("folder", metavar="RUN", help="the run's folder")
    resume.add_argument("folder", metavar="RUN", help="the run's folder")
    work = commands.add_parser("work", help="make the runs that the Batch page asked for, until none waits")
    work.set_defaults(run=_work_off)
    work.add_argument("root", nargs="?", metavar="RUNS", help="the folder of runs (default: the Batch page's)")
    work.add_argument("--device", metavar="NAME", help="cpu, cuda:0, mps; default: the first there is")


def _computing(command: argparse.ArgumentParser) -> None:
    how = where(command)
    how.add_argument(
        "--shard", default="1/1", metavar="I/N", help="make the I-th of N parts, for workers side by side (from 1)"
    )
    how.add_argument(
        "--accept-changes", action="store_true", help="go on although code or weights changed since the run began"
    )
    how.add_argument("--store", metavar="URL", help="keep the run there too, such as s3://bucket/run")
    how.add_argument("--engine", choices=("local", "ray"), default="local", help="local (default), ray")
    ray = command.add_argument_group("with --engine ray")
    ray.add_argument(
        "--address", metavar="ADDRESS", help="of the cluster (default: the one on this machine, else this machine)"
    )
    ray.add_argument("--gpus", type=_gpus, metavar="N", help="GPUs a worker takes (default: 1 where there are any)")
    ray.add_argument("--threads", type=positive, metavar="N", help="of a worker (default: as many as here)")
    ray.add_argument(
        "--workers", type=positive, metavar="N", help="at the most (default: as many as there is room for)"
    )


def _gpus(text: str) -> float:
    """0, 0.5, 1, ..."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0 or not (value < 1 or value.is_integer()):
        raise argparse.ArgumentTypeError(f"must be 0, a part of one or a whole number, not {text!r}")
    return value


def _run(options: argparse.Namespace) -> None:
    spec = _spec(options)
    from salviz.runs.execution import begin, here
    from salviz.runs.folder import RunFolder

    folder = RunFolder(options.out)
    # What is not installed is told before anything is begun.
    engine, store = _engine(options), _store(options)
    if folder.exists and folder.spec != spec:
        print(
            f"{folder.path} held another run: of its results those that belong to this one are used.", file=sys.stderr
        )
    loaded = begin(spec, folder, _options(options), accepts_changes=options.accept_changes)
    if options.prepare:
        print(f"{len(folder.plan)} shards of {len(folder.sample)} pictures to make in {folder.path}")
    else:
        _work(folder, options, partial(engine, loaded=loaded) if engine is here else engine, store)


def _resume(options: argparse.Namespace) -> None:
    from salviz.runs.folder import RunFolder

    engine, store, folder = _engine(options), _store(options), RunFolder(options.folder)
    if store is not None and not folder.exists:
        store.restore(folder)
    _work(RunFolder.existing(options.folder), options, engine, store)


def _engine(options: argparse.Namespace) -> Engine:
    from salviz.runs.execution import here

    if options.engine == "local":
        given = [name for name in ("address", "gpus", "threads", "workers") if getattr(options, name) is not None]
        if given:
            raise RequestError(f"--{given[0]} is of the engine ray: give --engine ray too.")
        return here
    from salviz.runs.ray_engine import Cluster, on_ray

    return on_ray(Cluster(options.address, options.gpus, options.threads, options.workers))


def _store(options: argparse.Namespace) -> Store | None:
    if options.store is None:
        return None
    from salviz.runs.store import Store

    return Store(options.store)


def _work(folder: RunFolder, options: argparse.Namespace, engine: Engine, store: Store | None) -> None:
    from salviz.runs import summary
    from salviz.runs.execution import resume
    from salviz.runs.presence import holding

    folder.go_on()
    try:
        with Counter("Running: explanation") as counter, holding(folder.path, is_shared=True) as pages:

            def told(done: int, total: int, what: str) -> None:
                counter.show(done, total, f" ({what})")
                pages(done, total, what)

            resume(
                folder,
                _options(options),
                told=told,
                accepts_changes=options.accept_changes,
                engine=engine,
                store=store,
            )
    except Cancelled:
        print(f"Cancelled; salviz resume {folder.path} goes on.", file=sys.stderr)
        return
    status = folder.status()
    print(f"{status.done} of {status.shards} shards in {folder.path}")
    if failed := summary.failed(folder):
        print(
            f"Something failed for {failed} of {len(folder.sample)} pictures; salviz report {folder.path} says what.",
            file=sys.stderr,
        )


def _options(options: argparse.Namespace) -> Options:
    from salviz.runs.bench import Options

    turn, slash, parts = options.shard.partition("/")
    if not (slash and turn.isdecimal() and parts.isdecimal() and 1 <= int(turn) <= int(parts)):
        raise RequestError(f"A part is given as --shard I/N with I from 1 to N, not {options.shard!r}.")
    return Options(options.device, options.batch_size, (int(turn) - 1, int(parts)))


def _spec(options: argparse.Namespace) -> Spec:
    from salviz.runs import Spec

    given = {
        "data": options.data, "models": options.models, "methods": options.methods, "metrics": options.metrics,
        "images": options.images, "classes": options.classes, "seed": options.seed, "group": options.group,
        "maps": options.maps,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if options.spec is not None:
        if given or options.settings or options.stratified:
            raise RequestError("A spec says everything: give --spec, or the options, not both.")
        try:
            return Spec.from_text(Path(options.spec).read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"'{options.spec}' cannot be read: check the path.") from error
    if "data" not in given:
        raise RequestError("Which pictures? Name them with --data, such as fashion or a folder.")
    plain: dict[str, Any] = {"models": "tf_efficientnet_lite0", "methods": "grad_cam,gradient", "metrics": "cose"}
    plain |= given
    plain["models"] = list(split(plain["models"]))
    for name in ("methods", "metrics"):
        plain[name] = {id: {} for id in split(plain[name])}
    if "classes" in plain:
        plain["classes"] = [int(label) if label.isdecimal() else label for label in split(plain["classes"])]
    plain["is_stratified"] = options.stratified
    for text in options.settings:
        _set(plain, text)
    return Spec.from_dict(plain)


def _set(plain: dict[str, Any], text: str) -> None:
    """Put one `name.setting=value` into a spec."""
    name, equals, value = text.partition("=")
    owner, dot, setting = name.partition(".")
    if not (equals and dot):
        raise RequestError(f"A setting is given as --set name.setting=value, not {text!r}.")
    for chosen in (plain["methods"], plain["metrics"]):
        if owner in chosen:
            chosen[owner][setting] = _value(owner, setting, value) if chosen is plain["metrics"] else value
            return
    raise RequestError(f"--set {text}: {owner!r} is neither one of the methods nor one of the metrics.")


def _value(metric: str, setting: str, text: str) -> Any:
    """A metric's setting in the kind of its default."""
    from salviz.runs import measures

    default = measures.get(metric).defaults.get(setting)
    if isinstance(default, list):
        return [] if text == "none" else list(split(text))
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text]
        return type(default)(text) if isinstance(default, int | float) else text
    except (ValueError, KeyError) as error:
        raise RequestError(f"{text!r} is no value of {metric}.{setting}.") from error


def _work_off(options: argparse.Namespace) -> None:
    import os

    from salviz.runs.shelf import Shelf
    from salviz.runs.worker import work

    device = options.device
    if device is None:
        from salviz.classifiers.store import devices

        device = devices()[0]
    if hasattr(os, "nice"):
        # The pages of the same machine come first.
        os.nice(5)
    work(Shelf(options.root), device)


def _status(options: argparse.Namespace) -> None:
    from salviz.runs import summary
    from salviz.runs.folder import RunFolder

    folder = RunFolder.existing(options.folder)
    status, failed = folder.status(), summary.failed(folder)
    if options.json:
        print_json({"shards": status.shards, "done": status.done, "is_complete": status.is_complete, "failed": failed})
        return
    state = "complete" if status.is_complete else "cancelled" if status.is_cancelled else "not complete"
    missed = f"; something failed for {failed} of them" if failed else ""
    print(f"{status.done} of {status.shards} shards, {len(folder.sample)} pictures: {state}{missed}")


def _cancel(options: argparse.Namespace) -> None:
    from salviz.runs.folder import RunFolder

    folder = RunFolder.existing(options.folder)
    if folder.status().is_complete:
        print("The run is complete; there is nothing to cancel.")
        return
    folder.cancel()
    print(f"Whoever works on it stops after the pass at hand; salviz resume {folder.path} goes on.")


def _report(options: argparse.Namespace) -> None:
    from salviz.runs import summary
    from salviz.runs.folder import RunFolder

    folder = RunFolder.existing(options.folder)
    print_lines(summary.lines(folder))
    if options.html:
        from salviz.plain import write_files
        from salviz.runs import exports

        path = Path(options.html)
        write_files(path.parent, {path.name: exports.report(folder)})
