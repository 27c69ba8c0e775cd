"""Randomisation tests: against a plain loop, whatever the batch, with the calibration rows where they belong."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from salviz.classifiers.digests import weights_digest
from salviz.classifiers.randomising import Randomisation, randomised
from salviz.engine import explain
from salviz.errors import Cancelled, RequestError
from salviz.sanity import Check, OtherClass, Twin, check_randomisation
from salviz.sanity.report import described, lines, manifest, verdicts
from salviz.seeds import generators
from salviz.similarity.measures import MEASURES
from salviz.targets import ClassTarget, PredictedTarget
from tests.models import classifier_of, images, timm_model

METHODS = {"gradient": None, "grad_cam": None, "smoothgrad": {"samples": 4}}


def net(name: str = "test_resnet"):
    original = timm_model(name)
    return replace(original, rebuild=lambda: copy.deepcopy(original.module))


def digests(count: int) -> list[str]:
    return [f"image {i}" for i in range(count)]


@pytest.mark.parametrize("target", ["original", pytest.param("argmax", marks=pytest.mark.slow)])
def test_equals_a_plain_loop(target: str) -> None:
    classifier, x = net(), images(3, 96)
    how = Randomisation("top_down", "permute", seed=5)
    check = Check(METHODS, how, target=target, measures=("spearman_abs", "pearson", "ssim"), seed=2)
    found = check_randomisation(classifier, x, check, digests=digests(3))
    assert found.methods == ("gradient", "grad_cam", "smoothgrad", "random", "edge")
    assert found.is_complete

    def maps_of(model, method: str) -> torch.Tensor:
        chosen = ClassTarget(classifier.predict(x).argmax(dim=1)) if target == "original" else PredictedTarget()
        raw = explain(
            model, x, method=method, parameters=METHODS[method], target=chosen, digests=digests(3), seed=2
        ).maps
        raw = raw if raw.ndim == 4 else raw[:, None]
        return F.interpolate(raw, size=(96, 96), mode="bilinear", align_corners=False)

    originals = {method: maps_of(classifier, method) for method in METHODS}
    stages = 0
    for place, changed in enumerate(randomised(classifier, how)):
        for row, method in enumerate(METHODS):
            other = maps_of(changed, method)
            for column, measure in enumerate(check.measures):
                expected = MEASURES[measure](originals[method], other).numpy()
                np.testing.assert_allclose(found.scores[row, column, 0, place], expected, atol=2e-5)
        logits = changed.predict(x)
        np.testing.assert_allclose(
            found.spread[0, place], (logits.std(dim=1) / classifier.predict(x).std(dim=1)).numpy(), rtol=1e-4
        )
        agrees = logits.argmax(dim=1) == classifier.predict(x).argmax(dim=1)
        assert found.agrees[0, place].tolist() == agrees.float().tolist()
        stages += 1
    assert len(found.stages) == stages


def test_calibration_rows_pass_and_fail_as_they_must() -> None:
    check = Check({"gradient": None}, Randomisation("top_down", "moments"), measures=("spearman_signed", "hog_pearson"))
    found = check_randomisation(net(), images(2, 160), check, digests=digests(2))
    random, edge = found.methods.index("random"), found.methods.index("edge")
    np.testing.assert_allclose(found.scores[edge], 1, atol=1e-5)
    np.testing.assert_allclose(found.itself[edge], 1, atol=1e-5)
    # 25,600 pixels of noise: a correlation's standard error is a hundred and sixtieth.
    assert np.abs(found.scores[random, 0]).max() < 5 / 160
    assert np.abs(found.itself[random, 0]).max() < 5 / 160
    # Another one for each net.
    assert len(np.unique(found.scores[random, 0])) == found.scores[random, 0].size
    np.testing.assert_allclose(found.itself[0], 1, atol=1e-5)


def test_sampled_methods_are_compared_with_their_own_repeat() -> None:
    check = Check({"smoothgrad": {"samples": 2}}, Randomisation("full", "moments"), measures=("spearman_signed",))
    found = check_randomisation(net(), images(2, 160), check, digests=digests(2))
    assert (found.itself[0, 0] < 0.99).all()
    assert (found.itself[0, 0] > found.scores[0, 0, 0, -1]).all()


def test_neither_batch_size_nor_company_changes_an_image() -> None:
    classifier, x = net(), images(3, 160)
    check = Check({"gradient": None, "smoothgrad": {"samples": 2}}, Randomisation("full", "permute"), draws=2)
    whole = check_randomisation(classifier, x, check, digests=digests(3))
    small = check_randomisation(classifier, x, check, digests=digests(3), batch_size=1)
    alone = check_randomisation(classifier, x[1:2], check, digests=digests(3)[1:2])
    np.testing.assert_allclose(whole.scores, small.scores, atol=1e-4)
    np.testing.assert_allclose(whole.scores[..., 1:2], alone.scores, atol=1e-4)
    np.testing.assert_allclose(whole.entropies[..., 1:2], alone.entropies, atol=1e-3)
    # Two draws of the same stage are two nets.
    assert not np.allclose(whole.scores[:2, :, 0], whole.scores[:2, :, 1], atol=1e-3)


def test_many_images_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from salviz.sanity import running

    classifier, x = net(), images(3, 160)
    check = Check({"gradient": None}, Randomisation("full", "permute"), draws=2, measures=("pearson",))
    whole = check_randomisation(classifier, x, check, digests=digests(3))
    monkeypatch.setattr(running, "AT_ONCE", 2)
    seen = []
    parts = check_randomisation(classifier, x, check, digests=digests(3), publish=lambda part: seen.append(part.done))
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-4)
    assert parts.is_complete
    assert max(seen) == parts.done == 2 * len(parts.stages)


def test_pixels_of_the_baseline_can_be_left_out() -> None:
    """On half-black pictures input x gradient ties with itself in the dark, whatever the net."""
    classifier, x = net(), images(2, 160)
    prep = classifier.preprocessing
    x[:, :, :120] = prep.normalise(torch.zeros(2, 3, 120, 160, dtype=torch.uint8))
    black = classifier_of(classifier.module, size=160, classes=1000)
    x_black = (x - x[:1, :, :1, :1]) * (x != x[:1, :, :1, :1])
    check = Check({"input_x_gradient": None}, Randomisation("full", "moments"), measures=("spearman_abs",))
    with_all = check_randomisation(black, x_black, check, digests=digests(2))
    without = check_randomisation(black, x_black, replace(check, skips_baseline=True), digests=digests(2))
    assert (with_all.scores[0, 0, 0, 0] > without.scores[0, 0, 0, 0] + 0.1).all()


def test_the_classifier_is_left_as_it_was_and_work_can_be_stopped() -> None:
    classifier, x = net(), images(2, 160)
    before, seen = weights_digest(classifier.module), []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) > 6:
            raise Cancelled

    check = Check({"gradient": None}, measures=("pearson",))
    with pytest.raises(Cancelled):
        check_randomisation(classifier, x, check, digests=digests(2), progress=stop)
    assert weights_digest(classifier.module) == before
    told: list[tuple[int, int]] = []
    check_randomisation(classifier, x, check, digests=digests(2), progress=lambda done, all: told.append((done, all)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len({total for _, total in told}) == 1
    assert told[-1][0] > 0.9 * told[-1][1]


def test_bad_checks_are_refused() -> None:
    for change, sentence in (
        ({"methods": {}}, "No method"),
        ({"measures": ()}, "No similarity"),
        ({"draws": 0}, "at least once"),
        ({"target": "second"}, "original class or the argmax"),
        ({"measures": ("psnr",)}, "no similarity 'psnr'"),
    ):
        with pytest.raises(RequestError, match=sentence):
            Check(**{"methods": {"gradient": None}, **change})


def laid(raw: torch.Tensor) -> torch.Tensor:
    raw = raw if raw.ndim == 4 else raw[:, None]
    return F.interpolate(raw, size=(160, 160), mode="bilinear", align_corners=False)


def other_net(seed: int = 3):
    return next(iter(randomised(net(), Randomisation("full", "moments", seed=seed))))


@pytest.mark.parametrize("target", ["original", "argmax"])
def test_a_twin_stands_where_random_nets_stand_otherwise(target: str) -> None:
    classifier, x = net(), images(3, 160)
    twin = replace(other_net(), title="Other labels")
    names = ("spearman_signed", "ssim")
    check = Check({"gradient": None, "grad_cam": None}, Twin.of(twin), target=target, measures=names)
    found = check_randomisation(classifier, x, check, digests=digests(3), twin=twin)
    assert found.stages == ("Other labels",)
    logits, others = classifier.predict(x), twin.predict(x)
    chosen = ClassTarget(logits.argmax(dim=1)) if target == "original" else PredictedTarget()
    for row, method in enumerate(("gradient", "grad_cam")):
        first = explain(classifier, x, method=method, target=PredictedTarget(), digests=digests(3)).maps
        second = explain(twin, x, method=method, target=chosen, digests=digests(3)).maps
        for column, measure in enumerate(check.measures):
            expected = MEASURES[measure](laid(first), laid(second)).numpy()
            np.testing.assert_allclose(found.scores[row, column, 0, 0], expected, atol=2e-5)
    assert found.agrees[0, 0].tolist() == (logits.argmax(dim=1) == others.argmax(dim=1)).float().tolist()
    assert verdicts(found, "spearman_signed")["gradient"][0] == "moves with Other labels"
    assert manifest(found, classifier, [("a", "b")] * 3)["check"]["how"]["id"] == twin.id
    assert manifest(found, classifier, [("a", "b")] * 3)["efficient_mprt"] is None
    assert "Other labels in its place" in next(lines(found, classifier, 3))


def test_a_twin_that_does_not_fit_is_refused() -> None:
    classifier, x, other = net(), images(1, 160), other_net()
    check = Check({"gradient": None}, Twin.of(other))
    for given in (None, other_net(4)):
        with pytest.raises(RequestError, match="is missing"):
            check_randomisation(classifier, x, check, digests=digests(1), twin=given)
    with pytest.raises(RequestError, match="with itself"):
        check_randomisation(
            classifier, x, Check({"gradient": None}, Twin.of(classifier)), digests=digests(1), twin=classifier
        )
    larger = replace(other, preprocessing=timm_model("test_vit").preprocessing)
    larger = replace(larger, preprocessing=replace(larger.preprocessing, mean=(0.1, 0.2, 0.3)))
    with pytest.raises(RequestError, match="prepares pictures differently"):
        check_randomisation(classifier, x, Check({"gradient": None}, Twin.of(larger)), digests=digests(1), twin=larger)


def test_a_refusal_names_the_net_that_was_chosen_and_not_its_twin() -> None:
    original = net("test_vit")
    # A module of its own: refusals are remembered by it.
    classifier = replace(original, title="The chosen net", module=original.rebuild())
    twin = replace(next(iter(randomised(classifier, Randomisation("full", "moments")))), title="Its twin")
    check = Check({"gradient": None, "guided_backprop": None}, Twin.of(twin), measures=("spearman_abs",))
    found = check_randomisation(classifier, images(1, 160), check, digests=digests(1), twin=twin)
    assert list(found.refused) == ["guided_backprop"]
    assert "The chosen net" in found.refused["guided_backprop"]
    assert "Its twin" not in found.refused["guided_backprop"]


def test_another_class_is_asked_of_the_same_net() -> None:
    """The random-logit test against maps of the classes it draws; none of them is the predicted one."""
    classifier, x = net(), images(3, 160)
    check = Check({"gradient": None}, OtherClass(seed=7), draws=4, measures=("spearman_signed",))
    found = check_randomisation(classifier, x, check, digests=digests(3))
    assert found.stages == ("another class",)
    np.testing.assert_allclose(found.spread, 1, atol=1e-5)
    assert (found.agrees == 1).all()
    own = classifier.predict(x).argmax(dim=1)
    mine = explain(classifier, x, method="gradient", target=PredictedTarget(), digests=digests(3)).maps
    for draw in range(4):
        streams = generators(7, digests(3), f"another class {draw}", "cpu")
        steps = torch.cat([torch.randint(1, 1000, (1,), generator=stream) for stream in streams])
        classes = (own + steps) % 1000
        assert (classes != own).all()
        maps = explain(classifier, x, method="gradient", target=ClassTarget(classes), digests=digests(3)).maps
        expected = MEASURES["spearman_signed"](laid(mine), laid(maps)).numpy()
        np.testing.assert_allclose(found.scores[0, 0, draw, 0], expected, atol=2e-5)
        if draw == 0:
            first = int(own[0]), int(classes[0])
    assert len(np.unique(found.scores[0, 0])) == found.scores[0, 0].size
    # The strip is of the first image under the first draw, and says which classes its maps explain.
    frame = torch.zeros(3, 160, 160, dtype=torch.uint8)
    strip = check_randomisation(classifier, x, check, digests=digests(3), frame=frame).strip
    assert strip is not None
    assert strip.explained == list(first)


@pytest.mark.parametrize("target", ["original", "argmax"])
def test_smooth_maps_are_means_over_noisy_copies(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smooth MPRT against a loop: N - 1 copies with noise and the image itself, for both nets alike."""
    from salviz.sanity import running

    classifier, x, copies = net(), images(2, 160), 4
    how = Randomisation("full", "permute", seed=5)
    check = Check({"gradient": None}, how, target=target, measures=("pearson",), copies=copies, noise=0.2, seed=9)
    # Two copies of two images at a time, and one that is left.
    monkeypatch.setattr(running, "AT_ONCE", 4)
    found = check_randomisation(classifier, x, check, digests=digests(2))
    other = next(iter(randomised(classifier, how)))
    own = classifier.predict(x).argmax(dim=1)
    classes = own if target == "original" else other.predict(x).argmax(dim=1)
    spread = x.amax(dim=(1, 2, 3)) - x.amin(dim=(1, 2, 3))

    def smooth(model, target: torch.Tensor) -> torch.Tensor:
        maps = []
        for i in range(2):
            total = torch.zeros(3, 160, 160)
            for k in range(copies):
                picture = x[i]
                if k:
                    (stream,) = generators(9, [f"image {i}|copy {k}"], "smooth")
                    picture = picture + 0.2 * spread[i] * torch.randn(3, 160, 160, generator=stream)
                total += explain(
                    model, picture[None], method="gradient", target=ClassTarget(target[i : i + 1]), digests=["any"]
                ).maps[0]
            maps.append(total / copies)
        return torch.stack(maps)

    expected = MEASURES["pearson"](laid(smooth(classifier, own)), laid(smooth(other, classes))).numpy()
    np.testing.assert_allclose(found.scores[0, 0, 0, 0], expected, atol=1e-4)
    plain = check_randomisation(classifier, x, replace(check, copies=1), digests=digests(2))
    assert np.abs(plain.scores[0] - found.scores[0]).min() > 1e-3


def test_a_description_knows_every_parameter() -> None:
    check = Check({"gradient": None})
    changes = (
        {"methods": {"smoothgrad": None}}, {"methods": {"smoothgrad": {"samples": 3}}}, {"how": OtherClass()},
        {"how": OtherClass(1)}, {"how": Twin("a", "b", "c")}, {"how": Randomisation("full")}, {"draws": 2},
        {"target": "argmax"}, {"measures": ("ssim",)}, {"skips_baseline": True}, {"copies": 3},
        {"copies": 3, "noise": 0.5}, {"seed": 1},
    )  # fmt: skip
    told = [str(described(check)), *(str(described(replace(check, **change))) for change in changes)]
    assert len(set(told)) == len(told)
    assert str(described(replace(check, methods={"gradient": {}}))) == told[0]
