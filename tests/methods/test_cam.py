"""Class activation maps against peers, closed forms and naive implementations."""

import copy
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from salviz import engine, methods
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import TargetLayer, target_layer
from salviz.errors import MethodError
from salviz.maps import resize, scale_minmax
from salviz.methods.cam.channels import strongest
from salviz.methods.cam.contrast import similar_classes
from salviz.methods.cam.eigen import first_component
from salviz.methods.cam.head import Head, _recipes
from salviz.methods.cam.masked import as_mask
from salviz.methods.cam.pooled import has_pooled_head
from salviz.methods.passes import Trunk, shared_trunk
from salviz.targets import ClassTarget, PredictedTarget
from salviz.work import Work
from tests.models import classifier_of, images, timm_model, toy


def explain(classifier, x, method, classes, output="logit", against=None, batch_size=16, **parameters):
    rivals = None if against is None else torch.as_tensor(against)
    return engine.explain(
        classifier, x, method=method, parameters=parameters, batch_size=batch_size,
        target=ClassTarget(torch.as_tensor(classes), output, rivals), digests=[str(i) for i in range(len(x))],
    )  # fmt: skip


class FineNet(nn.Module):
    """Keeps the image's resolution up to its CAM layer, where upsampling is nothing and all tools must agree."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.features = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        hidden = nn.Sequential(nn.Linear(128, 24), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), *hidden, nn.Linear(24, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def fine():
    net = FineNet()
    net.head[2].weight.data *= 6
    return classifier_of(net, size=12, classes=5)


def awake(name):
    """A net for 64 x 64 images, inside whose residual branches things matter: timm starts them at zero."""
    module = copy.deepcopy(timm_model(name, 64 if "vit" in name else None).module)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
    return classifier_of(module, size=64, classes=1000, name=name)


def activation_of(classifier, x):
    where, kept = target_layer(classifier), []
    handle = classifier.module.get_submodule(where.name).register_forward_hook(lambda m, i, o: kept.append(o.detach()))
    with torch.no_grad():
        classifier.module(x)
    handle.remove()
    return where.channel_maps(kept[0])


def from_pytorch_grad_cam(classifier, x, name, classes, **options):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    module, where = classifier.module, target_layer(classifier)
    module.requires_grad_(True)
    try:
        tool = getattr(pytorch_grad_cam, name)(
            model=module, target_layers=[module.get_submodule(where.name)],
            reshape_transform=where.channel_maps if where.layout == "tokens" else None, **options,
        )  # fmt: skip
        found = tool(x.clone(), targets=[ClassifierOutputTarget(c) for c in classes])
        tool.activations_and_grads.release()
    finally:
        module.requires_grad_(False)
    return found


def as_pytorch_grad_cam(raw, size):
    return scale_minmax(resize(scale_minmax(raw.clamp(min=0)), size)).numpy()


@pytest.mark.parametrize(("method", "oracle"), [("hires_cam", "HiResCAM"), ("xgrad_cam", "XGradCAM")])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_closed_forms_equal_pytorch_grad_cam(method: str, oracle: str, name: str) -> None:
    classifier, x = timm_model(name), images(3, 160)
    expected = from_pytorch_grad_cam(classifier, x, oracle, (3, 7, 1))
    raw = explain(classifier, x, method, [3, 7, 1]).maps
    np.testing.assert_allclose(as_pytorch_grad_cam(raw, (160, 160)), expected, atol=2e-4)


def test_they_are_one_where_the_head_is_a_global_average() -> None:
    """There the gradient is the same in all places, so CAM, Grad-CAM, HiResCAM and XGrad-CAM differ by a factor."""
    classifier, x = toy(), images(2, 32)
    activation = activation_of(classifier, x)
    row = classifier.module.linear.weight[[2, 9]]
    cam = torch.einsum("nchw,nc->nhw", activation, row)
    places = activation[0, 0].numel()
    torch.testing.assert_close(explain(classifier, x, "cam", [2, 9]).maps, cam, atol=1e-5, rtol=1e-4)
    for method in ("grad_cam", "hires_cam", "xgrad_cam"):
        found = explain(classifier, x, method, [2, 9]).maps
        torch.testing.assert_close(found * places, cam, atol=1e-4, rtol=1e-4)


def test_cam_is_the_logit_but_for_the_bias() -> None:
    classifier, x = toy(), images(2, 32)
    found = explain(classifier, x, "cam", [2, 9])
    expected = found.logits[[0, 1], [2, 9]] - classifier.module.linear.bias[[2, 9]]
    torch.testing.assert_close(found.maps.mean(dim=(1, 2)), expected, atol=1e-5, rtol=1e-4)
    hires = explain(classifier, x, "hires_cam", [2, 9]).maps
    torch.testing.assert_close(hires.sum(dim=(1, 2)), expected, atol=1e-5, rtol=1e-4)


def test_cam_of_a_contrast_is_the_difference_of_two() -> None:
    classifier, x = toy(), images(2, 32)
    one, other = (explain(classifier, x, "cam", classes).maps for classes in ([2, 9], [4, 0]))
    found = explain(classifier, x, "cam", [2, 9], against=[4, 0]).maps
    torch.testing.assert_close(found, one - other, atol=1e-5, rtol=1e-4)


def test_cam_equals_torchcam() -> None:
    from torchcam.methods import CAM

    classifier, x = timm_model("test_resnet"), images(2, 160)
    with CAM(classifier.module, "layer4", "fc") as tool, torch.no_grad():
        classifier.module(x)
        (expected,) = tool(class_idx=[3, 7], normalized=False)
    found = explain(classifier, x, "cam", [3, 7]).maps
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "flattened", "rectified"])
def test_cam_is_refused_where_the_head_is_another(name: str) -> None:
    if name == "flattened":
        # One linear layer, but every place has its own weights.
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 3))
        classifier = classifier_of(net, size=12, classes=3)
    elif name == "rectified":
        # DenseNet's end: a ReLU between the last map and the average, which no module shows.
        class Rectified(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.features, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.fc(F.relu(self.features(x)).mean(dim=(2, 3)))

        classifier = classifier_of(Rectified(), size=12, classes=3)
    else:
        classifier = timm_model(name)
    assert "CAM is defined for nets that end in a global average" in methods.get("cam").refusal(classifier)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv2_035"])
def test_cam_is_not_refused_where_it_exists(name: str) -> None:
    assert methods.get("cam").refusal(timm_model(name)) is None


def test_cam_of_a_layer_before_the_last_is_refused() -> None:
    with pytest.raises(MethodError, match=r"After the layer 'layer2' .* more than a global average"):
        explain(timm_model("test_resnet"), images(1, 160), "cam", [3], layer="layer2")


@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (2, 40, 3, 3)])
@pytest.mark.parametrize("centre", [False, True])
def test_eigen_cam_is_the_first_singular_pattern(shape: tuple[int, ...], *, centre: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    activation = torch.randn(shape, generator=generator).clamp(min=-0.2 if centre else 0)
    found = first_component(activation, is_centred=centre)
    for map_, channels in zip(found.double().numpy(), activation.double().numpy(), strict=True):
        table = channels.reshape(shape[1], -1).T
        table = table - table.mean(axis=0) if centre else table
        u, s, _ = np.linalg.svd(table)
        expected = (u[:, 0] * s[0]).reshape(shape[2:])
        expected *= np.sign((expected**3).sum())
        np.testing.assert_allclose(map_, expected, atol=1e-5 * s[0])
        if not centre:
            assert map_.min() >= -1e-6 * s[0]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_centred_eigen_cam_equals_pytorch_grad_cam_up_to_its_sign(name: str) -> None:
    classifier, x = timm_model(name), images(2, 160)
    expected = from_pytorch_grad_cam(classifier, x, "EigenCAM", (3, 7))
    raw = explain(classifier, x, "eigen_cam", [3, 7], centre=True).maps
    for index in range(2):
        either = [as_pytorch_grad_cam(sign * raw[index : index + 1], (160, 160))[0] for sign in (1, -1)]
        assert min(np.abs(map_ - expected[index]).max() for map_ in either) < 5e-4


def test_eigen_cam_of_nothing_is_nothing() -> None:
    assert (first_component(torch.zeros(1, 4, 3, 3), is_centred=False) == 0).all()
    tiny = torch.rand(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        first_component(tiny * 1e-25, is_centred=False) * 1e25, first_component(tiny, is_centred=False)
    )


def test_centred_eigen_cam_of_an_even_layer_is_zero_and_not_rounding() -> None:
    values = torch.rand(1, 4, 1, 1, generator=torch.Generator().manual_seed(0)).expand(1, 4, 7, 9)
    uneven = values.clone()
    uneven[0, 0, 3, 3] += 0.1
    found = first_component(torch.cat([values, uneven]), is_centred=True)
    assert (found[0] == 0).all()
    torch.testing.assert_close(found[1], first_component(uneven, is_centred=True)[0])
    assert found[1].argmax() == 3 * 9 + 3


def test_finer_cam_equals_torchcam() -> None:
    from torchcam.methods import FinerCAM

    classifier, x = timm_model("test_resnet"), images(3, 160)
    classes = [3, 7, 1]
    classifier.module.requires_grad_(True)
    try:
        with FinerCAM(classifier.module, "layer4") as tool:
            scores = classifier.module(x)
            (expected,) = tool(class_idx=classes, scores=scores, normalized=False)
    finally:
        classifier.module.requires_grad_(False)
    found = explain(classifier, x, "finer_cam", classes).maps.clamp(min=0)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found / found.max(), expected / found.max(), atol=1e-4, rtol=1e-3)


def test_finer_cam_takes_off_the_mean_of_its_likes() -> None:
    classifier, x = timm_model("test_vit"), images(2, 160)
    found = explain(classifier, x, "finer_cam", [3, 7], strength=0.4, references=2)
    own = explain(classifier, x, "grad_cam", [3, 7]).maps
    rivals = []
    for row, own_class in zip(found.logits, (3, 7), strict=True):
        order = sorted((abs(float(value - row[own_class])), index) for index, value in enumerate(row))
        rivals.append([index for _, index in order if index != own_class][:2])
    likes = [explain(classifier, x, "grad_cam", [pair[i] for pair in rivals]).maps for i in range(2)]
    expected = own - 0.4 * (likes[0] + likes[1]) / 2
    torch.testing.assert_close(found.maps, expected, atol=1e-6, rtol=1e-4)
    assert similar_classes(found.logits, torch.tensor([3, 7]), 2).sort().values.tolist() == [sorted(p) for p in rivals]


def test_finer_cam_with_a_named_rival_and_with_none_of_it() -> None:
    classifier, x = timm_model("test_resnet"), images(2, 160)
    own, rival = (explain(classifier, x, "grad_cam", classes).maps for classes in ([3, 7], [4, 0]))
    found = explain(classifier, x, "finer_cam", [3, 7], against=[4, 0]).maps
    torch.testing.assert_close(found, own - 0.6 * rival, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(explain(classifier, x, "finer_cam", [3, 7], strength=0.0).maps, own)


def test_guided_grad_cam_equals_captum() -> None:
    from captum.attr import GuidedGradCam

    # Plain nn.ReLU modules only: the nets captum's hooks do see.
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    classifier, x = classifier_of(net, size=21, classes=5), images(2, 21)
    with pytest.warns(UserWarning, match="backward hooks"):
        oracle = GuidedGradCam(net, net[3]).attribute(x.clone().requires_grad_(), target=[1, 4])
    found = explain(classifier, x, "guided_grad_cam", [1, 4]).maps
    # captum enlarges the coarse map by repeating its cells; only the enlargement may differ.
    coarse = explain(classifier, x, "grad_cam", [1, 4]).maps.clamp(min=0)
    guided = explain(classifier, x, "guided_backprop", [1, 4]).maps
    nearest = F.interpolate(coarse.unsqueeze(1), size=(21, 21), mode="nearest")
    torch.testing.assert_close(guided * nearest, oracle, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(found, guided * resize(coarse, (21, 21)).unsqueeze(1))
    assert found.abs().max() > 0


def test_guided_grad_cam_is_refused_with_guided_backprop() -> None:
    assert "ReLU nets only" in methods.get("guided_grad_cam").refusal(timm_model("test_vit"))


def naive_score_cam(module, x, activation, classes):
    """Algorithm 1 with loops, in float64."""
    net = copy.deepcopy(module).double()
    maps = []
    for image, channels, c in zip(x.double(), activation.double(), classes, strict=True):
        scores = []
        for channel in channels:
            grown = F.interpolate(channel[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
            mask = grown - grown.min()
            mask = mask / mask.max() if mask.max() > 0 else mask
            scores.append(net((image * mask)[None])[0, c] - net(torch.zeros_like(image)[None])[0, c])
        weights = torch.exp(torch.stack(scores) - max(scores))
        weights = weights / weights.sum()
        maps.append(sum(w * channel for w, channel in zip(weights, channels, strict=True)))
    return torch.stack(maps)


@pytest.mark.parametrize(("kind", "size"), [("test_vit", (48, 64)), ("fine", 12), ("fine", (12, 20))])
def test_score_cam_equals_a_naive_one(kind: str, size: int | tuple[int, int]) -> None:
    classifier = classifier_of(fine().module, size=size, classes=5) if kind == "fine" else timm_model(kind, size)
    x, classes = images(2, size), [3, 1]
    x[1] = 0.1 * x[1]
    with torch.no_grad():
        expected = naive_score_cam(classifier.module, x, activation_of(classifier, x), classes)
    found = explain(classifier, x, "score_cam", classes)
    torch.testing.assert_close(found.maps.double(), expected, atol=1e-5, rtol=1e-4)
    assert found.passes == 2 * (1 + activation_of(classifier, x).shape[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ScoreCAM", "AblationCAM"])
def test_perturbed_maps_equal_pytorch_grad_cam_where_it_does_not_upsample(name: str) -> None:
    classifier, x, classes = fine(), images(2, 12), [3, 1]
    expected = from_pytorch_grad_cam(classifier, x, name, classes)
    found = explain(classifier, x, {"ScoreCAM": "score_cam", "AblationCAM": "ablation_cam"}[name], classes)
    # It divides the losses by the score, and so turns the map round where that is negative.
    turn = torch.sign(found.logits[[0, 1], classes]).view(2, 1, 1) if name == "AblationCAM" else 1
    np.testing.assert_allclose(as_pytorch_grad_cam(found.maps * turn, (12, 12)), expected, atol=1e-4)


def test_score_cam_equals_torchcam_where_it_does_not_upsample() -> None:
    from torchcam.methods import ScoreCAM

    classifier, x = fine(), images(2, 12)
    with ScoreCAM(classifier.module, "features", input_shape=(3, 12, 12)) as tool, torch.no_grad():
        classifier.module(x)
        (expected,) = tool(class_idx=[3, 1], normalized=False)
    found = explain(classifier, x, "score_cam", [3, 1]).maps
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_flat_channels_are_not_run_one_by_one() -> None:
    net = FineNet()
    net.features[2].weight.data[:5] = 0
    net.features[2].bias.data[:5] = torch.tensor([-1.0, 0.0, 0.5, 2.0, -3.0])
    classifier, x = classifier_of(net, size=12, classes=5), images(2, 12)
    with torch.no_grad():
        expected = naive_score_cam(net, x, activation_of(classifier, x), [3, 1])
    rows = []
    net.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    found = explain(classifier, x, "score_cam", [3, 1], batch_size=2)
    # Both images, the view of nothing, and two images' three channels, two at a time.
    assert rows == [2, 1, 2, 2, 2]
    torch.testing.assert_close(found.maps.double(), expected, atol=1e-5, rtol=1e-4)


def test_masks_span_zero_to_one() -> None:
    maps = torch.stack([torch.arange(6.0).view(2, 3) - 2, torch.full((2, 3), 4.0)])
    mask = as_mask(maps, (8, 12))
    assert mask.shape == (2, 1, 8, 12)
    assert (mask[0].min(), mask[0].max()) == (0, 1)
    assert (mask[1] == 0).all()


def vision_transformer() -> Classifier:
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(32, 8, 4, 2, 24, 48, num_classes=10)
    nn.init.normal_(net.heads.head.weight)
    return classifier_of(net, size=32, classes=10)


def swin_transformer() -> Classifier:
    torch.manual_seed(0)
    net = torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10)
    return classifier_of(net, size=64, classes=10)


def products(tokens: int, window: int, width: int, hidden: int) -> int:
    """Multiplications of a transformer's block: four projections, attention in windows, and two layers behind it."""
    return tokens * width * (4 * width + 2 * hidden + 2 * window)


def test_the_estimate_of_ablation_cam_counts_what_runs_behind_the_layer() -> None:
    """Counted by hand: of a transformer its last block runs once a channel, of a net with a pooled head nothing."""
    card = methods.get("ablation_cam").card
    usual = card.check_parameters(None)
    block = products(17, 17, 24, 48)
    parts = [16 * 24 * 3 * 8 * 8, 4 * block, 24 * 10]
    for count, behind in ((4, 1), (1, 4)):
        layer = f"encoder.layers.encoder_layer_{4 - behind}.ln_1"
        settings = card.check_parameters({"layer": layer, "channels": count})
        expected = 1 + count * (behind * block + 240) / sum(parts)
        assert card.cost(vision_transformer(), settings) == pytest.approx(expected)
    assert card.cost(vision_transformer(), usual) == pytest.approx(1 + 24 * (block + 240) / sum(parts))
    early, late = products(256, 16, 16, 64), products(64, 16, 32, 128)
    parts = [256 * 16 * 3 * 4 * 4, 2 * early, 64 * 64 * 32, 2 * late, 32 * 10]
    assert card.cost(swin_transformer(), usual) == pytest.approx(1 + 32 * (late + 320) / sum(parts))
    assert card.cost(timm_model("test_resnet"), usual) == 1
    # What is told afterwards is what was promised; other methods cost their passes.
    vit = timm_model("test_vit")
    found = explain(vit, images(2, 160), "ablation_cam", [3, 1])
    assert found.passes == 2 * card.cost(vit, usual)
    gradient = methods.get("gradient").card
    assert gradient.cost(vit, {}) == gradient.passes({}, (160, 160)) == 2


def test_score_cam_costs_as_many_passes_as_the_net_has_channels() -> None:
    card = methods.get("score_cam").card
    for classifier, channels in ((timm_model("test_vit"), 64), (vision_transformer(), 24), (toy(), 16)):
        for asked, run in ((0, channels), (5, 5), (8000, channels)):
            settings = card.check_parameters({"channels": asked})
            assert card.cost(classifier, settings) == 1 + run
            size = classifier.preprocessing.input_size
            assert engine.passes({"score_cam": settings}, size, classifier) == 1 + run
    assert engine.passes({"score_cam": None}, (224, 224)) == 1281, "where no net is at hand"
    ticks = []
    x = images(2, 32)
    found = engine.explain(
        toy(), x, method="score_cam", digests=["a", "b"], progress=lambda done, total: ticks.append((done, total))
    )
    assert found.passes == 34
    assert {total for _, total in ticks} == {34}, "known before it begins"


def test_an_estimate_waits_for_nobody() -> None:
    classifier, begun, over = swin_transformer(), threading.Event(), threading.Event()

    def compute() -> None:
        with classifier.lock:
            begun.set()
            over.wait(60)

    other = threading.Thread(target=compute)
    other.start()
    begun.wait(60)
    costs = {name: methods.get(name).card.cost for name in ("score_cam", "ablation_cam")}
    settings = {"layer": "", "channels": 0}
    try:
        assert [cost(classifier, settings) for cost in costs.values()] == [1281, 1]
    finally:
        over.set()
        other.join()
    assert costs["score_cam"](classifier, settings) == 33
    assert costs["ablation_cam"](classifier, settings) > 2


@pytest.mark.parametrize("method", ["score_cam", "ablation_cam"])
def test_few_channels_are_the_strongest(method: str) -> None:
    classifier, x = timm_model("test_resnet"), images(2, 160)
    activation = activation_of(classifier, x)
    chosen = strongest(activation, 7)
    energies = activation.square().sum(dim=(2, 3))
    for row, energy in zip(chosen, energies, strict=True):
        assert set(row.tolist()) == set(sorted(range(len(energy)), key=lambda i: -energy[i])[:7])
    found = explain(classifier, x, method, [3, 7], channels=7)
    # The map is made of these alone: the others' part is nothing.
    for map_, row, channels in zip(found.maps, chosen, activation, strict=True):
        basis = channels[row].flatten(1).T.double()
        solution = torch.linalg.lstsq(basis, map_.flatten()[:, None].double()).solution
        torch.testing.assert_close(basis @ solution, map_.flatten()[:, None].double(), atol=1e-5, rtol=1e-3)
    whole, x = fine(), images(2, 12)
    everything = explain(whole, x, method, [3, 1], channels=13)
    torch.testing.assert_close(everything.maps, explain(whole, x, method, [3, 1]).maps)


@pytest.mark.parametrize("is_seen", [False, True])
def test_ablation_of_a_linear_head_in_closed_form(monkeypatch: pytest.MonkeyPatch, *, is_seen: bool) -> None:
    """What the logit loses with a channel is the channel's average times its weight, run or calculated."""
    from salviz.methods.cam import ablated

    monkeypatch.setattr(ablated, "has_pooled_head", lambda classifier, layer: is_seen)
    classifier, x = toy(), images(2, 32)
    activation = activation_of(classifier, x)
    weights = classifier.module.linear.weight[[2, 9]] * activation.mean(dim=(2, 3))
    expected = torch.einsum("nchw,nc->nhw", activation, weights)
    torch.testing.assert_close(explain(classifier, x, "ablation_cam", [2, 9]).maps, expected, atol=1e-5, rtol=1e-4)


def naive_ablation_cam(module, x, name, prefix, classes):
    """Equations 4 and 5 with whole passes, one channel at a time."""
    maps = []
    layer = module.get_submodule(name)
    for image, c in zip(x, classes, strict=True):
        kept = []
        handle = layer.register_forward_hook(lambda m, i, o: kept.append(o))  # noqa: B023 - used at once
        whole = module(image[None])[0, c]
        handle.remove()
        activation = kept[-1]
        losses = []
        for k in range(activation.shape[2 if prefix is not None else 1]):
            off = activation.clone()
            if prefix is None:
                off[:, k] = 0
            else:
                off[:, prefix:, k] = 0
            handle = layer.register_forward_hook(lambda m, i, o: off)  # noqa: B023 - used at once
            losses.append(whole - module(image[None])[0, c])
            handle.remove()
        channels = activation[0] if prefix is None else activation[0, prefix:].T
        maps.append(sum(loss * channel for loss, channel in zip(losses, channels, strict=True)))
    return torch.stack(maps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "prefix"),
    [
        ("test_vit", "blocks.5.norm1", 1),
        ("test_vit", "blocks.2", 1),
        ("test_resnet", "layer4", None),
        # In the middle of a residual block, where the sum is made in place.
        ("test_resnet", "layer4.0.conv1", None),
        ("test_convnext", "stages.2", None),
    ],
)
def test_ablation_cam_equals_a_naive_one(name: str, layer: str, prefix: int | None) -> None:
    # Not square where the net takes it.
    size = 64 if name == "test_vit" else (64, 96)
    classifier = dataclasses.replace(
        awake(name), preprocessing=classifier_of(nn.Identity(), size=size, classes=3).preprocessing
    )
    x, classes = images(2, size), [3, 1]
    with torch.no_grad():
        module = classifier.runtime if layer not in classifier.folded else classifier.module
        expected = naive_ablation_cam(module, x, layer, prefix, classes)
    found = explain(classifier, x, "ablation_cam", classes, layer=layer).maps
    torch.testing.assert_close(found.flatten(), expected.flatten(), atol=1e-5 * float(expected.abs().max()), rtol=1e-3)


def test_the_head_alone_runs() -> None:
    """What comes before the layer computes once for the batch, whatever the number of channels."""
    classifier, x = timm_model("test_vit"), images(2, 160)
    explain(classifier, x, "ablation_cam", [3, 1])
    ran = {"blocks.3.mlp.fc1": [], "blocks.5.mlp.fc1": []}
    handles = [
        classifier.runtime.get_submodule(name).register_forward_hook(lambda m, i, o, rows=rows: rows.append(len(o)))
        for name, rows in ran.items()
    ]
    explain(classifier, x, "ablation_cam", [3, 1], batch_size=8)
    for handle in handles:
        handle.remove()
    assert ran == {"blocks.3.mlp.fc1": [2], "blocks.5.mlp.fc1": [2] + 4 * [32]}
    assert not any("forward" in part.__dict__ for part in classifier.runtime.modules())


def test_a_crash_in_the_head_leaves_the_model_as_found() -> None:
    classifier, x = timm_model("test_convnext"), images(1, 160)
    calls = []

    def crash(module, inputs):
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("broken")

    explain(classifier, x, "ablation_cam", [3], channels=2)
    handle = classifier.runtime.head.register_forward_pre_hook(crash)
    with pytest.raises(ValueError, match="broken"):
        explain(classifier, x, "ablation_cam", [3], channels=2)
    handle.remove()
    assert not any("forward" in part.__dict__ for part in classifier.runtime.modules())


class Concatenating(nn.Module):
    """Joins the layer's channels with earlier ones, which needs a row a version of those."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem, self.block, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc(torch.cat([x, self.block(x)], dim=1).relu().mean(dim=(2, 3)))


class Repeating(Concatenating):
    """Uses the layer twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.block(self.stem(x)).relu())
        return self.fc(torch.cat([x, x], dim=1).mean(dim=(2, 3)))


class Foreign(Concatenating):
    """Makes its middle from the input, beside the modules; nothing can be stored that has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = self.stem(x)
        stem = stem.relu_() + x.mean(dim=1, keepdim=True)
        return self.fc(torch.cat([stem, self.block(stem)], dim=1).relu().mean(dim=(2, 3)))


def test_memory_that_ran_out_says_nothing_of_the_head() -> None:
    """The batch is halved, and what is remembered of the net is what was found out with fewer images."""
    classifier, x = classifier_of(Concatenating(), size=12, classes=3), images(4, 12)
    ran: list[int] = []

    def tight(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        ran.append(len(inputs[0]))
        if len(ran) in (2, 3):  # The first is the batch, the next a trial of the head.
            raise torch.OutOfMemoryError("too many")

    # What is found out by other passes is known before.
    assert methods.get("ablation_cam").refusal(classifier) is None
    assert not has_pooled_head(classifier)
    handle = classifier.runtime.fc.register_forward_pre_hook(tight)
    found = explain(classifier, x, "ablation_cam", [2, 1, 0, 2], batch_size=4)
    handle.remove()
    again = explain(classifier, x, "ablation_cam", [2, 1, 0, 2], batch_size=4)
    assert _recipes[classifier.module]["block"].skipped == {"stem"}
    torch.testing.assert_close(found.maps, again.maps, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("net", [Concatenating, Repeating, Foreign])
def test_ablation_is_right_whatever_surrounds_the_layer(net: type[nn.Module]) -> None:
    classifier, x = classifier_of(net(), size=12, classes=3), images(2, 12)
    with torch.no_grad():
        expected = naive_ablation_cam(classifier.module, x, "block", None, [0, 2])
    found = explain(classifier, x, "ablation_cam", [0, 2]).maps
    assert target_layer(classifier).name == "block"
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def head_of(classifier: Classifier, where: TargetLayer, x: torch.Tensor) -> Head:
    head = Head(classifier, where, x)
    trunk = shared_trunk(classifier, x, where.name, Work(), head.recording())
    head.begin(trunk.leaf, trunk.logits)
    return head


def test_the_head_reproduces_the_logits_whatever_is_cut() -> None:
    """Every layer of a net with residuals, dense connections and a repeated layer."""
    cases = [(awake("test_resnet"), 64), (awake("test_vit"), 64)]
    cases += [(classifier_of(net, size=12, classes=3), 12) for net in (Concatenating(), Repeating(), Foreign())]
    for classifier, size in cases:
        x = images(2, size)
        expected = classifier.predict(x)
        names = [name for name, part in classifier.module.named_modules() if isinstance(part, nn.Conv2d | nn.LayerNorm)]
        for name in names[-8:]:
            try:
                where = target_layer(classifier, name)
            except MethodError:
                continue
            with classifier.lock:
                head = head_of(classifier, where, x)
                torch.testing.assert_close(head.logits, expected, atol=1e-4, rtol=1e-4)
                for image in range(2):
                    versions = head.activation[image : image + 1].repeat(3, *(1,) * (head.activation.ndim - 1))
                    # Twice: what the first run changed in place must not be left changed.
                    for _ in range(2):
                        logits = head.run(image, versions.clone())
                        torch.testing.assert_close(
                            logits, expected[image : image + 1].expand(3, -1), atol=1e-4, rtol=1e-4, msg=name
                        )


def naive_opti_cam(module, image, activation, c, steps, rate):
    """One image in float64, with Adam written out (Kingma & Ba, algorithm 1)."""
    net = copy.deepcopy(module).double().requires_grad_(False)
    image, features = image.double(), activation.double().clamp(min=0)
    u = torch.full((len(features),), 0.5, dtype=torch.float64, requires_grad=True)
    first, second = torch.zeros_like(u), torch.zeros_like(u)
    for t in range(1, steps + 1):
        saliency = sum(a * f for a, f in zip(torch.softmax(u, dim=0), features, strict=True))
        grown = F.interpolate(saliency[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0]
        mask = (grown - grown.min()) / (grown.max() - grown.min())
        loss = -net((mask * image)[None])[0, c]
        (g,) = torch.autograd.grad(loss, u)
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g**2
        step = rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        u = (u - step).detach().requires_grad_(True)
    return sum(a * f for a, f in zip(torch.softmax(u.detach(), dim=0), features, strict=True))


@pytest.mark.parametrize(("kind", "size"), [("toy", (32, 32)), ("toy", (32, 44)), ("test_vit", (160, 160))])
def test_opti_cam_equals_a_naive_one(kind: str, size: tuple[int, int]) -> None:
    classifier = classifier_of(toy().module, size=size, classes=10) if kind == "toy" else timm_model(kind)
    x, classes, steps = images(2, size), [2, 9], 12
    activation = activation_of(classifier, x)
    found = explain(classifier, x, "opti_cam", classes, steps=steps).maps
    for map_, image, channels, c in zip(found, x, activation, classes, strict=True):
        expected = naive_opti_cam(classifier.module, image, channels, c, steps, 0.1)
        # Flat channels are left out of ours, which changes the map's scale alone.
        expected, map_ = expected / expected.max(), map_.double() / map_.double().max()
        torch.testing.assert_close(map_, expected, atol=2e-4, rtol=1e-3)


def test_opti_cam_raises_the_score_of_what_it_shows() -> None:
    classifier, x = timm_model("test_resnet"), images(3, 160)
    classes = torch.tensor([3, 7, 1])

    def seen(maps):
        with torch.no_grad():
            return classifier.predict(as_mask(maps, (160, 160)) * x)[torch.arange(3), classes]

    before = seen(activation_of(classifier, x).clamp(min=0).mean(dim=1))
    after = seen(explain(classifier, x, "opti_cam", classes, steps=25).maps)
    assert (after > before + 0.1 * before.abs()).all()


class Passes:
    """Image passes that are made, by what goes into the net and what comes back to it.

    Attributes:
        forward: Images that went in.
        backward: Images whose gradient came back.
        heads: Gradients of a head alone, each of a whole batch.
    """

    def __init__(self) -> None:
        self.forward = self.backward = self.heads = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what happens in here, but for runs of a head alone."""
        forward, run, gradient = Classifier.forward, Head.run, torch.autograd.grad
        leaves: list[int] = []
        is_head = False

        def through(classifier: Classifier, x: torch.Tensor, *, is_published: bool = False) -> torch.Tensor:
            if not is_head:
                self.forward += len(x)
                if x.requires_grad:
                    x.register_hook(back)
            return forward(classifier, x, is_published=is_published)

        def back(gradient: torch.Tensor) -> None:
            self.backward += len(gradient)

        def alone(head: Head, image: int, versions: torch.Tensor) -> torch.Tensor:
            nonlocal is_head
            is_head = True
            try:
                return run(head, image, versions)
            finally:
                is_head = False

        def differentiated(outputs: object, inputs: object, *args: object, **options: object) -> object:
            self.heads += any(inputs is leaf for leaf in leaves)
            return gradient(outputs, inputs, *args, **options)

        def kept(trunk: Trunk, leaf: torch.Tensor, *args: object) -> None:
            leaves.append(leaf)
            begin(trunk, leaf, *args)

        begin = Trunk.__init__
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Classifier, "forward", through)
            patch.setattr(Head, "run", alone)
            patch.setattr(torch.autograd, "grad", differentiated)
            patch.setattr(Trunk, "__init__", kept)
            yield


CAMS = ["grad_cam", "grad_cam_pp", "layer_cam", "hires_cam", "xgrad_cam", "eigen_cam", "cam"]
"""Of one trunk and the same head gradient; Finer-CAM's gradient is that of another score."""
COSTLY = {"score_cam": {"channels": 3}, "opti_cam": {"steps": 2}, "ablation_cam": {"channels": 3}}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_all_maps_of_a_layer_share_one_pass_and_one_gradient_of_the_head(name: str) -> None:
    chosen = dict.fromkeys(CAMS[:-1] if name == "test_vit" else CAMS) | COSTLY
    if name == "test_resnet":
        chosen["guided_grad_cam"] = None
    classifier, x, digests = timm_model(name), images(2, 160), ["a", "b"]
    # What is learned once of a net is learned here.
    alone = {
        method: engine.explain(classifier, x, method=method, parameters=given, digests=digests).maps
        for method, given in chosen.items()
    }
    passes = Passes()
    with passes.counted():
        found = engine.explain_set(classifier, x, methods=chosen, digests=digests)
    # The views of Score-CAM, one of nothing, Opti-CAM's steps; guided backpropagation.
    own = 2 * 3 + 1 + 2 * 2 + 2 * ("guided_grad_cam" in chosen)
    assert passes.forward == 2 + own
    assert passes.heads == 1
    for method in chosen:
        scale = float(alone[method].abs().max())
        torch.testing.assert_close(found[method].maps / scale, alone[method] / scale, atol=1e-5, rtol=1e-4)
    passes = Passes()
    with passes.counted():
        engine.explain_set(classifier, x, methods={"finer_cam": None, **chosen}, digests=digests)
    assert (passes.forward, passes.heads) == (2 + own, 2)


def told(classifier: Classifier, x: torch.Tensor, chosen: dict) -> tuple[int, int, int]:
    """Image passes told at the end, their total, and those that were made."""
    digests = [str(row) for row in range(len(x))]
    ticks, passes = [(0, 0)], Passes()
    target = ClassTarget(torch.zeros(len(x), dtype=torch.long))
    with passes.counted():
        engine.explain_set(
            classifier, x, methods=chosen, target=target, digests=digests, progress=lambda *told: ticks.append(told)
        )
    size = (int(x.shape[2]), int(x.shape[3]))
    assert ticks[-1][1] == len(x) * engine.passes(chosen, size, classifier)
    # The view of nothing is one for all images and not counted.
    return (*ticks[-1], passes.forward + passes.backward - ("score_cam" in chosen))


def test_progress_ends_at_the_passes_a_set_makes() -> None:
    """Every pair of what shares, and all of it."""
    names = [*CAMS, "finer_cam", *COSTLY, "gradient", "input_x_gradient", "guided_backprop", "guided_grad_cam"]
    classifier, x = toy(), images(2, 32)
    # What is learned once of a net is learned here.
    told(classifier, x, {name: COSTLY.get(name) for name in names})
    for some in (*combinations(names, 2), names):
        done, total, made = told(classifier, x, {name: COSTLY.get(name) for name in some})
        assert done == total == made, some


@pytest.mark.parametrize(
    ("name", "chosen", "passes"),
    [
        ("test_vit", {"grad_cam": None, "ablation_cam": None}, 1),
        ("test_vit", {"ablation_cam": {"channels": 3}, "gradient": None, "score_cam": None}, 2 + 64),
        ("test_vit", {"grad_cam": {"layer": "blocks.2"}, "ablation_cam": {"channels": 3}, "gradient": None}, 1 + 1 + 1),
        ("test_vit", {"grad_cam": None, "opti_cam": {"steps": 2}, "score_cam": None}, 1 + 4 + 64),
        ("test_resnet", {"grad_cam": None, "guided_backprop": None, "guided_grad_cam": None}, 3),
        ("test_resnet", {"guided_grad_cam": None, "guided_backprop": None, "gradient": None}, 1 + 1 + 2),
        # Folded into the convolution before it, so taken from the published net, from which no gradient goes on.
        ("test_resnet", {"hires_cam": {"layer": "layer4.0.conv1"}, "gradient": None}, 1 + 2),
        ("test_resnet", {"hires_cam": {"layer": "layer4.0.conv1"}, "grad_cam": None, "gradient": None}, 1 + 1 + 1),
    ],
)
def test_passes_of_a_set_are_counted_as_they_are_made(name: str, chosen: dict, passes: int) -> None:
    classifier = timm_model(name)
    x = images(1, classifier.preprocessing.input_size[0])
    engine.explain_set(classifier, x, methods=chosen, digests=["a"])
    done, total, made = told(classifier, x, chosen)
    assert (done, total, made) == (passes, passes, passes)


def test_passes_of_a_set_count_what_is_shared_once() -> None:
    chosen = {"grad_cam": None, "opti_cam": None, "score_cam": None}
    assert engine.passes(chosen, (224, 224)) == 1 + 200 + 1280
    assert engine.passes({"grad_cam": None, "guided_backprop": None, "guided_grad_cam": None}, (224, 224)) == 3


def test_eigen_cam_knows_no_class() -> None:
    classifier, x = timm_model("test_resnet"), images(2, 160)
    assert not methods.get("eigen_cam").card.has_target
    one = explain(classifier, x, "eigen_cam", [3, 7]).maps
    other = engine.explain(classifier, x, method="eigen_cam", target=PredictedTarget(), digests=["a", "b"]).maps
    torch.testing.assert_close(one, other)
