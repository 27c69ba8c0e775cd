"""Class activation maps against peers, closed forms and naive implementations."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from salviz import engine, methods
from salviz.classifiers.layers import target_layer
from salviz.errors import MethodError
from salviz.maps import resize, scale_minmax
from salviz.methods.cam.channels import strongest
from salviz.methods.cam.contrast import similar_classes
from salviz.methods.cam.eigen import first_component
from salviz.methods.cam.head import Head
from salviz.methods.cam.masked import as_mask
from salviz.targets import ClassTarget, PredictedTarget
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


@pytest.mark.parametrize("kind", ["test_vit", "fine"])
def test_score_cam_equals_a_naive_one(kind: str) -> None:
    classifier = fine() if kind == "fine" else timm_model(kind, 48)
    size = classifier.preprocessing.input_size[0]
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


def test_the_estimate_of_ablation_cam_counts_a_transformers_head() -> None:
    """The last of its blocks runs once a channel; behind a convolutional net's last layer there is next to nothing."""
    card = methods.get("ablation_cam").card
    vit, cnn = timm_model("test_vit"), timm_model("test_resnet")
    depth, width = len(vit.module.blocks), vit.module.embed_dim
    usual = card.check_parameters(None)
    assert card.cost(vit, usual) == 1 + width / depth
    assert card.cost(vit, card.check_parameters({"channels": 4})) == 1 + 4 / depth
    assert card.cost(vit, card.check_parameters({"layer": "blocks.0.norm1"})) == 1 + width
    assert card.cost(cnn, usual) == 1
    # What is told afterwards is what was promised; other methods cost their passes.
    found = explain(vit, images(2, 160), "ablation_cam", [3, 1])
    assert found.passes == 2 * card.cost(vit, usual)
    gradient = methods.get("gradient").card
    assert gradient.cost(vit, {}) == gradient.passes({}, (160, 160)) == 2


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
    classifier, x, classes = awake(name), images(2, 64), [3, 1]
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


@pytest.mark.parametrize("net", [Concatenating, Repeating, Foreign])
def test_ablation_is_right_whatever_surrounds_the_layer(net: type[nn.Module]) -> None:
    classifier, x = classifier_of(net(), size=12, classes=3), images(2, 12)
    with torch.no_grad():
        expected = naive_ablation_cam(classifier.module, x, "block", None, [0, 2])
    found = explain(classifier, x, "ablation_cam", [0, 2]).maps
    assert target_layer(classifier).name == "block"
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


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
                head = Head(classifier, where, x)
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


@pytest.mark.parametrize("kind", ["toy", "test_vit"])
def test_opti_cam_equals_a_naive_one(kind: str) -> None:
    classifier = toy() if kind == "toy" else timm_model(kind)
    size = classifier.preprocessing.input_size[0]
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


def test_the_closed_forms_share_one_pass() -> None:
    names = [
        "grad_cam", "grad_cam_pp", "layer_cam", "hires_cam", "xgrad_cam", "eigen_cam", "finer_cam", "cam",
    ]  # fmt: skip
    classifier, x = timm_model("test_resnet"), images(2, 160)
    rows = []
    handle = classifier.runtime.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    found = engine.explain_set(classifier, x, methods=dict.fromkeys(names), digests=["a", "b"])
    handle.remove()
    assert rows == [2]
    for name in names:
        alone = engine.explain(classifier, x, method=name, digests=["a", "b"]).maps
        torch.testing.assert_close(found[name].maps, alone)


def test_eigen_cam_knows_no_class() -> None:
    classifier, x = timm_model("test_resnet"), images(2, 160)
    assert not methods.get("eigen_cam").card.has_target
    one = explain(classifier, x, "eigen_cam", [3, 7]).maps
    other = engine.explain(classifier, x, method="eigen_cam", target=PredictedTarget(), digests=["a", "b"]).maps
    torch.testing.assert_close(one, other)
