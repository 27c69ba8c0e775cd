"""Two small architectures for 28 x 28 pictures, `salviz:small_cnn` and `salviz:small_vit`; a CPU trains them.

Both are made of torchvision's and timm's own parts, so that every method knows them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

SIZE = 28
"""Pixels along each side of the input."""


class SmallCnn(nn.Module):
    """A ResNet of three basic blocks (0.2 million parameters); its last features are 7 x 7."""

    def __init__(self, classes: int) -> None:
        """Random weights from the global random state.

        Args:
            classes: Number of logits.
        """
        from torchvision.models.resnet import BasicBlock

        super().__init__()

        def block(before: int, after: int, stride: int) -> nn.Module:
            shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            found: nn.Module = BasicBlock(before, after, stride, shortcut)
            return found

        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = block(16, 32, 2)
        self.layer2 = block(32, 64, 2)
        self.layer3 = block(64, 96, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 3, 28, 28)` -> `(N, classes)` logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def _small_vit(classes: int) -> nn.Module:
    """A ViT of two blocks (0.2 million parameters) on 7 x 7 patches of four pixels, their mean classified.

    Tokens and features pass a batch norm, weights begin twice as large as Xavier's and positions as large as the
    tokens: pictures of one kind are so alike to a fresh transformer that it would take hours to learn which of them
    bears which permuted label.
    """
    from timm.models.vision_transformer import VisionTransformer

    module = VisionTransformer(
        img_size=SIZE, patch_size=4, embed_dim=80, depth=2, num_heads=4, num_classes=classes,
        class_token=False, global_pool="avg", embed_norm_layer=TokenNorm,
    )  # fmt: skip
    module.fc_norm = nn.BatchNorm1d(80)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, gain=2.0)
    assert module.pos_embed is not None  # noqa: S101 - for the type checker
    nn.init.normal_(module.pos_embed)
    return module


class TokenNorm(nn.BatchNorm1d):
    """Batch norm of every channel over all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, T, C)` -> `(N, T, C)`."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


SMALL: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "small_cnn": (SmallCnn, "fc.weight"),
    "small_vit": (_small_vit, "head.weight"),
}
"""Builder, called with the number of classes, and tensor with one row a class, by name."""
