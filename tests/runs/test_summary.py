"""Scores of a run, asked of its files: they are those of the metric on all rows at once."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from salviz.metrics.cose import Rows, aggregate, bootstrap, from_sums
from salviz.runs import summary, table
from salviz.runs.folder import RunFolder
from salviz.runs.table import Row
from tests.runs.conftest import done, spec

KINDS = ("geometric", "photometric", "untrained", "checkpoint")


def synthetic(folder: Path, images: int = 40, settings: int = 12) -> Rows:
    """A run's files with rows of every kind, wrong predictions, missing labels and undefined values."""
    generator = np.random.default_rng(5)
    rows = []
    for place in range(images):
        label, prediction = int(generator.integers(-1, 3)), int(generator.integers(0, 3))
        if generator.random() < 0.6 and label >= 0:
            prediction = label
        for setting in range(settings):
            kind = KINDS[setting % len(KINDS)]
            value = float("nan") if generator.random() < 0.1 else float(generator.random())
            outcome = int(generator.integers(0, 3))
            rows.append(Row(place, f"{place}.png", label, prediction, 0.5, "ssim", f"s{setting}", kind, value, outcome))
    rows.append(Row(images, "broken.png", 1, error="It cannot be read."))
    for part in range(3):
        table.write(folder / f"{part}.parquet", table.table("net", "gradient", "cose", rows[part::3]))
    sound = rows[:-1]
    return Rows.of(
        similarity=[row.value for row in sound],
        kind=[row.kind for row in sound],
        target=[row.label for row in sound],
        prediction=[row.prediction for row in sound],
        variant_prediction=[row.outcome for row in sound],
        image=[row.place for row in sound],
    )


@pytest.fixture
def folder(undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunFolder, Rows]:
    rows = synthetic(tmp_path)
    monkeypatch.setattr(RunFolder, "files", lambda self: sorted(tmp_path.glob("*.parquet")))
    shutil.copytree(undisturbed.path, tmp_path / "run")
    return RunFolder(tmp_path / "run"), rows


def test_scores_and_intervals_are_those_of_all_rows_at_once(folder: tuple[RunFolder, Rows]) -> None:
    run, rows = folder
    found = summary.cose_scores(run)
    assert list(found) == [("net", "gradient")]
    expected = bootstrap(rows, unit="image", seed=0)
    for name in ("consistency", "sensitivity", "cose"):
        one, other = getattr(found["net", "gradient"], name), getattr(expected, name)
        assert (one.count, one.undefined, one.undefined_draws) == (other.count, other.undefined, other.undefined_draws)
        np.testing.assert_allclose((one.value, one.low, one.high), (other.value, other.low, other.high), rtol=1e-12)


def test_means_and_failures_are_counted(folder: tuple[RunFolder, Rows]) -> None:
    run, rows = folder
    means = {mean.kind: mean for mean in summary.means(run)}
    for kind in KINDS:
        values = rows.similarity[rows.kind == ("geometric", "photometric", "model", *KINDS[2:]).index(kind)]
        defined = values[~np.isnan(values)]
        assert (means[kind].count, means[kind].undefined) == (len(defined), len(values) - len(defined))
        assert means[kind].images == 40
        np.testing.assert_allclose(means[kind].value, defined.mean(), rtol=1e-12)
    assert summary.failures(run) == [summary.Failure("net", "gradient", "cose", "It cannot be read.", 1)]


def test_sums_of_one_image_have_no_interval() -> None:
    found = from_sums(np.array([[1.5, 2.0, 0.25, 1.0]]), undefined=(1, 0), seed=0)
    assert (found.consistency.value, found.consistency.count, found.consistency.undefined) == (0.75, 2, 1)
    assert (found.sensitivity.value, found.cose.value) == (0.75, 0.75)
    assert np.isnan(found.cose.low)


def test_a_real_run_says_what_it_found(undisturbed: RunFolder, tmp_path: Path) -> None:
    told = list(summary.lines(undisturbed))
    assert told[0] == "10 pictures, 6 of 6 shards"
    (scores,) = [line for line in told if line.startswith("fashion_cnn, grad_cam")]
    with table.scan(undisturbed.files()) as connection:
        columns = zip(
            *connection.execute(
                "select value, kind, label, prediction, outcome, place from rows where method = 'grad_cam'"
            ).fetchall(),
            strict=True,
        )
    value, kind, label, prediction, outcome, place = map(list, columns)
    expected = aggregate(
        Rows.of(
            similarity=value, kind=kind, target=label, prediction=prediction, variant_prediction=outcome, image=place
        )
    )
    for name in ("consistency", "sensitivity", "cose"):
        assert f"{getattr(expected, name).value:.3f} [" in scores
    random = done(tmp_path / "run", spec(metrics={"randomisation": {"order": "full"}}, images=3))
    assert any("randomisation, spearman_abs, stage 0" in line for line in summary.lines(random))
