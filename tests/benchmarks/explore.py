"""What an explanation costs beside the model's plain forward pass.

`python -m tests.benchmarks.explore` prints a Markdown table of ratios with the bound each has to meet.
Everything is measured in one run, repetition by repetition and turn by turn, so that whatever else the machine
does falls on both sides of a ratio; a ratio is the median of its repetitions'.
"""

import argparse
import copy
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from salviz import engine, load, maps, methods
from salviz.classifiers import Classifier
from salviz.classifiers.layers import target_layer
from salviz.exploring import explore
from salviz.images import open_sample, samples
from salviz.request import request_for
from salviz.similarity import spearman, ssim
from salviz.transforms import augment, default_variants, realign
from tests.benchmarks.timing import Ratio, compare, conditions, measure, table
from tests.readme import put_into

MODEL = "tf_efficientnet_lite0"
BATCH = 16


def photographs(classifier: Classifier, count: int) -> Tensor:
    """The sample gallery's pictures in model space, repeated: `(count, 3, H, W)`."""
    ids = [sample.id for sample in samples()]
    frames = [classifier.preprocessing.frame(open_sample(ids[i % len(ids)]).image) for i in range(count)]
    return classifier.preprocessing.normalise(torch.stack(frames))


def grad_cam_of_peer(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """pytorch-grad-cam's GradCAM as its README uses it, on a copy whose parameters need gradients."""
    from pytorch_grad_cam import GradCAM

    model = copy.deepcopy(classifier.module).requires_grad_(True).to(memory_format=torch.contiguous_format)
    layer = model.get_submodule(target_layer(classifier).name)

    def run(x: Tensor) -> Tensor:
        with GradCAM(model=model, target_layers=[layer]) as cam:
            return torch.from_numpy(cam(input_tensor=x, targets=None))

    return run


def tasks(classifier: Classifier) -> dict[str, Callable[[], object]]:
    """Everything that is timed, by name."""
    x = photographs(classifier, BATCH)
    digests = [str(place) for place in range(BATCH)]
    card, size = methods.get("grad_cam").card, classifier.preprocessing.input_size
    picture, variants = open_sample("cat"), default_variants()
    request = request_for(picture, classifier)
    with_twin = request_for(picture, classifier, changes=["untrained"])
    frame = classifier.preprocessing.frame(picture.image)
    frames = frame.expand(len(variants), -1, -1, -1)
    fourteen = classifier.preprocessing.normalise(torch.cat([frame[None], augment(frames, variants)]))
    shown = maps.comparable(
        engine.explain(classifier, fourteen, method="grad_cam", digests=digests[:14]).maps, card, size
    )
    aligned, valid = realign(shown[1:], variants)
    clean = shown[:1].expand_as(aligned)
    peer = grad_cam_of_peer(classifier)

    def explain(method: str) -> Tensor:
        return engine.explain(classifier, x, method=method, digests=digests).maps

    def bare_gradient() -> Tensor:
        leaf = x.detach().requires_grad_(True)
        score = classifier.forward(leaf, is_published=True).amax(dim=1).sum()
        return torch.autograd.grad(score, leaf)[0]

    def comparable_cam() -> Tensor:
        return maps.comparable(explain("grad_cam"), card, size)

    # A speed says nothing where the results differ. Gradients of single pixels may: at the kink of a ReLU.
    found, bare = explain("gradient"), bare_gradient()
    assert (found - bare).norm() < 0.02 * bare.norm()
    torch.testing.assert_close(comparable_cam(), peer(x), rtol=0, atol=1e-3)

    def forward(batch: Tensor) -> Tensor:
        """The model as published, in the layout the classifier has."""
        with torch.no_grad():
            return classifier.forward(batch, is_published=True)

    return {
        "forward16": lambda: forward(x),
        "grad_cam": lambda: explain("grad_cam"),
        "bare_gradient": bare_gradient,
        "gradient": lambda: explain("gradient"),
        "forward14": lambda: forward(fourteen),
        "page": lambda: explore(classifier, picture, request),
        "page_twin": lambda: explore(classifier, picture, with_twin),
        "comparable_cam": comparable_cam,
        "peer": lambda: peer(x),
        "augment": lambda: augment(frames, variants),
        "realign": lambda: realign(shown[1:], variants),
        "ssim": lambda: ssim(clean, aligned, valid=valid),
        "spearman": lambda: spearman(clean, aligned, valid=valid),
    }


def ratios(seconds: dict[str, list[float]]) -> list[Ratio]:
    """The ratios that have bounds."""

    return [
        compare(seconds, "grad_cam", "forward16", (f"Grad-CAM, batch of {BATCH}", "plain forward of the batch"), 1.15),
        compare(
            seconds, "gradient", "bare_gradient",
            (f"Gradient, batch of {BATCH}", "bare forward and `torch.autograd.grad`"), 1.1,
        ),
        compare(
            seconds, "page", "forward14",
            ("The page's default: Grad-CAM, 13 variants, warps and SSIM", "plain forward of 14 images"), 1.3,
        ),
        compare(
            seconds, "page_twin", "forward14",
            ("The same with the untrained twin", "plain forward of 14 images"), 1.3,
        ),
        compare(
            seconds, "peer", "comparable_cam",
            (f"pytorch-grad-cam's Grad-CAM, batch of {BATCH}", "Salviz' Grad-CAM, scaled and resized alike"), 6.0,
            least=True,
        ),
    ]  # fmt: skip


def markdown(found: Sequence[Ratio], parts: dict[str, float], repeat: int) -> str:
    """The table and a line about the parts and the machine."""
    times = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in parts.items())
    last = f"For 13 variants of {MODEL}'s maps: {times}. {conditions(repeat)}."
    return "\n".join([*table(found), "", last])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=11, help="counted repetitions (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="layout (default: the loader's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--markdown-into", type=Path, metavar="FILE", help="put the table between the file's marks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = measure(tasks(load(MODEL, device="cpu", channels_last=options.channels_last)), options.repeat)
    found = ratios(seconds)
    parts = {name: statistics.median(seconds[name]) for name in ("augment", "realign", "ssim", "spearman")}
    text = markdown(found, parts, options.repeat)
    if options.json:
        told = {
            "ratios": [{**asdict(row), "is_met": row.is_met} for row in found],
            "parts": parts,
            "repeat": options.repeat,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }
        print(json.dumps(told, indent=2))
    else:
        print(text)
    if options.markdown_into:
        put_into(options.markdown_into, "benchmark:explore", text)


if __name__ == "__main__":
    main()
