"""What every method costs beside the model's own passes, and beside other tools on the same work.

`python -m tests.benchmarks.methods` prints three Markdown tables: each method against the model time of the passes it
really makes (counted layer by layer, forward and backward apart), sets and peers against bounds, and memory over
a thousand images. Everything is measured in one run, turn by turn. Ratios depend on how much faster a processor
computes than it reads memory, so each kind has tables of its own.
"""

import argparse
import copy
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from salviz import engine, load, methods
from salviz.classifiers import Classifier
from salviz.classifiers.layers import target_layer
from salviz.memory import keep_freed
from salviz.support import cheapest
from salviz.targets import ClassTarget
from tests.benchmarks.explore import photographs
from tests.benchmarks.timing import Ratio, compare, conditions, instructions, measure, table
from tests.readme import put_into

BATCH = 16
PASSES = 8
"""Passes an image that sampled and iterative methods are cut to: enough to see what they cost beside them."""
MASK_PASSES = 40
"""The same for what begins with work of its own and goes on for hundreds of passes: optimised masks, and XRAI, which
cuts each picture into regions first."""
SHORT = 9
"""Repetitions at the most of what is quick: its single times differ by a tenth and more."""
LONG = 10.0
"""Seconds that are spent on a method at least."""
BOUND = 1.15
CLOSED_CAMS = ("cam", "grad_cam", "grad_cam_pp", "hires_cam", "xgrad_cam", "layer_cam", "eigen_cam", "finer_cam")


def small_vit() -> Classifier:
    """timm's ViT-Ti/16 with random weights, as a classifier."""
    import timm

    from tests.models import classifier_of

    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
    return classifier_of(module, size=224, classes=1000, name="vit_tiny_patch16_224")


def settings(method: str, classifier: Classifier) -> dict:
    """Settings under which a method makes `PASSES` passes an image or, as near as can be, fewer."""
    card, size = methods.get(method).card, classifier.preprocessing.input_size
    wanted = MASK_PASSES if card.family == "optimised masks" or card.id == "xrai" else PASSES
    chosen = dict(card.check_parameters(None))
    least = cheapest(card, classifier)
    for name, cheap in least.items():
        dear = chosen[name]
        if isinstance(dear, bool | str) or card.passes(chosen, size) <= wanted:
            continue
        while abs(dear - cheap) > 1:
            middle = type(dear)((dear + cheap) / 2)
            if card.passes({**chosen, name: middle}, size) <= wanted:
                cheap = middle
            else:
                dear = middle
        chosen[name] = cheap
    return chosen


class Counter(TorchFunctionMode):
    """Image passes that are really made, by the convolutions and linear maps with the shapes of the net's own weights.

    A rule that runs a layer a second time with other weights is charged with a second pass through it, and with two
    where it has joined two such layers in one of twice the inputs. A shape that may be either counts once: a method's
    passes may be more than are counted, and never fewer.

    Attributes:
        forward: Images times the share of layers they went through.
        backward: Images times the share of layers whose output got a gradient, from wherever it came.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.forward = self.backward = 0.0
        layers = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        self._share = 1 / len(layers)
        shapes = {shape for part in layers for shape in (part.weight.shape, _one_wider(part.weight.shape))}
        twice = {torch.Size([shape[0], 2 * shape[1], *shape[2:]]) for shape in shapes}
        # What may be either is a layer of the net's own.
        self._passes = dict.fromkeys(twice, 2) | dict.fromkeys(shapes, 1)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        passes = self._passes.get(args[1].shape, 0) if func in (F.conv2d, F.linear) else 0
        if passes:
            made = passes * self._share * len(output)
            self.forward += made
            if output.requires_grad:
                output.register_hook(lambda gradient: self._count_gradient(made))
        return output

    def _count_gradient(self, made: float) -> None:
        self.backward += made


def _one_wider(shape: torch.Size) -> torch.Size:
    """Of a kernel with a row and a column of zeros before it, as `classifiers.lean` makes it."""
    return torch.Size([*shape[:2], *(side + 1 for side in shape[2:])])


def plain_passes(
    classifier: Classifier, x: Tensor, target: ClassTarget
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A forward pass of a batch, and one that is differentiated down to the input."""

    def forward() -> None:
        with torch.no_grad():
            classifier.forward(x)

    def differentiated() -> None:
        leaf = x.detach().requires_grad_(True)
        torch.autograd.grad(target.score(classifier.forward(leaf)).sum(), leaf)

    return forward, differentiated


def own(classifier: Classifier, repeat: int) -> tuple[list[str], float]:
    """A line a method: its time over the model's time for the passes it makes; and the largest ratio."""
    x = photographs(classifier, BATCH)
    target = ClassTarget(classifier.predict(x).argmax(dim=1))
    digests = [str(place) for place in range(BATCH)]

    forward, differentiated = plain_passes(classifier, x, target)
    lines, worst = [], 0.0
    for name, method in methods.METHODS.items():
        refusal = method.refusal(classifier)
        if refusal is not None:
            lines.append(f"| `{name}` | | | | | {refusal} |")
            continue
        chosen = settings(name, classifier)

        def run(name: str = name, chosen: dict = chosen, count: int = BATCH) -> None:
            engine.explain(
                classifier, x[:count], method=name, parameters=chosen, target=target.part(slice(count)),
                digests=digests[:count],
            )  # fmt: skip

        # The first one ever compiles loops.
        run(count=1)
        started = time.perf_counter()
        with Counter(classifier.runtime) as counter:
            run()
        rounds = max(repeat, min(SHORT, int(LONG / (time.perf_counter() - started))))
        forward()
        differentiated()
        seconds = measure({"forward": forward, "both": differentiated, "method": run}, rounds, is_warm=True)
        ratios, model = [], []
        for plain, both, spent in zip(seconds["forward"], seconds["both"], seconds["method"], strict=True):
            # The engine's own prediction of the batch is a pass like any other.
            pure = (counter.forward * plain + counter.backward * (both - plain)) / BATCH
            model.append(pure)
            ratios.append(spent / pure if pure else float("nan"))
        ratio, spent = statistics.median(ratios), statistics.median(seconds["method"])
        passes = (counter.forward + counter.backward) / BATCH
        worst = max(worst, 0.0 if ratio != ratio else ratio)
        met = "yes" if ratio <= BOUND else "no"
        pure = 1000 * statistics.median(model)
        lines.append(f"| `{name}` | {passes:.4g} | {1000 * spent:.0f} | {pure:.0f} | {ratio:.2f} | {met} |")
    return lines, worst


def _contiguous(classifier: Classifier) -> nn.Module:
    """The model as other tools get it: as published, in torch's default layout, its parameters needing gradients."""
    return copy.deepcopy(classifier.module).requires_grad_(True).to(memory_format=torch.contiguous_format)


def peers(classifier: Classifier, repeat: int) -> list[Ratio]:
    """Other tools on the same work."""
    import pytorch_grad_cam
    from captum.attr import IntegratedGradients, KernelShap, NoiseTunnel, Occlusion, Saliency
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    x = photographs(classifier, BATCH)
    classes = classifier.predict(x).argmax(dim=1)
    target, digests = ClassTarget(classes), [str(place) for place in range(BATCH)]
    theirs = _contiguous(classifier)
    layer = theirs.get_submodule(target_layer(classifier).name)
    plain = copy.deepcopy(theirs).requires_grad_(False)

    def ours(method: str, count: int = BATCH, **parameters: object) -> Callable[[], object]:
        return lambda: engine.explain(
            classifier, x[:count], method=method, parameters=parameters, target=target.part(slice(0, count)),
            digests=digests[:count],
        )  # fmt: skip

    def cam(name: str, count: int = BATCH, **options: object) -> Callable[[], object]:
        def run() -> object:
            with getattr(pytorch_grad_cam, name)(model=theirs, target_layers=[layer]) as method:
                for key, value in options.items():
                    setattr(method, key, value)
                wanted = [ClassifierOutputTarget(c) for c in classes[:count].tolist()]
                return method(input_tensor=x[:count], targets=wanted)

        return run

    found: list[Ratio] = []

    def race(
        title: str, against: str, ours_: Callable[[], object], theirs_: Callable[[], object], bound: float
    ) -> None:
        seconds = measure({"theirs": theirs_, "ours": ours_}, repeat)
        found.append(compare(seconds, "theirs", "ours", (against, title), bound, least=True))

    for ids, name in (("grad_cam", "GradCAM"), ("layer_cam", "LayerCAM"), ("hires_cam", "HiResCAM")):
        race(f"Salviz' `{ids}`", f"pytorch-grad-cam's {name}, batch of {BATCH}", ours(ids), cam(name), 6)
    race("Salviz' `score_cam`", "pytorch-grad-cam's ScoreCAM, 1 image", ours("score_cam", 1), cam("ScoreCAM", 1), 2)
    race(
        "Salviz' `ablation_cam`", "pytorch-grad-cam's AblationCAM, 1 image", ours("ablation_cam", 1),
        cam("AblationCAM", 1), 2,
    )  # fmt: skip
    race(
        "Salviz' `integrated_gradients`", "captum's IntegratedGradients, 8 steps",
        ours("integrated_gradients", steps=8),
        lambda: IntegratedGradients(plain).attribute(x, target=classes, n_steps=8, internal_batch_size=BATCH), 1.3,
    )  # fmt: skip
    race(
        "Salviz' `smoothgrad`", "captum's NoiseTunnel, 8 samples", ours("smoothgrad", samples=8),
        lambda: NoiseTunnel(Saliency(plain)).attribute(
            x.clone().requires_grad_(), target=classes, nt_samples=8, nt_samples_batch_size=1, stdevs=0.3, abs=False
        ), 1.3,
    )  # fmt: skip
    race(
        "Salviz' `occlusion`", "captum's Occlusion, 16 windows", ours("occlusion", window=56, stride=56),
        lambda: Occlusion(plain).attribute(
            x, sliding_window_shapes=(3, 56, 56), strides=(3, 56, 56), target=classes, perturbations_per_eval=1
        ), 1.5,
    )  # fmt: skip
    found += _pair(classifier, plain, x, classes, ours, repeat)
    found += _superpixels(classifier, plain, x, classes, KernelShap, ours, repeat)
    return found


def _pair(
    classifier: Classifier, plain: nn.Module, x: Tensor, classes: Tensor, ours: Callable, repeat: int
) -> list[Ratio]:
    """PAIR's library explains one image at a time; sixteen of them here."""
    import saliency.core as pair

    def call(batch: np.ndarray, call_model_args: int | None = None, expected_keys: object = None) -> dict:
        leaf = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32)).permute(0, 3, 1, 2).requires_grad_()
        (gradient,) = torch.autograd.grad(plain(leaf)[:, call_model_args].sum(), leaf)
        return {pair.base.INPUT_OUTPUT_GRADIENTS: gradient.permute(0, 2, 3, 1).numpy()}

    arrays = [image.permute(1, 2, 0).numpy() for image in x]

    def blur() -> None:
        for array, index in zip(arrays, classes.tolist(), strict=True):
            pair.BlurIG().GetMask(array, call, index, max_sigma=50, steps=8, batch_size=8)

    def guided() -> None:
        # numpy 2 spells the option of `quantile` otherwise than this library does.
        plain_quantile = np.quantile

        def quantile(*args: object, interpolation: str = "linear", **options: object) -> object:
            return plain_quantile(*args, method=interpolation, **options)

        np.quantile = quantile
        try:
            for array, index in zip(arrays, classes.tolist(), strict=True):
                pair.GuidedIG().GetMask(
                    array, call, index, x_steps=8, x_baseline=np.zeros_like(array), max_dist=0.02, fraction=0.25
                )
        finally:
            np.quantile = plain_quantile

    rows = []
    for ids, run, options in (("blur_ig", blur, {"steps": 8}), ("guided_ig", guided, {"steps": 8})):
        seconds = measure({"theirs": run, "ours": ours(ids, **options)}, repeat)
        title = f"PAIR saliency's {'BlurIG' if ids == 'blur_ig' else 'GuidedIG'}, {BATCH} images, 8 steps"
        rows.append(compare(seconds, "theirs", "ours", (title, f"Salviz' `{ids}`, batch of {BATCH}"), 2, least=True))
    return rows


def _superpixels(
    classifier: Classifier, plain: nn.Module, x: Tensor, classes: Tensor, kernel_shap: type, ours: Callable, repeat: int
) -> list[Ratio]:
    from lime.lime_image import LimeImageExplainer

    from salviz.methods import superpixels

    samples = 128
    # Cut once for all of them: what is raced is the sampling.
    labels = superpixels.superpixels(classifier, x[:1], algorithm="slic", segments=50).labels[0]
    picture = x[0].permute(1, 2, 0).double().numpy()

    def predict(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return plain(torch.from_numpy(batch).float().permute(0, 3, 1, 2)).softmax(1).numpy()

    def lime() -> object:
        return LimeImageExplainer(random_state=0, verbose=False).explain_instance(
            picture, predict, top_labels=1, hide_color=0, num_samples=samples, batch_size=BATCH,
            segmentation_fn=lambda image: labels.numpy(),
        )  # fmt: skip

    def shap() -> object:
        return kernel_shap(plain).attribute(
            x[:1], target=classes[:1], feature_mask=labels[None, None], n_samples=samples, perturbations_per_eval=BATCH
        )

    rows = []
    for ids, run, title, bound in (
        ("lime", lime, f"lime's LimeImageExplainer, {samples} samples, 1 image", 2.0),
        ("kernel_shap", shap, f"captum's KernelShap, {samples} samples, 1 image", 1.5),
    ):
        # On its bound, and a second long: three repetitions gave 1.9 to 2.4.
        seconds = measure(
            {"theirs": run, "ours": ours(ids, 1, samples=samples, segmentation="slic", segments=50)}, max(repeat, SHORT)
        )
        rows.append(compare(seconds, "theirs", "ours", (title, f"Salviz' `{ids}`"), bound, least=True))
    return rows


def together(classifier: Classifier, repeat: int) -> Ratio:
    """All closed-form CAMs in one set against plain forwards of the published model."""
    x = photographs(classifier, BATCH)
    digests = [str(place) for place in range(BATCH)]
    chosen = [name for name in CLOSED_CAMS if methods.get(name).refusal(classifier) is None]

    def forward() -> None:
        with torch.no_grad():
            classifier.forward(x)

    seconds = measure(
        {
            "cams": lambda: engine.explain_set(classifier, x, methods=dict.fromkeys(chosen), digests=digests),
            "forward": forward,
        },
        max(repeat, SHORT),
    )
    titles = (f"{len(chosen)} closed-form CAMs together, {classifier.title}", f"forward of the batch of {BATCH}")
    return compare(seconds, "cams", "forward", titles, 1.6)


def fast_forward(classifier: Classifier, repeat: int) -> Ratio:
    """The prepared forward against the published model in torch's default layout."""
    x = photographs(classifier, BATCH)
    plain = _contiguous(classifier).requires_grad_(False)

    def eager() -> None:
        with torch.no_grad():
            plain(x)

    seconds = measure({"eager": eager, "prepared": lambda: engine.predict(classifier, x)}, max(repeat, SHORT))
    titles = (f"Plain eager float32 forward, {classifier.title}", "the forward that methods use")
    return compare(seconds, "eager", "prepared", titles, 2, least=True)


def memory(classifier: Classifier, images: int) -> str:
    """Resident size and hooks before, halfway and after explaining many images one by one."""
    x = photographs(classifier, 1)
    seen = []
    for place in range(images + 1):
        if place in (min(50, images), images // 2, images):
            gc.collect()
            hooks = sum(
                len(part._forward_hooks) + len(part._forward_pre_hooks) for part in classifier.runtime.modules()
            )
            seen.append(f"{_resident():.0f} MB and {hooks} hooks after {place}")
        engine.explain_set(
            classifier,
            x,
            methods={"grad_cam": None, "gradient": None, "smoothgrad": {"samples": 2}},
            digests=[str(place)],
        )
    return f"Memory over {images} images, explained one by one with three methods: {', '.join(seen)}."


def _resident() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _say(started: float, what: str) -> None:
    print(f"{time.perf_counter() - started:.0f} s: {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="counted repetitions (default: %(default)s)")
    parser.add_argument("--own-repeat", type=int, help="of every method by itself (default: the same)")
    parser.add_argument("--images", type=int, default=1000, help="of the memory test (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--markdown-into", type=Path, metavar="FILE", help="put the tables between a file's marks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    lite0, vit = load("tf_efficientnet_lite0", device="cpu"), small_vit()
    ratios = [fast_forward(lite0, options.repeat), together(lite0, options.repeat), together(vit, options.repeat)]
    _say(started, "sets of methods")
    ratios += peers(lite0, options.repeat)
    _say(started, "other tools")
    lines = [*table(ratios), "", memory(lite0, options.images), ""]
    _say(started, "memory")
    # Other tools were measured in a process as it is; what methods cost, in one as the command line's.
    keep_freed()
    for classifier in (lite0, vit):
        rows, worst = own(classifier, options.own_repeat or options.repeat)
        lines += [
            f"<details><summary>Every method on {classifier.title}</summary>",
            "",
            f"Batch of {BATCH}, in a process that keeps freed memory as the command line's and workers' do, at "
            f"settings of about {PASSES} passes an image (optimised masks, and XRAI, which cuts the picture once, "
            f"{MASK_PASSES}): its time over the model's own time for the passes it makes (bound {BOUND}; largest here "
            f"{worst:.2f}).",
            "",
            "| Method | passes an image | ms | model's ms | Ratio | Met |",
            "|---|---:|---:|---:|---:|---|",
            *rows,
            "",
            "</details>",
            "",
        ]
        _say(started, classifier.title)
    how = f"{conditions(options.repeat)}, of what is quick up to {SHORT}"
    lines.append(f"{how}; the whole in {time.perf_counter() - started:.0f} s.")
    text = "\n".join(lines)
    print(text)
    if options.markdown_into:
        put_into(options.markdown_into, f"benchmark:methods-{instructions().lower()}", text)


if __name__ == "__main__":
    main()
