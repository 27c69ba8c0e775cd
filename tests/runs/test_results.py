"""What pages ask of a run: equal to what plain Python makes of all rows."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from plotly.offline import get_plotlyjs

from salviz.images.fashion import FASHION
from salviz.metrics import Score
from salviz.metrics.cose import Rows as CoseRows
from salviz.metrics.cose import aggregate
from salviz.runs import exports, results, rollup, summary, table, words
from salviz.runs.folder import CLASSES, RunFolder
from salviz.runs.results import Overview
from tests.runs.conftest import done, spec

METRICS = {
    "cose": {"augmentations": "rotate:+30,rotate:-60,rotate:+28,flip_lr,blur"},
    "randomisation": {"order": "full"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    asked = spec(models=("fashion_cnn", "fashion_vit"), metrics=METRICS, images=24, group=8)
    return done(tmp_path_factory.mktemp("results") / "run", asked)


@pytest.fixture(scope="module")
def found(run: RunFolder) -> Overview:
    return results.overview(run)


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [row for file in run.files() for row in pq.read_table(file).to_pylist()]


def by_picture(run: RunFolder, model: str, quantity: str) -> dict[str, dict[int, float]]:
    """Consistency or sensitivity of each picture, by method."""
    parts: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows(run):
        if (row["model"], row["metric"]) != (model, "cose"):
            continue
        truth = row["label"]
        stays = row["outcome"] == truth
        is_kept = quantity == "consistency"
        if row["prediction"] == truth and stays is is_kept and not (is_kept and row["kind"] == "untrained"):
            parts[row["method"]][row["place"]].append(row["value"] if is_kept else 1 - row["value"])
    return {m: {p: float(np.mean(values)) for p, values in places.items()} for m, places in parts.items()}


def test_overview_is_the_summary_and_is_remembered(
    run: RunFolder, found: Overview, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {(one.metric, one.quantity) for one in found.scores} == {
        ("cose", "consistency"), ("cose", "sensitivity"), ("cose", "cose"),
        ("randomisation", "spearman_abs"), ("randomisation", "ssim"),
    }  # fmt: skip
    scores = summary.cose_scores(run)
    for one in found.scores:
        if one.metric == "cose":
            assert one.score == getattr(scores[one.model, one.method], one.quantity)
    monkeypatch.setattr(summary, "scores", lambda folder: pytest.fail("they are known"))
    assert repr(results.overview(run)) == repr(found)


def test_some_undefined_rows_among_many_are_counted_and_left_out(tmp_path: Path) -> None:
    """The paper's strengths push small pictures out of sight; a file's statistics do not mention NaN."""
    asked = spec(metrics={"cose": {"augmentations": "paper", "changes": []}}, images=8)
    small = done(tmp_path / "run", asked)
    mine = [row for row in rows(small) if row["method"] == "gradient"]
    values = np.array([math.nan if row["value"] is None else row["value"] for row in mine])
    expected = aggregate(
        CoseRows.of(
            similarity=values, kind=[row["kind"] for row in mine], target=[row["label"] for row in mine],
            prediction=[row["prediction"] for row in mine], variant_prediction=[row["outcome"] for row in mine],
        )
    )  # fmt: skip
    assert expected.sensitivity.undefined > 0
    assert np.isfinite(expected.sensitivity.value)
    for one in results.overview(small).scores:
        if one.method == "gradient":
            score = getattr(expected, one.quantity)
            assert one.score.value == pytest.approx(score.value, rel=1e-12)
            assert (one.score.count, one.score.undefined) == (score.count, score.undefined)
    for one in results.strengths(small, "fashion_cnn", "cose", "ssim"):
        assert np.isfinite(one.value)
    moved = [one for one in results.strengths(small, "fashion_cnn", "cose", "ssim") if one.name == "translate_x"]
    defined = [v for v, row in zip(values, mine, strict=True) if row["setting"].startswith("translate_x") and v == v]
    assert sum(one.count for one in moved if one.method == "gradient") == len(defined)


def test_means_of_other_metrics_leave_the_map_itself_out(run: RunFolder, found: Overview) -> None:
    values = defaultdict(list)
    for row in rows(run):
        if row["metric"] == "randomisation" and row["kind"] != "itself":
            values[row["model"], row["method"], row["quantity"]].append(row["value"])
    for one in found.scores:
        if one.metric == "randomisation":
            mine = np.array(values[one.model, one.method, one.quantity])
            assert one.score.value == pytest.approx(np.nanmean(mine), rel=1e-12)
            assert one.score.count == np.isfinite(mine).sum()
            assert one.score.low < one.score.value < one.score.high


@pytest.mark.parametrize("quantity", ["consistency", "sensitivity"])
def test_spreads_are_quantiles_over_pictures(run: RunFolder, quantity: str) -> None:
    for model in ("fashion_cnn", "fashion_vit"):
        expected = by_picture(run, model, quantity)
        spreads = {one.method: one for one in results.spreads(run, "cose", quantity) if one.model == model}
        assert set(spreads) == set(expected)
        for method, values in expected.items():
            assert spreads[method].images == len(values)
            np.testing.assert_allclose(
                spreads[method].quantiles, np.quantile(list(values.values()), [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
            )


def test_every_picture_has_a_similarity_whether_right_or_wrong(run: RunFolder, found: Overview) -> None:
    assert results.quantities(found)[2] == ("cose", "similarity")
    mine = [
        row for row in rows(run) if (row["model"], row["metric"], row["method"]) == ("fashion_vit", "cose", "gradient")
    ]
    values: dict[str, dict[int, list[float]]] = {"right": defaultdict(list), "wrong": defaultdict(list)}
    for row in mine:
        if row["kind"] != "untrained" and row["value"] is not None:
            values["right" if row["label"] == row["prediction"] else "wrong"][row["place"]].append(row["value"])
    assert values["wrong"]
    expected = {part: np.mean(np.concatenate(list(places.values()))) for part, places in values.items()}
    groups = results.groups(run, "fashion_vit", "cose", "similarity", "correct")
    shown = {one.group: one for one in groups if one.method == "gradient"}
    assert {part: one.images for part, one in shown.items()} == {part: len(of) for part, of in values.items()}
    for part, one in shown.items():
        assert one.score.value == pytest.approx(expected[part], rel=1e-12)
    assert {one.group for one in results.groups(run, "fashion_vit", "cose", "consistency", "correct")} == {"right"}
    (counted,) = [one for one in summary.counted(run) if one.model == "fashion_vit"]
    assert (counted.images, counted.right, counted.unlabelled) == (24, len(values["right"]), 0)
    assert (
        words.counted(counted, "ViT") == f"ViT: {counted.right} of 24 labelled pictures are predicted right and count."
    )


def test_scores_of_few_pictures_say_so() -> None:
    score = Score(value=0.5, count=40, undefined=0, low=0.5, high=0.5)
    assert words.cell(score, 2) == "0.50 [0.50, 0.50], 2 pictures"
    assert words.cell(score, 10) == words.cell(score) == "0.50 [0.50, 0.50]"


def test_groups_add_up(run: RunFolder) -> None:
    labels = {row["place"]: row["label"] for row in rows(run)}
    confidence = {row["place"]: row["confidence"] for row in rows(run) if row["metric"] == "cose"}
    model = "fashion_cnn"
    confidence = {
        row["place"]: row["confidence"] for row in rows(run) if (row["metric"], row["model"]) == ("cose", model)
    }
    expected = by_picture(run, model, "consistency")
    parts = {"class": lambda p: str(labels[p]), "confidence": lambda p: str(min(4, int(confidence[p] * 5)))}
    for by, part in parts.items():
        groups = results.groups(run, model, "cose", "consistency", by)  # type: ignore[arg-type]
        sizes: dict[tuple[str, str], int] = defaultdict(int)
        for method, values in expected.items():
            for place in values:
                sizes[method, part(place)] += 1
        assert {(one.method, one.group): one.images for one in groups} == sizes
    (only,) = {one.group for one in results.groups(run, model, "cose", "consistency", "correct")}
    # Consistency is of pictures that the model gets right.
    assert only == "right"
    for one in results.groups(run, model, "cose", "consistency", "correct"):
        whole = next(
            s
            for s in results.overview(run).scores
            if (s.model, s.method, s.quantity) == (model, one.method, "consistency")
        )
        assert one.score.value == pytest.approx(whole.score.value, rel=1e-12)


def test_strengths_are_means_and_neighbours_share_a_row(run: RunFolder) -> None:
    values = defaultdict(list)
    for row in rows(run):
        if (row["model"], row["metric"], row["method"]) == ("fashion_cnn", "cose", "gradient"):
            values[row["setting"]].append((row["value"], row["outcome"] == row["label"]))
    found = [one for one in results.strengths(run, "fashion_cnn", "cose", "ssim") if one.method == "gradient"]
    levels = sorted(one.level for one in found if one.name == "rotate")
    # 28 and 30 degrees are neighbours; 60 the other way are not.
    assert len(levels) == 2
    together = values["rotate:+30"] + values["rotate:+28"]
    near = next(one for one in found if one.name == "rotate" and one.level > 0)
    assert near.value == pytest.approx(np.mean([value for value, _ in together]))
    assert near.kept == pytest.approx(np.mean([kept for _, kept in together]))
    assert near.count == len(together)
    flip = next(one for one in found if one.name == "flip_lr")
    assert math.isnan(flip.level)
    assert flip.value == pytest.approx(np.mean([value for value, _ in values["flip_lr"]]))


def test_cases_are_in_order_and_none_is_lost(run: RunFolder) -> None:
    expected = by_picture(run, "fashion_cnn", "consistency")
    seen: list[results.Case] = []
    for offset in range(0, 30, 5):
        part, count = results.cases(run, "fashion_cnn", "cose", "consistency", by="gradient", limit=5, offset=offset)
        assert count == 24 or not part
        seen += part
    assert sorted(case.place for case in seen) == list(range(24))
    known = [case.values["gradient"] for case in seen if not math.isnan(case.values["gradient"])]
    assert known == sorted(known)
    # Those without a score come last.
    assert all(math.isnan(case.values["gradient"]) for case in seen[len(known) :])
    for case in seen:
        for method, values in expected.items():
            if case.place in values:
                assert case.values[method] == pytest.approx(values[case.place])
    apart, _ = results.cases(run, "fashion_cnn", "cose", "consistency", is_descending=True, limit=24)
    for case in apart:
        mine = [value for value in case.values.values() if not math.isnan(value)]
        if len(mine) > 1:
            assert case.spread == pytest.approx(np.std(mine))
    spread = [case.spread for case in apart if not math.isnan(case.spread)]
    assert spread == sorted(spread, reverse=True)


def test_cases_of_right_and_wrong_predictions_are_all(run: RunFolder) -> None:
    counts = [
        results.cases(run, "fashion_vit", "cose", "consistency", is_wrong=which)[1] for which in (None, True, False)
    ]
    assert counts[0] == 24 == counts[1] + counts[2]
    wrong, _ = results.cases(run, "fashion_vit", "cose", "consistency", is_wrong=True, limit=24)
    assert all(case.label != case.prediction for case in wrong)


def test_tables_follow_what_is_there(run: RunFolder, tmp_path: Path) -> None:
    other = done(tmp_path / "run", spec(images=4))
    key = rollup.roll(other)
    other.files()[0].unlink()
    assert rollup.roll(other) != key
    methods = {one.method for one in results.overview(other).scores}
    assert len(methods) == 1


def test_files_hold_everything(run: RunFolder, found: Overview, tmp_path: Path) -> None:
    for kind in ("parquet", "csv"):
        path = tmp_path / f"rows.{kind}"
        path.write_bytes(exports.rows(run, kind))  # type: ignore[arg-type]
        import duckdb

        with duckdb.connect(":memory:") as connection:
            counted = connection.execute(f"select count(*) from '{path}'").fetchone()  # noqa: S608
        assert counted == (len(rows(run)),)
    lines = exports.scores_csv(found).decode().splitlines()
    assert lines[0] == "model,method,metric,score,value,low,high,count,undefined"
    assert len(lines) == 1 + len(found.scores)
    assert float(lines[1].split(",")[4]) == found.scores[0].score.value


def test_the_report_stands_alone(run: RunFolder, found: Overview) -> None:
    text = exports.report(run, found).decode()
    # Nothing is fetched. (Plotly's own script, which stands in it, holds addresses of documentation.)
    script = get_plotlyjs()
    assert text.count(script) == 1
    for fetched in ('src="', 'href="', "url(", "@import"):
        assert fetched not in text.replace(script, "")
    for part in ("Fashion CNN", "Fashion ViT", "Grad-CAM", "Consistency against sensitivity", "&#34;weights&#34;"):
        assert part in text
    grouped = [
        len({one.group for one in results.groups(run, model, *pair, by)}) > 1
        for model in run.spec.models
        for pair in results.quantities(found)
        for by in ("correct", "confidence", "class")
    ]
    assert sum(grouped) > 8
    assert text.count('class="plotly-graph-div"') == 1 + 5 + 2 * 3 + sum(grouped)
    shown = {one.group for one in results.groups(run, "fashion_cnn", *results.quantities(found)[0], "class")}
    for label in shown:
        assert f'"{FASHION[int(label)]} (' in text.replace("\\u002f", "/")
    assert '"class ' not in text


def test_a_run_without_names_of_classes_shows_their_numbers(tmp_path: Path) -> None:
    run = done(tmp_path / "run", spec(images=4))
    assert run.class_name("fashion_cnn", 9) in (FASHION[9], "class 9")
    (run.path / CLASSES).unlink()
    assert RunFolder(run.path).class_name("fashion_cnn", 9) == "class 9"


def test_what_somebody_else_named_cannot_write_into_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "<b>set"
    folder.mkdir()
    from salviz.images import open_fashion

    open_fashion(0).image.save(folder / "a.png")
    run = done(tmp_path / "run", spec(data=f"folder:{folder}", images=None))
    text = exports.report(run).decode()
    assert "<b>set" not in text
    assert "&lt;b&gt;set" in text


def test_too_many_rows_are_not_put_into_one_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from salviz.errors import DataError

    monkeypatch.setattr(exports, "MOST_ROWS", 10)
    with pytest.raises(DataError, match="too many for one file"):
        exports.rows(run, "csv")


def test_estimates_count_maps_and_leave_out_what_does_not_work() -> None:
    from salviz.classifiers.store import ClassifierStore
    from salviz.runs.estimate import estimate

    asked = spec(
        models=("fashion_cnn", "fashion_vit"), methods={"gradient": {}, "attention_rollout": {}, "rise": {}},
        metrics={"cose": {}, "randomisation": {"order": "full", "draws": 2}},
    )  # fmt: skip
    store = ClassifierStore()
    found = estimate(asked, 10, lambda model: store.get(model, device="cpu"))
    assert set(found.refused) == {("fashion_cnn", "attention_rollout")}
    # A clean map, thirteen augmentations, the untrained twin; the trained net and two draws of one stage.
    assert found.maps == 10 * (15 + 3) * (2 + 3)
    dearer = estimate(
        spec(methods={"gradient": {}, "rise": {"samples": 8000}}), 10, lambda m: store.get(m, device="cpu")
    )
    cheaper = estimate(spec(methods={"gradient": {}}), 10, lambda model: store.get(model, device="cpu"))
    assert dearer.seconds > 10 * cheaper.seconds > 0


def test_dear_methods_are_estimated_from_the_speed_of_their_passes() -> None:
    from salviz import load
    from salviz.classifiers.speed import Speed
    from salviz.classifiers.store import Loaded
    from salviz.runs.estimate import estimate

    net = load("fashion_cnn", device="cpu")
    asked = spec(models=("fashion_cnn",), methods={"rise": {"samples": 100}, "smoothgrad": {"samples": 50}})
    found = estimate(asked, 10, lambda model: Loaded(net, Speed(1.0, 3.0), (model, "cpu", None)))
    # A clean map, three augmentations, the untrained twin.
    assert found.maps == 10 * 5 * 2
    assert found.seconds == 10 * 5 * (100 * 1 + 100 * 3)


def test_empty_tables_are_no_fault(tmp_path: Path) -> None:
    from salviz.runs.execution import begin

    folder = RunFolder(tmp_path / "run")
    begin(spec(), folder)
    with table.scan(folder.files()) as connection:
        assert connection.execute("select count(*) from rows").fetchone() == (0,)
    assert results.overview(folder).scores == ()


def test_stages_stand_in_the_order_in_which_they_were_randomised(tmp_path: Path) -> None:
    from salviz import load
    from salviz.classifiers.stages import find_stages

    other = done(tmp_path / "run", spec(metrics={"randomisation": {}}, images=2))
    found = [one.name for one in results.strengths(other, "fashion_cnn", "randomisation", "ssim")]
    # Top-down is from the logits down.
    assert set(found) == {stage.name for stage in find_stages(load("fashion_cnn"))}
    numbered = {row["kind"]: row["setting"] for row in rows(other) if row["kind"] != "itself"}
    assert found == 2 * [numbered[f"stage {place}"] for place in range(len(numbered))]
