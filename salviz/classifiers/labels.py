"""Names of a classifier's classes, and finding a class by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

# Where a WordNet definition stops saying what kind of thing it is.
_DEFINITION_CUT = re.compile(r"[,;:(]| (?:of|in|with|that|which|having|from|by|on|used) ")
_WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Labels:
    """Names of the K classes, in the order of the logits.

    Attributes:
        names: Full names: synonyms separated by a comma and a space, e.g. `tabby, tabby cat`.
        wordnet_ids: WordNet ids such as `n02123045`, or None where the classes are not WordNet's.
        definitions: One phrase a class saying what it is, or None.
    """

    names: tuple[str, ...]
    wordnet_ids: tuple[str, ...] | None = None
    definitions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for extra in (self.wordnet_ids, self.definitions):
            if extra is not None and len(extra) != len(self.names):
                raise ValueError(f"{len(extra)} entries for {len(self.names)} classes.")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @classmethod
    def numbered(cls, count: int) -> Labels:
        """`class 0`, `class 1`, ...: where nothing better is known."""
        return cls(tuple(f"class {index}" for index in range(count)))

    @classmethod
    def imagenet(cls, count: int = 1000) -> Labels | None:
        """Labels of ImageNet-1k or of one of its supersets (12k, 21k, 22k), told apart by their size.

        Args:
            count: Number of classes.

        Returns:
            The labels with WordNet ids and definitions, or None where no subset has `count` classes.
        """
        return _imagenet(count)

    @classmethod
    def from_timm(cls, pretrained_cfg: Mapping[str, Any], count: int) -> Labels:
        """Labels of a timm model: its own `label_names`, else ImageNet's by their number, else numbers.

        Args:
            pretrained_cfg: timm's dictionary of that name; `label_names` a list (or a dictionary whose keys
                are names in order), `label_descriptions` a dictionary from these to longer texts or a list.
            count: Number of classes of the model.
        """
        own = pretrained_cfg.get("label_names")
        names = [str(name) for name in own] if isinstance(own, (list, tuple, dict)) else []
        if len(names) != count:
            return _imagenet(count) or cls.numbered(count)
        described = pretrained_cfg.get("label_descriptions")
        if isinstance(described, Mapping):
            texts = [str(described.get(name, name)) for name in names]
        elif isinstance(described, (list, tuple)) and len(described) == count:
            texts = [str(text) for text in described]
        else:
            texts = names
        if all(_WORDNET_ID.fullmatch(name) for name in names):
            known = _imagenet(count)
            if known is not None and known.wordnet_ids == tuple(names):
                return known
            return cls(tuple(texts), wordnet_ids=tuple(names))
        return cls(tuple(texts))

    @classmethod
    def from_categories(cls, categories: Sequence[str]) -> Labels:
        """Labels of torchvision's `weights.meta["categories"]`.

        torchvision names the classes of ImageNet-1k by their first synonym; where the list is that one, all
        synonyms and the WordNet ids are given.
        """
        known = _imagenet(len(categories))
        if known is not None:
            pairs = zip(known.names, categories, strict=True)
            agreeing = sum(name.split(", ")[0].lower() == text.lower() for name, text in pairs)
            # Not all: torchvision writes "crane bird" and "maillot tank suit" to tell namesakes apart.
            if agreeing >= 0.99 * len(categories):
                return known
        return cls(tuple(categories))

    def short(self, index: int) -> str:
        """One name of a class for narrow places: its first synonym, made unique where classes share it.

        Args:
            index: Class number in [0, K).
        """
        return self._shorts[index]

    def index_of_wordnet(self, wordnet_id: str) -> int | None:
        """Class number of a WordNet id such as `n02123045`, or None where no class has it."""
        return self._index_of_wordnet.get(wordnet_id)

    def find(self, query: str) -> list[int]:
        """Classes that a text may mean, best first.

        Case and surrounding space do not matter. The class of that number or WordNet id comes first, then
        synonyms equal to the text, beginning with it, having a word that begins with it, containing it.

        Args:
            query: Text typed by a person; nothing is found for an empty one.
        """
        text = " ".join(query.casefold().split())
        if not text:
            return []
        word = re.compile(r"(?<!\w)" + re.escape(text))
        ranked: list[tuple[int, int, int]] = []
        if text.isdecimal() and int(text) < len(self):
            ranked.append((0, 0, int(text)))
        wordnet = self.index_of_wordnet(text)
        if wordnet is not None:
            ranked.append((0, 0, wordnet))
        for index, synonyms in enumerate(self._synonyms):
            ranks = []
            for synonym in synonyms:
                if synonym == text:
                    ranks.append((1, 0))
                elif synonym.startswith(text):
                    ranks.append((2, len(synonym)))
                elif word.search(synonym):
                    ranks.append((3, len(synonym)))
                elif text in synonym:
                    ranks.append((4, len(synonym)))
            if ranks:
                ranked.append((*min(ranks), index))
        return list(dict.fromkeys(index for _, _, index in sorted(ranked)))

    @cached_property
    def _synonyms(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(name.casefold().split(", ")) for name in self.names)

    @cached_property
    def _index_of_wordnet(self) -> dict[str, int]:
        return {} if self.wordnet_ids is None else {name: index for index, name in enumerate(self.wordnet_ids)}

    @cached_property
    def _shorts(self) -> tuple[str, ...]:
        parts = [name.split(", ") for name in self.names]
        shorts = [part[0] for part in parts]
        shared = _shared(shorts)
        # A second synonym tells namesakes apart best (Cardigan the dog, maillot the tank suit) ...
        for index, part in enumerate(parts):
            if part[0].casefold() in shared and len(part) > 1:
                shorts[index] = f"{part[0]} ({part[1]})"
        # ... then what they are (crane the bird, crane the machine) ...
        if self.definitions is not None:
            shared = _shared(shorts)
            for index, short in enumerate(shorts):
                if short.casefold() in shared:
                    shorts[index] = f"{parts[index][0]} ({_DEFINITION_CUT.split(self.definitions[index])[0]})"
        # ... and their number always does.
        shared = _shared(shorts)
        return tuple(
            f"{short} (class {index})" if short.casefold() in shared else short for index, short in enumerate(shorts)
        )


def _shared(texts: Sequence[str]) -> set[str]:
    """Texts that occur more than once, case-folded."""
    return {text for text, times in Counter(text.casefold() for text in texts).items() if times > 1}


@lru_cache(maxsize=8)
def _imagenet(count: int) -> Labels | None:
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    ids = tuple(info.label_names())  # type: ignore[no-untyped-call]
    names = tuple(info.label_name_to_description(name) for name in ids)
    detailed = (info.label_name_to_description(name, detailed=True) for name in ids)
    definitions = tuple(text[len(name) + 2 :] for name, text in zip(names, detailed, strict=True))
    return Labels(names, wordnet_ids=ids, definitions=definitions)
