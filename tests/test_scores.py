"""COSE of one exploration: which rows count, against the definition written out."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from salviz.classifiers.preprocessing import Placement
from salviz.exploration import Exploration
from salviz.metrics.cose import KINDS, NO_LABEL, Rows, aggregate
from salviz.request import Request
from salviz.scores import cose_rows, describe, kinds, scores

REQUEST = Request(
    image="i", classifier="c", weights="w", method="grad_cam", parameters=(("layer", ""),),
    variants=("rotate:+27", "flip_lr", "blur", "brightness:+0.5"), changes=("untrained", "checkpoint:1"),
)  # fmt: skip
NAN = float("nan")


def exploration(
    predicted: list[int], ssim: list[float], *, label: int | None = None, rows: int | None = None
) -> Exploration:
    """An exploration with given predictions and similarities (the clean row first)."""
    rows = len(predicted) if rows is None else rows
    logits = torch.nn.functional.one_hot(torch.tensor(predicted[:rows]), 5).float()
    return Exploration(
        request=dataclasses.replace(REQUEST, label=label),
        frames=torch.zeros(5, 3, 8, 8, dtype=torch.uint8),
        placement=Placement((8, 8), (0.0, 0.0, 8.0, 8.0)),
        raw=torch.zeros(rows, 2, 2),
        logits=logits,
        classes=logits.argmax(1),
        ssim=torch.tensor(ssim[:rows]),
        completeness=None,
        layer=None,
        seconds=0.0,
        passes=0.0,
    )


MIXED = ([3, 3, 1, 3, 0, 2, 3], [NAN, 0.75, 0.5, 0.25, 0.125, 0.375, 0.875])


def test_rows_are_every_variant_and_changed_model() -> None:
    found = exploration(*MIXED, label=3)
    assert kinds(found) == (
        "geometric", "geometric", "photometric", "photometric", "untrained", "checkpoint",
    )  # fmt: skip
    rows = cose_rows(found)
    assert isinstance(rows, Rows)
    assert [KINDS[kind] for kind in rows.kind] == list(kinds(found))
    np.testing.assert_array_equal(rows.similarity, MIXED[1][1:])
    assert rows.target.tolist() == [3] * 6
    assert rows.prediction.tolist() == [3] * 6
    assert rows.variant_prediction.tolist() == MIXED[0][1:]
    assert rows.image.tolist() == [0] * 6
    assert cose_rows(exploration(*MIXED)).target.tolist() == [NO_LABEL] * 6


def test_scores_are_the_papers_means() -> None:
    found = scores(exploration(*MIXED, label=3))
    consistency, fidelity = (0.75 + 0.25) / 2, (0.5 + 0.125 + 0.375) / 3
    assert found.consistency.value == pytest.approx(consistency)
    assert found.sensitivity.value == pytest.approx(1 - fidelity)
    assert found.cose.value == pytest.approx(math.sqrt(consistency * (1 - fidelity)))
    assert (found.consistency.count, found.sensitivity.count, found.kept_by_model) == (2, 3, 1)
    assert math.isnan(found.consistency.low), "two rows carry no interval"
    assert found.sensitivity.low <= 1 - fidelity <= found.sensitivity.high
    assert math.isnan(found.cose.low), "nor does what stands on them"
    unlabelled = scores(exploration(*MIXED))
    assert unlabelled.cose.value == found.cose.value
    assert unlabelled.without_label == 6


def test_scores_are_computed_once_and_do_not_depend_on_when() -> None:
    one, other = exploration(*MIXED), exploration(*MIXED)
    assert scores(one) is scores(one)
    assert repr(scores(one)) == repr(scores(other))
    assert scores(one, draws=10) is not scores(one)
    assert scores(one, draws=10).consistency.value == scores(one).consistency.value


def test_a_wrong_label_leaves_nothing_to_score() -> None:
    found = scores(exploration(*MIXED, label=4))
    assert math.isnan(found.consistency.value)
    assert math.isnan(found.sensitivity.value)
    assert math.isnan(found.cose.value)
    assert (found.rows, found.misclassified, found.consistency.count, found.sensitivity.count) == (6, 6, 0, 0)
    assert describe(found, "cose") == "undefined: the clean prediction is not the label"


def test_rows_still_to_come_are_left_out() -> None:
    part = exploration(*MIXED, rows=3)
    assert kinds(part) == ("geometric", "geometric")
    expected = aggregate(Rows.of(similarity=[0.75, 0.5], kind=kinds(part), target=None, prediction=3,
                                 variant_prediction=[3, 1]))  # fmt: skip
    assert scores(part).cose.value == expected.cose.value


@pytest.mark.parametrize(
    ("predicted", "ssim", "name", "text"),
    [
        (
            [3, 3, 3, 3, 0, 1, 2],
            [NAN, 0.75, 0.5, 0.25, 0.125, 0.5, 0.25],
            "cose",
            r"0\.\d\d \[0\.\d\d, 0\.\d\d\] n = 6",
        ),
        ([3, 3, 1, 3, 0], [NAN, 0.75, 0.5, 0.25, 0.125], "cose", r"0\.\d\d n = 4: too few on one side for an interval"),
        ([3, 3, 1], [NAN, 0.75, 0.25], "consistency", r"0\.75 n = 1: too few for an interval"),
        ([3, 3], [NAN, 0.75], "consistency", r"0\.75 n = 1: too few for an interval"),
        (
            [3, 3, 3, 1],
            [NAN, 0.75, NAN, 0.5],
            "consistency",
            r"0\.75 n = 1 \(1 more undefined\): too few for an interval",
        ),
        ([3, 3, 3], [NAN, 0.75, 0.5], "sensitivity", "undefined: no augmentation changed the prediction"),
        ([3, 1, 1], [NAN, 0.75, 0.5], "consistency", "undefined: no augmentation kept the prediction"),
        ([3, 1, 1], [NAN, 0.75, 0.5], "cose", "undefined: consistency is undefined"),
        ([3, 3, 1], [NAN, NAN, NAN], "cose", "undefined: consistency and sensitivity are undefined"),
        ([3, 3, 1], [NAN, NAN, 0.5], "consistency", "undefined: no similarity is defined"),
        ([3, 3, 1], [NAN, -0.5, 0.5], "cose", "undefined: consistency is negative"),
        ([3], [NAN], "cose", "undefined: there is no augmentation"),
    ],
)
def test_scores_in_words(predicted: list[int], ssim: list[float], name: str, text: str) -> None:
    assert re.fullmatch(text, describe(scores(exploration(predicted, ssim)), name))
