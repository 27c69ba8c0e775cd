import importlib.util
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from salviz.classifiers.classifier import Classifier, Draft
from salviz.classifiers.digests import weights_digest
from salviz.classifiers.labels import Labels
from salviz.classifiers.loading import _finish, load, untrained
from salviz.classifiers.preprocessing import Preprocessing
from salviz.errors import ClassifierError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lite() -> Classifier:
    return load("tf_efficientnet_lite0", device="cpu")


def finished(module: nn.Module, *, classes: int = 4) -> Classifier:
    preprocessing = Preprocessing((8, 8), 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
    labels = Labels.numbered(classes)
    draft = Draft("toy", "Toy", module, preprocessing, labels, "toy", lambda: module)
    return _finish(draft, device=CPU, channels_last=False, autocast=None)


def test_everything_is_frozen(lite: Classifier) -> None:
    assert not any(parameter.requires_grad for parameter in lite.module.parameters())
    assert not any(part.training for part in lite.module.modules())
    x = torch.zeros(1, 3, 224, 224, requires_grad=True)
    (gradient,) = torch.autograd.grad(lite.forward(x)[0, 281], x)
    assert float(gradient.abs().sum()) > 0
    assert not lite.predict(x).requires_grad


def test_channels_last_changes_the_layout_and_not_the_result(lite: Classifier) -> None:
    other = load("tf_efficientnet_lite0", device="cpu", channels_last=not lite.channels_last)
    assert lite.channels_last  # the default on the CPU
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert other.digest == lite.digest
    convolutions = [part for part in lite.module.modules() if isinstance(part, nn.Conv2d)]
    assert convolutions[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(other.predict(x), lite.predict(x), rtol=1e-4, atol=1e-4)


def test_autocast_is_for_passes_that_ask_for_it(lite: Classifier) -> None:
    half = replace(lite, autocast=torch.bfloat16)
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    halved = half.predict(x, may_halve=True)
    assert halved.dtype == torch.float32
    assert not torch.equal(halved, lite.predict(x))
    torch.testing.assert_close(halved.softmax(1), lite.predict(x).softmax(1), rtol=0, atol=0.1)
    assert torch.equal(half.predict(x), lite.predict(x))
    assert torch.equal(lite.predict(x, may_halve=True), lite.predict(x))
    assert torch.equal(half.forward(x), lite.forward(x))


@pytest.mark.slow
def test_the_untrained_twin(lite: Classifier) -> None:
    state = torch.get_rng_state()
    twin, again, other = untrained(lite), untrained(lite), untrained(lite, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert twin.id == "tf_efficientnet_lite0#untrained-0"
    assert twin.digest == again.digest
    assert len({lite.digest, twin.digest, other.digest}) == 3
    assert twin.lock is not lite.lock
    assert twin.module is not lite.module
    assert not any(parameter.requires_grad for parameter in twin.module.parameters())
    trained, fresh = lite.module.state_dict(), twin.module.state_dict()
    for key in ("conv_stem.weight", "classifier.weight"):
        assert trained[key].shape == fresh[key].shape
        assert not torch.equal(trained[key], fresh[key])
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert float(twin.predict(x).std()) > 0
    assert load("tf_efficientnet_lite0#untrained-1", device="cpu").digest == other.digest


def test_a_head_that_starts_at_zero_is_drawn_at_random() -> None:
    class ZeroHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 4)
            nn.init.zeros_(self.head.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.mean((2, 3)))

    classifier = replace(finished(ZeroHead()), rebuild=ZeroHead)
    twin = untrained(classifier)
    assert float(twin.module.head.weight.std()) > 0
    assert twin.digest == untrained(classifier).digest


def test_untrained_twins_do_not_depend_on_what_is_built_meanwhile(lite: Classifier) -> None:
    expected = untrained(lite, seed=3).digest
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            load("tf_efficientnet_lite1", device="cpu")

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        assert [untrained(lite, seed=3).digest for _ in range(4)] == [expected] * 4
    finally:
        stop.set()
        thread.join()


def test_loading_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    load("tf_efficientnet_lite0", device="cpu")
    assert torch.equal(torch.get_rng_state(), state)


class Gives(nn.Module):
    """A module that gives a fixed answer."""

    def __init__(self, *shape: int, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full(shape, value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value


@pytest.mark.parametrize("shape", [(1, 1), (1, 4, 2, 2), (4,), (3, 4)])
def test_only_one_logit_a_class_is_a_classifier(shape: tuple[int, ...]) -> None:
    with pytest.raises(ClassifierError, match="not an image classifier"):
        finished(Gives(*shape))


def test_undefined_logits_are_refused() -> None:
    with pytest.raises(ClassifierError, match="undefined"):
        finished(Gives(1, 4, value=float("nan")))


def test_a_model_for_other_inputs_is_refused() -> None:
    with pytest.raises(ClassifierError, match="cannot process"):
        finished(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()))


def test_labels_follow_the_logits() -> None:
    assert len(finished(Gives(1, 7)).labels) == 7


def test_the_digest_sees_names_values_and_dtypes_but_no_layout() -> None:
    def net() -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        module[0].weight.data = torch.randn(4, 3, 3, 3, generator=generator)
        module[0].bias.data.zero_()
        return module

    reference = weights_digest(net())
    assert weights_digest(net().to(memory_format=torch.channels_last)) == reference
    assert weights_digest(net().double()) != reference
    changed = net()
    changed[0].bias.data[2] = 1e-30
    assert weights_digest(changed) != reference
    assert weights_digest(nn.ModuleDict({"a": net()[0], "1": net()[1]})) != reference
    shifted = net()
    shifted[1].running_mean.add_(1)
    assert weights_digest(shifted) != reference


@pytest.mark.parametrize(
    ("id", "options", "part"),
    [
        ("resnet50", {}, "timm:resnet50"),
        ("tf_efficientnet_lite3", {}, "did you mean tf_efficientnet_lite"),
        ("timm:resnet5O", {}, "timm:resnet50"),
        ("timm:resnet50.a1_in2k", {}, "timm:resnet50.a1_in1k"),
        ("timm:", {}, "no classifier"),
        ("timm:vit_base_patch16_224.dino", {}, "not an image classifier"),
        ("torchvision:resnet51", {}, "torchvision:resnet50"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "no image classifier"),
        ("torchvision:resnet50.V9", {}, "torchvision:resnet50.IMAGENET1K_V1"),
        ("hf-hub:no-organisation", {}, "hf-hub:organisation/name"),
        ("hf-hub:../../etc/passwd", {}, "hf-hub:organisation/name"),
        ("model.pth", {}, "convert it"),
        ("some/model.PT@timm:resnet18", {}, "convert it"),
        ("model.ckpt", {}, "convert it"),
        ("model.pkl", {}, "convert it"),
        ("pytorch_model.bin", {"architecture": "timm:resnet18"}, "convert it"),
        ("tf_efficientnet_lite0", {"device": "abacus"}, "no device"),
        ("tf_efficientnet_lite0", {"device": "cuda:63"}, "no device"),
        ("tf_efficientnet_lite0", {"device": "meta"}, "no device"),
        ("tf_efficientnet_lite0", {"autocast": "int8"}, "'bf16', 'fp16' or None"),
        ("tf_efficientnet_lite0", {"architecture": "timm:resnet18"}, "leave the architecture out"),
        ("tf_efficientnet_lite0#checkpoint-3", {}, "no checkpoint '3'"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_sentence(id: str, options: dict[str, str], part: str) -> None:
    with pytest.raises(ClassifierError) as refusal:
        load(id, **options)
    sentence = str(refusal.value)
    assert part in sentence
    assert "\n" not in sentence
    assert sentence[-1] in ".?"
    assert ". " not in sentence


def test_the_package_offers_its_names_lazily() -> None:
    import salviz.classifiers

    for name in salviz.classifiers.__all__:
        assert getattr(salviz.classifiers, name) is not None
    assert salviz.classifiers.load is load
    with pytest.raises(AttributeError, match="nonsense"):
        salviz.classifiers.nonsense  # noqa: B018
    assert importlib.util.find_spec("salviz.classifiers.nonsense") is None
