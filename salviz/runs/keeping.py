"""Maps that a run keeps: half precision, each on its own scale, in the safetensors format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from salviz.errors import DataError
from salviz.runs.folder import MAPS, RunFolder

_SCALE = ".scale"


class MapFile:
    """Gathers the maps of a group of pictures.

    Gradients of a ten-millionth would vanish in half precision: a map is divided by its largest magnitude, which is
    written beside it.

    Args:
        which: `none`, `clean` or `all`.
    """

    def __init__(self, which: str) -> None:
        self.which = which
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._rows: dict[str, dict[str, list[str]]] = {}

    def keep(self, method: str, place: int, maps: Tensor, rows: Sequence[str]) -> None:
        """See `measures.Work.keep`."""
        if self.which == "none":
            return
        count = 1 if self.which == "clean" else len(rows)
        part = maps[:count].to("cpu", torch.float32)
        scale = part.flatten(1).abs().amax(dim=1)
        shape = (-1, *[1] * (part.ndim - 1))
        divided = part / torch.where(scale > 0, scale, torch.ones_like(scale)).view(shape)
        tensors = self._tensors.setdefault(method, {})
        tensors[str(place)], tensors[f"{place}{_SCALE}"] = divided.to(torch.float16).contiguous(), scale
        self._rows.setdefault(method, {})[str(place)] = list(rows[:count])

    def has(self, method: str) -> bool:
        """Whether there is a map of a method."""
        return method in self._tensors

    def content(self, method: str) -> bytes:
        """The file of a method."""
        return save(self._tensors[method], {"rows": json.dumps(self._rows[method])})


def kept_map(folder: RunFolder, model: str, method: str, place: int) -> Tensor | None:
    """The raw map of a picture of a run's sample as it is, `(h, w)` or `(C, h, w)` float32 to three digits.

    Args:
        folder: Of the run.
        model: Id of the classifier, as the plan names it.
        method: Id.
        place: Of the picture in the sample.

    Returns:
        None where the run keeps none, or has not made it yet.
    """
    for shard in folder.plan:
        is_it = (shard.model, shard.method, shard.metric) == (model, method, "cose")
        if is_it and shard.first <= place < shard.first + shard.count:
            path = folder.path / MAPS / f"{shard.key}.safetensors"
            try:
                with safe_open(str(path), framework="pt") as file:
                    value: Tensor = file.get_tensor(str(place))[0].float() * file.get_tensor(f"{place}{_SCALE}")[0]
                    return value
            except Exception:  # noqa: BLE001 - no file, no such picture in it, or damaged: it is computed again
                return None
    return None


def read_maps(path: Path | str) -> dict[int, tuple[list[str], Tensor]]:
    """What a file of maps holds.

    Args:
        path: Of a file in a run's folder `maps`.

    Returns:
        By place in the run's sample: what the rows stand for, and raw maps `(rows, h, w)` float32, to three digits.

    Raises:
        DataError: It is no such file, or damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            rows = json.loads(file.metadata()["rows"])
            found = {}
            for place, names in rows.items():
                values, scale = file.get_tensor(place).float(), file.get_tensor(place + _SCALE)
                found[int(place)] = (names, values * scale.view(-1, *[1] * (values.ndim - 1)))
            return found
    except Exception as error:
        raise DataError(f"'{path}' holds no maps of a run, or is damaged.") from error
