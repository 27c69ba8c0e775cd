"""Variants of an image: one augmentation at one magnitude, and the sets of them that are worth looking at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import total_ordering

import numpy as np

from salviz.errors import RequestError
from salviz.transforms.cards import AUGMENTATIONS, AugmentationCard, single

_RANK = {id: rank for rank, id in enumerate(AUGMENTATIONS)}
_DRAWS = 6  # signed magnitudes an augmentation and image in the paper's configuration


@total_ordering
@dataclass(frozen=True)
class Variant:
    """One augmentation at one magnitude.

    Ordered as the paper lists the augmentations, then by magnitude.

    Attributes:
        augmentation: Id of an `AugmentationCard`.
        magnitude: Signed, in the card's unit; None where the card has no levels. Held in single precision,
            as in the paper's code; translations in whole pixels, truncated toward zero.

    Raises:
        RequestError: If the augmentation is unknown or the magnitude missing, superfluous or out of bounds.
    """

    augmentation: str
    magnitude: float | None = None

    def __post_init__(self) -> None:
        card = AUGMENTATIONS.get(self.augmentation)
        if card is None:
            known = ", ".join(AUGMENTATIONS)
            raise RequestError(f"There is no augmentation “{self.augmentation}”; choose one of {known}.")
        if not card.has_magnitude:
            if self.magnitude is not None:
                raise RequestError(f"{card.title} has no magnitude; leave out {self.magnitude:g}.")
            return
        low, high = card.bounds
        if self.magnitude is None:
            raise RequestError(f"{card.title} needs a magnitude between {low:g} and {high:g}.")
        # A magnitude that is not a number fails this comparison too.
        if not low <= self.magnitude <= high:
            raise RequestError(f"{card.title} takes a magnitude between {low:g} and {high:g}, not {self.magnitude:g}.")
        held = single(self.magnitude)
        if card.unit == "px":
            held = float(math.trunc(held))
        # Adding zero turns -0.0 into 0.0, so that both have one token.
        object.__setattr__(self, "magnitude", held + 0.0)

    @property
    def card(self) -> AugmentationCard:
        """The augmentation's card."""
        return AUGMENTATIONS[self.augmentation]

    @property
    def label(self) -> str:
        """For people: `rotate +45°`, `brightness −0.50`, `flip left-right`."""
        name = self.card.title[0].lower() + self.card.title[1:]
        if self.magnitude is None:
            return name
        sign = "+" if self.magnitude > 0 else "−" if self.magnitude < 0 else ""
        size = abs(self.magnitude)
        if self.card.unit == "factor":
            return f"{name} {sign}{size:.2f}"
        return f"{name} {sign}{size:.4g}{' px' if self.card.unit == 'px' else self.card.unit}"

    @property
    def token(self) -> str:
        """For URLs and tables: `rotate:+45`, `flip_lr`. `from_token` reads it back exactly."""
        if self.magnitude is None:
            return self.augmentation
        # The shortest decimal that is this single-precision number, without an exponent.
        digits = np.format_float_positional(np.float32(self.magnitude), trim="-")
        return f"{self.augmentation}:{'+' if self.magnitude > 0 else ''}{digits}"

    @classmethod
    def from_token(cls, token: str) -> Variant:
        """The variant a token names.

        Args:
            token: As `token` writes it. A space in place of the plus sign is accepted, because that is what
                a plus sign in a hand-typed URL decodes to.

        Raises:
            RequestError: If the token is no variant.
        """
        augmentation, colon, digits = token.strip().partition(":")
        if not colon:
            return cls(augmentation)
        try:
            magnitude = float(digits)
        except ValueError:
            raise RequestError(
                f"“{token}” is no augmentation; write it like rotate:+45, with a number after the colon."
            ) from None
        return cls(augmentation, magnitude)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Variant):
            return NotImplemented
        return self._place < other._place

    @property
    def _place(self) -> tuple[int, float]:
        return _RANK[self.augmentation], self.magnitude or 0.0


def default_variants() -> tuple[Variant, ...]:
    """Thirteen variants for a first look, one an augmentation: moderate, visible, on the paper's grid.

    The translations avoid 16 and 32 px: whole patches of a vision transformer, where consistency peaks.
    """
    factor = dict(enumerate(AUGMENTATIONS["brightness"].levels, start=1))
    chosen = {
        "translate_x": 20.0,
        "translate_y": -20.0,
        "rotate": 27.0,
        "brightness": -factor[15],
        "color": -factor[20],
        "contrast": factor[15],
        "sharpness": factor[30],
    }
    return tuple(Variant(id, chosen.get(id)) for id in AUGMENTATIONS)


def draw_variants(seed: int, digest: str) -> tuple[Variant, ...]:
    """The paper's 48 variants of one image: 6 magnitudes of 7 augmentations, 1 of each of the others.

    Magnitudes come without replacement from the 60 signed levels. Unlike in the released code, the draw
    belongs to the image: neither the order of images, nor the model, nor the method changes it.

    Args:
        seed: The person's seed.
        digest: Content digest of the image.
    """
    # Imported here because it loads torch, which cards and sliders must not wait for.
    from salviz.seeds import seed_of

    # A bit generator's raw stream is fixed for good; the methods of numpy's Generator may change between
    # versions.
    stream = np.random.PCG64(seed_of(seed, digest, "cose-variants"))
    picks = {
        id: np.argsort(stream.random_raw(2 * len(card.levels)), kind="stable")[:_DRAWS].tolist()
        for id, card in AUGMENTATIONS.items()
        if card.has_magnitude
    }
    return _picked(picks)


def named_variants(text: str, seed: int, digest: str) -> tuple[Variant, ...]:
    """The variants that a command line or a spec names.

    Args:
        text: `none`, `default` (thirteen), `paper` (48 drawn for the image), or tokens separated by commas.
        seed: Of the draw.
        digest: Of the image.

    Raises:
        RequestError: A token that is no augmentation.
    """
    if text == "none":
        return ()
    if text == "default":
        return default_variants()
    if text == "paper":
        return draw_variants(seed, digest)
    return tuple(Variant.from_token(token.strip()) for token in text.split(",") if token.strip())


def draw_variants_as_released(random_state: np.random.RandomState) -> tuple[Variant, ...]:
    """The 48 variants the released code would draw next for an image, in its order.

    Args:
        random_state: Advanced by seven `choice` calls. The released code seeds it with 0 once a process and
            shuffles the test set's indices with it once a model before the first image.
    """
    picks = {
        id: random_state.choice(2 * len(card.levels), size=_DRAWS, replace=False).tolist()
        for id, card in AUGMENTATIONS.items()
        if card.has_magnitude
    }
    return _picked(picks)


def _picked(picks: dict[str, list[int]]) -> tuple[Variant, ...]:
    """Variants at positions of the signed grid `[+L1 ... +L30, -L1 ... -L30]`, in the paper's order."""
    variants: list[Variant] = []
    for id, card in AUGMENTATIONS.items():
        grid = (*card.levels, *(-level for level in card.levels))
        variants += [Variant(id, grid[pick]) for pick in picks[id]] if grid else [Variant(id)]
    return tuple(variants)


def sweep(augmentation: str, steps: int | None = None) -> tuple[Variant, ...]:
    """Ascending magnitudes from the strongest negative level through zero to the strongest positive one.

    Args:
        augmentation: Id of an augmentation that has magnitudes.
        steps: How many, odd and at least 3; evenly spaced levels, both ends and zero among them. All 61
            where None.

    Raises:
        RequestError: If the augmentation is unknown or has no magnitudes, or if `steps` is even or out of
            range.
    """
    card = AUGMENTATIONS.get(augmentation)
    if card is None or not card.has_magnitude:
        graded = ", ".join(id for id, known in AUGMENTATIONS.items() if known.has_magnitude)
        raise RequestError(f"“{augmentation}” has no magnitudes to go through; choose one of {graded}.")
    count = len(card.levels)
    if steps is None:
        steps = 2 * count + 1
    if steps % 2 == 0 or not 3 <= steps <= 2 * count + 1:
        raise RequestError(f"A sweep needs an odd number of steps from 3 to {2 * count + 1}, not {steps}.")
    rising = _spaced(card.levels, steps // 2)
    magnitudes = (*(-level for level in reversed(rising)), 0.0, *rising)
    return tuple(Variant(augmentation, magnitude) for magnitude in magnitudes)


def _spaced(levels: Sequence[float], count: int) -> list[float]:
    """`count` of the levels, evenly spaced by index and ending with the last."""
    return [levels[round(len(levels) * place / count) - 1] for place in range(1, count + 1)]
