"""Every method against an independent implementation, a closed form or a naive one."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from salviz import engine
from salviz.methods.paths.blur import gaussian_blur
from salviz.targets import ClassTarget
from tests.models import LinearNet, classifier_of, images, timm_model, toy

RELU_NET = "test_resnet"


def explain(classifier, x, method, classes, output="logit", **parameters):
    return engine.explain(
        classifier, x, method=method, parameters=parameters,
        target=ClassTarget(torch.as_tensor(classes), output), digests=[str(i) for i in range(len(x))],
    )  # fmt: skip


def test_linear_model_in_closed_form() -> None:
    net = LinearNet(12)
    classifier = classifier_of(net, size=12, classes=4)
    x, c = images(2, 12), [1, 3]
    w = net.weight[c].view(2, 3, 12, 12)
    torch.testing.assert_close(explain(classifier, x, "gradient", c).maps, w)
    torch.testing.assert_close(explain(classifier, x, "input_x_gradient", c).maps, w * x)
    torch.testing.assert_close(explain(classifier, x, "smoothgrad", c, samples=3).maps, w)
    torch.testing.assert_close(explain(classifier, x, "smoothgrad_squared", c, samples=3).maps, w.square())
    found = explain(classifier, x, "integrated_gradients", c, steps=3)
    torch.testing.assert_close(found.maps, w * x, atol=1e-6, rtol=1e-5)
    assert found.completeness.abs().max() < 1e-4
    windows = explain(classifier, x, "occlusion", c, window=4, stride=4).maps
    blocks = (w * x).sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum(dim=(3, 4))
    expected = blocks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    torch.testing.assert_close(windows, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_gradient_equals_captum(name: str) -> None:
    from captum.attr import Saliency

    classifier, x = timm_model(name), images(2, 160)
    oracle = Saliency(classifier.runtime).attribute(x.clone().requires_grad_(), target=[3, 7], abs=False)
    torch.testing.assert_close(explain(classifier, x, "gradient", [3, 7]).maps, oracle, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("baseline", ["mean", "black"])
@pytest.mark.parametrize("output", ["logit", "probability"])
def test_integrated_gradients_equal_captum(baseline: str, output: str) -> None:
    from captum.attr import IntegratedGradients

    classifier, x = timm_model(RELU_NET), images(2, 160)
    head = nn.Softmax(dim=1) if output == "probability" else nn.Identity()
    start = classifier.preprocessing.normalise(torch.zeros_like(x, dtype=torch.uint8)) if baseline == "black" else 0
    oracle = IntegratedGradients(nn.Sequential(classifier.runtime, head)).attribute(
        x, baselines=start, target=[3, 7], n_steps=8, method="gausslegendre"
    )
    found = explain(classifier, x, "integrated_gradients", [3, 7], output, steps=8, baseline=baseline)
    torch.testing.assert_close(found.maps, oracle.float(), rtol=1e-3, atol=1e-6)


def test_integrated_gradients_report_their_completeness_error() -> None:
    classifier, x = timm_model("test_vit"), images(2, 160)
    found = explain(classifier, x, "integrated_gradients", [3, 7], steps=4)
    with torch.no_grad():
        gained = classifier.forward(x) - classifier.forward(torch.zeros_like(x))
    expected = found.maps.sum(dim=(1, 2, 3)) - gained[[0, 1], [3, 7]]
    torch.testing.assert_close(found.completeness, expected, atol=1e-4, rtol=1e-3)
    better = explain(classifier, x, "integrated_gradients", [3, 7], steps=64)
    assert (better.completeness.abs() < 1e-2).all()


def test_guided_backprop_equals_captum_where_captum_is_right() -> None:
    from captum.attr import GuidedBackprop

    # Plain nn.ReLU modules only: the nets captum's hooks do see.
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    classifier, x = classifier_of(net, size=20, classes=5), images(2, 20)
    with pytest.warns(UserWarning, match="backward hooks"):
        oracle = GuidedBackprop(net).attribute(x.clone().requires_grad_(), target=[1, 4])
    torch.testing.assert_close(explain(classifier, x, "guided_backprop", [1, 4]).maps, oracle)


@pytest.mark.parametrize("form", ["module", "function", "tensor", "in place", "answer not read", "hardtanh"])
def test_guided_backprop_acts_on_every_form_of_relu6(form: str) -> None:
    """A naive guided backward pass by hand, in float64, for conv - ReLU6 - conv - ReLU6 - sum."""
    forms = {
        "module": nn.ReLU6(),
        "in place": nn.ReLU6(inplace=True),
        "answer not read": lambda t: (nn.functional.relu6(t, inplace=True), t)[1],
        "function": lambda t: nn.functional.relu6(t),
        "hardtanh": lambda t: nn.functional.hardtanh(t, 0.0, 6.0),
        "tensor": lambda t: t.relu(),
    }
    act, top = forms[form], (np.inf if form == "tensor" else 6.0)
    torch.manual_seed(1)
    a, b = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 6, 3, bias=False)
    a.weight.data *= 20

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = a, b

        def forward(self, x):
            return act(self.b(act(self.a(x)))).sum(dim=(2, 3))

    x = images(1, 9)
    found = explain(classifier_of(Net(), size=9, classes=6), x, "guided_backprop", [2]).maps
    with torch.no_grad():
        h1 = a.double()(x.double())
        r1 = h1.clamp(0, top)
        h2 = b.double()(r1)
        g2 = torch.zeros_like(h2)
        g2[:, 2] = 1.0
        g2 = g2 * ((h2 > 0) & (h2 < top))
        g1 = nn.functional.conv_transpose2d(g2, b.weight).clamp(min=0) * ((h1 > 0) & (h1 < top))
        expected = nn.functional.conv_transpose2d(g1, a.weight)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_guided_backprop_differs_from_the_gradient_on_a_relu6_net() -> None:
    """captum returns the plain gradient here without a word."""
    classifier, x = timm_model("mobilenetv2_035", None), images(1, 224)
    guided = explain(classifier, x, "guided_backprop", [5]).maps
    plain = explain(classifier, x, "gradient", [5]).maps
    correlation = torch.corrcoef(torch.stack([guided.flatten(), plain.flatten()]))[0, 1]
    assert correlation.abs() < 0.9


@pytest.mark.parametrize(
    ("method", "oracle"),
    [("grad_cam", "GradCAM"), ("grad_cam_pp", "GradCAMPlusPlus"), ("layer_cam", "LayerCAM")],
)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_cams_equal_pytorch_grad_cam(method: str, oracle: str, name: str) -> None:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from salviz.maps import resize, scale_minmax

    classifier, x = timm_model(name), images(3, 160)
    module = classifier.module
    tokens = name == "test_vit"
    layer = module.blocks[-1].norm1 if tokens else module.layer4
    module.requires_grad_(True)
    try:
        cam = getattr(pytorch_grad_cam, oracle)(
            model=module, target_layers=[layer],
            reshape_transform=(lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (10, 10))) if tokens else None,
        )  # fmt: skip
        expected = cam(x.clone(), targets=[ClassifierOutputTarget(c) for c in (3, 7, 1)])
        cam.activations_and_grads.release()
    finally:
        module.requires_grad_(False)
    raw = explain(classifier, x, method, [3, 7, 1]).maps
    found = scale_minmax(resize(scale_minmax(raw.clamp(min=0)), (160, 160)))
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def test_grad_cam_of_a_global_pool_net_is_cam() -> None:
    classifier, x = toy(), images(2, 32)
    net = classifier.module
    with torch.no_grad():
        features = net.features(nn.functional.avg_pool2d(nn.functional.relu(net.conv1(x)), 2))
        cam = torch.einsum("nchw,nc->nhw", features, net.linear.weight[[2, 9]]) / features[0, 0].numel()
    torch.testing.assert_close(explain(classifier, x, "grad_cam", [2, 9]).maps, cam, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 49.5])
def test_gaussian_blur_equals_scipy(sigma: float) -> None:
    x = images(2, (20, 33))
    expected = gaussian_filter(x.numpy().astype(np.float64), (0, 0, sigma, sigma), mode="constant", truncate=4)
    np.testing.assert_allclose(gaussian_blur(x, sigma).numpy(), expected, atol=2e-6)


def test_blur_ig_equals_pair_saliency() -> None:
    import saliency.core as pair

    classifier, x = timm_model("test_resnet"), images(2, 160)

    def call(batch, call_model_args=None, expected_keys=None):
        leaf = torch.tensor(np.asarray(batch), dtype=torch.float32).permute(0, 3, 1, 2).requires_grad_()
        probability = classifier.forward(leaf).softmax(1)[:, call_model_args]
        (gradient,) = torch.autograd.grad(probability.sum(), leaf)
        return {pair.base.INPUT_OUTPUT_GRADIENTS: gradient.permute(0, 2, 3, 1).numpy()}

    expected = pair.BlurIG().GetMask(x[1].permute(1, 2, 0).numpy(), call, 7, max_sigma=20, steps=10, batch_size=5)
    found = explain(classifier, x, "blur_ig", [3, 7], "probability", max_sigma=20, steps=10).maps[1]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy() / scale, expected / scale, atol=2e-3)


@pytest.mark.parametrize("output", ["logit", "probability"])
def test_blur_ig_reports_its_completeness_error(output: str) -> None:
    """Against the change of score from the image that scipy blurs, which many steps on a smooth picture come near."""
    classifier, noise = timm_model("test_vit"), images(2, 160)
    x = torch.from_numpy(gaussian_filter(noise.numpy(), (0, 0, 6, 6), mode="constant", truncate=4)) * 10

    def score(batch):
        with torch.no_grad():
            logits = classifier.forward(batch)
        return (logits.softmax(1) if output == "probability" else logits)[[0, 1], [3, 7]]

    blurred = gaussian_filter(x.numpy(), (0, 0, 20, 20), mode="constant", truncate=4)
    gained = score(x) - score(torch.from_numpy(blurred))
    found = explain(classifier, x, "blur_ig", [3, 7], output, max_sigma=20, steps=5)
    expected = found.maps.sum(dim=(1, 2, 3)) - gained
    torch.testing.assert_close(found.completeness, expected, atol=1e-4 * float(gained.abs().max()), rtol=1e-3)
    better = explain(classifier, x, "blur_ig", [3, 7], output, max_sigma=20, steps=25)
    assert (better.completeness.abs() < 0.1 * gained.abs()).all()


@pytest.mark.parametrize(("window", "stride"), [(40, 20), (48, 30), (200, 7)])
def test_occlusion_equals_captum(window: int, stride: int) -> None:
    from captum.attr import Occlusion

    classifier, x = timm_model("test_resnet"), images(2, 160)
    if window > 160:
        # One window hides everything: the map is f(x) - f(blank) everywhere.
        with torch.no_grad():
            lost = (classifier.forward(x) - classifier.forward(torch.zeros_like(x)))[[0, 1], [3, 7]]
        found = explain(classifier, x, "occlusion", [3, 7], window=window, stride=stride).maps
        torch.testing.assert_close(found, lost[:, None, None].expand(2, 160, 160), atol=1e-5, rtol=1e-4)
        return
    oracle = Occlusion(classifier.module).attribute(
        x,
        sliding_window_shapes=(3, window, window),
        strides=(3, stride, stride),
        target=[3, 7],
        perturbations_per_eval=8,
    )
    found = explain(classifier, x, "occlusion", [3, 7], window=window, stride=stride).maps
    # captum divides 0 by 0 where no window ever was; nothing was lost there.
    torch.testing.assert_close(found, oracle[:, 0].nan_to_num().float(), atol=2e-5, rtol=1e-3)


def test_edge_equals_scikit_image() -> None:
    from skimage.color import rgb2gray
    from skimage.filters import sobel

    classifier = toy()
    frames = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = classifier.preprocessing.normalise(frames)
    found = explain(classifier, x, "edge", [0, 0]).maps
    for map_, frame in zip(found, frames, strict=True):
        np.testing.assert_allclose(map_.numpy(), sobel(rgb2gray(frame.permute(1, 2, 0).numpy())), atol=1e-5)


def test_smoothgrad_without_noise_is_the_gradient() -> None:
    classifier, x = timm_model("test_vit"), images(2, 160)
    plain = explain(classifier, x, "gradient", [3, 7]).maps
    torch.testing.assert_close(
        explain(classifier, x, "smoothgrad", [3, 7], samples=4, noise=0.0).maps, plain, atol=1e-6, rtol=1e-3
    )


def test_random_maps_are_uniform_and_belong_to_the_image() -> None:
    from scipy.stats import kstest

    classifier, x = toy(), images(2, 32)
    first = explain(classifier, x, "random", [0, 0]).maps
    assert kstest(first.flatten().numpy(), "uniform").pvalue > 1e-3
    assert not torch.equal(first[0], first[1])
