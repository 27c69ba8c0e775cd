"""The cutting of pictures, and RISE, LIME, KernelSHAP, ablation and XRAI against peers and closed forms."""

import copy
import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from salviz import engine
from salviz.methods import superpixels as module
from salviz.methods.perturbation import coalitions as fits
from salviz.methods.perturbation import rise as rising
from salviz.methods.perturbation import xrai as regions
from salviz.methods.perturbation.surrogate import draw_even, draw_shapley
from salviz.methods.sampling import CHECK
from salviz.methods.superpixels import Superpixels, superpixels
from salviz.seeds import generators
from salviz.targets import ClassTarget
from tests.golden import cose_inputs
from tests.models import LinearNet, classifier_of, images, timm_model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "fresz_kernelshap.json").read_text())


def explain(classifier, x, method, classes, output="logit", seed=0, **parameters):
    return engine.explain(
        classifier, x, method=method, parameters=parameters, seed=seed,
        target=ClassTarget(torch.as_tensor(classes), output), digests=[str(i) for i in range(len(x))],
    )  # fmt: skip


def blocks(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Pictures of coloured blocks, which have real superpixels."""
    made = [cose_inputs.block_image_u8(seed + i, size, cell=size // 4) for i in range(count)]
    return timm_model("test_resnet").preprocessing.normalise(torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2))


def per_piece(maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One value a superpixel of the first image; fails where a superpixel has several."""
    values = []
    for piece in range(int(labels.max()) + 1):
        here = maps[0][labels[0] == piece]
        assert (here == here[0]).all()
        values.append(here[0])
    return torch.stack(values)


# --- superpixels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN["masks"])
def test_the_grid_is_that_of_the_papers_code(name: str) -> None:
    wanted, size = name.split("_")
    height, width = map(int, size.split("x"))
    found = superpixels(
        timm_model("test_resnet"), torch.zeros(1, 3, height, width), algorithm="grid", segments=int(wanted)
    )
    content = hashlib.sha256(found.labels[0].contiguous().numpy().tobytes()).hexdigest()
    assert content == GOLDEN["masks"][name]["sha256"]
    assert found.counts == (GOLDEN["masks"][name]["n_features"],)


@pytest.mark.parametrize("pixels", ["picture", "input"])
@pytest.mark.parametrize("algorithm", ["slic", "quickshift", "felzenszwalb"])
def test_labels_are_those_of_scikit_image(algorithm: str, pixels: str) -> None:
    from skimage import segmentation

    classifier, x = timm_model("test_resnet"), blocks(2, 64)
    found = superpixels(classifier, x, algorithm=algorithm, segments=20, pixels=pixels)
    for labels, image, count in zip(found.labels, x, found.counts, strict=True):
        shown = classifier.preprocessing.denormalise(image[None])[0] if pixels == "picture" else image
        settings = {
            "slic": {"n_segments": 20, "compactness": 30, "sigma": 3},
            "quickshift": {"kernel_size": 4, "max_dist": 200, "ratio": 0.2, "rng": 42},
            "felzenszwalb": {"scale": 100, "sigma": 0.5, "min_size": 50},
        }[algorithm]
        expected = getattr(segmentation, algorithm)(shown.permute(1, 2, 0).numpy(), **settings)
        # The same parts, whatever they are called: one name on our side for each name on theirs.
        pairs = {*zip(labels.flatten().tolist(), expected.flatten().tolist(), strict=True)}
        assert len(pairs) == count == len(np.unique(expected))
        assert sorted({ours for ours, _ in pairs}) == list(range(count))


def test_small_superpixels_join_until_few_enough_are_left() -> None:
    labels = np.zeros((6, 8), dtype=np.uint16)
    labels[:, 4:] = 1
    labels[0, 0] = 2  # two borders with 0
    labels[2:4, 3] = 3  # four with 0, two with 1
    assert np.array_equal(np.unique(module._join(labels, 3)), [0, 1, 2])
    joined = module._join(labels, 2)
    assert np.array_equal(joined, np.where(np.arange(8) < 4, 0, 1) * np.ones((6, 1)))
    assert np.array_equal(module._join(labels, 9), labels)


def test_the_cache_knows_pixels_and_settings_and_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    cut = module._cut
    monkeypatch.setattr(module, "_cut", lambda *given: calls.append(given[1:]) or cut(*given))
    monkeypatch.setattr(module, "_remembered", type(module._remembered)())
    monkeypatch.setattr(module, "_KEPT", 3 * 64 * 64 * 2)
    classifier, x = timm_model("test_resnet"), blocks(2, 64)
    first = superpixels(classifier, x, algorithm="slic", segments=9)
    again = superpixels(classifier, x.flip(0), algorithm="slic", segments=9)
    assert len(calls) == 2
    assert torch.equal(first.labels, again.labels.flip(0))
    superpixels(classifier, x, algorithm="slic", segments=16)
    assert len(calls) == 4
    assert len(module._remembered) == 3


def test_averages_and_areas_with_padding() -> None:
    labels = torch.tensor([[[0, 0], [1, 2]], [[0, 1], [1, 1]]])
    found = Superpixels(labels, (3, 2))
    x = torch.arange(24.0).view(2, 3, 2, 2)
    assert found.areas().tolist() == [[2, 1, 1], [1, 3, 0]]
    assert found.exist().tolist() == [[True, True, True], [True, True, False]]
    averaged = found.averaged(x)
    assert averaged[0, 0].tolist() == [[0.5, 0.5], [2, 3]]
    torch.testing.assert_close(averaged[1, 2], torch.tensor([[20.0, 22.0], [22.0, 22.0]]))


# --- coalitions -------------------------------------------------------------------------------------------------------


def shapley_by_enumeration(classifier, x, blank, labels, cls: int) -> np.ndarray:
    """Shapley's own formula in float64, over all coalitions."""
    count = int(labels.max()) + 1
    net = classifier.module
    worth = {}
    for members in itertools.product((0, 1), repeat=count):
        seen = torch.tensor(members, dtype=torch.bool)[labels]
        with torch.no_grad():
            worth[members] = float(net(torch.where(seen, x, blank))[0, cls])
    values = np.zeros(count)
    for members, value in worth.items():
        size = sum(members)
        for i in range(count):
            if not members[i]:
                with_i = (*members[:i], 1, *members[i + 1 :])
                share = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
                values[i] += share * (worth[with_i] - value)
    return values


class Squares(torch.nn.Module):
    """Superpixels interact: the score is a sum of squares of random projections of pooled pixels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.nn.Parameter(torch.randn(4, 6, 3 * 16, generator=generator) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool2d(x, x.shape[-1] // 4).flatten(1)
        return torch.einsum("kjp,np->nkj", self.weight.to(x), pooled).square().sum(2).sqrt()


def kernel(coalitions: torch.Tensor) -> torch.Tensor:
    """Shapley kernel of `(S, M)` coalitions, neither empty nor whole."""
    count = coalitions.shape[1]
    sizes = coalitions.sum(1).tolist()
    return torch.tensor([(count - 1) / (math.comb(count, k) * k * (count - k)) for k in sizes], dtype=torch.float64)


def all_coalitions(count: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product((False, True), repeat=count))[1:-1])


def test_the_constrained_fit_of_all_coalitions_is_the_shapley_value() -> None:
    classifier = classifier_of(Squares().double(), size=32, classes=4)
    x, blank = images(1, 32).double(), torch.full((1, 3, 32, 32), 0.3, dtype=torch.float64)
    labels = superpixels(classifier, x.float(), algorithm="grid", segments=8).labels  # 3 x 3 squares
    labels = labels.clamp(max=7)
    expected = shapley_by_enumeration(classifier, x, blank, labels, 2)
    coalitions = all_coalitions(8)
    with torch.no_grad():
        scores = classifier.module(torch.where(coalitions[:, labels[0]][:, None], x, blank))[:, 2]
        whole, empty = (float(classifier.module(image)[0, 2]) for image in (x, blank))
    fit = fits.fit_shapley(
        coalitions[None],
        (scores - empty)[None],
        torch.ones(1, len(coalitions), dtype=torch.bool),
        torch.ones(1, 8, dtype=torch.bool),
        gained=torch.tensor([whole - empty], dtype=torch.float64),
        weights=kernel(coalitions)[None],
    )
    np.testing.assert_allclose(fit.values[0].numpy(), expected, atol=1e-10)
    assert expected.sum() == pytest.approx(whole - empty, abs=1e-10)


def test_kernel_shap_and_captum_find_the_shapley_values() -> None:
    from captum.attr import KernelShap

    net = Squares()
    classifier, x = classifier_of(net, size=32, classes=4), images(1, 32)
    # The paper's grid of 6 wanted squares: 3 x 3 of 14, the last ones narrower; 9 superpixels.
    found = superpixels(classifier, x, algorithm="grid", segments=6)
    exact = shapley_by_enumeration(
        classifier_of(Squares().double(), size=32, classes=4), x.double(), torch.zeros_like(x).double(), found.labels, 1
    )
    ours, theirs, said = [], [], []
    for seed in range(4):
        explained = explain(classifier, x, "kernel_shap", [1], seed=seed, samples=1000, segmentation="grid", segments=6)
        assert explained.completeness.abs().max() < 1e-6
        ours.append(per_piece(explained.maps, found.labels).numpy())
        said.append(float(explained.standard_error))
        torch.manual_seed(seed)
        captum = KernelShap(net).attribute(
            x, target=1, feature_mask=found.labels[:, None], n_samples=1000, perturbations_per_eval=500
        )
        theirs.append(per_piece(captum[:, 0], found.labels).numpy())
    error, peer = (np.sqrt(np.mean((np.stack(runs) - exact) ** 2)) / exact.std() for runs in (ours, theirs))
    # Off by what it says it is off by, and nearer than the peer, which draws no pairs.
    assert error == pytest.approx(np.sqrt(np.mean(np.square(said))), rel=0.4)
    assert error < peer < 0.2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [(32, 32), (32, 44)])
def test_kernel_shap_finds_what_shap_finds_of_all_coalitions(size: tuple[int, int]) -> None:
    """shap's KernelExplainer, which enumerates where it may ask often enough, is exact; ours is off by what it says."""
    import shap

    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(32), Squares())
    classifier, x = classifier_of(net, size=size, classes=4), images(1, size)
    found = superpixels(classifier, x, algorithm="grid", segments=6)
    count = found.counts[0]

    def call(rows: np.ndarray) -> np.ndarray:
        seen = torch.from_numpy(rows > 0.5)[:, found.labels[0]][:, None]
        return classifier.predict(torch.where(seen, x, 0.0))[:, 1].double().numpy()

    tool = shap.KernelExplainer(call, np.zeros((1, count)))
    (expected,) = tool.shap_values(np.ones((1, count)), nsamples=2**count, l1_reg=False, silent=True)
    exact = shapley_by_enumeration(
        classifier_of(copy.deepcopy(net).double(), size=size, classes=4), x.double(), 0 * x.double(), found.labels, 1
    )
    np.testing.assert_allclose(expected, exact, atol=1e-5 * np.abs(exact).max())
    explained = explain(classifier, x, "kernel_shap", [1], samples=20000, segmentation="grid", segments=6)
    ours = per_piece(explained.maps, found.labels).numpy()
    error = np.sqrt(np.mean((ours - expected) ** 2)) / expected.std()
    assert error < 3 * float(explained.standard_error[0]) < 0.06
    assert ours.sum() == pytest.approx(expected.sum(), rel=1e-4)


def test_kernel_shap_is_exact_for_an_additive_model_as_the_papers_code() -> None:
    """Fresz et al.: their KernelSHAP of a linear model, to the error they state."""
    case = GOLDEN["linear_model"]
    net = LinearNet(32)
    net.weight.data[0] = torch.from_numpy(
        np.random.RandomState(20).standard_normal((3, 32, 32)).astype(np.float32)
    ).flatten()
    net.bias.data.zero_()
    x = torch.from_numpy(np.random.RandomState(21).standard_normal((1, 3, 32, 32)).astype(np.float32))
    classifier = classifier_of(net, size=32, classes=4)
    found = explain(classifier, x, "kernel_shap", [0], samples=100, segmentation="grid", segments=16)
    cells = found.maps[0].unfold(0, 8, 8).unfold(1, 8, 8)
    assert (cells == cells[:, :, :1, :1]).all()
    # Scores near 50 that are sums of 3072 products in float32 are known to some 3e-5.
    np.testing.assert_allclose(cells[:, :, 0, 0].numpy(), case["exact_shapley"], atol=1e-4)
    np.testing.assert_allclose(cells[:, :, 0, 0].numpy(), case["attribution_per_superpixel"], atol=1e-4)
    assert found.standard_error[0] < 1e-5


def test_images_with_different_numbers_of_superpixels_are_solved_together() -> None:
    """Padding changes nothing, and a linear model gives each superpixel what it adds."""
    classifier, x = classifier_of(LinearNet(64), size=64, classes=4), blocks(3, 64)
    found = superpixels(classifier, x, algorithm="felzenszwalb", segments=9)
    assert len(set(found.counts)) > 1
    explained = explain(classifier, x, "kernel_shap", [1, 2, 3], samples=60, segmentation="felzenszwalb")
    added = (classifier.module.weight[[1, 2, 3]].view(3, 3, 64, 64) * x).sum(1)
    sums = torch.zeros(3, found.largest).scatter_add_(1, found.labels.flatten(1), added.flatten(1))
    torch.testing.assert_close(explained.maps, found.spread(sums), atol=1e-4, rtol=1e-4)
    lost = explain(classifier, x, "superpixel_ablation", [1, 2, 3], segmentation="felzenszwalb", segments=40)
    torch.testing.assert_close(lost.maps, found.spread(sums), atol=1e-4, rtol=1e-4)


def test_shapley_coalitions_come_in_pairs_with_sizes_by_the_kernel() -> None:
    x = torch.zeros(2, 3, 8, 8)
    found = Superpixels(torch.zeros(2, 8, 8, dtype=torch.long), (6, 4))
    drawn = draw_shapley(found, 20000, generators(0, ["a", "b"], "test"), x)
    assert torch.equal(drawn[0, 0::2], ~drawn[0, 1::2])
    assert not drawn[1, :, 4:].any()
    sizes = torch.bincount(drawn[0].sum(1), minlength=7).double() / 20000
    shares = torch.tensor([0, 1 / 5, 1 / 8, 1 / 9, 1 / 8, 1 / 5, 0], dtype=torch.float64)
    # Five standard deviations of a share of 10 000 pairs.
    torch.testing.assert_close(sizes, shares / shares.sum(), atol=0.025, rtol=0)
    members = drawn[0].double().mean(0)
    torch.testing.assert_close(members, torch.full_like(members, 0.5), atol=1e-12, rtol=0)
    assert drawn[1, :, :4].sum(1).min() == 1
    few = draw_shapley(Superpixels(found.labels[:1], (1,)), 3, generators(0, ["a"], "test"), x)
    assert few.shape == (1, 3, 1)


def test_lime_coalitions_are_fair_coins_after_the_whole_image() -> None:
    found = Superpixels(torch.zeros(1, 8, 8, dtype=torch.long), (5,))
    drawn = draw_even(found, 20001, generators(0, ["a"], "test"), torch.zeros(1, 3, 8, 8))
    assert drawn[0, 0].all()
    rest = drawn[0, 1:].double()
    torch.testing.assert_close(rest.mean(0), torch.full((5,), 0.5).double(), atol=0.018, rtol=0)
    torch.testing.assert_close(rest.T.cov(), torch.eye(5).double() / 4, atol=0.009, rtol=0)


@pytest.mark.parametrize("method", ["kernel_shap", "lime"])
def test_the_standard_error_is_the_spread_between_seeds(method: str) -> None:
    net = Squares()
    classifier, x = classifier_of(net, size=32, classes=4), images(1, 32).repeat(60, 1, 1, 1)
    # Sixty copies with sixty digests: sixty independent runs in one call. A small penalty, for the ridge is a bias.
    extra = {"ridge": 1e-6} if method == "lime" else {}
    found = engine.explain(
        classifier, x, method=method, parameters={"samples": 200, "segmentation": "grid", "segments": 16, **extra},
        target=ClassTarget(torch.ones(60, dtype=torch.long)), digests=[str(i) for i in range(60)], batch_size=60,
    )  # fmt: skip
    spread = found.maps.mean(0).std()
    true = found.maps.var(0).mean().sqrt() / spread
    # A variance from 60 runs at 16 places is known to about a tenth.
    assert found.standard_error.median() == pytest.approx(float(true), rel=0.2)


@pytest.mark.parametrize("method", ["kernel_shap", "lime"])
def test_a_tolerance_stops_each_image_by_itself(method: str) -> None:
    net = Squares()
    # The second image is one colour off the blank in a corner only: almost additive, so quickly known.
    x = torch.cat([images(1, 32), torch.zeros(1, 3, 32, 32)])
    x[1, :, :8, :8] = 2.0
    classifier = classifier_of(net, size=32, classes=4)
    options = {"segmentation": "grid", "segments": 16, "samples": 2000, "tolerance": 0.08}
    both = explain(classifier, x, method, [1, 1], **options)
    assert both.samples[1] < both.samples[0] < 2000
    assert (both.standard_error <= 0.08).all()
    alone = explain(classifier, x[:1], method, [1], **options)
    assert alone.samples[0] == both.samples[0]
    torch.testing.assert_close(alone.maps[0], both.maps[0], atol=1e-5, rtol=1e-4)
    # The same stream of coalitions: so many samples asked for outright give the same.
    outright = explain(
        classifier, x[:1], method, [1], **{**options, "samples": int(alone.samples[0]), "tolerance": 0.0}
    )
    torch.testing.assert_close(alone.maps, outright.maps, atol=1e-5, rtol=1e-4)


# --- LIME -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["mean", "average"])
def test_lime_equals_the_package_given_its_perturbations(fill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """COSE's settings: quickshift of the normalised input, the strongest superpixels by sign."""
    import lime.lime_image

    from salviz.methods.perturbation import surrogate

    monkeypatch.setattr(lime.lime_image, "tqdm", lambda rows: rows)
    # Texture, so that the mean colour of a superpixel hides something.
    classifier, x = (
        timm_model("test_resnet"),
        (blocks(1, 64) + 0.15 * images(1, 64))[..., : 64 if fill == "mean" else 52],
    )
    samples = 150
    found = superpixels(classifier, x, algorithm="quickshift", segments=2, pixels="input")
    assert found.counts[0] > 4

    def call(batch: np.ndarray) -> np.ndarray:
        return classifier.predict(torch.from_numpy(batch).permute(0, 3, 1, 2).float()).softmax(1).numpy()

    oracle = lime.lime_image.LimeImageExplainer(random_state=4).explain_instance(
        x[0].permute(1, 2, 0).numpy(), call, labels=(7,), top_labels=None, num_samples=samples,
        hide_color=0 if fill == "mean" else None, random_seed=0,
    )  # fmt: skip
    labels = torch.from_numpy(oracle.segments)
    assert torch.equal(found.labels[0], labels)
    # The package draws these numbers, in this order, and makes the first row whole.
    tossed = np.random.RandomState(4).randint(0, 2, samples * found.counts[0]).reshape(samples, -1)
    tossed[0] = 1
    drawn = torch.from_numpy(tossed == 1)[None]
    monkeypatch.setattr(surrogate, "draw_even", lambda found, samples, generators, x: drawn[:, :samples])
    coefficients = np.zeros(found.counts[0])
    for piece, value in oracle.local_exp[7]:
        coefficients[piece] = value
    settings = {"samples": samples, "pixels": "input", "fill": fill}
    ours = explain(classifier, x, "lime", [7], "probability", **settings)
    scale = np.abs(coefficients).max()
    np.testing.assert_allclose(per_piece(ours.maps, found.labels).numpy() / scale, coefficients / scale, atol=1e-4)
    shown = explain(classifier, x, "lime", [7], "probability", top=4, **settings)
    _, mask = oracle.get_image_and_mask(7, positive_only=False, num_features=4, hide_rest=False)
    np.testing.assert_array_equal(shown.maps[0].numpy(), mask)


# --- ablation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["mean", "black"])
def test_superpixel_ablation_equals_captum(fill: str) -> None:
    from captum.attr import FeatureAblation

    classifier, x = timm_model("test_resnet"), blocks(2, 64)
    found = superpixels(classifier, x, algorithm="slic", segments=9, at_most=9)
    blank = 0 if fill == "mean" else classifier.preprocessing.normalise(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    oracle = torch.cat(
        [
            FeatureAblation(classifier.module).attribute(
                x[[i]],
                target=target,
                baselines=blank,
                feature_mask=found.labels[[i]][:, None],
                perturbations_per_eval=4,
            )
            for i, target in enumerate((3, 7))
        ]
    )
    ours = explain(classifier, x, "superpixel_ablation", [3, 7], segments=9, fill=fill)
    torch.testing.assert_close(ours.maps, oracle[:, 0].float(), atol=2e-5, rtol=1e-3)


# --- RISE -------------------------------------------------------------------------------------------------------------


def naive_mask(grid: np.ndarray, shift: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Bilinear upsampling pixel by pixel, pixel centres at half-integers, then the crop."""
    cells = len(grid)
    sides = [math.ceil(length / cells) for length in size]
    mask = np.zeros(size)
    for i, j in np.ndindex(*size):
        value = 0.0
        places = []
        for place, side, offset in ((i, sides[0], shift[0]), (j, sides[1], shift[1])):
            at = min(max((place + offset + 0.5) * cells / ((cells + 1) * side) - 0.5, 0), cells - 1)
            low = math.floor(at)
            places.append(((low, 1 - (at - low)), (min(low + 1, cells - 1), at - low)))
        for (row, a), (column, b) in itertools.product(*places):
            value += a * b * grid[row, column]
        mask[i, j] = value
    return mask


@pytest.mark.parametrize(
    ("output", "fill", "centre"), [("probability", "mean", False), ("logit", "black", False), ("logit", "mean", True)]
)
def test_rise_equals_a_naive_one_with_the_same_masks(output: str, fill: str, centre: bool) -> None:
    size, cells, keep, samples = (24, 33), 4, 0.4, CHECK + 3
    torch.manual_seed(2)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 5, stride=3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.LazyLinear(4)
    )
    net(torch.zeros(1, 3, *size))
    classifier, x = classifier_of(net, size=size, classes=4), images(2, size)
    found = explain(
        classifier, x, "rise", [1, 3], output, samples=samples, cells=cells, keep=keep, fill=fill, centre=centre
    )
    exact = net.double()
    black = classifier.preprocessing.normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).double()
    blank = black if fill == "black" else torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    for row, (generator, target) in enumerate(zip(generators(0, ["0", "1"], "rise"), (1, 3), strict=True)):
        masks, scores = [], []
        stream = rising._stream(generator, cells, keep)
        drawn = [(grid, shift) for _ in range(2) for grid, shift in zip(*next(stream), strict=True)]
        for grid, shift in drawn[:samples]:
            sides = [math.ceil(length / cells) for length in size]
            offsets = tuple(int(share * side) for share, side in zip(shift, sides, strict=True))
            masks.append(naive_mask(grid.numpy(), offsets, size))
            seen = torch.from_numpy(masks[-1])
            with torch.no_grad():
                logits = exact(x[[row]].double() * seen + blank * (1 - seen))[0]
            scores.append(float((logits.softmax(0) if output == "probability" else logits)[target]))
        middle = np.mean(scores) if centre else 0.0
        products = [(score - middle) * mask / keep for score, mask in zip(scores, masks, strict=True)]
        expected = np.mean(products, axis=0) + middle
        np.testing.assert_allclose(found.maps[row].numpy(), expected, atol=1e-5 * np.abs(expected).max())
        noise = np.sqrt((np.var(products, axis=0, ddof=1) / samples).mean())
        assert float(found.standard_error[row]) == pytest.approx(noise / expected.std(ddof=1), rel=1e-3)


def test_rise_masks_show_the_share_asked_for() -> None:
    drawn = torch.rand(2000, 7 * 7 + 2, generator=torch.Generator().manual_seed(0))
    masks = rising.masks_of((drawn[:, 2:] < 0.3).float().view(-1, 7, 7), drawn[:, :2], (28, 28))
    # Every place has the same mean; 2000 masks know it to 0.01.
    torch.testing.assert_close(masks.mean(0), torch.full((28, 28), 0.3), atol=0.045, rtol=0)


def test_rise_stops_by_itself_where_a_tolerance_is_set() -> None:
    classifier, x = classifier_of(Squares(), size=32, classes=4), torch.zeros(2, 3, 32, 32)
    x[0, :, :16, :16] = x[1, :, 16:, 8:24] = 3.0
    found = explain(classifier, x, "rise", [1, 1], samples=3000, cells=2, centre=True, tolerance=0.2)
    assert (found.samples < 3000).all()
    assert (found.standard_error <= 0.2).all()
    assert (found.samples % CHECK == 0).all()
    alone = explain(classifier, x[1:], "rise", [1], samples=3000, cells=2, centre=True, tolerance=0.2)
    # The digest of a lone image is "0": other masks.
    assert not torch.equal(alone.maps[0], found.maps[1])


# --- XRAI -------------------------------------------------------------------------------------------------------------


def test_regions_and_their_ranking_equal_pair_saliency() -> None:
    from saliency.core import xrai as pair

    picture = cose_inputs.block_image_u8(3, 80, cell=10)
    picture = (picture * 0.6 + cose_inputs.smooth_image_u8(80) * 0.4).astype(np.uint8)
    theirs = pair._get_segments_felzenszwalb(picture.astype(np.float64))
    labels = regions.segment(picture)
    ours = regions.grow(labels)
    # Theirs has an empty mask for a label that the resampling lost.
    expected = [mask for mask in theirs if mask.any()]
    assert len(ours) == len(expected)
    assert all(np.array_equal(a, np.flatnonzero(b)) for a, b in zip(ours, expected, strict=True))
    attribution = np.random.RandomState(0).standard_normal((80, 80))
    full, _ = pair.XRAI._xrai(attribution, expected)
    np.testing.assert_allclose(regions.rank_regions(attribution, ours), full, atol=1e-12)
    # Regions that leave a part uncovered, and a larger least gain.
    some = [expected[i] for i in (2, 5, 9, 11)]
    full, _ = pair.XRAI._xrai(attribution, some, min_pixel_diff=300)
    np.testing.assert_allclose(
        regions.rank_regions(attribution, [np.flatnonzero(mask) for mask in some], 300), full, atol=1e-12
    )
    assert full.sum() == pytest.approx(attribution.sum())


@pytest.mark.parametrize("width", [64, 48])
def test_xrai_equals_pair_saliency(width: int) -> None:
    import saliency.core as pair

    classifier, x = timm_model("test_resnet"), blocks(1, 64)[..., :width]

    def call(batch, call_model_args=None, expected_keys=None):
        leaf = torch.tensor(np.asarray(batch), dtype=torch.float32).permute(0, 3, 1, 2).requires_grad_()
        (gradient,) = torch.autograd.grad(classifier.forward(leaf)[:, call_model_args].sum(), leaf)
        return {pair.base.INPUT_OUTPUT_GRADIENTS: gradient.permute(0, 2, 3, 1).numpy()}

    ends = [classifier.preprocessing.normalise(torch.full((1, 3, 64, width), v, dtype=torch.uint8)) for v in (0, 255)]
    grown = regions.grow(regions.segment(classifier.preprocessing.denormalise(x)[0].permute(1, 2, 0).numpy()))
    masks = [np.isin(np.arange(64 * width), region).reshape(64, width) for region in grown]
    options = pair.XRAIParameters(steps=6)
    expected = pair.XRAI().GetMask(
        x[0].permute(1, 2, 0).numpy(), call, 7, baselines=[end[0].permute(1, 2, 0).numpy() for end in ends],
        segments=masks, batch_size=6, extra_parameters=options,
    )  # fmt: skip
    found = explain(classifier, x, "xrai", [7], steps=6, rule="released").maps[0].numpy()
    scale = np.abs(expected).max()
    assert len(np.unique(expected)) > 5
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)


# --- controls ---------------------------------------------------------------------------------------------------------


def test_controls_are_what_they_say() -> None:
    classifier = timm_model("test_resnet")
    x = images(2, (20, 40))
    found = explain(classifier, x, "center", [0, 0], width=0.2).maps
    rows, columns = np.mgrid[0:20, 0:40]
    distance = ((rows + 0.5) / 20 - 0.5) ** 2 + ((columns + 0.5) / 40 - 0.5) ** 2
    np.testing.assert_allclose(found[1].numpy(), np.exp(-distance / (2 * 0.2**2)), atol=1e-6)
    assert torch.equal(explain(classifier, x, "constant", [0, 0]).maps, torch.ones(2, 20, 40))
