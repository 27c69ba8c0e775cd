"""What a run over a data set costs beside its model passes, how it grows, and what killing it does.

`python -m tests.benchmarks.runs --photos FOLDER` prints Markdown tables. Whatever is compared takes turns in one run.
"""

import argparse
import cProfile
import os
import pstats
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from salviz import load
from salviz.classifiers import Classifier
from salviz.classifiers.layers import target_layer
from salviz.datasets import open_set, sample
from salviz.memory import keep_freed
from salviz.runs import Spec
from salviz.runs.bench import Made, Options
from salviz.runs.execution import begin, here, resume
from salviz.runs.folder import RunFolder
from salviz.runs.table import scan
from salviz.targets import ClassTarget
from salviz.transforms import draw_variants
from salviz.work import even, fitting
from tests.benchmarks.timing import Ratio, compare, conditions, measure, table
from tests.readme import put_into

MODEL = "tf_efficientnet_lite0"
PAPER = {"cose": {"augmentations": "paper", "changes": []}}


def end_to_end(photos: Path, images: int, repeat: int) -> list[Ratio]:
    """COSE with the paper's 48 augmentations for two methods, beside the passes these take.

    By themselves Grad-CAM takes a forward and the gradient a forward and a backward; a run makes the forward once.
    """
    spec = Spec(str(photos), (MODEL,), {"grad_cam": {}, "gradient": {}}, PAPER, images=images, group=8)
    classifier = load(MODEL)
    pictures = open_set(str(photos))
    shown = [pictures.open(place) for place in sample(pictures.entries, images, seed=spec.seed)]
    rows = 1 + len(draw_variants(spec.seed, shown[0].digest))
    frame = torch.stack([classifier.preprocessing.frame(shown[place % images].image) for place in range(rows)])
    x = classifier.preprocessing.normalise(frame.to(classifier.device))
    target = ClassTarget(classifier.predict(x).argmax(dim=1))
    # As the engine cuts them.
    size = even(rows, fitting(x.device))

    def passes(*, is_shared: bool) -> None:
        """Of one picture: one forward that is differentiated down to the input, and one more for Grad-CAM alone."""
        for start in range(0, rows, size):
            rows_ = slice(start, min(start + size, rows))
            if not is_shared:
                with torch.no_grad():
                    classifier.forward(x[rows_])
            leaf = x[rows_].detach().requires_grad_(True)
            torch.autograd.grad(target.part(rows_).score(classifier.forward(leaf)).sum(), leaf)

    made, alone, shared = [], [], []

    def run() -> None:
        """A run takes minutes, in which a machine that others share changes: a picture's passes after every group."""
        probes: dict[bool, float] = {False: 0.0, True: 0.0}
        probing = 0.0

        def watched(*args: Any, loaded: Classifier | None) -> Generator[Made, None, None]:
            nonlocal probing
            for group in here(*args, loaded=loaded):
                yield group
                count = next(iter(group.tables)).count
                for is_shared in probes:
                    started = time.perf_counter()
                    passes(is_shared=is_shared)
                    spent = time.perf_counter() - started
                    probes[is_shared] += count * spent
                    probing += spent

        with tempfile.TemporaryDirectory() as place:
            folder = RunFolder(place)
            started = time.perf_counter()
            resume(folder, engine=partial(watched, loaded=begin(spec, folder)))
            made.append(time.perf_counter() - started - probing)
        alone.append(probes[False])
        shared.append(probes[True])

    # The first round warms up.
    measure({"run": run}, repeat)
    title = f"The run: {images} photographs, {rows - 1} augmentations, Grad-CAM and gradient"
    seconds = {"run": made[1:], "alone": alone[1:], "shared": shared[1:]}
    return [
        compare(seconds, "run", "alone", (title, "the model's passes of the two methods"), 1.25),
        compare(seconds, "run", "shared", (title, "these, with the forward that both share made once"), 1.25),
    ]


def race(photos: Path, images: int, repeat: int) -> tuple[list[Ratio], str]:
    """COSE of Grad-CAM on the same photographs, as the released pipeline works and as a run does."""
    from tests.benchmarks.released import Released

    spec = Spec(str(photos), (MODEL,), {"grad_cam": {}}, PAPER, images=images, group=8)
    classifier = load(MODEL)
    pictures = open_set(str(photos))
    shown = [pictures.open(place) for place in sample(pictures.entries, images, seed=spec.seed)]
    drawn = [list(draw_variants(spec.seed, one.digest)) for one in shown]
    layer = target_layer(classifier, None).name
    rows: dict[str, list[float]] = {}

    def released(*, saves_figures: bool) -> None:
        pipeline = Released(classifier, layer, saves_figures=saves_figures)
        with classifier.lock:
            found = [pipeline.picture(one, variants) for one, variants in zip(shown, drawn, strict=True)]
        rows["released"] = [value for of_picture in found for _, value in of_picture]

    def run() -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = RunFolder(place)
            resume(folder, engine=partial(here, loaded=begin(spec, folder)))
            with scan(folder.files()) as connection:
                values = connection.execute("select place, setting, value from rows").fetchall()
        known = {(place, setting): value for place, setting, value in values}
        rows["run"] = [known[place, variant.token] for place, variants in enumerate(drawn) for variant in variants]

    seconds = measure(
        {
            "released": lambda: released(saves_figures=False),
            "figures": lambda: released(saves_figures=True),
            "run": run,
        },
        repeat,
    )
    title = f"COSE of Grad-CAM on {images} photographs, the released pipeline's way"
    found = [
        compare(seconds, "released", "run", (f"{title}, nothing saved", "the run"), 8.0, least=True),
        compare(seconds, "figures", "run", (f"{title}, with its figure an explanation", "the run"), 8.0, least=True),
    ]
    apart = [abs(one - other) for one, other in zip(rows["released"], rows["run"], strict=True)]
    told = (
        f"Its {len(apart)} similarities and the run's differ by {max(apart):.1g} at the most and "
        f"{statistics.mean(apart):.1g} on average."
    )
    return found, told


def _spec(images: int, **fields: object) -> Spec:
    return Spec("fashion", ("fashion_cnn",), {"grad_cam": {}, "gradient": {}}, images=images, **fields)


def _command(place: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "salviz", "resume", str(place), *options]


_WATCHED = """
import re
from pathlib import Path
from salviz.cli import main
main()
# Not getrusage: it remembers the memory of the process that started this one.
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def growth(folder: Path, counts: tuple[int, int, int], repeat: int) -> list[str]:
    """Seconds and memory of workers that make runs of three sizes; a straight line goes through the outer two."""
    memory = dict.fromkeys(counts, 0.0)
    names = (folder / f"growth{number}" for number in range(10_000))

    def work(count: int) -> Callable[[], None]:
        def run() -> None:
            place = next(names)
            begin(_spec(count), RunFolder(place))
            found = subprocess.run(
                [sys.executable, "-c", _WATCHED, "resume", str(place)], check=True, capture_output=True, text=True
            )
            memory[count] = max(memory[count], int(found.stdout.split()[-1]) / 1024)

        return run

    found = measure({str(count): work(count) for count in counts}, repeat)
    seconds = [statistics.median(found[str(count)]) for count in counts]
    slope = (seconds[2] - seconds[0]) / (counts[2] - counts[0])
    expected = seconds[0] + slope * (counts[1] - counts[0])
    lines = ["| Pictures | seconds | straight line | largest memory |", "|---:|---:|---:|---:|"]
    straight = (seconds[0], expected, seconds[2])
    for count, spent, line in zip(counts, seconds, straight, strict=True):
        lines.append(f"| {count} | {spent:.1f} | {line:.1f} | {memory[count]:.0f} MB |")
    return lines


def side_by_side(folder: Path, images: int, repeat: int) -> Ratio:
    """Two workers of one thread each beside one worker of two."""
    names = (folder / f"side{number}" for number in range(10_000))

    def work(*parts: str) -> Callable[[], None]:
        def run() -> None:
            place = next(names)
            begin(_spec(images), RunFolder(place))
            threads = str(2 // len(parts))
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            workers = [
                subprocess.Popen(_command(place, "--shard", part), env=environment, stdout=subprocess.DEVNULL)
                for part in parts
            ]
            assert [worker.wait() for worker in workers] == [0] * len(parts)
            assert RunFolder(place).status().is_complete

        return run

    seconds = measure({"two": work("1/2", "2/2"), "one": work("1/1")}, repeat)
    titles = (f"Two workers on {images} pictures, start included", "one worker with both cores")
    return compare(seconds, "two", "one", titles, 1.0)


def crashes(folder: Path, times: int) -> str:
    """Kill a run at random moments until it has been killed often enough, then let it end."""
    spec = _spec(512, group=4)
    whole, killed = RunFolder(folder / "whole"), RunFolder(folder / "killed")
    for run in (whole, killed):
        begin(spec, run)
    resume(whole)
    chance = random.Random(0)  # noqa: S311 - moments, not secrets
    done = []
    for _ in range(times):
        process = subprocess.Popen(_command(killed.path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(2.0, 6.5))
        process.kill()
        process.wait()
        done.append(killed.status().done)
    left = killed.status()
    resume(killed, Options())
    same = "identical rows" if whole.digest() == killed.digest() else "OTHER ROWS"
    return (
        f"Killed {times} times at random moments ({done[0]} of {left.shards} shards were there after the first time, "
        f"{left.done} after the last), then resumed: {same}, digest {killed.digest()}; undisturbed {whole.digest()}."
    )


_PARTS = {
    "explaining": ("engine.py", "explain_set"),
    "of it in convolutions, forward": ("~", "conv"),
    "of it on the way back": ("~", "run_backward"),
    "augmenting": ("exploring.py", "prepare"),
    "making maps comparable": ("maps.py", "comparable"),
    "realigning": ("alignment.py", "__init__ __call__"),
    "SSIM": ("structural.py", "ssim"),
    "writing": ("execution.py", "_keep"),
}
"""Functions by file and names; what is built in is known by a part of its name."""


def where_time_goes(photos: Path, images: int) -> list[str]:
    """Parts of a run with one group of photographs, as Python's profiler sees them from the thread of the model."""
    spec = Spec(str(photos), (MODEL,), {"grad_cam": {}, "gradient": {}}, PAPER, images=images, group=images)
    with tempfile.TemporaryDirectory() as place:
        for name in ("warm", "profiled"):
            folder = RunFolder(Path(place) / name)
            engine, profile = partial(here, loaded=begin(spec, folder)), cProfile.Profile()
            profile.runcall(resume, folder, engine=engine)
    stats = pstats.Stats(profile)
    whole: float = stats.total_tt  # type: ignore[attr-defined]
    lines = [
        f"Where the time of a run goes ({images} photographs, loading left out; pictures are opened beside it):",
        "",
        "| Part | ms a photograph | share |",
        "|---|---:|---:|",
    ]
    for title, (file, names) in _PARTS.items():
        spent = 0.0
        for (path, _, function), (_, _, _, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
            is_it = names in function if file == path else Path(path).name == file and function in names.split()
            spent += cumulative if is_it else 0.0
        lines.append(f"| {title} | {1000 * spent / images:.0f} | {spent / whole:.0%} |")
    return [*lines, f"| the whole | {1000 * whole / images:.0f} | 100% |"]


def costs(options: argparse.Namespace) -> str:
    """What it costs, how it grows, and what killing does."""
    folder = Path(tempfile.mkdtemp())
    try:
        found = end_to_end(options.photos, options.images, options.repeat)
        found.append(side_by_side(folder, 256, options.repeat))
        against, same = race(options.photos, options.raced, options.repeat)
        found += against
        parts = [
            "\n".join(table(found)),
            f"{conditions(options.repeat)}. {same}",
            "\n".join(growth(folder, (8, 64, 512), max(3, options.repeat))),
            crashes(folder, options.kills),
        ]
    finally:
        shutil.rmtree(folder)
    return "\n\n".join(parts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--images", type=int, default=64, help="photographs of the first part (default: %(default)s)")
    parser.add_argument("--raced", type=int, default=8, help="photographs of the race (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="counted repetitions (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--only", choices=("costs", "profile"), help="one half")
    parser.add_argument("--markdown-into", type=Path, metavar="FILE", help="put the tables between the file's marks")
    options = parser.parse_args()
    torch.set_num_threads(2)
    # As the command line does.
    keep_freed()
    if options.only != "profile":
        _show(costs(options), "runs", options.markdown_into)
    if options.only != "costs":
        _show("\n".join(where_time_goes(options.photos, 8)), "runs-profile", options.markdown_into)


def _show(text: str, name: str, file: Path | None) -> None:
    print(text)
    if file:
        put_into(file, f"benchmark:{name}", text)


if __name__ == "__main__":
    main()
