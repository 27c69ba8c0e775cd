"""Stages of nets: partitions of the parameters in the order of execution, for every family."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from salviz.classifiers.stages import find_stages
from tests.models import classifier_of, timm_model, toy

BLOCKS = {
    "timm:tf_efficientnet_lite0": ["classifier", "conv_head", "blocks.6.0", ..., "blocks.0.0", "conv_stem"],
    "timm:resnet18": ["fc", "layer4.1", "layer4.0", "layer3.1", ..., "layer1.0", "conv1"],
    "timm:vit_tiny_patch16_224": ["head", "norm", "blocks.11", ..., "blocks.0", "cls_token, pos_embed", "patch_embed"],
    "timm:deit_tiny_distilled_patch16_224": [..., "blocks.0", "cls_token, pos_embed, dist_token", "patch_embed"],
    "timm:vit_small_patch16_dinov3": ["norm", "blocks.11", ..., "blocks.0", "cls_token, reg_token", "patch_embed"],
    "timm:swin_tiny_patch4_window7_224": [
        "head", "norm", "layers.3.blocks.1", "layers.3.blocks.0", "layers.3.downsample", "layers.2.blocks.5", ...,
        "layers.0.blocks.0", "patch_embed",
    ],
    "timm:convnext_atto": ["head", "stages.3.blocks.1", "stages.3.blocks.0", "stages.3.downsample", ..., "stem"],
    "torchvision:mobilenet_v2": ["classifier", "features.18", "features.17", ..., "features.1", "features.0"],
    "torchvision:vit_b_16": [
        "heads", "encoder.ln", "encoder.layers.encoder_layer_11", ..., "encoder.layers.encoder_layer_0",
        "encoder.pos_embedding", "class_token", "conv_proj",
    ],
    "torchvision:densenet121": [
        "classifier", "features.norm5", "features.denseblock4.denselayer16", ..., "features.denseblock1.denselayer1",
        "features.conv0",
    ],
    "torchvision:vgg11_bn": ["classifier.6", "classifier.3", "classifier.0", "features.25", ..., "features.0"],
    "torchvision:googlenet": ["fc", "inception5b.branch4", ..., "conv3", "conv2", "conv1", "not used"],
}  # fmt: skip


def built(id: str) -> nn.Module:
    library, name = id.split(":")
    if library == "timm":
        return timm.create_model(name, num_classes=0 if "dinov3" in name else 10)
    options = {"init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, num_classes=10, **options)


@pytest.mark.parametrize("id", BLOCKS)
def test_stages_of_the_families(id: str) -> None:
    with torch.random.fork_rng():
        module = built(id)
    size = 256 if "dinov3" in id else 224
    stages = find_stages(classifier_of(module, size=size, classes=10))
    names, expected = [stage.name for stage in stages], BLOCKS[id]
    cut = expected.index(...)
    assert names[:cut] == expected[:cut]
    assert names[len(names) - len(expected) + cut + 1 :] == expected[cut + 1 :]
    members = [name for stage in stages for name in stage.parameters]
    assert sorted(members) == sorted(name for name, _ in module.named_parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_nfnet"])
def test_stages_stand_in_the_order_in_which_hooks_see_them_run(name: str) -> None:
    classifier = timm_model(name)
    first: list[str] = []
    handles = [
        part.register_forward_pre_hook(lambda *_, path=path: first.append(path))
        for path, part in classifier.module.named_modules()
    ]
    height, width = classifier.preprocessing.input_size
    classifier.forward(torch.zeros(1, 3, height, width), is_published=True)
    for handle in handles:
        handle.remove()
    stages = [stage for stage in find_stages(classifier) if stage.name in first]
    assert [stage.name for stage in stages][::-1] == sorted((s.name for s in stages), key=first.index)
    assert len(stages) > 3


class Backwards(nn.Module):
    """Registers its layers in the wrong order, keeps a parameter of its own, and never uses one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 5)
        self.spare = nn.Linear(4, 5)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x)).mean(dim=(2, 3)) * self.scale)


def test_execution_not_registration_gives_the_order() -> None:
    stages = find_stages(classifier_of(Backwards(), size=8, classes=5))
    assert [(stage.name, stage.parameters, stage.is_used) for stage in stages] == [
        ("head", ("head.weight", "head.bias"), True),
        ("scale", ("scale",), True),
        ("body", ("body.weight", "body.bias", "norm.weight", "norm.bias"), True),
        ("not used", ("spare.weight", "spare.bias"), False),
    ]


def test_a_shared_parameter_counts_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x.mean(dim=(1, 2)))))

    stages = find_stages(classifier_of(Tied(), size=8, classes=3))
    assert [stage.parameters for stage in stages] == [
        ("head.weight", "head.bias"), ("second.bias",), ("first.weight", "first.bias"),
    ]  # fmt: skip


def test_looking_for_stages_leaves_the_model_as_it_was() -> None:
    classifier = toy()
    before = {name: tensor.clone() for name, tensor in classifier.module.state_dict().items()}
    find_stages(classifier)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in classifier.module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.module.state_dict().items())
