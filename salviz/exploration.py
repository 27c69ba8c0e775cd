"""One image, one method: its map, the maps of its variants laid back on it, and how alike they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from salviz import engine, maps, methods
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.layers import target_layer
from salviz.classifiers.preprocessing import Placement
from salviz.images import Picture
from salviz.request import Request
from salviz.similarity import spearman
from salviz.transforms import Variant, realign


@dataclass(frozen=True, eq=False)
class Exploration:
    """Result of an exploration; row 0 is the clean image, then the variants, then the changed models.

    Tensors lie on the CPU. While work goes on, `rows` is smaller than what the request asks for.

    Attributes:
        request: What was asked.
        frames: `(1 + V, 3, H, W)` uint8, what the model saw before normalisation.
        placement: Where the frame lies on the photograph.
        raw: `(R, h, w)` or `(R, C, h, w)` float32, raw maps at the method's resolution, each in its own
            frame.
        logits: `(R, K)` float32.
        classes: `(R,)` int64, the class each map explains.
        ssim: `(R,)` float32 against row 0; NaN for row 0 and where undefined.
        completeness: `(R,)` completeness error, or None.
        layer: Target layer of a class activation map, or None.
        grid: `(h, w)` of the raw map.
        seconds: Wall time of the explanations.
        passes: Image passes they took.
        rivals: `(R,)` int64, the class each contrast is against, or None.
        standard_error: `(R,)` of a sampling method, as a share of the map's own spread, or None.
        samples: `(R,)` samples behind it, or None.
    """

    request: Request
    frames: Tensor
    placement: Placement
    raw: Tensor
    logits: Tensor
    classes: Tensor
    ssim: Tensor
    completeness: Tensor | None
    layer: str | None
    seconds: float
    passes: float
    rivals: Tensor | None = None
    standard_error: Tensor | None = None
    samples: Tensor | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """`(h, w)` of the raw maps."""
        return int(self.raw.shape[-2]), int(self.raw.shape[-1])

    @property
    def nbytes(self) -> int:
        """Memory its tensors take."""
        tensors = (self.frames, self.raw, self.logits)
        return sum(tensor.element_size() * tensor.nelement() for tensor in tensors)

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The augmentations of rows 1 to V, as far as they are done."""
        done = min(len(self.raw) - 1, len(self.request.variants))
        return tuple(Variant.from_token(token) for token in self.request.variants[:done])

    @property
    def changes(self) -> tuple[str, ...]:
        """The changed models of the rows after the variants, as far as they are done."""
        return self.request.changes[: len(self.raw) - 1 - len(self.variants)]

    @property
    def is_complete(self) -> bool:
        """Whether every row the request asks for is there."""
        return len(self.raw) == 1 + len(self.request.variants) + len(self.request.changes)

    @cached_property
    def spearman(self) -> Tensor:
        """`(R,)` float32, Spearman's correlation against row 0; NaN for row 0 and where undefined.

        Logged by COSE's code and part of no score: computed when something asks for it, as it costs more than SSIM.
        """
        card = methods.get(self.request.method).card
        compared = maps.comparable(self.raw, card, (int(self.frames.shape[2]), int(self.frames.shape[3])))
        last = 1 + len(self.variants)
        found = [compared.new_full((1,), float("nan"))]
        if self.variants:
            aligned, valid = realign(compared[1:last], self.variants)
            found.append(spearman(compared[:1].expand_as(aligned), aligned, valid=valid))
        if len(compared) > last:
            found.append(spearman(compared[:1].expand_as(compared[last:]), compared[last:]))
        return torch.cat(found)

    @cached_property
    def probabilities(self) -> Tensor:
        """`(R, K)` softmax of the logits."""
        return self.logits.softmax(dim=1)

    @property
    def predicted(self) -> Tensor:
        """`(R,)` int64: the class predicted in each row."""
        return self.logits.argmax(dim=1)

    def frame(self, row: int) -> Tensor:
        """What the model saw in a row: `(3, H, W)` uint8 (the clean frame where the model was changed)."""
        return self.frames[row if row < len(self.frames) else 0]

    def display_map(
        self, row: int, *, is_signed: bool, is_aligned: bool = True, is_smooth: bool = True
    ) -> tuple[Tensor, Tensor]:
        """A row's map at input resolution, unscaled.

        Args:
            row: Which.
            is_signed: Sum of channels with its sign; else the method's unsigned form.
            is_aligned: Laid back on the clean frame; else in the row's own frame.
            is_smooth: Interpolated; else the method's own cells as blocks.

        Returns:
            `(H, W)` float32 map, and `(H, W)` bool: where it is valid.
        """
        card = methods.get(self.request.method).card
        part = self.raw[row : row + 1]
        found = maps.signed(part) if is_signed else maps.unsigned(part, card.evidence)
        size = (int(self.frames.shape[2]), int(self.frames.shape[3]))
        found = maps.resize(found, size) if is_smooth else maps.repeat_cells(found, size)
        if is_aligned and 1 <= row <= len(self.variants):
            found, validity = realign(found, [self.variants[row - 1]])
            return found[0], validity.pixels[0]
        return found[0], torch.ones(found.shape[1:], dtype=torch.bool)

    def signed_maps(self) -> Tensor:
        """`(R, H, W)` float32: every row's map with its sign at input resolution, unscaled, each in its own frame."""
        return maps.resize(maps.signed(self.raw), (int(self.frames.shape[2]), int(self.frames.shape[3])))

    def native_map(self, row: int = 0, *, is_signed: bool) -> Tensor:
        """A row's map, the clean image's for one, at the method's own resolution: `(h, w)` float32."""
        card = methods.get(self.request.method).card
        part = self.raw[row : row + 1]
        return (maps.signed(part) if is_signed else maps.unsigned(part, card.evidence))[0]


def collected(
    classifier: Classifier,
    request: Request,
    frames: Tensor,
    placement: Placement,
    parts: Sequence[engine.Explained],
    similarity: Tensor,
) -> Exploration:
    """An exploration on the CPU from the engine's parts, row 0 first.

    Args:
        classifier: What was explained.
        request: What was asked.
        frames: `(1 + V, 3, H, W)` uint8, what the model saw.
        placement: Where the frame lies on the photograph.
        parts: What the engine found, in the order of the rows.
        similarity: `(R,)` SSIM of each row with row 0; NaN for row 0.
    """

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else torch.cat(values).cpu()

    layer = None
    if "layer" in request.settings:
        layer = target_layer(classifier, request.settings["layer"] or None).name
    return Exploration(
        request=request,
        frames=frames.cpu(),
        placement=placement,
        raw=torch.cat([part.maps for part in parts]).cpu(),
        logits=torch.cat([part.logits for part in parts]).cpu(),
        classes=torch.cat([part.classes for part in parts]).cpu(),
        ssim=similarity.cpu(),
        completeness=joined("completeness"),
        layer=layer,
        seconds=sum(part.seconds for part in parts),
        passes=sum(part.passes for part in parts),
        rivals=joined("rivals"),
        standard_error=joined("standard_error"),
        samples=joined("samples"),
    )


def single(
    classifier: Classifier, picture: Picture, request: Request, frame: Tensor, explained: engine.Explained
) -> Exploration:
    """An exploration of the clean image alone, from what the engine found for it.

    Args:
        classifier: What was explained.
        picture: The photograph.
        request: What was asked; without variants and changes.
        frame: `(1, 3, H, W)` uint8, what the model saw.
        explained: One row.
    """
    placement = classifier.preprocessing.placement(picture.image.size)
    undefined = torch.full((1,), float("nan"))
    return collected(classifier, request, frame, placement, [explained], undefined)
