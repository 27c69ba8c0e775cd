"""Where class activation maps attach: architecture by architecture, and whether rows and columns are the image's."""

import copy
import functools

import pytest
import torch
from torch import nn

from salviz.classifiers.folding import Folding
from salviz.classifiers.layers import _layout, _token_grid, cut_at, target_layer
from salviz.errors import MethodError
from tests.models import classifier_of

SMALL_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 2), "num_heads": (1, 1, 1, 1), "window_size": 4}
VIT = "blocks.1.norm1"

# (architecture, size, options) -> (layer, layout, grid, prefix)
TABLE = [
    ("timm:mobilenetv2_035", (96, 64), {}, ("bn2", "nchw", (3, 2), 0)),
    ("torchvision:mobilenet_v2", (96, 96), {}, ("features", "nchw", (3, 3), 0)),
    ("timm:tf_efficientnet_lite0", (96, 128), {}, ("bn2", "nchw", (3, 4), 0)),
    ("timm:test_efficientnet", (96, 128), {}, ("bn2", "nchw", (3, 4), 0)),
    ("timm:resnet18", (96, 64), {}, ("layer4", "nchw", (3, 2), 0)),
    ("torchvision:resnet18", (64, 96), {}, ("layer4", "nchw", (2, 3), 0)),
    ("timm:convnext_atto", (96, 64), {}, ("norm_pre", "nchw", (3, 2), 0)),
    ("torchvision:convnext_tiny", (96, 64), {}, ("features", "nchw", (3, 2), 0)),
    ("timm:densenet121", (64, 96), {}, ("features", "nchw", (2, 3), 0)),
    ("torchvision:densenet121", (64, 96), {}, ("features", "nchw", (2, 3), 0)),
    ("timm:vgg11", (96, 64), {"mlp_ratio": 1 / 64}, ("features", "nchw", (3, 2), 0)),
    # Its pool makes 7 x 7 of anything; the map is what the convolutions gave.
    ("torchvision:vgg11", (96, 64), {}, ("features", "nchw", (3, 2), 0)),
    ("timm:vit_tiny_patch16_224", (96, 64), {"img_size": (96, 64), **SMALL_VIT}, (VIT, "tokens", (6, 4), 1)),
    ("timm:vit_tiny_patch16_224", (64, 96), {"dynamic_img_size": True, **SMALL_VIT}, (VIT, "tokens", (4, 6), 1)),
    (
        "timm:vit_tiny_patch16_224", (96, 64),
        {"img_size": (96, 64), "class_token": False, "global_pool": "avg", **SMALL_VIT}, (VIT, "tokens", (6, 4), 0),
    ),
    (
        "timm:vit_tiny_patch16_224", (64, 96), {"img_size": (64, 96), "global_pool": "avg", **SMALL_VIT},
        (VIT, "tokens", (4, 6), 1),
    ),
    ("timm:vit_base_patch16_siglip_224", (96, 64), {"img_size": (96, 64), **SMALL_VIT}, (VIT, "tokens", (6, 4), 0)),
    ("timm:vit_base_patch16_clip_224", (96, 64), {"img_size": (96, 64), **SMALL_VIT}, (VIT, "tokens", (6, 4), 1)),
    ("timm:vit_medium_patch16_reg4_gap_256", (96, 64), {"img_size": (96, 64), **SMALL_VIT}, (VIT, "tokens", (6, 4), 4)),
    ("timm:vit_small_patch14_reg4_dinov2", (98, 70), {"img_size": (98, 70), **SMALL_VIT}, (VIT, "tokens", (7, 5), 5)),
    ("timm:deit_tiny_patch16_224", (96, 64), {"img_size": (96, 64), **SMALL_VIT}, (VIT, "tokens", (6, 4), 1)),
    ("timm:deit_tiny_distilled_patch16_224", (96, 64), {"img_size": (96, 64), **SMALL_VIT}, (VIT, "tokens", (6, 4), 2)),
    ("timm:deit3_small_patch16_224", (96, 64), {"img_size": (96, 64), **SMALL_VIT}, (VIT, "tokens", (6, 4), 1)),
    ("timm:eva02_tiny_patch14_224", (98, 70), {"img_size": (98, 70), **SMALL_VIT}, (VIT, "tokens", (7, 5), 1)),
    # Two attentions side by side, each with a norm: what comes into both.
    (
        "timm:vit_small_patch16_18x2_224", (96, 64), {"img_size": (96, 64), **SMALL_VIT},
        ("blocks.0", "tokens", (6, 4), 1),
    ),
    # The last block reads the places to sum them up in the class token.
    (
        "timm:cait_xxs24_224", (96, 64), {"img_size": (96, 64), **SMALL_VIT},
        ("blocks_token_only.1.norm1", "tokens", (6, 4), 1),
    ),
    ("torchvision:vit_b_16", (96, 96), {}, ("encoder.layers.encoder_layer_1.ln_1", "tokens", (6, 6), 1)),
    ("timm:mixer_s32_224", (96, 64), {"img_size": (96, 64)}, ("blocks.7.norm1", "tokens", (3, 2), 0)),
    (
        "timm:swin_tiny_patch4_window7_224", (128, 192), {"img_size": (128, 192), **SMALL_SWIN},
        ("layers.3.blocks.1.norm1", "nhwc", (4, 6), 0),
    ),
    # Swin v2 normalises after its attention: what comes into the last block.
    (
        "timm:swinv2_tiny_window8_256", (128, 192), {"img_size": (128, 192), **SMALL_SWIN},
        ("layers.3.blocks.0", "nhwc", (4, 6), 0),
    ),
    ("torchvision:swin_t", (64, 96), {}, ("features.7.1.norm1", "nhwc", (2, 3), 0)),
    ("torchvision:swin_v2_t", (64, 96), {}, ("features.7.0", "nhwc", (2, 3), 0)),
    # Attention between convolutions counts as a convolutional net.
    ("timm:coatnet_pico_rw_224", (64, 96), {"img_size": (64, 96)}, ("norm", "nchw", (2, 3), 0)),
]  # fmt: skip
HEAVY = {name for name, _, _, expected in TABLE if expected[1] == "nchw"}
IDS = [f"{name}-{size[0]}x{size[1]}-{expected[3]}" for name, size, _, expected in TABLE]
EVERY_THIRD = [pytest.param(n, id=id, marks=[pytest.mark.slow] * bool(n % 3)) for n, id in enumerate(IDS)]
"""The others with `pytest -m slow`."""


@functools.cache
def build(index: int, device: str = "cpu"):
    """The architecture with random weights; on the meta device with none, where a VGG too is made in no time."""
    name, size, options, _ = TABLE[index]
    source, _, name = name.partition(":")
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        if name == "vit_b_16":
            from torchvision.models import VisionTransformer

            module = VisionTransformer(96, 16, 2, 2, 32, 64, num_classes=5)
        elif source == "torchvision" and name.startswith("swin"):
            from torchvision.models import swin_transformer as swin

            later = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
            module = swin.SwinTransformer(
                [4, 4], 16, [1, 1, 1, 2], [1, 1, 1, 1], [4, 4], num_classes=5, **(later if "v2" in name else {})
            )
        elif source == "torchvision":
            from torchvision.models import get_model

            module = get_model(name, weights=None, num_classes=5)
            if name == "vgg11":
                # Its three layers at the end, without the hundred million weights.
                wide = module.classifier[0].in_features
                module.classifier[0], module.classifier[3] = nn.Linear(wide, 64), nn.Linear(64, 64)
                module.classifier[6] = nn.Linear(64, 5)
        else:
            import timm

            module = timm.create_model(name, pretrained=False, num_classes=5, **options)
    return classifier_of(module, size=size, classes=5, name=f"{source}:{name}")


@pytest.mark.parametrize("index", EVERY_THIRD)
def test_the_rule_finds_the_layer(index: int) -> None:
    classifier = build(index, "meta" if TABLE[index][0] in HEAVY else "cpu")
    where = target_layer(classifier)
    assert (where.name, where.layout, where.grid, where.prefix) == TABLE[index][3]
    # Named, it is the same layer.
    assert target_layer(classifier, where.name) == where


def influence(classifier, where, x, cell):
    """How much each cell of the layer changes with the picture's part under one of them: `(h, w)`."""
    height, width = x.shape[2] // where.grid[0], x.shape[3] // where.grid[1]
    rows = slice(cell[0] * height, (cell[0] + 1) * height)
    columns = slice(cell[1] * width, (cell[1] + 1) * width)
    changed = x.clone()
    changed[:, :, rows, columns] += 3 * torch.randn(1, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), cut_at(classifier, where) as capture:
        classifier.forward(torch.cat([x, changed]), is_published=where.is_published)
    maps = where.channel_maps(capture.activation.detach())
    return (maps[1] - maps[0]).square().sum(dim=0)


# What a convolutional net's last cell sees is most of the picture.
LOCAL = [index for index, case in enumerate(TABLE) if case[3][1] != "nchw"]


@pytest.mark.parametrize("index", LOCAL, ids=[IDS[index] for index in LOCAL])
def test_its_cells_lie_where_the_picture_is(index: int) -> None:
    """A change under one cell is felt most in that cell: a turned grid or a forgotten token would shift it."""
    classifier = build(index)
    where = target_layer(classifier)
    x = torch.randn(1, 3, *TABLE[index][1], generator=torch.Generator().manual_seed(0))
    for cell in ((0, 0), (where.grid[0] - 1, 0), (0, where.grid[1] - 1), (1, where.grid[1] - 1)):
        felt = influence(classifier, where, x, cell)
        assert divmod(int(felt.argmax()), where.grid[1]) == cell, (cell, felt)


def test_folding_does_not_move_the_layer() -> None:
    """The gradient of the published net at the layer is that of the folded one."""
    from salviz.methods.passes import shared_head
    from salviz.targets import ClassTarget
    from salviz.work import Work

    classifier = build(IDS.index("timm:resnet18-96x64-0"))
    plain = copy.copy(classifier)
    object.__setattr__(plain, "_folding", Folding(classifier.module))
    x = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    target = ClassTarget(torch.tensor([1, 2]))
    for found, expected in zip(
        shared_head(classifier, x, target, "", Work()), shared_head(plain, x, target, "", Work()), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("inner", ["blocks.1.attn.q_norm", "blocks.1.attn.qkv", "head"])
def test_what_is_no_map_is_refused(inner: str) -> None:
    classifier = build(IDS.index("timm:vit_tiny_patch16_224-96x64-1"))
    if inner == "blocks.1.attn.qkv":
        # Tokens inside an attention are still one a place.
        assert target_layer(classifier, inner).grid == (6, 4)
        return
    with pytest.raises(MethodError, match="gives no spatial map"):
        target_layer(classifier, inner)


def test_a_map_from_before_the_attention_is_no_substitute() -> None:
    """Where the tokens cannot be put on a grid there is no map, rather than one of the first layer's edges."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, stride=4)
            self.blocks = nn.ModuleList([nn.ModuleDict({"norm": nn.LayerNorm(8), "attn": nn.Linear(8, 8)})])
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # Half of the places, in no order.
            tokens = self.stem(x).flatten(2).transpose(1, 2)[:, ::2][:, :29]
            tokens = tokens + self.blocks[0]["attn"](self.blocks[0]["norm"](tokens))
            return self.head(tokens.mean(dim=1))

    with pytest.raises(MethodError, match="no layer with a spatial map"):
        target_layer(classifier_of(Odd(), size=(32, 64), classes=3))


@pytest.mark.parametrize(
    ("shape", "size", "layout"),
    [
        ((1, 512, 7, 7), (224, 224), "nchw"),
        ((1, 7, 7, 512), (224, 224), "nhwc"),
        ((1, 3, 4, 768), (96, 128), "nhwc"),
        ((1, 768, 3, 4), (96, 128), "nchw"),
        ((1, 5, 5, 5), (160, 160), "nchw"),
        # Without padding.
        ((1, 16, 16, 36), (20, 40), "nchw"),
        ((1, 1, 1, 401), (240, 240), None),
        ((1, 8, 49, 96), (224, 224), None),
        ((1, 512, 1, 1), (224, 224), None),
        ((2, 16, 16, 24), (224, 224), None),
        ((1, 197, 192), (224, 224), None),
    ],
)
def test_rows_and_columns_are_told_from_channels(shape: tuple, size: tuple, layout: str | None) -> None:
    assert _layout(shape, size) == layout


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (197, (224, 224), (14, 14)),
        (50, (224, 224), (7, 7)),
        (49, (224, 224), (7, 7)),
        (401, (240, 240), (20, 20)),
        (24 + 5, (96, 64), (6, 4)),
        (3, (224, 224), None),
    ],
)
def test_tokens_find_their_grid_without_being_told(tokens: int, size: tuple, grid: tuple | None) -> None:
    assert _token_grid(nn.Identity(), size, tokens) == grid
