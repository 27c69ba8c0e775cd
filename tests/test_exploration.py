"""One image through its variants and changed models: rows, their order, and what they are compared with."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from salviz import engine, exploration, maps, methods, summary
from salviz.changes import changed
from salviz.classifiers.classifier import Checkpoint, Classifier
from salviz.classifiers.digests import weights_digest
from salviz.classifiers.loading import at_checkpoint, untrained
from salviz.comparison import compare
from salviz.errors import Cancelled, MethodError, RequestError, SalvizError
from salviz.exploration import Exploration
from salviz.exploring import explore, explore_set, prepare
from salviz.export import manifest
from salviz.images import Picture
from salviz.request import request_for
from salviz.similarity import spearman, ssim
from salviz.targets import ClassTarget
from salviz.transforms import Variant, default_variants, realign
from tests.golden import cose_inputs
from tests.models import ToyNet, classifier_of, toy

PICTURE = Picture.from_rgb(Image.fromarray(cose_inputs.image_u8(12, 32)), name="noise")
OTHER = Picture.from_rgb(Image.fromarray(cose_inputs.smooth_image_u8(32)), name="waves")
FOUR = tuple(Variant.from_token(token) for token in ("rotate:+27", "flip_lr", "blur", "translate_x:-5"))


class Pointwise(nn.Module):
    """Looks at every pixel alone and averages: its maps move exactly as the picture does."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.features = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.ReLU())
            self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


def trained(folder: Path | None = None) -> Classifier:
    """The toy net as something with an untrained twin and, given a folder, with two checkpoints."""

    def rebuild() -> nn.Module:
        module = ToyNet()
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.reset_parameters()
        return module

    checkpoints = []
    for seed, label in enumerate(["early", "late"] if folder else []):
        torch.manual_seed(seed)
        path = folder / f"{label}.safetensors"
        save_file(rebuild().state_dict(), path)
        checkpoints.append(Checkpoint(label, path))
    made = classifier_of(ToyNet(), size=32, classes=10, name="trained")
    digest = weights_digest(made.module)
    return dataclasses.replace(made, rebuild=rebuild, digest=digest, checkpoints=tuple(checkpoints))


def variants(*tokens: str) -> tuple[Variant, ...]:
    return tuple(Variant.from_token(token) for token in tokens)


def request(classifier: Classifier, picture: Picture = PICTURE, **options: object) -> exploration.Request:
    return request_for(picture, classifier, **{"variants": FOUR, **options})


def assert_prefix(part: Exploration, whole: Exploration) -> None:
    rows = len(part.raw)
    for name in ("raw", "logits", "classes", "ssim", "spearman"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[:rows], rtol=0, atol=0, equal_nan=True)


def test_the_defaults_are_the_pages() -> None:
    made = request_for(PICTURE, toy())
    assert made.variants == tuple(variant.token for variant in default_variants())
    assert (made.method, made.target, made.label, made.output) == ("grad_cam", None, None, "logit")
    assert (made.data_range, made.seed, made.changes, made.precision) == ("pair", 0, (), "float32")
    assert made.parameters == (("layer", ""),)
    assert explore(toy(), PICTURE).request == made


def test_rows_are_the_clean_image_the_variants_and_the_changed_models() -> None:
    classifier = trained()
    found = explore(classifier, PICTURE, request(classifier, method="gradient", changes=["untrained"]))
    assert found.is_complete
    assert found.raw.shape == (6, 3, 32, 32)
    assert found.frames.shape == (5, 3, 32, 32)
    assert found.frames.dtype == torch.uint8
    assert found.variants == FOUR
    assert found.changes == ("untrained",)
    assert found.grid == (32, 32)
    assert found.layer is None
    assert found.passes == 12
    np.testing.assert_array_equal(found.frame(0).permute(1, 2, 0).numpy(), PICTURE.pixels())
    assert torch.equal(found.frame(5), found.frame(0)), "a changed model sees the clean image"
    assert found.ssim[0].isnan()
    assert found.spearman[0].isnan()
    assert found.ssim[1:].isfinite().all()
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(6))
    assert torch.equal(found.predicted, found.classes)


@pytest.mark.parametrize("method", ["gradient", "grad_cam", "edge", "integrated_gradients"])
def test_similarities_are_those_of_the_parts_put_together_by_hand(method: str) -> None:
    """Integrated gradients come group by group, the others at once."""
    classifier, thirteen = toy(), default_variants()
    options = {"method": method, "parameters": {"steps": 3} if method == "integrated_gradients" else {}}
    found = explore(classifier, PICTURE, request(classifier, variants=thirteen, data_range=2.0, **options))
    card = methods.get(method).card
    x = classifier.preprocessing.normalise(found.frames)
    alone = torch.cat([engine.explain(classifier, part, digests=["any"], **options).maps for part in torch.split(x, 1)])
    torch.testing.assert_close(found.raw, alone, rtol=1e-4, atol=1e-6)
    shown = maps.comparable(found.raw, card, (32, 32))
    aligned, valid = realign(shown[1:], thirteen)
    clean = shown[:1].expand_as(aligned)
    torch.testing.assert_close(found.ssim[1:], ssim(clean, aligned, valid=valid, data_range=2.0))
    torch.testing.assert_close(found.spearman[1:], spearman(clean, aligned, valid=valid))


@pytest.mark.parametrize("method", ["gradient", "grad_cam", "layer_cam", "edge"])
def test_an_augmentation_that_does_nothing_leaves_the_map_as_it_is(method: str) -> None:
    tokens = variants("brightness:0", "contrast:0", "rotate:0", "translate_x:0", "sharpness:0")
    found = explore(toy(), PICTURE, request(toy(), method=method, variants=tokens))
    for row in range(1, 6):
        assert torch.equal(found.frame(row), found.frame(0))
    torch.testing.assert_close(found.ssim[1:], torch.ones(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.spearman[1:], torch.ones(5), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.logits[1:], found.logits[:1].expand(5, -1))


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", "grad_cam", "layer_cam"])
def test_maps_that_move_with_the_picture_are_alike_under_flips(method: str) -> None:
    classifier = classifier_of(Pointwise(), size=32, classes=5)
    flips = variants("flip_lr", "flip_ud")
    found = explore(classifier, PICTURE, request(classifier, method=method, variants=flips))
    torch.testing.assert_close(found.ssim[1:], torch.ones(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.spearman[1:], torch.ones(2), rtol=0, atol=1e-3)
    for row in (1, 2):
        aligned, valid = found.display_map(row, is_signed=True)
        assert valid.all()
        clean, _ = found.display_map(0, is_signed=True)
        torch.testing.assert_close(aligned, clean, rtol=1e-3, atol=1e-6)
        own, _ = found.display_map(row, is_signed=True, is_aligned=False)
        torch.testing.assert_close(own.flip(1 if row == 1 else 0), aligned)


def test_a_map_of_noise_is_like_no_other() -> None:
    classifier = trained()
    asked = request(classifier, method="random", variants=default_variants(), changes=["untrained"])
    found = explore(classifier, PICTURE, asked)
    rows = {tuple(row.flatten().tolist()) for row in found.raw}
    assert len(rows) == 15, "every variant and model has its own noise"
    # 1024 independent pixels: a correlation of 0.15 is five standard deviations from zero. Rotation leaves
    # fewer pixels and smooths them.
    assert found.spearman[1:].abs().max() < 0.2
    assert found.ssim[1:].abs().max() < 0.3
    again = explore(classifier, PICTURE, asked, batch_size=2)
    assert torch.equal(again.raw, found.raw)
    other = explore(classifier, PICTURE, dataclasses.replace(asked, seed=1))
    assert not torch.equal(other.raw[0], found.raw[0])


def test_a_slow_method_shows_the_clean_map_first_and_the_rest_as_it_comes() -> None:
    classifier = trained()
    asked = request(
        classifier, method="smoothgrad", parameters={"samples": 3}, variants=default_variants(),
        changes=["untrained"],
    )  # fmt: skip
    parts: list[Exploration] = []
    whole = explore(classifier, PICTURE, asked, publish=parts.append)
    assert [len(part.raw) for part in parts] == [1, 5, 9, 13, 14, 15]
    assert [part.is_complete for part in parts] == [False] * 5 + [True]
    assert [len(part.variants) for part in parts] == [0, 4, 8, 12, 13, 13]
    assert [part.changes for part in parts] == [()] * 5 + [("untrained",)]
    for part in parts:
        assert part.request == asked
        assert len(part.frames) == 14
        assert_prefix(part, whole)


def test_a_fast_method_comes_as_a_whole() -> None:
    parts: list[Exploration] = []
    found = explore(toy(), PICTURE, request(toy()), publish=parts.append)
    assert parts == []
    assert found.is_complete


def test_cancelling_keeps_what_was_found() -> None:
    classifier = toy()
    asked = request(classifier, method="smoothgrad", parameters={"samples": 4}, variants=default_variants())
    whole = explore(classifier, PICTURE, asked)
    parts: list[Exploration] = []

    def stop(done: int, total: int) -> None:
        if len(parts) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        explore(classifier, PICTURE, asked, progress=stop, publish=parts.append)
    assert [len(part.raw) for part in parts] == [1, 5]
    assert_prefix(parts[-1], whole)
    assert classifier.lock.acquire(blocking=False)
    classifier.lock.release()


def test_progress_rises_to_its_total() -> None:
    classifier = trained()
    ticks: list[tuple[int, int]] = []
    asked = request(classifier, method="integrated_gradients", parameters={"steps": 4}, changes=["untrained"])
    explore(classifier, PICTURE, asked, progress=lambda *tick: ticks.append(tick))
    done = [tick[0] for tick in ticks]
    assert done == sorted(done)
    assert {tick[1] for tick in ticks} == {54}
    assert ticks[-1] == (54, 54)


def test_an_early_stop_is_told_with_its_samples_and_passes() -> None:
    classifier = trained()
    settings = {"samples": 500, "tolerance": 0.9, "noise": 0.1}
    asked = request(classifier, method="smoothgrad", parameters=settings, changes=["untrained"])
    ticks: list[tuple[int, int]] = []
    found = explore(classifier, PICTURE, asked, progress=lambda *tick: ticks.append(tick))
    assert found.samples is not None
    assert found.samples.shape == (6,)
    assert (found.samples < 500).all()
    assert found.passes == 2 * float(found.samples.sum())
    assert ticks[0][1] == 6 * 1000
    assert ticks[-1] == (found.passes, found.passes)
    assert manifest(found, classifier, PICTURE)["samples"] == found.samples.tolist()
    (line,) = [line for line in summary.lines(found, classifier, PICTURE) if line.startswith("Standard error")]
    assert line.endswith(f"of the map's spread after {int(found.samples[0])} samples")
    alone = request(classifier, method="smoothgrad", parameters=settings, variants=())
    ticks.clear()
    compared = compare(
        {classifier.digest: classifier}, PICTURE, [alone], progress=lambda *tick: ticks.append(tick)
    ).rows[0]
    assert compared.samples == found.samples[:1]
    assert ticks[-1] == (compared.passes, compared.passes)


def test_completeness_comes_with_every_row() -> None:
    classifier = toy()
    found = explore(classifier, PICTURE, request(classifier, method="integrated_gradients", parameters={"steps": 50}))
    assert found.completeness is not None
    assert found.completeness.shape == (5,)
    assert explore(classifier, PICTURE, request(classifier)).completeness is None


def test_neither_batch_size_nor_company_changes_a_row() -> None:
    asked = request(toy(), method="smoothgrad", parameters={"samples": 5})
    whole = explore(toy(), PICTURE, asked)
    small = explore(toy(), PICTURE, asked, batch_size=1)
    torch.testing.assert_close(small.raw, whole.raw, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(small.ssim, whole.ssim, rtol=0, atol=1e-4, equal_nan=True)
    alone = explore(toy(), PICTURE, request(toy(), method="smoothgrad", parameters={"samples": 5}, variants=FOUR[2:3]))
    torch.testing.assert_close(alone.raw[1], whole.raw[3], rtol=1e-4, atol=1e-6)


def test_a_fixed_target_is_explained_everywhere() -> None:
    classifier = trained()
    asked = request(classifier, method="gradient", target=7, output="probability", changes=["untrained"])
    found = explore(classifier, PICTURE, asked)
    assert found.classes.tolist() == [7] * 6
    assert (found.predicted != 7).any()
    x = classifier.preprocessing.normalise(found.frames[:1])
    target = ClassTarget(torch.tensor([7]), "probability")
    expected = engine.explain(classifier, x, method="gradient", target=target, digests=["any"]).maps
    torch.testing.assert_close(found.raw[:1], expected, rtol=1e-4, atol=1e-8)


def test_changed_models_have_their_own_weights(tmp_path: Path) -> None:
    classifier = trained(tmp_path)
    changes = ["checkpoint:late", "untrained", "checkpoint:early"]
    asked = request(classifier, method="gradient", changes=changes, seed=3)
    found = explore(classifier, PICTURE, asked)
    assert found.changes == tuple(changes)
    late, early = classifier.checkpoints[1], classifier.checkpoints[0]
    clean = maps.comparable(found.raw[:1], methods.get("gradient").card, (32, 32))
    models = [at_checkpoint(classifier, late), untrained(classifier, seed=3), at_checkpoint(classifier, early)]
    x = classifier.preprocessing.normalise(found.frames[:1])
    for row, model in enumerate(models, start=5):
        expected = engine.explain(model, x, method="gradient", digests=["any"])
        torch.testing.assert_close(found.raw[row], expected.maps[0], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(found.logits[row], expected.logits[0])
        shown = maps.comparable(expected.maps, methods.get("gradient").card, (32, 32))
        torch.testing.assert_close(found.ssim[row], ssim(clean, shown)[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.spearman[row], spearman(clean, shown)[0], rtol=0, atol=1e-5)
    assert len({tuple(logits.tolist()) for logits in found.logits[[0, 5, 6, 7]]}) == 4


def test_twins_are_built_once_and_checkpoints_one_at_a_time(tmp_path: Path) -> None:
    classifier = trained(tmp_path)
    twin = changed(classifier, "untrained", 0)
    early = changed(classifier, "checkpoint:early", 0)
    assert changed(classifier, "untrained", 0) is twin
    assert changed(classifier, "checkpoint:early", 0) is early
    assert changed(classifier, "untrained", 1).digest != twin.digest
    changed(classifier, "checkpoint:late", 0)
    assert changed(classifier, "checkpoint:early", 0) is not early
    assert changed(classifier, "untrained", 0) is twin


def test_a_missing_checkpoint_is_said_in_one_sentence(tmp_path: Path) -> None:
    classifier = trained(tmp_path)
    (tmp_path / "late.safetensors").unlink()
    with pytest.raises(SalvizError, match=r"late\.safetensors"):
        explore(classifier, PICTURE, request(classifier, changes=["checkpoint:late"]))


def test_maps_are_valid_only_where_the_variant_shows_the_picture() -> None:
    found = explore(toy(), PICTURE, request(toy(), variants=variants("translate_x:-5", "blur")))
    shifted, valid = found.display_map(1, is_signed=False)
    assert not valid[:, :5].any()
    assert valid[:, 5:].all()
    own, everywhere = found.display_map(1, is_signed=False, is_aligned=False)
    assert everywhere.all()
    torch.testing.assert_close(shifted[:, 5:], own[:, :-5])
    blurred, valid = found.display_map(2, is_signed=False)
    assert valid.all()
    torch.testing.assert_close(blurred, found.display_map(2, is_signed=False, is_aligned=False)[0])
    assert found.native_map(is_signed=False).shape == found.grid
    assert (found.native_map(is_signed=False) >= 0).all()


def test_two_threads_explore_as_one() -> None:
    asked = {p.digest: request(toy(), p, method="smoothgrad", parameters={"samples": 2}) for p in (PICTURE, OTHER)}
    alone = {p.digest: explore(toy(), p, asked[p.digest]) for p in (PICTURE, OTHER)}
    found: dict[str, Exploration] = {}

    def run(picture: Picture) -> None:
        found[picture.digest] = explore(toy(), picture, asked[picture.digest])

    threads = [threading.Thread(target=run, args=(picture,)) for picture in (PICTURE, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for digest, one in alone.items():
        assert torch.equal(found[digest].raw, one.raw)


REFUSED: list[tuple[dict[str, object], type[SalvizError], str]] = [
    ({"method": "grad_cm"}, MethodError, "no method 'grad_cm'"),
    ({"parameters": {"samples": 3}}, MethodError, "no setting 'samples'"),
    ({"target": 10}, RequestError, "target 10 is no class of toy; it knows classes 0 to 9"),
    ({"label": -1}, RequestError, "label -1"),
    ({"output": "loss"}, RequestError, "logit or probability, not 'loss'"),
    ({"data_range": "map"}, RequestError, "positive number, not 'map'"),
    ({"data_range": 0}, RequestError, "not 0"),
    ({"data_range": float("nan")}, RequestError, "not nan"),
    ({"data_range": float("inf")}, RequestError, "not inf"),
    ({"changes": ["retrained"]}, RequestError, "no change 'retrained'; it has untrained"),
    ({"changes": ["checkpoint:x"]}, RequestError, "no change 'checkpoint:x'"),
]


@pytest.mark.parametrize(("options", "kind", "sentence"), REFUSED)
def test_impossible_requests_get_one_sentence(
    options: dict[str, object], kind: type[SalvizError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        request_for(PICTURE, toy(), **options)


@pytest.mark.parametrize("change", [
    lambda asked: dataclasses.replace(asked, image="other"),
    lambda asked: dataclasses.replace(asked, weights="other"),
    lambda asked: dataclasses.replace(asked, precision="bfloat16"),
])  # fmt: skip
def test_a_request_for_something_else_is_refused(
    change: Callable[[exploration.Request], exploration.Request],
) -> None:
    with pytest.raises(RequestError, match="request_for"):
        explore(toy(), PICTURE, change(request(toy())))


def test_half_precision_is_another_request() -> None:
    half = dataclasses.replace(toy(), autocast=torch.bfloat16)
    assert request(half).precision == "bfloat16"
    assert request(half).digest != request(toy()).digest


def test_a_set_gives_what_each_method_gives_alone() -> None:
    classifier, names = trained(), ("grad_cam", "gradient", "integrated_gradients", "smoothgrad", "input_x_gradient")
    told: list[tuple[int, int]] = []
    shown: list[str] = []
    requests = [request(classifier, method=name, variants=FOUR, changes=["untrained"]) for name in names]
    found = explore_set(
        classifier,
        PICTURE,
        requests,
        prepared=prepare(classifier, PICTURE, requests[0].variants),
        progress=lambda done, total: told.append((done, total)),
        publish=lambda part: shown.append(part.request.method),
    )
    for one, name in zip(found, names, strict=True):
        alone = explore(classifier, PICTURE, one.request)
        assert one.request.method == name
        torch.testing.assert_close(one.raw, alone.raw, rtol=0, atol=0)
        torch.testing.assert_close(one.ssim, alone.ssim, rtol=0, atol=0, equal_nan=True)
        assert one.passes == alone.passes
        torch.testing.assert_close(one.logits, alone.logits, rtol=0, atol=0)
    assert set(shown) == {"integrated_gradients", "smoothgrad"}
    dones = [done for done, _ in told]
    assert dones == sorted(dones)
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("against", [None, "runner_up"])
def test_classes_of_a_set_give_what_each_gives_alone_in_the_passes_of_one(against: str | None) -> None:
    classifier, told = trained(), []
    settings = {"occlusion": {"window": 12, "stride": 10}, "grad_cam": {}, "gradient": {}}
    requests = [
        request(
            classifier, method=name, parameters=own, target=target, against=against, variants=FOUR,
            changes=["untrained"],
        )
        for target in (7, None, 2)
        for name, own in settings.items()
    ]  # fmt: skip
    found = explore_set(
        classifier, PICTURE, requests, progress=lambda done, total: told.append((done, total))
    )  # fmt: skip
    assert [one.request for one in found] == requests
    for one in found:
        alone = explore(classifier, PICTURE, one.request)
        scale = alone.raw.abs().max()
        torch.testing.assert_close(one.raw / scale, alone.raw / scale, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.ssim, alone.ssim, rtol=1e-3, atol=1e-4, equal_nan=True)
        assert torch.equal(one.classes, alone.classes)
        assert (one.rivals is None) == (against is None)
        assert one.rivals is None or torch.equal(one.rivals, alone.rivals)
        assert (one.passes, one.layer, one.is_complete) == (alone.passes, alone.layer, True)
    # Of every class, gradient goes back from the pass of Grad-CAM; nine windows serve all.
    assert told[-1] == (6 * (9 + 1 + 3), 6 * (9 + 1 + 3))


def test_a_set_differs_in_its_methods_and_targets_alone() -> None:
    classifier = trained()
    one = request(classifier, variants=FOUR)
    with pytest.raises(RequestError, match="at least one"):
        explore_set(classifier, PICTURE, [])
    with pytest.raises(RequestError, match="may differ in their methods"):
        explore_set(classifier, PICTURE, [one, request(classifier, method="gradient", seed=1, variants=FOUR)])
    with pytest.raises(RequestError, match="once in a set"):
        explore_set(classifier, PICTURE, [one, request(classifier, variants=FOUR)])
    first = request(classifier, method="grad_cam", variants=FOUR)
    layer = request(classifier, method="grad_cam", target=3, parameters={"layer": "conv1"}, variants=FOUR)
    with pytest.raises(RequestError, match="once in a set"):
        explore_set(classifier, PICTURE, [first, layer])
    other = request(classifier, method="gradient", target=3, variants=FOUR)
    with pytest.raises(RequestError, match="every method for the same targets"):
        explore_set(classifier, PICTURE, [first, other])
