"""The Batch page: first visit, launch, running, cancelled, failed, results, the failure browser, bad links."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from salviz.images.fashion import FASHION, fashion_arrays
from salviz.runs import Spec, worker
from salviz.runs.presence import holding
from salviz.runs.shelf import Shelf
from salviz.ui import batch, follow, launch, session
from tests.pages.conftest import ROOT, TIMEOUT, pixels

Open = Callable[..., AppTest]
SPEC = Spec(
    "fashion", ("fashion_cnn",), {"grad_cam": {}, "gradient": {}},
    {"cose": {"augmentations": "rotate:+30,rotate:+60,blur,flip_lr,flip_ud"}}, images=24, is_stratified=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs of its own for every test, and nobody who makes them unless the test says so."""
    monkeypatch.setenv("SALVIZ_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(worker, "ensure", lambda shelf, device: None)


@pytest.fixture
def visit_batch() -> Open:
    """Open the page as a link does."""

    def open_link(**fields: str) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=TIMEOUT)
        for key, value in fields.items():
            app.query_params[key] = value
        return app.switch_page("pages/batch.py").run()

    return open_link


@pytest.fixture
def name() -> str:
    """A run that went through."""
    shelf = Shelf()
    made = shelf.submit(SPEC, "cpu")
    worker.work(shelf, "cpu")
    assert shelf.standing(made).state == "complete"
    return made


def texts(app: AppTest) -> str:
    return "\n".join(element.value for element in [*app.markdown, *app.caption, *app.warning, *app.info])


def test_the_first_visit_offers_a_run_and_says_what_it_takes(visit_batch: Open) -> None:
    app = visit_batch()
    assert not app.exception
    assert [title.value for title in app.title] == ["New batch run"]
    told = texts(app)
    assert "1,000 pictures, 10 classes" in told
    # A clean map, thirteen augmentations and the untrained twin, of four methods.
    assert "6,000 maps of 100 pictures" in told
    assert not app.button(key="begin_run").disabled
    assert app.query_params == {}


@pytest.mark.parametrize(("asked", "taken"), [(5000, 1000), (0, 1)])
def test_no_more_pictures_are_taken_than_there_are(visit_batch: Open, asked: int, taken: int) -> None:
    app = visit_batch()
    app.number_input(key="new_images").set_value(asked).run()
    assert not app.exception
    assert app.number_input(key="new_images").value == taken
    assert f"{taken * 60:,} maps of {taken:,} picture" in texts(app)


def test_what_is_chosen_is_what_is_asked_for(visit_batch: Open) -> None:
    app = visit_batch()
    app.multiselect(key="new_methods").set_value(["gradient"])
    app.multiselect(key="new_metrics").set_value(["cose", "randomisation"])
    app.number_input(key="new_images").set_value(7)
    app.number_input(key="new_seed").set_value(3)
    app.segmented_control(key="new_augmentations").set_value("paper")
    app.segmented_control(key="new_maps").set_value("clean").run()
    assert "7 pictures" in texts(app)
    app.button(key="begin_run").click().run()
    assert not app.exception
    (made,) = Shelf().names()
    assert app.query_params["run"] == made
    asked = Shelf().spec(made)
    assert asked == Spec(
        "fashion", ("fashion_cnn",), {"gradient": {}}, {"cose": {"augmentations": "paper"}, "randomisation": {}},
        images=7, is_stratified=True, seed=3, maps="clean", group=16,
    )  # fmt: skip
    assert "waits" in texts(app)
    # The same again is the same run.
    app.button(key="new_run").click().run()
    assert "run" not in app.query_params
    app.button(key="begin_run").click().run()
    assert Shelf().names() == [made]


def test_dear_methods_get_small_groups_and_hopeless_runs_no_start(visit_batch: Open) -> None:
    app = visit_batch()
    app.multiselect(key="new_methods").set_value(["integrated_gradients"]).run()
    app.button(key="begin_run").click().run()
    (made,) = Shelf().names()
    # A picture takes fifteen maps of 51 passes.
    assert Shelf().spec(made).group == 4000 // (15 * 51)
    app.button(key="new_run").click().run()
    app.multiselect(key="new_methods").set_value(["attention_rollout"]).run()
    assert app.button(key="begin_run").disabled
    assert "No method that is chosen can explain a model that is chosen." in texts(app)
    app.selectbox(key="new_data").set_value("upload").run()
    assert "Choose a zip file of pictures." in texts(app)


@pytest.mark.slow
def test_models_follow_the_data_until_somebody_chooses(visit_batch: Open) -> None:
    app = visit_batch()
    app.selectbox(key="new_data").set_value("samples").run()
    assert app.multiselect(key="new_models").value == ["tf_efficientnet_lite0"]
    app.selectbox(key="new_data").set_value("fashion").run()
    assert app.multiselect(key="new_models").value == ["fashion_cnn"]
    app.multiselect(key="new_models").set_value(["fashion_vit"]).run()
    app.selectbox(key="new_data").set_value("samples").run()
    assert app.multiselect(key="new_models").value == ["fashion_vit"]


def test_a_folder_that_cannot_be_written_to_is_the_servers_fault(
    visit_batch: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SALVIZ_RUNS_DIR", "/proc/nowhere")
    app = visit_batch()
    app.button(key="begin_run").click().run()
    assert not app.exception
    assert "SALVIZ_RUNS_DIR" in texts(app)
    assert "/proc" not in texts(app)


def test_a_server_can_refuse_long_runs(visit_batch: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MOST_SECONDS", 0.001)
    app = visit_batch()
    assert "This server takes runs of up to" in texts(app)
    assert app.button(key="begin_run").disabled
    # While the estimate is still to come, nothing starts either.
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.0)
    app.number_input(key="new_seed").set_value(9).run()
    assert app.button(key="begin_run").disabled


def test_classes_can_be_chosen(visit_batch: Open) -> None:
    app = visit_batch()
    app.multiselect(key="new_classes").set_value(["Sandal", "Bag"])
    app.toggle(key="new_all").set_value(True).run()
    assert not app.exception
    told = texts(app).partition("maps of ")[2].partition(".")[0]
    app.button(key="begin_run").click().run()
    (made,) = Shelf().names()
    asked = Shelf().spec(made)
    assert (asked.images, asked.classes) == (None, ("Sandal", "Bag"))
    labels = [FASHION[int(label)] for label in fashion_arrays()[1]]
    count = sum(label in ("Sandal", "Bag") for label in labels)
    assert told == f"{count} pictures"


def test_nothing_chosen_cannot_be_started(visit_batch: Open) -> None:
    app = visit_batch()
    app.multiselect(key="new_methods").set_value([]).run()
    assert "Choose at least one model, one method and one metric" in texts(app)
    assert "begin_run" not in {button.key for button in app.button}


def test_models_that_cannot_be_had_say_so(visit_batch: Open) -> None:
    app = visit_batch()
    app.multiselect(key="new_models").set_value(["fashion_cnn", "timm:nonesuch"]).run()
    assert not app.exception
    assert any("nonesuch" in warning.value for warning in app.warning)
    assert app.button(key="begin_run").disabled


def test_visitors_may_not_name_files_of_the_server(visit_batch: Open, tmp_path: Path) -> None:
    app = visit_batch()
    app.multiselect(key="new_models").set_value([f"{tmp_path}/x.safetensors@timm:resnet18"]).run()
    assert any("does not offer that weight file" in warning.value for warning in app.warning)


@pytest.mark.slow
def test_what_the_server_offers_can_be_run_over(
    visit_batch: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from salviz.images import open_fashion

    for index in range(3):
        place = tmp_path / "data" / "mine" / "shirt"
        place.mkdir(parents=True, exist_ok=True)
        open_fashion(index).image.save(place / f"{index}.png")
    monkeypatch.setenv(launch.VARIABLE, str(tmp_path / "data"))
    app = visit_batch()
    app.selectbox(key="new_data").set_value(f"folder:{tmp_path / 'data' / 'mine'}").run()
    assert not app.exception
    assert "3 pictures, 1 class." in texts(app)
    app.button(key="begin_run").click().run()
    worker.work(Shelf(), "cpu")
    app.run()
    assert "Complete:" in texts(app)
    assert str(tmp_path) not in texts(app)
    monkeypatch.setenv(launch.SETS, "fashion:nothing samples")
    app = visit_batch()
    assert app.selectbox(key="new_data").options[1:-1] == [
        "Sample photographs", "fashion:nothing", "mine (on this server)",
    ]  # fmt: skip
    app.selectbox(key="new_data").set_value("fashion:nothing").run()
    assert not app.exception
    assert "fashion:nothing" in texts(app)


def test_a_run_at_work_can_be_watched_and_cancelled(visit_batch: Open) -> None:
    shelf = Shelf()
    made = shelf.submit(SPEC, "cpu")
    with holding(shelf.folder(made).path) as tell:
        tell(12, 48, "Fashion CNN, COSE, from picture 1")
        app = visit_batch(run=made)
        assert not app.exception
        assert app.button(key="cancel")
        app.button(key="cancel").click().run()
        assert shelf.folder(made).is_cancelled
        shelf.ended(made)
    app.run()
    assert "Cancelled; nothing is there" in texts(app)
    app.button(key="resume").click().run()
    assert shelf.standing(made).state == "waiting"
    worker.work(shelf, "cpu")
    app.run()
    assert "Complete: 48 explanations" in texts(app)


def test_others_wait_and_see_their_place(visit_batch: Open) -> None:
    shelf = Shelf()
    shelf.submit(SPEC, "cpu")
    second = shelf.submit(Spec("samples", ("fashion_cnn",), {"gradient": {}}), "cpu")
    app = visit_batch(run=second)
    assert not app.exception
    assert shelf.standing(second).place == 1
    assert batch.told(shelf.standing(second)) == "Waiting: 1 run before this one on cpu"


def test_a_failed_run_says_why_and_can_be_deleted(visit_batch: Open) -> None:
    shelf = Shelf()
    made = shelf.submit(Spec("folder:nowhere", ("fashion_cnn",), {"gradient": {}}), "cpu")
    worker.work(shelf, "cpu")
    app = visit_batch(run=made)
    assert not app.exception
    assert "There is no folder" in texts(app)
    app.button(key="delete").click().run()
    assert shelf.names() == []
    assert [title.value for title in app.title] == ["New batch run"]


def test_a_complete_run_shows_every_part(visit_batch: Open, name: str) -> None:
    app = visit_batch(run=name)
    assert not app.exception
    table = app.dataframe[0].value
    assert list(table.columns) == ["Method", "Consistency", "Sensitivity", "COSE"]
    assert list(table["Method"]) == ["Grad-CAM", "Gradient"]
    assert all("[" in cell for cell in table["Consistency"])
    for part in ("spread", "groups", "strength"):
        app = visit_batch(run=name, part=part)
        assert not app.exception, part
        assert len(app.get("plotly_chart")) == 1
    for by in ("confidence", "class"):
        app = visit_batch(run=name, part="groups", by=by)
        assert not app.exception
        assert len(app.get("plotly_chart")) == 1
    app = visit_batch(run=name, part="spread", figures="png")
    assert json.loads(app.get("plotly_chart")[0].proto.config)["toImageButtonOptions"]["format"] == "png"
    app = visit_batch(run=name, part="strength", change="rotate")
    assert not app.exception
    assert app.query_params["change"] == "rotate"


def test_known_results_do_not_wait_for_somebody_elses_computation(
    visit_batch: Open, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    busy = session.runner().submit("somebody else's", lambda job: goes_on.wait(TIMEOUT), watcher="somebody")
    try:
        app = visit_batch(run=name)
        assert busy.is_open
        assert not app.exception
        assert list(app.dataframe[0].value["Method"]) == ["Grad-CAM", "Gradient"]
        # Where nobody has added them up yet they take their turn.
        (Shelf().root / name / "tables" / "scores.json").unlink()
        monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.0)
        app = visit_batch(run=name)
        assert busy.is_open
        assert not app.dataframe
    finally:
        goes_on.set()


def test_the_worst_pictures_open_in_explore(visit_batch: Open, name: str) -> None:
    app = visit_batch(run=name, part="pictures", score="cose.consistency", sort="gradient")
    assert not app.exception
    assert "Pictures 1 to 6 of 24" in texts(app)
    app.button(key="page.next").click().run()
    assert "Pictures 7 to 12 of 24" in texts(app)
    app.segmented_control(key="which").set_value("wrong").run()
    assert not app.exception
    assert "Pictures 1 to" in texts(app) or "No picture is like that" in texts(app)


def test_a_run_of_older_code_can_be_made_anew(visit_batch: Open) -> None:
    shelf = Shelf()
    made = shelf.submit(replace(SPEC, images=2), "cpu")
    shelf.cancel(made)
    shelf.folder(made).begin(
        replace(SPEC, images=2), [], [], {"version": "0.0", "code": "old", "weights": {}, "data": ""}, {}
    )
    shelf.resume(made)
    worker.work(shelf, "cpu")
    app = visit_batch(run=made)
    assert not app.exception
    assert "Salviz or the weights have changed" in texts(app)
    assert "/runs/" not in texts(app)
    assert app.button(key="resume").label == "Make it anew"
    app.button(key="resume").click().run()
    worker.work(shelf, "cpu")
    app.run()
    assert "Complete: 4 explanations." in texts(app)
    # Changed once more, it is refused once more.
    assert not shelf.standing(made).is_changed


def test_maps_that_a_run_keeps_are_not_computed_again(
    visit_batch: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from salviz import exploring
    from salviz.images import open_fashion
    from salviz.ui import cases

    place = tmp_path / "data" / "shirt"
    place.mkdir(parents=True)
    for index in range(3):
        open_fashion(index).image.save(place / f"{index}.png")
    shelf, seen = Shelf(), []
    spec = replace(SPEC, data=str(place.parent), images=None, maps="clean", is_stratified=False)
    made = shelf.submit(spec, "cpu")
    worker.work(shelf, "cpu")
    folder, classifier = shelf.folder(made), batch.loaded("fashion_cnn", "cpu")

    class Job:
        def tick(self, done: int, total: int) -> None:
            pass

    def drawn() -> dict[tuple[int, str], str]:
        return cases._drawn(folder, spec, classifier, range(3), ["gradient", "grad_cam"], Job())

    def counted(classifier: object, picture: object, requests: list, **options: object) -> list:
        seen.append(len(requests))
        return explored(classifier, picture, requests, **options)

    explored = exploring.explore_set
    monkeypatch.setattr(exploring, "explore_set", counted)
    kept = drawn()
    assert seen == []
    assert len(kept) == 9
    for path in (folder.path / "maps").iterdir():
        path.unlink()
    # Computed, the maps have more digits than half precision keeps: less than a grey level on average.
    again = drawn()
    assert again.keys() == kept.keys()
    for key, uri in again.items():
        assert np.abs(pixels(uri) - pixels(kept[key])).mean() < 1, key
    assert seen == [2, 2, 2]
    # A picture that has taken another's name is not shown for it.
    open_fashion(7).image.save(place / "1.png")
    left = {place for place, one in enumerate(folder.sample) if not one.name.endswith("1.png")}
    assert {key[0] for key in drawn()} == left


def test_a_run_with_failures_counts_them(visit_batch: Open) -> None:
    shelf = Shelf()
    made = shelf.submit(Spec("fashion", ("fashion_cnn",), {"gradient": {}, "attention_rollout": {}}, images=2), "cpu")
    worker.work(shelf, "cpu")
    app = visit_batch(run=made)
    assert not app.exception
    failed = app.dataframe[0].value
    assert list(failed["Pictures"]) == [2]
    assert "attention" in failed["Reason"][0].lower()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"run": "../../etc"}, "There is no run"),
        ({"run": "nothing-here"}, "There is no run"),
        ({"part": "sideways"}, "“part” was left out"),
    ],
)
def test_bad_links_cost_a_sentence(visit_batch: Open, fields: dict[str, str], words: str) -> None:
    app = visit_batch(**fields)
    assert not app.exception
    assert words in texts(app)
    assert [title.value for title in app.title] == ["New batch run"]


@pytest.mark.slow
def test_links_to_what_a_run_has_not_show_what_it_has(visit_batch: Open, name: str) -> None:
    for part in ("spread", "groups", "strength", "pictures"):
        app = visit_batch(run=name, part=part, score="nonsense.score", of="nobody", sort="nothing", change="none")
        assert not app.exception, part


def test_a_damaged_run_is_told_in_a_sentence(visit_batch: Open, name: str) -> None:
    (Shelf().root / name / "run.json").write_text("{")
    app = visit_batch(run=name)
    assert not app.exception
    assert "is damaged" in texts(app)


def test_a_run_of_the_command_line_is_listed(visit_batch: Open) -> None:
    from salviz.cli import main

    what = ["--data", "fashion", "--models", "fashion_cnn", "--methods", "gradient", "--images", "4"]
    assert main(["run", *what, "--out", str(Shelf().root / "by-hand")]) == 0
    app = visit_batch(run="by-hand")
    assert not app.exception
    assert "Complete: 4 explanations" in texts(app)
    assert json.loads((Shelf().root / "by-hand" / "run.json").read_text())["spec"]["images"] == 4
