"""Similarity of the maps of the trained net and of what is put in its place: the rows of the sanity checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from salviz import load
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.randomising import Randomisation
from salviz.errors import RequestError
from salviz.runs.measures.card import Item, Rows, Settings, Work, ahead, register
from salviz.sanity import Check, Intervention, OtherClass, Twin, check_pictures, stage_names


def _intervention(how: Settings, seed: int) -> Intervention:
    if how["test"] == "class":
        return OtherClass(seed)
    return Randomisation(how["order"], how["initialisation"], how["statistics"], seed)


def _maps(classifier: Classifier, how: Settings) -> int:
    nets = 1 if how["test"] == "labels" else len(stage_names(classifier, _intervention(how, 0)))
    return int((1 + nets * how["draws"]) * how["copies"])


def _check_randomisation(how: Settings) -> None:
    if how["test"] not in ("weights", "labels", "class"):
        raise RequestError(f"What is randomised is weights, labels or class, not {how['test']!r}.")
    if how["test"] == "labels" and not how["twin"]:
        raise RequestError("Name the net that learnt other labels as the setting twin.")
    Check(
        {"gradient": None}, _intervention(how, 0), draws=how["draws"], target=how["target"],
        measures=tuple(how["measures"]), copies=how["copies"], noise=how["noise"],
    )  # fmt: skip


@register(
    id="randomisation",
    title="Randomisation",
    description="Similarity of the maps of the trained net and of nets with random weights, other labels or another "
    "class (Adebayo et al. 2018).",
    defaults={
        "test": "weights", "twin": "", "order": "top_down", "initialisation": "architecture", "statistics": "reset",
        "draws": 1, "target": "original", "measures": ["spearman_abs", "ssim"], "copies": 1, "noise": 0.1,
        "skips_baseline": False,
    },
    check=_check_randomisation,
    maps=_maps,
    depends=lambda how: load(how["twin"], device="cpu").digest if how["test"] == "labels" else None,
)  # fmt: skip
def _randomisation(
    classifier: Classifier, items: Sequence[Item], methods: Mapping[str, Settings], how: Settings, work: Work
) -> Iterator[Rows]:
    twin = None
    if how["test"] == "labels":
        twin = load(how["twin"], device=str(classifier.device))
    check = Check(
        dict(methods), Twin.of(twin) if twin is not None else _intervention(how, work.seed), draws=how["draws"],
        target=how["target"], measures=tuple(how["measures"]), skips_baseline=how["skips_baseline"],
        copies=how["copies"], noise=how["noise"], seed=work.seed,
    )  # fmt: skip
    pictures = list(ahead(lambda item: item.open(), items))
    found = check_pictures(classifier, pictures, check, twin=twin, batch_size=work.batch_size, progress=work.progress)
    rows: Rows = {}
    for name in methods:
        method, mine = found.methods.index(name), []
        for place, item in enumerate(items):
            common = {"prediction": int(found.classes[place])}
            for column, measure in enumerate(check.measures):
                itself = float(found.itself[method, column, place])
                mine.append(item.row(**common, quantity=measure, setting="itself", kind="itself", value=itself))
                for draw in range(check.draws):
                    mine += [
                        item.row(
                            **common, quantity=measure, setting=f"{stage} #{draw}" if check.draws > 1 else stage,
                            kind=f"stage {number}",
                            value=float(found.scores[method, column, draw, number, place]),
                        )
                        for number, stage in enumerate(found.stages)
                    ]  # fmt: skip
        rows[name] = mine
    yield rows
