"""What must hold for every registered method, on a CNN and on a transformer."""

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from salviz import engine, methods
from salviz.classifiers import Classifier
from salviz.errors import Cancelled, MethodError, RequestError, SalvizError
from salviz.methods.card import _always
from salviz.support import cheapest
from salviz.targets import ClassTarget
from tests.models import classifier_of, images, sampled, timm_model, toy

QUICK = {"samples": 3, "steps": 3, "iterations": 2, "window": 60, "stride": 50, "segments": 6, "channels": 3}
NETS = ["test_resnet", "test_vit"]
CASES = [
    pytest.param(name, method, id=f"{method}-{name}")
    for method in methods.METHODS
    for name in NETS
    if not (method in ("guided_backprop", "guided_grad_cam", "cam", "deconvnet", "full_grad") and name == "test_vit")
    if not (methods.get(method).card.family == "attention" and name == "test_resnet")
]


def net_for(method: str) -> str:
    """A net that the method can explain."""
    return "test_vit" if methods.get(method).card.family == "attention" else "test_resnet"


def quick(method: str) -> dict:
    names = {p.name for p in methods.get(method).card.parameters}
    return {key: value for key, value in QUICK.items() if key in names}


def explain(name, x, method, digests, **options):
    return engine.explain(timm_model(name), x, method=method, parameters=quick(method), digests=digests, **options)


@pytest.mark.parametrize(("name", "method"), sampled(CASES))
def test_the_result_depends_neither_on_batch_nor_on_order(name: str, method: str) -> None:
    x, digests = images(3, 160), ["a", "b", "c"]
    whole = explain(name, x, method, digests)
    assert whole.maps.shape[0] == 3
    assert whole.maps.dtype == torch.float32
    assert torch.isfinite(whole.maps).all()
    scale = whole.maps.abs().max() or 1.0
    cut = explain(name, x, method, digests, batch_size=1)
    torch.testing.assert_close(cut.maps / scale, whole.maps / scale, atol=1e-4, rtol=1e-3)
    turned = explain(name, x.flip(0), method, digests[::-1], batch_size=2)
    torch.testing.assert_close(turned.maps.flip(0) / scale, whole.maps / scale, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(turned.logits.flip(0), whole.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.logits, timm_model(name).predict(x), atol=1e-4, rtol=1e-4)
    assert whole.classes.tolist() == whole.logits.argmax(1).tolist()


def state(module: nn.Module) -> dict:
    return {
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks)
            for m in module.modules()
        ],
        "training": [m.training for m in module.modules()],
        "grad": [(p.requires_grad, p.grad) for p in module.parameters()],
        "values": [p.clone() for p in module.state_dict().values()],
    }


def assert_unchanged(before: dict, after: dict) -> None:
    assert before["hooks"] == after["hooks"]
    assert before["training"] == after["training"]
    assert before["grad"] == after["grad"]
    assert all(torch.equal(a, b) for a, b in zip(before["values"], after["values"], strict=True))


@pytest.mark.parametrize(("name", "method"), sampled(CASES))
def test_the_model_is_left_as_found(name: str, method: str) -> None:
    classifier, x = timm_model(name), images(1, 160)
    published, before = state(classifier.module), state(classifier.runtime)
    explain(name, x, method, ["a"])
    assert_unchanged(before, state(classifier.runtime))
    with pytest.raises(RequestError, match="no class 5000"):
        explain(name, x, method, ["a"], target=ClassTarget(torch.tensor([5000])))
    assert_unchanged(before, state(classifier.runtime))
    assert_unchanged(published, state(classifier.module))


class Layers(TorchFunctionMode):
    """Counts the images that convolutions, and linear layers of tokens, were given: with a graph and without."""

    def __init__(self) -> None:
        super().__init__()
        self.images = {True: 0, False: 0}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.conv2d, F.linear) and result.ndim > 2:
            self.images[result.requires_grad] += len(result)
        return result


@pytest.mark.parametrize("method", methods.METHODS)
def test_the_card_says_whether_the_passes_are_differentiated(method: str) -> None:
    """A third of the forwards with a graph is half of all passes: each of these has a backward."""
    chosen = methods.get(method)
    is_on_tokens = chosen.card.family == "attention"
    classifier, size = (timm_model("test_vit"), 160) if is_on_tokens else (toy(), 32)
    # Its refusal may run the net, and a search for a first mask is long beside two steps.
    assert chosen.refusal(classifier) is None
    given = quick(method) | ({"iterations": 20} if "iterations" in quick(method) else {})
    with Layers() as seen:
        engine.explain(classifier, images(1, size), method=method, parameters=given, digests=["a"])
    share = seen.images[True] / sum(seen.images.values())
    assert chosen.card.differentiates == (share > 1 / 3)


class Crashing(nn.Module):
    """Fails in the head, after the hooks of any method have seen the features."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls_left = 10**6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.inner(x)
        self.calls_left -= 1
        if self.calls_left < 0:
            raise RuntimeError("the head is broken")
        return logits


# Transformers are found by the names of their modules: tests/methods/test_attention.py crashes one.
@pytest.mark.parametrize(
    "method", sampled(m for m, method in methods.METHODS.items() if method.card.family not in ("controls", "attention"))
)
def test_a_crashing_forward_leaves_the_model_as_found(method: str) -> None:
    module = Crashing(timm_model("test_resnet").module)
    classifier = classifier_of(module, size=160, classes=1000)
    engine.explain(classifier, images(1, 160), method=method, parameters=quick(method), digests=["a"])
    before = state(classifier.runtime)
    classifier.runtime.calls_left = module.calls_left = 0
    with pytest.raises(RuntimeError, match="the head is broken"):
        engine.explain(classifier, images(1, 160), method=method, parameters=quick(method), digests=["a"])
    assert_unchanged(before, state(classifier.runtime))
    assert classifier.lock.acquire(blocking=False)
    classifier.lock.release()


@pytest.mark.parametrize("method", sampled(methods.METHODS))
def test_it_works_under_no_grad_and_inference_mode(method: str) -> None:
    x = images(1, 160)
    plain = explain(net_for(method), x, method, ["a"]).maps
    with torch.no_grad():
        torch.testing.assert_close(explain(net_for(method), x, method, ["a"]).maps, plain)
    with torch.inference_mode():
        torch.testing.assert_close(explain(net_for(method), x.clone(), method, ["a"]).maps, plain)


@pytest.mark.parametrize("method", sampled(methods.METHODS))
def test_two_threads_get_the_same_as_one(method: str) -> None:
    x = images(2, 160)
    alone = [explain(net_for(method), x[[i]], method, [str(i)]).maps for i in (0, 1)]
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def run(i: int) -> None:
        found[i].extend(explain(net_for(method), x[[i]], method, [str(i)]).maps for _ in range(3))

    threads = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        assert len(found[i]) == 3
        for maps_ in found[i]:
            torch.testing.assert_close(maps_, alone[i])


@pytest.mark.parametrize("method", [m for m, method in methods.METHODS.items() if method.card.family != "controls"])
def test_cancel_stops_at_the_next_pass(method: str) -> None:
    ticks = []

    def cancel(done: int, total: int) -> None:
        ticks.append((done, total))
        raise Cancelled

    with pytest.raises(Cancelled):
        explain(net_for(method), images(1, 160), method, ["a"], progress=cancel, batch_size=1)
    assert len(ticks) == 1
    assert 0 < ticks[0][0] <= ticks[0][1]


@pytest.mark.parametrize("method", methods.METHODS)
def test_progress_ends_at_the_passes_the_card_promises(method: str) -> None:
    ticks = []
    x = images(2, 160)
    found = explain(net_for(method), x, method, ["a", "b"], progress=lambda done, total: ticks.append((done, total)))
    promised = methods.get(method).card.passes(methods.get(method).card.check_parameters(quick(method)), (160, 160))
    assert found.passes == 2 * promised
    assert (ticks[-1] if ticks else (0, 0)) == (round(found.passes), round(found.passes))


@pytest.mark.parametrize("method", methods.METHODS)
def test_what_a_card_promises_beside_the_map_comes_with_it(method: str) -> None:
    card = methods.get(method).card
    found = explain(net_for(method), images(1, 160), method, ["a"])
    assert (found.completeness is not None) == bool(card.completeness)
    if card.completeness:
        told = card.completeness.format(error="0.5 more", score="the score", linear="the linear part")
        assert "0.5 more than " in told
        assert "the score" in told or "the linear part" in told
    assert (found.standard_error is not None) == (found.samples is not None) == card.stochastic


def slow_unless(is_quick: bool, name: str, method: str) -> Any:
    return pytest.param(name, method, id=f"{method}-{name}", marks=() if is_quick else pytest.mark.slow)


# XRAI cuts four pictures at six scales here.
FIRST_NETS = [slow_unless(p.values[0] == net_for(p.values[1]) and p.values[1] != "xrai", *p.values) for p in CASES]
DEAF_NETS = [
    *(slow_unless(True, "dead", method) for method, m in methods.METHODS.items() if m.card.family != "attention"),
    *(slow_unless(methods.get(p.values[1]).card.family == "attention", *p.values) for p in CASES),
]

SAME_WHEREVER = "what hides or is compared with is the image itself"
OF_THE_MEAN_COLOUR = {
    **dict.fromkeys(("blur_ig", "integrated_gradients", "ig_smoothgrad", "guided_ig", "deeplift"), SAME_WHEREVER),
    **dict.fromkeys(("occlusion", "superpixel_ablation", "rise", "lime", "kernel_shap"), SAME_WHEREVER),
    **dict.fromkeys(("extremal_perturbation", "meaningful_perturbation"), "a blur of it is the image itself"),
    **dict.fromkeys(("score_cam", "opti_cam"), "a mask multiplies zeros"),
    "input_x_gradient": "the image is zero",
    "vargrad": "noise is a share of the image's range",
    "edge": "there is no edge",
    "constant": "always flat",
}
"""Methods whose map of the image of zeros is flat, and why. To the others borders differ: a net pads what it sees."""


@pytest.mark.parametrize(("name", "method"), FIRST_NETS)
def test_constant_images_give_finite_maps_flat_where_nothing_can_make_a_difference(name: str, method: str) -> None:
    classifier = timm_model(name)
    levels = torch.tensor([0, 255], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 160, 160)
    x = torch.cat([torch.zeros(1, 3, 160, 160), classifier.preprocessing.normalise(levels), images(1, 160)])
    found = explain(name, x, method, list("abcd"))
    assert torch.isfinite(found.maps).all()
    if method in OF_THE_MEAN_COLOUR:
        assert found.is_flat[0]
    # The flat one stands beside another that is not.
    assert found.is_flat[3] == (method == "constant")


class Dead(nn.Module):
    """Biases so negative that no ReLU before the head lets anything through."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()
        )
        self.features[2].bias.data.fill_(-1000.0)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


@functools.cache
def deaf(name: str) -> Classifier:
    """A net whose scores are the same whatever it sees: dead inside, or with a head that reads nothing."""
    if name == "dead":
        return classifier_of(Dead(), size=64, classes=10)
    module = copy.deepcopy(timm_model(name).module)
    module.get_classifier().weight.data.zero_()
    module.get_classifier().bias.data.copy_(torch.linspace(-2, 3, 1000))
    return classifier_of(module, size=160, classes=1000, name=f"deaf {name}")


NOT_ASKED = {
    "edge": "reads the picture alone",
    "random": "reads nothing",
    "center": "reads nothing",
    "eigen_cam": "reads a layer, not what the net makes of it",
    "attention_rollout": "reads the attention, not what the net makes of it",
    "deconvnet": "its way back forgets what the ReLUs saw",
}
"""Methods whose map of a net that hears nothing may be vivid, and why: it is not made of the score."""


@pytest.mark.parametrize(("name", "method"), DEAF_NETS)
def test_a_net_that_hears_nothing_gets_a_flat_map(name: str, method: str) -> None:
    classifier = deaf(name)
    x = images(2, classifier.preprocessing.input_size)
    x[1] = 1.0
    if method == "cam" and name != "dead":
        pytest.skip("that it is defined is seen from the scores, which this head leaves alone")
    found = engine.explain(classifier, x, method=method, parameters=quick(method), digests=["a", "b"])
    assert torch.isfinite(found.maps).all()
    if method not in NOT_ASKED:
        assert found.is_flat.all()
        if found.standard_error is not None:
            assert (found.standard_error == 0).all(), "a flat map has no noise"


@pytest.mark.parametrize("method", sampled(m for m in methods.METHODS if m != "random"))
def test_tensors_are_created_where_the_input_is(method: str) -> None:
    """On the meta device a hidden host tensor or round trip is an error."""
    module = timm_model(net_for(method)).module
    classifier = classifier_of(copy.deepcopy(module).to("meta"), size=160, classes=1000)
    found = engine.explain(
        classifier, torch.zeros(2, 3, 160, 160, device="meta"), method=method, parameters=quick(method),
        digests=["a", "b"], target=ClassTarget(torch.zeros(2, dtype=torch.long, device="meta")),
    )  # fmt: skip
    assert found.maps.is_meta
    assert found.logits.is_meta


@pytest.mark.parametrize(
    "method", ["gradient", "smoothgrad", "expected_gradients", "score_cam", "superpixel_ablation", "lime"]
)
def test_a_target_made_on_the_host_goes_where_the_images_are(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on a GPU cannot pick from what is on the host; a meta tensor could, so the targets are looked at."""
    seen: list[str] = []

    def looking(name: str) -> Callable[..., object]:
        plain = getattr(ClassTarget, name)

        def call(target: ClassTarget, *arguments: object) -> object:
            seen.extend(classes.device.type for classes in (target.classes, target.against) if classes is not None)
            return plain(target, *arguments)

        return call

    module = timm_model(net_for(method)).module
    classifier = classifier_of(copy.deepcopy(module).to("meta"), size=160, classes=1000)
    for name in ("score", "repeat"):
        monkeypatch.setattr(ClassTarget, name, looking(name))
    found = engine.explain(
        classifier, torch.zeros(2, 3, 160, 160, device="meta"), method=method, parameters=quick(method),
        digests=["a", "b"], target=ClassTarget(torch.tensor([1, 3]), against=torch.tensor([2, 0])),
    )  # fmt: skip
    assert set(seen) == {"meta"}
    assert found.maps.is_meta
    assert found.classes.is_meta
    assert found.rivals is not None
    assert found.rivals.is_meta


def test_out_of_memory_halves_the_batch_and_changes_nothing() -> None:
    classifier = timm_model("test_resnet")
    x, digests = images(4, 160), list("abcd")
    plain = engine.explain(classifier, x, method="smoothgrad", parameters={"samples": 3}, digests=digests)

    class Tight(nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if len(batch) > 1:
                raise torch.OutOfMemoryError("too many")
            return classifier.module(batch)

    tight = Tight()
    tight.inner = classifier.module
    small = classifier_of(tight, size=160, classes=1000)
    found = engine.explain(small, x, method="smoothgrad", parameters={"samples": 3}, digests=digests)
    torch.testing.assert_close(found.maps, plain.maps, atol=1e-5, rtol=1e-3)


def test_refusals_come_before_anything_runs() -> None:
    with pytest.raises(MethodError, match=r"ReLU nets only.*gelu"):
        explain("test_vit", images(1, 160), "guided_backprop", ["a"])
    flat = classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3)), size=8, classes=3)
    with pytest.raises(MethodError, match="no layer with a spatial map"):
        engine.explain(flat, images(1, 8), method="grad_cam", digests=["a"])


BAD = [
    ({"method": "grad_cm"}, "no method 'grad_cm'"),
    ({"method": "gradient", "parameters": {"samples": 3}}, "has no setting 'samples'"),
    ({"method": "smoothgrad", "parameters": {"samples": "many"}}, "whole number"),
    ({"method": "smoothgrad", "parameters": {"samples": 0}}, "between 1 and 500"),
    ({"method": "smoothgrad", "parameters": {"noise": float("nan")}}, "a number"),
    ({"method": "occlusion", "parameters": {"fill": "pink"}}, "mean, black"),
    ({"method": "grad_cam", "parameters": {"layer": "nowhere"}}, "no layer 'nowhere'"),
    ({"method": "grad_cam", "parameters": {"layer": "linear"}}, "no spatial map"),
    ({"method": "gradient", "digests": []}, "digests"),
    ({"method": "gradient", "target": ClassTarget(torch.tensor([0, 1]))}, "2 target classes"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_bad_requests_get_one_plain_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(SalvizError, match=sentence):
        engine.explain(toy(), images(1, 32), **{"digests": ["a"], **options})


def test_every_card_is_complete() -> None:
    for method_id, method in methods.METHODS.items():
        card = method.card
        assert card.id == method_id
        assert card.idea.count(". ") >= 2, f"{method_id}: the idea takes three sentences"
        assert card.formula
        assert card.citation
        assert card.failures
        assert bool(card.needs) == (card.refusal is not _always), f"{method_id}: it needs what it refuses the lack of"
        assert not card.needs.endswith(".")


@pytest.mark.parametrize("method", methods.METHODS)
def test_needs_are_what_a_net_may_lack(method: str) -> None:
    """A net of one matrix has no layer with places, no ReLU and no attention: who needs none of it explains it."""
    card = methods.get(method).card
    flat = classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)), size=32, classes=3)

    def run() -> torch.Tensor:
        settings = cheapest(card, flat)
        return engine.explain(flat, images(1, 32), method=method, parameters=settings, digests=["a"]).maps

    # A linear layer has a rule, and pictures take one way through it, so that these two lack nothing.
    if not card.needs or method in ("lrp", "deeplift"):
        assert torch.isfinite(run()).all()
    else:
        with pytest.raises(MethodError):
            run()


# Of these the weights are never negative: what is below zero comes from the features, which have no sign after a ReLU.
SIGNED_BY_FEATURES = ("grad_cam_pp", "layer_cam")


@pytest.mark.parametrize("method", [m for m, method in methods.METHODS.items() if method.card.signed])
def test_a_signed_map_has_values_below_zero(method: str) -> None:
    """Why one class and not another, or the reverse: what speaks for the one speaks against the other."""
    name = "test_vit" if method in SIGNED_BY_FEATURES else net_for(method)
    a, b = torch.tensor([3]), torch.tensor([7])
    found = [
        explain(name, images(1, 160), method, ["a"], target=ClassTarget(*pair)).maps
        for pair in ((a, "logit", b), (b, "logit", a))
    ]
    assert min(float(maps.min()) for maps in found) < 0


@pytest.mark.parametrize("method", SIGNED_BY_FEATURES)
def test_after_a_relu_nothing_speaks_against_the_class_where_weights_have_no_sign(method: str) -> None:
    target = ClassTarget(torch.tensor([3]), "logit", torch.tensor([7]))
    assert float(explain("test_resnet", images(1, 160), method, ["a"], target=target).maps.min()) >= 0
    assert "After a ReLU nothing is below zero" in methods.get(method).card.failures


def test_a_formula_is_that_of_the_map_with_its_sign() -> None:
    """What is rectified for being shown is told apart from the map itself."""
    for method in methods.METHODS.values():
        assert not method.card.formula.startswith((r"M = \mathrm{ReLU}", r"M_{ij} = \mathrm{ReLU}")), method.card.id
    assert methods.get("grad_cam").card.formula.endswith(r"\text{how much: }\mathrm{ReLU}(M)")


@pytest.mark.parametrize("method", [m for m, method in methods.METHODS.items() if not method.card.signed])
def test_an_unsigned_map_has_no_value_below_zero(method: str) -> None:
    target = ClassTarget(torch.tensor([3]), "probability")
    assert float(explain(net_for(method), images(1, 160), method, ["a"], target=target).maps.min()) >= 0
