"""What a run of the size of a paper's whole study costs, from counted passes and the measured cost of a shard.

`python -m tests.benchmarks.scale` prints Markdown. Passes are counted from the methods' cards; writing a shard is
measured here; the passes a second of a GPU are assumptions, as no GPU was at hand, and stand in the heads of columns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from salviz import engine
from salviz.methods import METHODS
from salviz.runs import table
from salviz.runs.table import Row
from tests.readme import put_into

IMAGES, MODELS, MAPS, GROUP, SIZE = 50_000, 10, 49, 16, (224, 224)
RATES, GPUS = (1_000, 5_000), (8, 64)


def shard() -> tuple[float, float]:
    """Seconds to write a shard of a group of pictures, and its bytes a row."""
    rows = [
        Row(place, f"ILSVRC2012_val_{place:08}.JPEG", place, place, 0.5, "ssim", f"rotate:{m:+d}", "geometric",
            0.1 * m, place, 0.01)
        for place in range(GROUP)
        for m in range(MAPS - 1)
    ]  # fmt: skip
    seconds = []
    content = table.table("model", "method", "cose", rows)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(50):
            path = Path(folder) / f"{number}.parquet"
            started = time.perf_counter()
            table.write(path, content)
            seconds.append(time.perf_counter() - started)
        size = path.stat().st_size
    return statistics.median(seconds), size / len(rows)


def days(passes: float) -> str:
    """Hours below four days."""
    hours = passes / 3600
    return f"{hours:.1f} h" if hours < 96 else f"{hours / 24:.0f} days"


def lines() -> list[str]:
    """The table and what bounds it."""
    ids = [name for name, method in METHODS.items() if method.card.family != "controls"][:40]
    cheap = {
        name: None for name in ids if METHODS[name].card.passes(METHODS[name].card.check_parameters({}), SIZE) <= 100
    }
    chosen = {f"{len(ids)} methods": dict.fromkeys(ids), f"the {len(cheap)} of them of up to 100 passes": cheap}
    heads = [f"{gpus} GPUs at {rate:,}/s" for rate in RATES for gpus in GPUS]
    found = [
        f"| ImageNet-val, {MODELS} models, {MAPS} maps a picture | passes a map | passes | " + " | ".join(heads) + " |",
        "|---|---:|---:|" + "---:|" * len(heads),
    ]
    for name, methods in chosen.items():
        each = engine.passes(methods, SIZE)
        total = each * MAPS * IMAGES * MODELS
        cells = [days(total / rate / gpus) for rate in RATES for gpus in GPUS]
        found.append(f"| {name} | {each:,.0f} | {total:.2g} | " + " | ".join(cells) + " |")
    seconds, size = shard()
    groups = -(-IMAGES // GROUP) * MODELS
    files, rows = groups * len(ids), IMAGES * MODELS * len(ids) * (MAPS - 1)
    most = engine.passes(cheap, SIZE) * MAPS * GROUP / max(RATES) / (len(cheap) * seconds)
    found += [
        "",
        f"The passes a second are assumed, not measured. The run is {groups:,} groups of {GROUP} pictures and a model, "
        f"{groups // max(GPUS):,} for each of {max(GPUS)} GPUs, so that waiting for the last costs little; "
        f"{rows:,} rows in {files:,} files, {rows * size / 2**30:.0f} GB. One process writes them, "
        f"{1000 * seconds:.1f} ms each on this machine: {days(files * seconds)} in all. It stops scaling where that is "
        f"as long as the passes: with the cheap methods at {max(RATES):,} passes a second and GPU, at {most:.0f} GPUs. "
        "A larger `--group` makes fewer files; `--shard` lets every node write its own.",
    ]
    return found


def main() -> None:
    """Measure, count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown-into", type=Path, metavar="FILE", help="put the table between the file's marks")
    options = parser.parse_args()
    text = "\n".join(lines())
    print(text)
    if options.markdown_into:
        put_into(options.markdown_into, "benchmark:scale", text)


if __name__ == "__main__":
    main()
