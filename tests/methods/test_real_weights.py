"""Methods against the peers on trained nets and photographs: the same ranks and the same values."""

import functools
import warnings

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import salviz
from salviz import engine
from salviz.classifiers import Classifier
from salviz.classifiers.layers import target_layer
from salviz.classifiers.packaged import find_packaged
from salviz.images import open_fashion, open_sample
from salviz.maps import resize, scale_minmax
from salviz.targets import ClassTarget

IDS = ["tf_efficientnet_lite0", "mobilenet_v2", "fashion_cnn", "fashion_vit"]
EVERYDAY = [pytest.param(id, marks=[] if id.startswith("fashion") else [pytest.mark.slow]) for id in IDS]


@functools.cache
def case(id: str) -> tuple[Classifier, Tensor, int]:
    """A trained classifier, a picture it knows `(1, 3, H, W)`, and its class."""
    if id == "mobilenet_v2" and find_packaged(id) is None:
        pytest.skip("the optional package with MobileNetV2's weights is not installed")
    classifier = salviz.load(id, device="cpu")
    picture = open_fashion(3) if id.startswith("fashion") else open_sample("cat")
    x = classifier.preprocessing.normalise(classifier.preprocessing.frame(picture.image)[None])
    return classifier, x, int(classifier.predict(x).argmax())


def explain(id: str, method: str, **parameters) -> Tensor:
    classifier, x, c = case(id)
    return engine.explain(
        classifier, x, method=method, parameters=parameters, target=ClassTarget(torch.tensor([c])), digests=["a"]
    ).maps


def assert_alike(found: Tensor, expected: Tensor, error: float) -> None:
    """Ranks, and the length of the difference as a share of the map's own."""
    found, expected = found.detach().double().flatten(), expected.detach().double().flatten()
    assert expected.std() > 0
    assert spearmanr(found.numpy(), expected.numpy()).statistic >= 0.999
    assert float((found - expected).norm() / expected.norm()) <= error


def window(id: str) -> int:
    return case(id)[1].shape[2] // 4


CAPTUM = {
    "gradient": ("Saliency", {}, {"abs": False}),
    "input_x_gradient": ("InputXGradient", {}, {}),
    "integrated_gradients": ("IntegratedGradients", {"steps": 6}, {"n_steps": 6, "method": "gausslegendre"}),
}


@pytest.mark.parametrize("method", CAPTUM)
@pytest.mark.parametrize("id", EVERYDAY)
def test_gradients_are_captums(id: str, method: str) -> None:
    from captum import attr

    (classifier, x, c), (name, ours, theirs) = case(id), CAPTUM[method]
    expected = getattr(attr, name)(classifier.module).attribute(x.clone().requires_grad_(), target=c, **theirs)
    # The two large nets are folded, captum is given the published ones: pixels differ by up to 1 % of the largest.
    assert_alike(explain(id, method, **ours), expected, 1e-2 if id in IDS[:2] else 1e-5)


@pytest.mark.parametrize("id", EVERYDAY)
def test_occlusion_is_captums(id: str) -> None:
    from captum.attr import Occlusion

    (classifier, x, c), side = case(id), window(id)
    expected = Occlusion(classifier.module).attribute(
        x, (3, side, side), strides=(3, side, side), target=c, perturbations_per_eval=16
    )
    assert_alike(explain(id, "occlusion", window=side, stride=side), expected[:, 0], 1e-4)


# Of these nets the one that has no other activation than `nn.ReLU`, which is all that captum sees. Its DeepLIFT
# refuses the net, for a block uses its ReLU twice.
@pytest.mark.parametrize(("method", "oracle"), [("guided_backprop", "GuidedBackprop"), ("deconvnet", "Deconvolution")])
def test_rules_for_rectifiers_are_captums(method: str, oracle: str) -> None:
    from captum import attr

    classifier, x, c = case("fashion_cnn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's hooks
        expected = getattr(attr, oracle)(classifier.module).attribute(x.clone().requires_grad_(), target=c)
    assert_alike(explain("fashion_cnn", method), expected, 1e-4)


CAMS = {
    "grad_cam": "GradCAM",
    "grad_cam_pp": "GradCAMPlusPlus",
    "layer_cam": "LayerCAM",
    "hires_cam": "HiResCAM",
    "xgrad_cam": "XGradCAM",
    "eigen_cam": "EigenCAM",
    "ablation_cam": "AblationCAM",
}
CAM_CASES = [
    pytest.param(id, method, marks=[pytest.mark.slow] if method == "ablation_cam" and id in IDS[:2] else [])
    for id in IDS
    for method in CAMS
    # On tokens it ablates places instead of channels.
    if (id, method) != ("fashion_vit", "ablation_cam")
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("id", "method"), CAM_CASES)
def test_class_activation_maps_are_pytorch_grad_cams(id: str, method: str) -> None:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    classifier, x, c = case(id)
    module, where = classifier.module, target_layer(classifier)
    module.requires_grad_(True)
    try:
        tool = getattr(pytorch_grad_cam, CAMS[method])(
            model=module, target_layers=[module.get_submodule(where.name)],
            reshape_transform=where.channel_maps if where.layout == "tokens" else None,
        )  # fmt: skip
        expected = torch.from_numpy(tool(x.clone(), targets=[ClassifierOutputTarget(c)]))
        tool.activations_and_grads.release()
    finally:
        module.requires_grad_(False)
    raw = explain(id, method, **({"centre": True} if method == "eigen_cam" else {}))

    def shown(maps: Tensor) -> Tensor:
        return scale_minmax(resize(scale_minmax(maps.clamp(min=0)), tuple(x.shape[2:])))

    if method == "eigen_cam":
        # Its sign is whatever the decomposition gave.
        raw = min(raw, -raw, key=lambda maps: float((shown(maps) - expected).norm()))
    assert_alike(shown(raw), expected, 1e-4)


@pytest.mark.parametrize(("method", "oracle"), [("cam", "CAM"), ("grad_cam", "GradCAM"), ("finer_cam", "FinerCAM")])
@pytest.mark.parametrize(("id", "head"), [("tf_efficientnet_lite0", "classifier"), ("mobilenet_v2", "classifier.1")])
def test_class_activation_maps_are_torchcams(id: str, head: str, method: str, oracle: str) -> None:
    from torchcam import methods as peers

    classifier, x, c = case(id)
    module, layer = classifier.module, target_layer(classifier).name
    module.requires_grad_(True)
    try:
        with getattr(peers, oracle)(module, layer, *([head] if method == "cam" else [])) as tool:
            scores = {"scores": module(x)}
            (expected,) = tool(class_idx=[c], normalized=False, **({} if method == "cam" else scores))
    finally:
        module.requires_grad_(False)
    found = explain(id, method)
    found = found if method == "cam" else found.clamp(min=0)
    # Sums over the places or averages of them: a factor.
    assert_alike(found / found.max(), expected / expected.max(), 1e-4)
