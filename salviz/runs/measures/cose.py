"""Similarity of the maps of an image, its variants and changed models: the rows of COSE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from salviz.classifiers.classifier import Classifier
from salviz.errors import RequestError
from salviz.exploring import Prepared, explore_set, prepare
from salviz.images import Picture
from salviz.request import Request, data_range_of, request_for
from salviz.runs.measures.card import Item, Rows, Settings, Work, ahead, register
from salviz.scores import kinds
from salviz.transforms import named_variants
from salviz.work import has_room_beside


def _check_cose(settings: Settings) -> None:
    data_range_of(settings["data_range"])
    if not named_variants(settings["augmentations"], 0, "") and not settings["changes"]:
        raise RequestError("COSE needs augmentations or changed models; there is nothing to compare with.")


@register(
    id="cose",
    title="COSE",
    description="Similarity (SSIM) of the maps of an image and of its variants: consistency, sensitivity, COSE.",
    defaults={"augmentations": "default", "changes": ["untrained"], "data_range": "pair"},
    check=_check_cose,
    maps=lambda classifier, how: 1 + len(named_variants(how["augmentations"], 0, "")) + len(how["changes"]),
)
def _cose(
    classifier: Classifier, items: Sequence[Item], methods: Mapping[str, Settings], how: Settings, work: Work
) -> Iterator[Rows]:
    # What waits for disks and decoders is made ahead of the model in any case, augmentation where it does not hold up
    # the model.
    has_room = has_room_beside(classifier.device)

    def ready(item: Item) -> tuple[Item, Picture, list[Request], Prepared | None]:
        picture = item.open()
        variants = named_variants(how["augmentations"], work.seed, picture.digest)
        ask = partial(
            request_for, picture, classifier, label=item.label, variants=variants, changes=how["changes"],
            data_range=data_range_of(how["data_range"]), seed=work.seed,
        )  # fmt: skip
        requests = [ask(method=name, parameters=dict(given)) for name, given in methods.items()]
        prepared = prepare(classifier, picture, requests[0].variants) if has_room else None
        return item, picture, requests, prepared

    for item, picture, requests, prepared in ahead(ready, items):
        found = explore_set(
            classifier, picture, requests, prepared=prepared, batch_size=work.batch_size, progress=work.progress
        )
        rows: Rows = {}
        for one in found:
            predicted, settings = one.predicted.tolist(), (*one.request.variants, *one.request.changes)
            work.keep(one.request.method, item.place, one.raw, ("clean", *settings))
            confidence = float(one.probabilities[0, predicted[0]])
            columns = zip(settings, kinds(one), one.ssim[1:].tolist(), predicted[1:], strict=True)
            rows[one.request.method] = [
                item.row(
                    prediction=predicted[0], confidence=confidence, quantity="ssim", setting=setting, kind=kind,
                    value=value, outcome=outcome, seconds=one.seconds / len(predicted),
                )
                for setting, kind, value, outcome in columns
            ]  # fmt: skip
        yield rows
