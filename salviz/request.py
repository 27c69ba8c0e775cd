"""Everything that determines a result, with one digest for caches, links, exports and stored runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from salviz import __version__

UNTRAINED = "untrained"
CHECKPOINT = "checkpoint:"


@dataclass(frozen=True)
class Request:
    """One exploration, fully specified.

    Attributes:
        image: Content digest of the picture.
        classifier: Id of the classifier.
        weights: Content digest of its weights.
        method: Id of the method.
        parameters: Its settings, all of them, sorted by name.
        target: Explained class everywhere, or None for the class predicted for each input (as in COSE).
        output: `logit` or `probability`.
        label: The image's true class, or None where it is not known.
        variants: Tokens of the augmentations.
        changes: Changed models: `untrained` or `checkpoint:<label>`.
        data_range: SSIM's data range: `pair` (the released code) or a number (2.0: the published table).
        seed: Seeds everything random.
        precision: Of passes that need no gradient: `float32`, `bfloat16` or `float16`.
        version: Version of the code.
    """

    image: str
    classifier: str
    weights: str
    method: str
    parameters: tuple[tuple[str, Any], ...] = ()
    target: int | None = None
    output: str = "logit"
    label: int | None = None
    variants: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    data_range: str | float = "pair"
    seed: int = 0
    precision: str = "float32"
    version: str = __version__

    def __post_init__(self) -> None:
        # Equal requests must have equal digests, and 2 equals 2.0 but is written otherwise.
        if not isinstance(self.data_range, str):
            object.__setattr__(self, "data_range", float(self.data_range))
        object.__setattr__(self, "parameters", tuple(sorted(self.parameters)))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The method's settings as a mapping."""
        return dict(self.parameters)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            **asdict(self),
            "parameters": dict(self.parameters),
            "variants": list(self.variants),
            "changes": list(self.changes),
        }

    @property
    def digest(self) -> str:
        """Hex digest of the canonical JSON: equal exactly for equal requests."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
