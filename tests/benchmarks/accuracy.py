"""Top-1 accuracy of the classifiers that need no hub, on a folder of labelled photographs.

`python -m tests.benchmarks.accuracy --images FOLDER`, where file names begin with a WordNet id
(`n01440764_tench.jpg`); without `--images`, the folder that SALVIZ_SAMPLE_DIR names.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import torch
from PIL import Image

from salviz.classifiers import CARDS, is_available_offline, load
from tests.readme import put_into

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def labelled_images(folder: Path) -> list[tuple[Path, str]]:
    """Pictures of a folder with their WordNet ids, sorted by name."""
    found = []
    for path in sorted(folder.iterdir()):
        match = re.match(r"n\d{8}", path.name)
        if match and path.suffix.lower() in _SUFFIXES:
            found.append((path, match[0]))
    return found


def top1(id: str, images: list[tuple[Path, str]], *, device: str, batch: int) -> int:
    """Number of right answers of a classifier."""
    classifier = load(id, device=device)
    right = 0
    for begin in range(0, len(images), batch):
        part = images[begin : begin + batch]
        frames = []
        for path, _ in part:
            with Image.open(path) as image:
                frames.append(classifier.preprocessing.frame(image))
        x = classifier.preprocessing.normalise(torch.stack(frames).to(classifier.device))
        wanted = [classifier.labels.index_of_wordnet(wordnet_id) for _, wordnet_id in part]
        predicted = classifier.predict(x).argmax(1).tolist()
        right += sum(a == b for a, b in zip(predicted, wanted, strict=True))
    return right


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("SALVIZ_SAMPLE_DIR")
    parser.add_argument("--images", type=Path, default=Path(default) if default else None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--markdown-into", type=Path, metavar="FILE", help="put the table between the file's marks")
    options = parser.parse_args()
    if options.images is None or not options.images.is_dir():
        sys.exit("Give a folder of pictures with --images or in SALVIZ_SAMPLE_DIR.")
    images = labelled_images(options.images)
    if not images:
        sys.exit(f"No picture in {options.images} has a name that begins with a WordNet id.")
    lines = ["| Classifier | Pictures | Top-1 right | Top-1 |", "|---|---:|---:|---:|"]
    for card in CARDS:
        if card.source != "package":
            continue
        if not is_available_offline(card.id):
            lines.append(f"| {card.title} | - | - | not installed |")
            continue
        right = top1(card.id, images, device=options.device, batch=options.batch)
        lines.append(f"| {card.title} | {len(images)} | {right} | {100 * right / len(images):.1f} % |")
    text = "\n".join(lines)
    print(text)
    if options.markdown_into is not None:
        put_into(options.markdown_into, "benchmark:accuracy", text)


if __name__ == "__main__":
    main()
