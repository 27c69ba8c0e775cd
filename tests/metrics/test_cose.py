"""Consistency, sensitivity and COSE: the released aggregation, its bookkeeping and the bootstrap."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from salviz.metrics import MetricCard, Score
from salviz.metrics import cose as module
from salviz.metrics.cose import CONSISTENCY, COSE, NO_LABEL, SENSITIVITY, SPLITS, Rows, aggregate, bootstrap
from salviz.transforms import AUGMENTATIONS
from tests.golden.cose_inputs import RELEASED_NAMES, golden, results_rows

# Predictions of (clean, variant) for label 1, and what they make of a row of an image, or of a changed model.
STAYS, TURNS, WRONG = (1, 1), (1, 2), (2, 1)


def released(seed: int, count: int) -> Rows:
    target, prediction, operation, variant_prediction, similarity = zip(*results_rows(seed, count), strict=True)
    models = {"random": "untrained", "mid_ckpt_e001": "checkpoint", "mid_ckpt_e003": "checkpoint"}
    kinds = models | {name: AUGMENTATIONS[id].kind for name, id in RELEASED_NAMES.items()}
    return Rows.of(
        similarity=similarity,
        kind=[kinds[name] for name in operation],
        target=target,
        prediction=prediction,
        variant_prediction=variant_prediction,
        image=np.arange(count) // 14,
    )


def rows(*cases, target=1, image=0) -> Rows:
    """Rows from (similarity, kind, (prediction, variant prediction))."""
    similarity, kind, predictions = zip(*cases, strict=True)
    clean, changed = zip(*predictions, strict=True)
    return Rows.of(
        similarity=similarity,
        kind=kind,
        target=target,
        prediction=clean,
        variant_prediction=changed,
        image=image,
    )


@pytest.mark.parametrize("name", sorted(golden()["aggregate"]))
def test_as_released(name):
    seed, count = (int(part.strip("rowsedn")) for part in name.split("_")[1:])
    expected = golden()["aggregate"][name]
    result = aggregate(released(seed, count))
    found = {
        "overall_consistency": result.consistency.value,
        "overall_fidelity": 1 - result.sensitivity.value,
        "geom_mean_consfid": result.cose.value,
        "geom_consistency": result.splits["geometric"].consistency.value,
        "photo_consistency": result.splits["photometric"].consistency.value,
        "geom_fidelity": 1 - result.splits["geometric"].sensitivity.value,
        "photo_fidelity": 1 - result.splits["photometric"].sensitivity.value,
        "img_fidelity": 1 - result.splits["image"].sensitivity.value,
        "random_fidelity": 1 - result.splits["untrained"].sensitivity.value,
        "midckpt_fidelity": 1 - result.splits["checkpoint"].sensitivity.value,
        "model_fidelity": 1 - result.splits["model"].sensitivity.value,
    }
    assert found == {
        key: pytest.approx(value, abs=1e-12) for key, value in expected.items() if isinstance(value, float)
    }


def test_every_row_is_accounted_for():
    result = aggregate(released(21, 400))
    used = result.cose.count
    assert used == result.consistency.count + result.sensitivity.count
    assert used + result.misclassified + result.kept_by_model == result.rows == 400
    assert result.splits["image"].consistency == result.consistency
    assert math.isnan(result.splits["model"].consistency.value)


def test_definition():
    result = aggregate(
        rows(
            (0.9, "geometric", STAYS),
            (0.7, "photometric", STAYS),
            (0.5, "photometric", TURNS),
            (0.1, "untrained", TURNS),
            (0.3, "model", TURNS),
            (0.2, "checkpoint", STAYS),
            (0.4, "geometric", WRONG),
        )
    )
    assert result.consistency.value == pytest.approx(0.8)
    assert result.sensitivity.value == pytest.approx(0.7)
    assert result.cose.value == pytest.approx(math.sqrt(0.8 * 0.7))
    assert result.splits["model"].sensitivity.value == pytest.approx(0.8)
    assert (result.misclassified, result.kept_by_model, result.without_label) == (1, 1, 0)


def test_clean_prediction_stands_in_for_a_missing_label():
    cases = [(0.9, "geometric", (5, 5)), (0.4, "geometric", (5, 6)), (0.6, "photometric", (7, 7))]
    labelled = rows(*cases, target=[5, 5, 7])
    for target in (None, [None, 5, None], [NO_LABEL, 5, NO_LABEL]):
        result = aggregate(rows(*cases, target=target))
        assert result.without_label == (3 if target is None else 2)
        assert (result.consistency, result.cose) == (
            aggregate(labelled).consistency,
            aggregate(labelled).cose,
        )
    assert aggregate(rows(*cases, target=[1, None, 7])).misclassified == 1


def test_undefined_rows_are_counted_or_propagated():
    cases = rows((0.8, "geometric", STAYS), (math.nan, "geometric", STAYS), (0.5, "photometric", TURNS))
    result = aggregate(cases)
    assert (result.consistency.value, result.consistency.count, result.consistency.undefined) == (0.8, 1, 1)
    assert result.cose.undefined == 1
    as_released = aggregate(cases, undefined="propagate")
    assert math.isnan(as_released.consistency.value)
    assert math.isnan(as_released.cose.value)
    assert as_released.sensitivity.value == 0.5
    ignored = rows((math.nan, "geometric", WRONG), (0.8, "geometric", STAYS))
    assert aggregate(ignored, undefined="propagate").consistency.value == 0.8


def test_undefined_stays_undefined():
    nothing = aggregate(rows((0.4, "geometric", WRONG)))
    assert math.isnan(nothing.consistency.value)
    assert math.isnan(nothing.sensitivity.value)
    assert math.isnan(nothing.cose.value)
    negative = aggregate(rows((-0.4, "geometric", STAYS), (0.5, "geometric", TURNS)))
    assert math.isnan(negative.cose.value)
    assert negative.consistency.value == -0.4
    empty = aggregate(Rows.of(similarity=[], kind=[], target=None, prediction=[], variant_prediction=[]))
    assert (empty.rows, empty.cose.count) == (0, 0)


def test_identical_maps_are_consistent_and_never_sensitive():
    result = aggregate(rows((1.0, "geometric", STAYS), (1.0, "photometric", TURNS)))
    assert (result.consistency.value, result.sensitivity.value, result.cose.value) == (1.0, 0.0, 0.0)


def test_concatenated_parts_are_the_whole():
    whole = released(22, 2000)
    parts = [
        Rows.of(
            similarity=whole.similarity[i : i + 14],
            kind=[module.KINDS[code] for code in whole.kind[i : i + 14]],
            target=whole.target[i : i + 14],
            prediction=whole.prediction[i : i + 14],
            variant_prediction=whole.variant_prediction[i : i + 14],
            image=i // 14,
        )
        for i in range(0, 2000, 14)
    ]

    def intervals(cases: Rows) -> tuple[Score, Score, Score]:
        result = bootstrap(cases, unit="image", draws=20, seed=0)
        return result.consistency, result.sensitivity, result.cose

    joined = Rows.concatenate(parts)
    assert len(joined) == 2000
    assert intervals(joined) == intervals(whole)


@pytest.mark.parametrize("unit", ["row", "image"])
def test_bootstrap_is_aggregate_with_intervals(unit):
    cases = released(22, 2000)
    result, plain = bootstrap(cases, unit=unit, seed=3), aggregate(cases)
    for name in ("consistency", "sensitivity", "cose"):
        score = getattr(result, name)
        assert (score.value, score.count) == (getattr(plain, name).value, getattr(plain, name).count)
        assert score.low < score.value < score.high
        assert score.undefined_draws == 0
    assert bootstrap(cases, unit=unit, seed=3).cose == result.cose
    assert bootstrap(cases, unit=unit, seed=4).cose != result.cose
    narrow = bootstrap(cases, unit=unit, seed=3, level=0.5)
    assert result.cose.low < narrow.cose.low < narrow.cose.high < result.cose.high


def test_interval_is_that_of_the_mean():
    rs = np.random.RandomState(0)
    values = rs.random_sample(500)
    score = bootstrap(rows(*((v, "geometric", STAYS) for v in values)), unit="row", draws=4000, seed=0).consistency
    error = values.std() / math.sqrt(500)
    assert score.low == pytest.approx(norm.ppf(0.025, values.mean(), error), abs=0.15 * error)
    assert score.high == pytest.approx(norm.ppf(0.975, values.mean(), error), abs=0.15 * error)


def test_images_are_drawn_whole():
    # Ten images whose rows are all alike: over rows the mean looks ten times better known than it is.
    similarity = np.repeat(np.linspace(0, 1, 10), 100)
    cases = Rows.of(
        similarity=similarity, kind=["geometric"] * 1000, target=1, prediction=1,
        variant_prediction=1, image=np.repeat(np.arange(10) * 7, 100),
    )  # fmt: skip
    by_row, by_image = (bootstrap(cases, unit=unit, seed=0).consistency for unit in ("row", "image"))
    assert 8 < (by_image.high - by_image.low) / (by_row.high - by_row.low) < 12


def test_draws_without_a_quantity_are_counted():
    cases = rows((0.9, "geometric", STAYS), (0.4, "photometric", TURNS))
    result = bootstrap(cases, unit="row", draws=2000, seed=1)
    # Two rows: a quarter of the draws miss the one, a quarter the other, half miss either.
    assert result.consistency.undefined_draws == pytest.approx(500, abs=80)
    assert result.sensitivity.undefined_draws == pytest.approx(500, abs=80)
    assert result.cose.undefined_draws == pytest.approx(1000, abs=90)
    assert (result.consistency.low, result.consistency.high) == (0.9, 0.9)


def test_nothing_to_draw():
    for case in ((0.4, "geometric", WRONG), (math.nan, "geometric", STAYS)):
        score = bootstrap(rows(case, case), unit="row", draws=10, seed=0).consistency
        assert score.undefined_draws == 10
        assert math.isnan(score.low)
        assert math.isnan(score.high)


def test_one_unit_has_no_interval():
    empty = Rows.of(similarity=[], kind=[], target=None, prediction=[], variant_prediction=[])
    one_image = rows((0.9, "geometric", STAYS), (0.7, "geometric", STAYS))
    for cases in (empty, one_image):
        score = bootstrap(cases, unit="image", draws=10, seed=0).consistency
        assert math.isnan(score.low)
        assert math.isnan(score.high)
    assert score.value == pytest.approx(0.8)


def test_chunks_change_nothing(monkeypatch):
    cases = released(21, 400)
    whole = bootstrap(cases, unit="row", draws=50, seed=0)
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", 1000)
    assert bootstrap(cases, unit="row", draws=50, seed=0).cose == whole.cose


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"level": 1.0}, {"level": 0.0}])
def test_refuses_senseless_bootstraps(wrong):
    with pytest.raises(ValueError, match="draws must be positive"):
        bootstrap(released(21, 20), unit="row", seed=0, **wrong)


def test_refuses_rows_that_do_not_fit():
    with pytest.raises(ValueError, match="unknown kinds"):
        Rows.of(similarity=[1.0], kind=["shear"], target=1, prediction=1, variant_prediction=1)
    with pytest.raises(ValueError, match="2 kinds do not fit 1 similarities"):
        Rows.of(similarity=[1.0], kind=["model"] * 2, target=1, prediction=1, variant_prediction=1)
    with pytest.raises(ValueError, match="broadcast"):
        Rows.of(similarity=[1.0, 0.5], kind=["model"] * 2, target=[1, 2, 3], prediction=1, variant_prediction=1)


def test_cards():
    assert [card.id for card in (CONSISTENCY, SENSITIVITY, COSE)] == ["consistency", "sensitivity", "cose"]
    for card in (CONSISTENCY, SENSITIVITY, COSE):
        assert isinstance(card, MetricCard)
        assert card.higher_is_better
        assert card.range[0] < card.range[1]
    assert {kind for kinds in SPLITS.values() for kind in kinds} == set(module.KINDS)
