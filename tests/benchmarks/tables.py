"""How long the Batch page takes to open on a run of very many rows.

`python -m tests.benchmarks.tables` writes a run of 20 million invented rows, ten models x forty methods, and prints
what making its tables costs once, and what each look at them costs then.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from salviz.methods import METHODS
from salviz.plain import json_text, write_files
from salviz.runs import Spec, results, rollup, table
from salviz.runs.folder import RunFolder, Sampled
from salviz.runs.plan import Shard
from salviz.transforms import AUGMENTATIONS
from tests.readme import put_into

MODELS, SETTINGS, GROUP = 10, 49, 255


def invent(path: Path, rows: int) -> RunFolder:
    """A complete run of at least so many rows."""
    methods = list(METHODS)[:40]
    images = -(-rows // (MODELS * len(methods) * SETTINGS))
    spec = Spec(
        "fashion", tuple(f"fashion_{place}" for place in range(MODELS)), {name: {} for name in methods},
        {"cose": {"augmentations": "paper"}}, images=images, group=GROUP,
    )  # fmt: skip
    folder = RunFolder(path)
    plan = [
        Shard(f"{model}-{method}-{first}", model, method, "cose", first, min(GROUP, images - first))
        for model in spec.models
        for first in range(0, images, GROUP)
        for method in methods
    ]
    sample = [Sampled(f"picture {place}", str(place % 10), True, f"{place}") for place in range(images)]
    folder.begin(spec, sample, plan, {"version": "", "code": "", "weights": {}, "data": "fashion"}, {})
    scaled = [card for card in AUGMENTATIONS.values() if card.has_magnitude]
    generator = np.random.default_rng(0)
    for shard in plan:
        count = shard.count * SETTINGS
        place = np.repeat(np.arange(shard.first, shard.first + shard.count), SETTINGS)
        settings = [
            f"{card.id}:{card.levels[level]:+g}"
            for card, level in ((scaled[n % len(scaled)], (n * 7) % len(scaled[0].levels)) for n in range(SETTINGS - 1))
        ]
        columns = {
            "place": place, "image": [f"picture {one}" for one in place], "label": place % 10,
            "prediction": (place + (place % 7 == 0)) % 10, "confidence": generator.random(count),
            "quantity": ["ssim"] * count, "setting": [*settings, "untrained"] * shard.count,
            "kind": [*(["geometric"] * (SETTINGS - 1)), "untrained"] * shard.count, "value": generator.random(count),
            "outcome": (place + (generator.random(count) < 0.3)) % 10, "seconds": np.full(count, 0.01),
            "error": [None] * count, "model": [shard.model] * count, "method": [shard.method] * count,
            "metric": ["cose"] * count,
        }  # fmt: skip
        content = pa.Table.from_pydict({name: columns[name] for name in table.COLUMNS}, schema=table.SCHEMA)
        table.write(folder.file(shard), content)
    return folder


def _timed(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def looks(folder: RunFolder) -> dict[str, float]:
    """Seconds of everything the page asks for, in the order of its parts."""
    model, method = folder.spec.models[0], next(iter(folder.spec.methods))
    asked: dict[str, Callable[[], object]] = {
        "Tables and scores with 1,000 bootstrap draws, made once by the worker": lambda: results.overview(folder),
        "How the run stands": lambda: (RunFolder(folder.path).status(), rollup.key(folder.plan, folder.present())),
        "Scores of 400 models x methods with intervals": lambda: results.overview(folder),
        "Spread over pictures, all models and methods": lambda: results.spreads(folder, "cose", "consistency"),
        "By class with intervals, one model": lambda: results.groups(folder, model, "cose", "consistency", "class"),
        "By strength of change, one model": lambda: results.strengths(folder, model, "cose", "ssim"),
        "Pictures on which methods disagree most": lambda: results.cases(
            folder, model, "cose", "consistency", is_descending=True
        ),
        "Pictures in the order of one method's score": lambda: results.cases(
            folder, model, "cose", "consistency", by=method
        ),
    }
    return {name: _timed(task) for name, task in asked.items()}


def page(folder: RunFolder) -> float:
    """Seconds of a run of the whole page, in Streamlit's test harness."""
    from streamlit.testing.v1 import AppTest

    from salviz.ui import session

    os.environ["SALVIZ_RUNS_DIR"] = str(folder.path.parent)
    session.wait_until_warm(120)
    script = str(Path(__file__).parents[2] / "app.py")
    # The server is at work already.
    AppTest.from_file(script, default_timeout=300).switch_page("pages/batch.py").run()
    link = AppTest.from_file(script, default_timeout=300)
    link.query_params["run"] = folder.path.name
    link.switch_page("pages/batch.py")
    seconds = _timed(link.run)
    assert not link.exception
    assert len(link.dataframe[0].value) == len(folder.spec.models) * len(folder.spec.methods)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000, help="default: %(default)s")
    parser.add_argument("--markdown-into", type=Path, metavar="FILE", help="put the table between the file's marks")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    try:
        folder = invent(place / "large", options.rows)
        write_files(folder.path, {"asked.json": json_text(
            {"spec": folder.spec.as_dict(), "device": "cpu", "time": time.time()}
        ).encode()})  # fmt: skip
        with table.scan(folder.files()) as connection:
            (count,) = connection.execute("select count(*) from rows").fetchone() or (0,)
        seconds = looks(folder)
        seconds["The Batch page with its table and chart, opened by its link"] = page(folder)
        size = sum(file.stat().st_size for file in folder.files()) / 2**20
    finally:
        shutil.rmtree(place)
    lines = [f"| {count:,} rows in {len(folder.plan):,} files, {size:.0f} MB | seconds |", "|---|---:|"]
    lines += [f"| {name} | {spent:.2f} |" for name, spent in seconds.items()]
    text = "\n".join(lines)
    print(text)
    if options.markdown_into:
        put_into(options.markdown_into, "benchmark:tables", text)


if __name__ == "__main__":
    main()
