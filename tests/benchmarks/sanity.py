"""What randomising real nets does to maps, and what the test costs beside its passes and beside Quantus.

`python -m tests.benchmarks.sanity` prints the similarities of six methods along the cascade of MobileNetV2 and
EfficientNet-Lite0, beside figures of another implementation where there are any, and the time of the cascade over the
model's own time for its passes. Quantus (LGPL; `pip install quantus`) is measured where it is installed.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from salviz import load
from salviz.classifiers import Classifier
from salviz.classifiers.layers import target_layer
from salviz.classifiers.randomising import Randomisation, randomised
from salviz.classifiers.stages import find_stages
from salviz.engine import explain_set
from salviz.images import folder_images, open_path, open_sample, samples
from salviz.sanity import Check, Checked, check_randomisation
from salviz.targets import ClassTarget
from tests.benchmarks.methods import Counter, plain_passes
from tests.benchmarks.timing import Ratio, conditions, measure, table
from tests.readme import put_into

MODELS = ("mobilenet_v2", "tf_efficientnet_lite0")
TITLES = {
    "gradient": "Gradient",
    "guided_backprop": "Guided backprop",
    "grad_cam": "Grad-CAM",
    "guided_grad_cam": "Guided Grad-CAM",
    "input_x_gradient": "Input × gradient",
    "integrated_gradients": "Integrated gradients",
}
HOW = Randomisation("top_down", "module", "reset", seed=0)
"""Each layer's own initialisation and batch norms reset, as in the reference."""

REFERENCE: dict[str, tuple[float, ...]] = {
    "gradient": (0.40, 0.38, 0.24, 0.24, 0.19, 0.12, 0.07),
    "guided_backprop": (1.00, 0.99, 0.89, 0.90, 0.66, 0.38, 0.16),
    "grad_cam": (0.28, -0.04, 0.13, -0.02, -0.21, 0.00, 0.10),
    "guided_grad_cam": (0.51, 0.29, 0.37, 0.22, 0.04, 0.13, 0.13),
    "input_x_gradient": (0.60, 0.58, 0.50, 0.51, 0.47, 0.42, 0.37),
    "integrated_gradients": (0.56, 0.55, 0.45, 0.46, 0.43, 0.39, 0.41),
}
"""Absolute Spearman on MobileNetV2, eight photographs, measured with captum on hooks of its own."""
REFERENCE_STAGES = ("classifier", "features.18", "features.17", "features.13", "features.7", "features.3", "features.0")
MEASURES = ("spearman_abs", "spearman_signed", "ssim_notebook")


def photographs(classifier: Classifier, folder: Path | None, count: int) -> tuple[Tensor, list[str]]:
    """Photographs in model space, and their digests: of a folder, evenly spread, or of the sample gallery."""
    if folder is None:
        opened = [open_sample(sample.id) for sample in samples()][:count]
    else:
        names = folder_images(folder)
        opened = [open_path(folder / names[i * len(names) // count]) for i in range(count)]
    prep = classifier.preprocessing
    frames = torch.stack([prep.frame(picture.image) for picture in opened])
    return prep.normalise(frames), [picture.digest for picture in opened]


def settings(steps: int) -> dict[str, dict[str, int] | None]:
    """The six methods, paths cut to some steps."""
    return {name: {"steps": steps} if name == "integrated_gradients" else None for name in TITLES}


def figures(classifier: Classifier, x: Tensor, digests: list[str], steps: int) -> list[str]:
    """Markdown of one net's cascade."""
    check = Check(settings(steps), HOW, measures=MEASURES)
    found = check_randomisation(classifier, x, check, digests=digests)
    own = Check({"grad_cam": None}, HOW, target="argmax", measures=MEASURES[:1])
    argmax = check_randomisation(classifier, x, own, digests=digests)
    wanted = REFERENCE_STAGES if classifier.id == "mobilenet_v2" else _spread(found.stages)
    places = [found.stages.index(name) for name in wanted]
    lines = [
        f"{classifier.title}, {len(x)} photographs: absolute Spearman / the notebooks' SSIM, means over photographs.",
        "",
        "| Method | " + " | ".join(f"`{name}`" for name in wanted) + " |",
        "|---|" + "---:|" * len(wanted),
    ]
    for name, title in TITLES.items():
        cells = [f"{_mean(found, name, 0, place):.2f} / {_mean(found, name, 2, place):.2f}" for place in places]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
        if classifier.id == "mobilenet_v2":
            cells = [f"{value:.2f}" for value in REFERENCE[name]]
            lines.append("| *elsewhere, 8 photographs* | " + " | ".join(cells) + " |")
    return [*lines, "", *_claims(found, argmax), ""]


def _mean(found: Checked, method: str, measure: int, place: int) -> float:
    return float(np.nanmean(found.scores[found.methods.index(method), measure, :, place]))


def _spread(stages: tuple[str, ...]) -> tuple[str, ...]:
    """Seven stages: the first two and the others evenly."""
    count = len(stages)
    return tuple(stages[i] for i in sorted({0, 1, *(round(2 + i * (count - 3) / 4) for i in range(5))}))


def _claims(found: Checked, argmax: Checked) -> Iterator[str]:
    """What the papers say of such nets, and whether it is so here."""

    def line(text: str, is_met: bool) -> str:
        return f"- {text}: {'yes' if is_met else 'no'}"

    guided = [_mean(found, "guided_backprop", 0, place) for place in range(len(found.stages))]
    gradient = [_mean(found, "gradient", 0, place) for place in range(len(found.stages))]
    yield line(
        f"After head and last block guided backprop stays at .95 or more ({guided[0]:.2f}, {guided[1]:.2f}), the "
        f"gradient falls to .6 or less ({gradient[0]:.2f}, {gradient[1]:.2f})",
        min(guided[:2]) >= 0.95 and max(gradient[:2]) <= 0.6,
    )
    signed = {
        name: max(abs(_mean(found, name, 1, place)) for place in range(1, len(found.stages)))
        for name in ("gradient", "input_x_gradient", "integrated_gradients")
    }
    told = ", ".join(f"{TITLES[name].casefold()} {value:.2f}" for name, value in signed.items())
    yield line(f"From the last block on, signed Spearman is about 0 (largest: {told})", max(signed.values()) <= 0.1)
    half = next((place for place, value in enumerate(guided) if value < 0.5), len(guided))
    yield line(f"Guided backprop falls below .5 only after {half} of {len(guided)} stages", half > len(guided) / 2)
    ssim = _mean(found, "gradient", 2, 1)
    yield line(f"The notebooks' SSIM separates poorly: {ssim:.2f} for the gradient at the last block", ssim > 0.6)
    kept, own = _mean(found, "grad_cam", 0, 0), float(np.nanmean(argmax.scores[0, 0, :, 0]))
    yield line(
        f"Grad-CAM after the head depends on the class explained: {kept:.2f} for the original one, {own:.2f} for each "
        "net's own",
        own > kept + 0.1,
    )
    if REFERENCE_STAGES[1] in found.stages:
        far = {
            (name, stage): _mean(found, name, 0, found.stages.index(stage)) - value
            for name, values in REFERENCE.items()
            for stage, value in zip(REFERENCE_STAGES, values, strict=True)
        }
        off = {key: value for key, value in far.items() if abs(value) > 0.1}
        told = ", ".join(f"{TITLES[name]} at `{stage}` by {value:+.2f}" for (name, stage), value in off.items())
        yield f"- Within .1 of the other implementation: {len(far) - len(off)} of {len(far)} means" + (
            f"; off: {told}" if off else ""
        )


def cascade(classifier: Classifier, x: Tensor, digests: list[str], steps: int, repeat: int) -> list[Ratio]:
    """The whole cascade over the model's time for its passes, and Quantus' over ours, turn by turn.

    A cascade takes a minute, in which the speed of a machine that others share changes: the plain passes are timed
    anew after every net.
    """
    check = Check(settings(steps), HOW, measures=("spearman_abs",))
    target = ClassTarget(classifier.predict(x).argmax(dim=1))
    spent: dict[str, float] = {}
    forward, differentiated = plain_passes(classifier, x, target)
    # Every net makes the same passes: those of the trained one, counted once.
    with Counter(classifier.runtime) as counter:
        explain_set(classifier, x, methods=check.methods, target=target, digests=digests)
    stages = len(find_stages(classifier))
    own: list[float] = []
    pure: list[float] = []

    def ours() -> None:
        spans, passes = [], []
        started = time.perf_counter()

        def after_net(found: Checked) -> None:
            nonlocal started
            spans.append(time.perf_counter() - started)
            plain, both = _seconds(forward), _seconds(differentiated)
            passes.append((counter.forward * plain + counter.backward * (both - plain)) / len(x))
            started = time.perf_counter()

        check_randomisation(classifier, x, check, digests=digests, publish=after_net)
        own.append(sum(spans))
        # Before the first net was told of, the trained one was explained too.
        pure.append(passes[0] + sum(passes))

    tasks: dict[str, Callable[[], object]] = {"ours": ours}
    quantus = _quantus(classifier, x, target.classes, steps, spent)
    if quantus is not None:
        tasks["quantus"] = quantus
    seconds = measure(tasks, repeat)
    # The first round warmed up.
    own, pure = own[1:], pure[1:]
    what = f"cascade of {stages} stages, 6 methods, {len(x)} photographs ({classifier.title})"
    median = statistics.median
    ratios = [mine / model for mine, model in zip(own, pure, strict=True)]
    found = [Ratio(what, "the model's own time for its passes", median(own), median(pure), median(ratios), 1.25)]
    if quantus is not None:
        times = [theirs / mine for theirs, mine in zip(seconds["quantus"], own, strict=True)]
        share = 1 - spent["model"] / spent["whole"]
        found.append(
            Ratio(
                f"the same in Quantus ({share:.0%} of its time outside the model)", "Salviz",
                median(seconds["quantus"]), median(own), median(times), 1.5, is_at_least=True,
            )
        )  # fmt: skip
    return found


def _seconds(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def _quantus(classifier: Classifier, x: Tensor, classes: Tensor, steps: int, spent: dict[str, float]) -> Any:
    """Quantus' parameter randomisation with captum's methods on the same nets, or None where it is not installed."""
    try:
        import quantus
        from quantus.helpers.model.pytorch_model import PyTorchModel
    except ImportError:
        return None
    from captum.attr import (
        GuidedBackprop,
        GuidedGradCam,
        InputXGradient,
        IntegratedGradients,
        LayerAttribution,
        LayerGradCam,
        Saliency,
    )

    layer = target_layer(classifier).name
    plain = copy.deepcopy(classifier.module).requires_grad_(True).to(memory_format=torch.contiguous_format)

    def stages(self: Any, order: str = "top_down", seed: int = 42) -> Iterator[tuple[str, nn.Module]]:
        """The same nets in the place of Quantus' own, which randomise one convolution or norm after the other."""
        for net in randomised(classifier, HOW):
            module = copy.deepcopy(net.module).requires_grad_(True).to(memory_format=torch.contiguous_format)
            yield net.title, module

    def explain(model: nn.Module, inputs: Any, targets: Any, *, method: str, **_: Any) -> np.ndarray:
        given = torch.as_tensor(inputs, dtype=torch.float32).requires_grad_(True)
        wanted = torch.as_tensor(targets)
        inner = model.get_submodule(layer)
        started = time.perf_counter()
        if method == "grad_cam":
            cam = LayerGradCam(model, inner).attribute(given, wanted, relu_attributions=True)
            found = LayerAttribution.interpolate(cam, given.shape[2:], "bilinear")
        elif method == "guided_grad_cam":
            found = GuidedGradCam(model, inner).attribute(given, wanted)
        elif method == "integrated_gradients":
            found = IntegratedGradients(model).attribute(given, target=wanted, n_steps=steps)
        elif method == "gradient":
            found = Saliency(model).attribute(given, wanted, abs=False)
        else:
            kind = GuidedBackprop if method == "guided_backprop" else InputXGradient
            found = kind(model).attribute(given, wanted)
        spent["model"] = spent.get("model", 0.0) + time.perf_counter() - started
        return found.detach().sum(dim=1, keepdim=True).numpy()

    def run() -> None:
        import warnings

        started = time.perf_counter()
        PyTorchModel.get_random_layer_generator = stages
        PyTorchModel.random_layer_generator_length = len(find_stages(classifier))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for method in TITLES:
                test = quantus.MPRT(disable_warnings=True, return_average_correlation=False)
                test(
                    model=plain, x_batch=x.contiguous().numpy(), y_batch=classes.numpy(), channel_first=True,
                    explain_func=explain, explain_func_kwargs={"method": method}, batch_size=len(x), device="cpu",
                )  # fmt: skip
        spent["whole"] = spent.get("whole", 0.0) + time.perf_counter() - started

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photographs (default: the sample gallery's twelve)")
    parser.add_argument("--images", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=16, help="of integrated gradients (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=1, help="counted repetitions of the cascade (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--only", choices=("figures", "speed"), help="one half")
    parser.add_argument("--markdown-into", type=Path, metavar="FILE", help="put the tables between the file's marks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for part in ("figures", "speed"):
        if options.only not in (None, part):
            continue
        started, lines = time.perf_counter(), []
        for model in MODELS if part == "figures" else MODELS[1:]:
            classifier = load(model, device="cpu")
            x, digests = photographs(classifier, options.photos, options.images)
            if part == "figures":
                lines += figures(classifier, x, digests, options.steps)
            else:
                lines += table(cascade(classifier, x, digests, options.steps, options.repeat))
            print(f"{time.perf_counter() - started:.0f} s: {classifier.title}", file=sys.stderr, flush=True)
        told = f"integrated gradients with {options.steps} steps; the whole in {time.perf_counter() - started:.0f} s."
        lines += ["", f"{conditions(options.repeat)}; {told}" if part == "speed" else told.capitalize()]
        text = "\n".join(lines)
        print(text)
        if options.markdown_into:
            put_into(options.markdown_into, f"benchmark:sanity-{part}", text)


if __name__ == "__main__":
    main()
