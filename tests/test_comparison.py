"""Several explanations of one image: equal to each by itself, in fewer passes, and how they agree."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from salviz import engine, methods
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import target_layer
from salviz.comparison import Comparison, compare, comparison_digest, for_top_classes
from salviz.errors import Cancelled, RequestError
from salviz.exploring import explore
from salviz.images import Picture
from salviz.request import Request, request_for
from tests.golden import cose_inputs
from tests.models import images, timm_model, toy

PICTURE = Picture.from_rgb(Image.fromarray(cose_inputs.smooth_image_u8(64)).resize((90, 64)), name="waves")
SET = ["smoothgrad", "grad_cam", "edge", "gradient", "layer_cam", "vargrad", "input_x_gradient", "smoothgrad_squared"]


def request(classifier, method: str, **options: object) -> Request:
    return request_for(PICTURE, classifier, method=method, variants=(), **options)


FEW = {method: {"samples": 5} for method in ("smoothgrad", "vargrad", "smoothgrad_squared")}
"""Settings of the methods that average over noisy copies."""


def every(classifier, chosen: list[str] = SET) -> list[Request]:
    return [request(classifier, method, parameters=FEW.get(method)) for method in chosen]


def test_a_row_is_the_exploration_of_its_request() -> None:
    classifier = toy()
    found = compare({classifier.digest: classifier}, PICTURE, every(classifier))
    assert found.is_complete
    assert [row.request.method for row in found.rows] == SET
    for row in found.rows:
        alone = explore(classifier, PICTURE, row.request)
        assert torch.equal(row.raw, alone.raw)
        assert torch.equal(row.logits, alone.logits)
        assert (row.layer, row.placement, row.passes) == (alone.layer, alone.placement, alone.passes)


def test_methods_share_their_passes() -> None:
    """All CAMs one trunk and head, the gradients one backward, SmoothGrad's three one set of noisy copies."""
    classifier = toy()
    target_layer(classifier)  # Found once a net, by a pass of its own.
    calls: list[int] = []
    handle = classifier.runtime.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    try:
        compare({classifier.digest: classifier}, PICTURE, every(classifier))
    finally:
        handle.remove()
    # 1 for the CAMs, the gradients and the prediction of the methods without one of their own, 5 noisy copies.
    assert sum(calls) == 1 + 5
    size = classifier.preprocessing.input_size
    assert engine.passes({method: FEW.get(method) for method in SET}, size) == 2 + 10


def test_a_set_gives_what_each_method_gives_alone() -> None:
    classifier, x, digests = timm_model("test_resnet"), images(3, 96), ["a", "b", "c"]
    chosen = {
        "grad_cam": None,
        "gradient": None,
        "smoothgrad": {"samples": 3},
        "vargrad": {"samples": 3},
        "random": None,
    }
    told: list[str] = []
    together = engine.explain_set(
        classifier, x, methods=chosen, digests=digests, batch_size=2, publish=lambda name, found: told.append(name)
    )
    assert list(together) == list(chosen)
    assert told == ["grad_cam", "gradient", "random", "smoothgrad", "vargrad"], "cheap ones first"
    for name, settings in chosen.items():
        alone = engine.explain(classifier, x, method=name, parameters=settings, digests=digests)
        scale = alone.maps.abs().max()
        torch.testing.assert_close(together[name].maps / scale, alone.maps / scale, atol=1e-4, rtol=1e-3)
        assert together[name].passes == alone.passes


@pytest.mark.parametrize("cheap", ["grad_cam", "gradient"])
def test_the_prediction_comes_with_whatever_way_through_the_net_was_made(cheap: str) -> None:
    classifier, x, digests = timm_model("test_resnet"), images(3, 96), ["a", "b", "c"]
    calls: list[int] = []
    handle = classifier.runtime.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    try:
        found = engine.explain_set(classifier, x, methods={"edge": None, cheap: None}, digests=digests)
    finally:
        handle.remove()
    assert calls == [3]
    torch.testing.assert_close(found["edge"].logits, classifier.predict(x))
    assert torch.equal(found["edge"].classes, found[cheap].classes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "forwards"),
    [
        ("test_resnet", "", 1),
        ("test_efficientnet", "", 1),
        ("test_vit", "", 1),
        ("test_mambaout", "", 1),
        ("densenet121", "", 1),
        # The skip connection leads around it.
        ("resnet18", "layer4.0.downsample", 1),
        # Folded into the convolution before it: taken from the published net, whose last digits differ.
        ("resnet18", "layer4.0.downsample.0", 2),
    ],
)
def test_gradients_go_on_from_the_forward_of_the_cams(
    monkeypatch: pytest.MonkeyPatch, name: str, layer: str, forwards: int
) -> None:
    classifier = timm_model(name)
    x, digests = images(2, 96 if name in ("densenet121", "resnet18") else 160), ["a", "b"]
    settings = {"layer": layer}
    calls: list[int] = []
    forward = Classifier.forward

    def counted(self: Classifier, x: torch.Tensor, *, is_published: bool = False) -> torch.Tensor:
        calls.append(len(x))
        return forward(self, x, is_published=is_published)

    done: list[tuple[int, int]] = []
    chosen = {
        "grad_cam": settings,
        "finer_cam": settings,
        "gradient": None,
        "input_x_gradient": None,
        "eigen_cam": settings,
    }
    for one in (None, layer or None):
        target_layer(classifier, one)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "forward", counted)
        together = engine.explain_set(
            classifier, x, methods=chosen, digests=digests, progress=lambda *passes: done.append(passes)
        )
    assert calls == [2] * forwards
    assert done[-1][0] == (2 * 2 if forwards == 1 else 3 * 2)
    for method, own in chosen.items():
        alone = engine.explain(classifier, x, method=method, parameters=own, digests=digests)
        scale = alone.maps.abs().max()
        torch.testing.assert_close(together[method].maps / scale, alone.maps / scale, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together[method].logits, alone.logits, atol=1e-5, rtol=1e-5)


def test_a_set_that_does_not_fit_is_cut_and_gives_the_same() -> None:
    classifier, x, digests = timm_model("test_resnet"), images(4, 96), list("abcd")
    chosen = {"grad_cam": None, "guided_backprop": None, "smoothgrad": {"samples": 3}}
    plain = engine.explain_set(classifier, x, methods=chosen, digests=digests)
    sizes: list[int] = []

    def tight(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        # The CAM fits, the graph of the gradient does not.
        if len(inputs[0]) > 1 and torch.is_grad_enabled() and inputs[0].requires_grad:
            raise torch.OutOfMemoryError("too many")

    handle = classifier.runtime.register_forward_pre_hook(tight)
    try:
        found = engine.explain_set(classifier, x, methods=chosen, digests=digests)
    finally:
        handle.remove()
    assert sizes[0] == 4
    for name in chosen:
        assert len(found[name].maps) == 4
        scale = plain[name].maps.abs().max()
        torch.testing.assert_close(found[name].maps / scale, plain[name].maps / scale, atol=1e-4, rtol=1e-3)


def test_cheap_rows_come_first_and_partial_results_grow() -> None:
    classifier = toy()
    seen: list[list[str]] = []
    compare(
        {classifier.digest: classifier}, PICTURE, every(classifier, ["smoothgrad", "grad_cam", "random"]),
        publish=lambda partial: seen.append([row.request.method for row in partial.rows]),
    )  # fmt: skip
    assert seen[:3] == [["grad_cam"], ["grad_cam", "random"], ["smoothgrad", "grad_cam", "random"]]


def test_known_rows_cost_nothing_more() -> None:
    classifier = toy()
    first = compare({classifier.digest: classifier}, PICTURE, every(classifier, ["grad_cam", "gradient"]))
    calls: list[int] = []
    handle = classifier.runtime.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    told: list[tuple[float, float]] = []
    try:
        found = compare(
            {classifier.digest: classifier}, PICTURE, every(classifier, ["gradient", "edge", "grad_cam"]),
            known=first.found, progress=lambda done, total: told.append((done, total)),
        )  # fmt: skip
    finally:
        handle.remove()
    # One prediction for the row that is new; rows that nobody asked for stay out.
    assert sum(calls) == 1
    assert [row.request.method for row in found.rows] == ["gradient", "edge", "grad_cam"]
    assert found.rows[0] is first.rows[1]
    assert found.is_complete
    again = compare({classifier.digest: classifier}, PICTURE, every(classifier, ["edge"]), known=found.found)
    assert [row.request.method for row in again.rows] == ["edge"]


def test_what_cannot_be_explained_costs_the_others_nothing() -> None:
    vit = timm_model("test_vit")
    asked = [
        request(vit, "guided_backprop"),
        request(vit, "gradient"),
        request(vit, "grad_cam", parameters={"layer": "x"}),
    ]
    found = compare({vit.digest: vit}, PICTURE, asked)
    assert found.is_complete
    assert [row.request.method for row in found.rows] == ["gradient"]
    assert "ReLU nets only" in found.problems[asked[0].digest]
    assert "no layer 'x'" in found.problems[asked[2].digest]


@pytest.mark.parametrize("part", ["refusal", "explain"])
def test_a_fault_in_one_row_is_told_and_the_others_stand(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ValueError("a shape nobody thought of")

    plain = methods.METHODS["gradient"]
    changed = replace(plain, explain=broken) if part == "explain" else replace(plain.card, refusal=broken)
    monkeypatch.setitem(
        methods.METHODS, "gradient", changed if part == "explain" else methods.Method(changed, plain.explain)
    )
    classifier = toy()
    asked = every(classifier, ["grad_cam", "gradient", "input_x_gradient"])
    found = compare({classifier.digest: classifier}, PICTURE, asked)
    assert found.is_complete
    assert [row.request.method for row in found.rows] == ["grad_cam", "input_x_gradient"]
    told = found.problems[asked[1].digest]
    assert told.startswith(f"It failed on {classifier.title}, which is a fault of Salviz")
    assert "shape" not in told
    assert "a shape nobody thought of" in caplog.text


def test_models_and_classes_as_rows() -> None:
    cnn, vit = timm_model("test_resnet"), timm_model("test_vit")
    asked = [
        request(cnn, "grad_cam"), request(vit, "grad_cam"), request(cnn, "grad_cam", target=7),
        request(cnn, "grad_cam", against="runner_up"),
    ]  # fmt: skip
    found = compare({cnn.digest: cnn, vit.digest: vit}, PICTURE, asked)
    assert [row.request for row in found.rows] == asked
    assert int(found.rows[2].classes[0]) == 7
    assert found.rows[3].rivals is not None
    assert np.isfinite(found.agreement.spearman).all()


def test_the_most_probable_classes_as_rows() -> None:
    classifier = timm_model("test_resnet")
    base = request(classifier, "grad_cam", against=3)
    asked = for_top_classes(classifier, PICTURE, base, 4)
    found = compare({classifier.digest: classifier}, PICTURE, asked)
    top = found.rows[0].logits[0].topk(4).indices.tolist()
    assert [int(row.classes[0]) for row in found.rows] == top
    assert all(int(row.rivals[0]) == 3 for row in found.rows if int(row.classes[0]) != 3)
    assert for_top_classes(classifier, PICTURE, replace(base, against=top[0]), 1)[0].against == "runner_up"
    assert len({comparison_digest(asked), comparison_digest(asked[:2]), comparison_digest(asked, 4)}) == 3


@pytest.mark.parametrize("method", ["rise", "occlusion", "grad_cam", "smoothgrad"])
def test_classes_as_rows_take_the_passes_of_one(method: str) -> None:
    classifier = toy()
    settings = {"rise": {"samples": 9}, "occlusion": {"window": 12, "stride": 10}, "smoothgrad": {"samples": 3}}
    base = request(classifier, method, parameters=settings.get(method))
    asked = for_top_classes(classifier, PICTURE, base, 3)
    alone = {one.digest: explore(classifier, PICTURE, one) for one in asked}
    calls: list[int] = []
    ticks: list[tuple[int, int]] = []
    handle = classifier.runtime.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    try:
        found = compare({classifier.digest: classifier}, PICTURE, asked, progress=lambda *tick: ticks.append(tick))
    finally:
        handle.remove()
    # Each with the images' own pass; gradients are a class's own, and half of their passes are backward.
    assert sum(calls) == {"rise": 9 + 1, "occlusion": 9 + 1, "grad_cam": 1, "smoothgrad": 3 * (3 + 1)}[method]
    passes = {"rise": 9, "occlusion": 9, "grad_cam": 1, "smoothgrad": 3 * 6}[method]
    assert ticks[-1] == (passes, passes)
    for row in found.rows:
        expected = alone[row.request.digest]
        scale = expected.raw.abs().max()
        torch.testing.assert_close(row.raw / scale, expected.raw / scale, atol=1e-5, rtol=1e-4)
        assert (row.passes, row.layer, int(row.classes[0])) == (expected.passes, expected.layer, row.request.target)
    assert [row.request for row in found.rows] == asked


def test_a_fault_in_a_set_of_classes_leaves_those_that_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = methods.METHODS["grad_cam"]

    def broken(classifier: Classifier, x: torch.Tensor, target: object, **options: object) -> object:
        found = plain.explain(classifier, x, target, **options)
        if 3 in target.resolve(found.logits).classes:
            raise ValueError("a class nobody thought of")
        return found

    monkeypatch.setitem(methods.METHODS, "grad_cam", replace(plain, explain=broken))
    classifier = toy()
    asked = [request(classifier, "grad_cam", target=index) for index in (2, 3, 5)]
    found = compare({classifier.digest: classifier}, PICTURE, asked)
    assert found.is_complete
    assert [row.request.target for row in found.rows] == [2, 5]
    assert list(found.problems) == [asked[1].digest]


def test_progress_rises_to_its_total_over_all_groups() -> None:
    cnn, vit = timm_model("test_resnet"), timm_model("test_vit")
    asked = [request(net, method) for net in (cnn, vit) for method in ("gradient", "grad_cam")]
    ticks: list[tuple[int, int]] = []
    compare({cnn.digest: cnn, vit.digest: vit}, PICTURE, asked, progress=lambda *tick: ticks.append(tick))
    assert ticks == sorted(ticks)
    assert {total for _, total in ticks} == {4}
    assert ticks[-1] == (4, 4)


def test_cancel_ends_it() -> None:
    classifier = toy()

    def stop(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        compare({classifier.digest: classifier}, PICTURE, every(classifier), progress=stop)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": "other"}, "another picture"),
        ({"weights": "other"}, "another model"),
        ({"precision": "bfloat16"}, "another model"),
        ({"variants": ("blur",)}, "have no variants"),
    ],
)
def test_rows_that_do_not_belong_are_refused(change: dict, sentence: str) -> None:
    classifier = toy()
    asked = dataclasses.replace(request(classifier, "gradient"), **change)
    with pytest.raises(RequestError, match=sentence):
        compare({classifier.digest: classifier}, PICTURE, [asked])


def test_nothing_to_compare() -> None:
    with pytest.raises(RequestError, match="at least one row"):
        compare({}, PICTURE, [])
    assert Comparison((), {}, {}).is_complete
