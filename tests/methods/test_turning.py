"""A turned picture shown to a net that is turned the same way has the turned map: flips and quarter turns.

For all methods but those that draw or cut in the order of the pixels, on pictures that are not square.
"""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from salviz import engine, methods
from salviz.targets import ClassTarget
from tests.models import classifier_of, images, sampled

SIZE = (24, 32)
SETTINGS = {
    "blur_ig": {"steps": 5, "max_sigma": 3.0},
    "integrated_gradients": {"steps": 3},
    "guided_ig": {"steps": 5},
    "occlusion": {"window": 8, "stride": 4},
    "superpixel_ablation": {"segmentation": "grid", "segments": 12},
    "opti_cam": {"steps": 5},
    "extremal_perturbation": {"iterations": 4, "stride": 4, "smooth": 4.0, "sigma": 3.0},
    # With one place for the mask nothing is drawn.
    "meaningful_perturbation": {"iterations": 4, "grid": 6, "smooth": 1.0, "sigma": 3.0, "jitter": 1},
}
# Of equal values a maximum takes the first, which knows a direction: those of a grey picture, or zeros where the
# deconvnet goes on nevertheless.
MEETS_TIES = ("deeplift", "guided_ig", "deconvnet")
# What is made of a layer's cells lies as the layer sees the picture, and relevance has no rule for turning it.
LOOKS_INSIDE = ("full_grad", "lrp")
DRAWS = "its random numbers belong to pixels or superpixels in their order"
CUTS = "the segmentation begins in a corner"
EXEMPT = {
    **dict.fromkeys(("smoothgrad", "smoothgrad_squared", "vargrad", "ig_smoothgrad", "expected_gradients"), DRAWS),
    **dict.fromkeys(("rise", "lime", "kernel_shap", "random"), DRAWS),
    "xrai": CUTS,
}
METHODS = [name for name in methods.METHODS if name not in EXEMPT]


def turn(values: torch.Tensor, quarters: int, *, flips: bool) -> torch.Tensor:
    """The last two dimensions, flipped left to right or not, then turned by quarters."""
    return (values.flip(-1) if flips else values).rot90(quarters, (-2, -1))


class TurnsBack(nn.Module):
    """First turns the picture back, then asks the net."""

    def __init__(self, net: nn.Module, quarters: int, *, flips: bool) -> None:
        super().__init__()
        self.net, self.quarters, self.flips = net, quarters, flips

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.rot90(-self.quarters, (-2, -1))
        return self.net(x.flip(-1) if self.flips else x)


class Symmetric(nn.Module):
    """Kernels, strides and pads that know no direction, so that turning the kernels turns what the net sees."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.stem, self.norm = nn.Conv2d(3, 8, 4, stride=2, padding=1), nn.BatchNorm2d(8)
        self.inner, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.pool, self.relu, self.head = pool, nn.ReLU(), nn.Linear(12, 5)
        self.norm.running_mean.normal_(0, 0.1)
        self.norm.running_var.uniform_(0.5, 1.5)
        # As far apart as a trained net's logits.
        self.head.weight.data *= 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.pool(x + self.relu(self.inner(x)))
        return self.head(self.relu(self.last(x)).mean(dim=(2, 3)))


def is_transformer(method: str) -> bool:
    return methods.get(method).card.family == "attention"


def looks_inside(method: str) -> bool:
    """Whether its map comes in a layer's cells, or is made with such a map."""
    card = methods.get(method).card
    is_coarse = card.family == "attention" or "layer" in {parameter.name for parameter in card.parameters}
    return is_coarse or method in LOOKS_INSIDE


@functools.cache
def net_of(method: str) -> nn.Module:
    net = Symmetric(nn.AvgPool2d(2) if method in MEETS_TIES else nn.MaxPool2d(2))
    if is_transformer(method):
        import timm

        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = timm.create_model(
                "vit_tiny_patch16_224", img_size=SIZE, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5
            )
            nn.init.normal_(net.head.weight)
            nn.init.normal_(net.pos_embed)
    return net.eval()


def with_turned_weights(net: nn.Module, quarters: int, *, flips: bool) -> nn.Module:
    net = copy.deepcopy(net)
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = turn(part.weight.data, quarters, flips=flips).contiguous()
    if hasattr(net, "pos_embed"):
        grid = net.pos_embed.data[:, 1:].transpose(1, 2).unflatten(2, net.patch_embed.grid_size)
        turned = turn(grid, quarters, flips=flips)
        net.pos_embed.data[:, 1:] = turned.flatten(2).transpose(1, 2)
        net.patch_embed.grid_size = tuple(turned.shape[2:])
        net.patch_embed.img_size = tuple(4 * side for side in turned.shape[2:])
    return net


def explain(method: str, net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return engine.explain(
        classifier_of(net, size=tuple(x.shape[2:]), classes=5), x, method=method, parameters=SETTINGS.get(method),
        target=ClassTarget(torch.tensor([1, 3])), digests=["a", "b"],
    ).maps  # fmt: skip


TURNS = st.sampled_from([(0, True), (1, False), (2, False), (3, False), (1, True), (2, True), (3, True)])
SEEDS = st.integers(0, 10**6)


def assert_turned(found: torch.Tensor, expected: torch.Tensor, method: str) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    assert method == "constant" or (expected.flatten(1).std(dim=1) > 1e-6 * scale).all()
    torch.testing.assert_close(found, expected, atol=1e-4 * scale, rtol=0)


def test_whoever_is_exempt_exists() -> None:
    assert set(EXEMPT) <= set(methods.METHODS)


@pytest.mark.parametrize("method", sampled(METHODS))
@settings(max_examples=3)
@given(by=TURNS, seed=SEEDS)
def test_a_net_with_turned_weights_has_the_turned_map(method: str, by: tuple[int, bool], seed: int) -> None:
    (quarters, flips), net, x = by, net_of(method), images(2, SIZE, seed)
    turned = with_turned_weights(net, quarters, flips=flips)
    expected = turn(explain(method, net, x), quarters, flips=flips)
    assert_turned(explain(method, turned, turn(x, quarters, flips=flips)), expected, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if not looks_inside(name)])
@settings(max_examples=8)
@given(by=TURNS, seed=SEEDS)
def test_a_net_that_turns_the_picture_back_has_the_turned_map(method: str, by: tuple[int, bool], seed: int) -> None:
    (quarters, flips), net, x = by, net_of(method), images(2, SIZE, seed)
    expected = turn(explain(method, net, x), quarters, flips=flips)
    found = explain(method, TurnsBack(net, quarters, flips=flips), turn(x, quarters, flips=flips))
    assert_turned(found, expected, method)
