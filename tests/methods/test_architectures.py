"""Every method on every architecture that is named: what is refused, and that the others give a map of it."""

import pytest
import torch
from torch import nn

from salviz import engine, methods, support
from tests.classifiers.test_layers import IDS, TABLE, build

ATTENTION = {"legrad", "attention_rollout", "grad_attention_rollout", "transformer_attribution"}
RELU_ONLY = {"guided_backprop", "deconvnet", "guided_grad_cam"}
NO_BIASES_ON_THE_PICTURE = {"full_grad"}
NO_POOLED_HEAD = {"cam"}

# What each kind of net has no map of, by how the names of its architectures begin.
REFUSED = {
    ("timm:mobilenetv2", "torchvision:mobilenet_v2", "timm:tf_efficientnet_lite"): ATTENTION,
    ("timm:resnet", "torchvision:resnet", "timm:densenet"): ATTENTION,
    # Several layers at the end, or a ReLU before the average.
    ("timm:vgg", "torchvision:vgg", "torchvision:densenet"): ATTENTION | NO_POOLED_HEAD,
    ("timm:test_efficientnet",): ATTENTION | RELU_ONLY,
    # A norm after the average.
    ("timm:convnext", "torchvision:convnext"): ATTENTION | RELU_ONLY | NO_POOLED_HEAD,
    ("timm:coatnet",): ATTENTION | RELU_ONLY | NO_BIASES_ON_THE_PICTURE,
    ("timm:vit_", "timm:deit", "timm:eva02", "torchvision:vit_"): RELU_ONLY | NO_BIASES_ON_THE_PICTURE | NO_POOLED_HEAD,
    # No attention of all places to all, one block after the other.
    ("timm:vit_small_patch16_18x2", "timm:cait", "timm:mixer", "timm:swin", "torchvision:swin"): (
        ATTENTION | RELU_ONLY | NO_BIASES_ON_THE_PICTURE | NO_POOLED_HEAD
    ),
}

# With the fewest passes of all there may be nothing to see: the spread of one sample, one window or superpixel over
# everything, a first step from grey in a net without biases, a circle that covers its four cells, a mask that one step
# has hardly moved, a channel that is dead anyway.
MORE = {
    "vargrad": {"samples": 2},
    "guided_ig": {"steps": 2},
    "occlusion": {"window": 32, "stride": 32},
    "superpixel_ablation": {"segments": 9},
    "lime": {"samples": 20},
    "ablation_cam": {"channels": 16},
    "extremal_perturbation": {"iterations": 8},
    "meaningful_perturbation": {"grid": 8, "iterations": 2},
}


def refused(name: str) -> set[str]:
    """What is refused for an architecture: the entry whose name says most."""
    fitting = [(len(start), found) for starts, found in REFUSED.items() for start in starts if name.startswith(start)]
    return max(fitting, key=lambda pair: pair[0])[1]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(TABLE)), ids=IDS)
def test_every_method_explains_what_it_does_not_refuse(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name, size, _, (layer, _, grid, _) = TABLE[index]
    # Not the cached one: together they would fill the memory.
    classifier = build.__wrapped__(index)
    for part in classifier.module.modules():
        # Some heads start at zero, where every map is flat.
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    for path, parameter in classifier.module.named_parameters():
        # Untrained, blocks behind such a scale add a hundred-thousandth to what goes past them: less than rounding.
        if path.rpartition(".")[2].startswith("gamma"):
            parameter.data.fill_(1.0)
    noise = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if classifier.module(noise).std() < 1e-6:
            # With the statistics its norms begin with, the signal fades from layer to layer to mere rounding.
            for part in classifier.module.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.momentum = 1.0
            classifier.module.train()(noise)
            classifier.module.eval()
    flat, explain, cheapest = [], engine.explain, support.cheapest

    def noted(*args, method, **options):
        found = explain(*args, method=method, **options)
        if found.is_flat.any():
            flat.append(method)
        return found

    monkeypatch.setattr(engine, "explain", noted)
    monkeypatch.setattr(support, "cheapest", lambda card, net: cheapest(card, net) | MORE.get(card.id, {}))
    rows = support.probe(classifier).rows
    assert [(row.method, row.reason) for row in rows if row.state == "fails"] == []
    assert {row.method for row in rows if row.state == "refused"} == refused(name)
    assert flat == ["constant"]
    for row in rows:
        card = methods.get(row.method).card
        if row.state != "works":
            continue
        if row.layer:
            assert row.layer == layer
        is_coarse = card.family == "attention" or (row.layer and row.method != "guided_grad_cam")
        assert row.grid == (grid if is_coarse else size), row.method
