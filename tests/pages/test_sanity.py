"""The Sanity checks page: first visit, settings, verdicts, refused methods, stopped work, bad links."""

from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from salviz import load
from salviz.classifiers.stages import find_stages
from salviz.errors import Cancelled
from salviz.ui import fields, follow, session
from tests.pages.conftest import ROOT, TIMEOUT

Open = Callable[..., AppTest]
FAST = {"checked": "gradient,grad_cam", "start": "permute"}


@pytest.fixture
def sanity(tiny: str) -> Open:
    """Open the page as a link does."""

    def open_link(**fields: Any) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=TIMEOUT)
        for key, value in {"model": tiny, **fields}.items():
            app.query_params[key] = value
        return app.switch_page("pages/sanity.py").run()

    return open_link


def texts(app: AppTest) -> str:
    return "\n".join(element.value for element in [*app.markdown, *app.caption, *app.warning])


def test_the_first_visit_shows_strips_curves_and_verdicts(sanity: Open, tiny: str) -> None:
    app = sanity()
    assert not app.exception
    stages = find_stages(load(tiny))
    headings = [header.value for header in app.subheader]
    assert headings == ["Film strips", "How alike the maps stay", "One stage at a time"]
    told = texts(app)
    assert f"{len(stages)} nets with random weights" in told
    for title in ("Gradient", "Input × gradient", "Guided backprop", "Grad-CAM"):
        assert f"**{title}**: " in told
    assert "**Edge detector (control)**" in told
    # A verdict says what was measured.
    assert "moves with" in told or "ignores" in told
    assert app.query_params == {"model": tiny}


def test_settings_reach_the_check_and_the_link(sanity: Open) -> None:
    app = sanity(**FAST, order="full")
    assert "1 net with random weights" in texts(app)
    app.number_input(key="draws").set_value(2).run()
    assert "1 net with random weights, 2 draws each" in texts(app)
    assert app.query_params["draws"] == "2"
    assert app.query_params["order"] == "full"
    assert app.query_params["checked"] == "gradient,grad_cam"
    rows = app.main.dataframe[0].value
    assert list(rows["Stage"]) == ["all"]
    assert list(rows["Edge detector (control)"]) == ["1.00"]


def test_the_slider_shows_a_stage_and_what_its_net_predicts(sanity: Open, tiny: str) -> None:
    app = sanity(**FAST)
    stages = [stage.name for stage in find_stages(load(tiny))]
    slider = app.select_slider(key="stage")
    assert slider.value == "trained"
    slider.set_value(stages[1]).run()
    assert not app.exception
    assert "Its class scores (logits) spread" in texts(app)
    assert app.query_params["stage"] == stages[1]
    app.selectbox(key="measure").set_value("top_k").run()
    assert not app.exception
    assert "How many of the most salient pixels are the same." in texts(app)
    assert app.query_params["measure"] == "top_k"


def test_a_method_that_cannot_explain_the_model_says_why_and_the_others_stay(sanity: Open, tiny_vit: str) -> None:
    app = sanity(model=tiny_vit, checked="gradient,guided_backprop", order="full")
    assert not app.exception
    assert any("ReLU" in warning.value for warning in app.warning)
    told = texts(app)
    assert "**Gradient**" in told
    assert "**Guided backprop**" not in told


def test_nothing_chosen_is_said(sanity: Open) -> None:
    app = sanity(**FAST, order="full")
    app.multiselect(key="checked").set_value([]).run()
    assert not app.exception
    assert "Nothing is chosen. Choose at least one method above." in texts(app)


def test_dear_work_waits_and_can_be_asked_for(sanity: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PATIENT_SECONDS", 0.0)
    app = sanity(**FAST, order="full")
    assert "This will take about" in texts(app)
    assert not app.subheader
    app.button(key="compute").click().run()
    assert "1 net with random weights" in texts(app)


@pytest.mark.slow
def test_strips_name_only_the_nets_that_are_there(sanity: Open, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a check runs, and after it was stopped."""
    from salviz.sanity import running

    whole = running.check_pictures

    def two_nets(*args: Any, publish: Callable[..., None], **options: Any) -> Any:
        def published(found: Any) -> None:
            publish(found)
            if found.done == 2:
                raise Cancelled

        return whole(*args, publish=published, **options)

    stages = [stage.name for stage in find_stages(load(tiny))]
    with monkeypatch.context() as patch:
        patch.setattr("salviz.sanity.check_pictures", two_nets)
        app = sanity(checked="gradient", start="permute")
    assert not app.exception
    assert (
        f"from left to right: trained, {stages[0]}, {stages[1]}. Only 3 of {1 + len(stages)} nets were computed."
        in texts(app)
    )
    told = texts(sanity(checked="gradient", start="permute", copies=2))
    assert f", {stages[-1]}." in told
    assert "nets were computed" not in told


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("order", "sideways", "“order” was left out"),
        ("start", "zeros", "“start” was left out"),
        ("draws", "99", "“draws” was left out: it must lie between 1 and 10"),
        ("checked", "gradient,nonsense", "there is no 'nonsense'"),
    ],
)
def test_bad_links_cost_a_sentence(sanity: Open, field: str, value: str, sentence: str) -> None:
    app = sanity(**{**FAST, "order": "full", field: value})
    assert not app.exception
    assert any(sentence in warning.value for warning in app.warning)


@pytest.mark.slow
def test_unknown_similarity_and_stage_fall_back(sanity: Open) -> None:
    app = sanity(**FAST, order="independent", measure="psnr", stage="nowhere", shown="lime")
    assert not app.exception
    assert app.selectbox(key="measure").value == "spearman_abs"
    assert app.select_slider(key="stage").value == "trained"


@pytest.mark.parametrize("asked", [{"order": "full"}, {"test": "class"}])
def test_a_single_changed_net_stands_beside_the_trained_one_without_a_slider(
    sanity: Open, asked: dict[str, str]
) -> None:
    app = sanity(**FAST, **asked)
    assert not app.exception
    assert [header.value for header in app.subheader][-1] == "Side by side"
    assert not app.select_slider
    told = texts(app)
    assert "Similarity with the trained net's map" in told
    # Two nets say each what they predict; one net that is asked another question says it once.
    assert told.count("**This net predicts**") == (2 if "order" in asked else 1)


def test_similarities_that_small_pictures_cannot_have_are_not_offered(sanity: Open, tiny: str) -> None:
    app = sanity(checked="gradient", order="full", measure="hog_pearson")
    assert app.selectbox(key="measure").value == "hog_pearson"
    assert "HOG, Pearson" in app.selectbox(key="measure").options
    assert "HOG cannot be chosen" not in texts(app)
    app = sanity(checked="gradient", order="full", measure="hog_pearson", model="fashion_cnn", image="fashion:0")
    assert not app.exception
    box = app.selectbox(key="measure")
    assert box.value == "spearman_abs"
    assert "SSIM" in box.options
    assert not any("HOG" in option for option in box.options)
    assert "need pictures of at least 48 pixels a side, and this model takes 28." in texts(app)
    # None of what is written down is without a value either.
    assert not any(name.startswith("hog") for name in session_result().check.measures)


def test_a_net_with_other_labels_stands_in_the_trained_ones_place(sanity: Open, tiny_twin: str) -> None:
    app = sanity(checked="gradient", test="labels", other=tiny_twin)
    assert not app.exception
    told = texts(app)
    assert "Beside Tiny, other labels, one picture" in told
    assert "**Gradient**: moves with Tiny, other labels" in told
    assert "This net learnt other labels, so its answers need not fit the picture." in told
    assert list(app.main.dataframe[0].value["Stage"]) == ["Tiny, other labels"]
    assert "Efficient MPRT" not in told
    assert app.query_params["other"] == tiny_twin


def test_without_a_twin_the_page_offers_the_pair_that_comes_with_salviz(sanity: Open) -> None:
    app = sanity(checked="gradient", test="labels")
    assert not app.exception
    assert "Which net learnt other labels than Tiny?" in texts(app)
    assert not app.subheader
    app.button(key="use_pair").click().run()
    assert not app.exception
    assert app.session_state["model"] == "fashion_cnn_twin"
    assert "Beside Fashion CNN, permuted labels, 64 pictures; the strips show the first." in texts(app)
    assert app.query_params["image"] == "fashion:0"


@pytest.mark.slow
def test_pages_keep_their_choices_apart(visit: Callable[..., AppTest]) -> None:
    """From Explore to the checks, to another test, and back: no field of one page is a field of another."""
    assert len({field.key for field in fields.FIELDS}) == len(fields.FIELDS)
    app = visit()
    assert not app.exception
    app.switch_page("pages/sanity.py").run()
    assert not app.exception
    app.button_group(key="test").set_value("labels").run()
    assert not app.exception
    assert "Which net learnt other labels than Tiny?" in texts(app)
    app.switch_page("pages/explore.py").run()
    assert not app.exception
    assert app.session_state["twin"] is True


def test_the_twin_follows_the_model_unless_a_person_chose_it(sanity: Open) -> None:
    app = sanity(checked="gradient", test="labels", model="fashion_cnn_twin", image="fashion:0")
    assert app.session_state["other"] == "fashion_cnn_permuted"
    # Its answers look like a fault to whoever does not know what it learnt.
    assert "shuffled among its training pictures" in texts(app)
    app.selectbox(key="model").set_value("fashion_vit_twin").run()
    assert not app.exception
    assert "Beside Fashion ViT, permuted labels, one picture" in texts(app)
    app.selectbox(key="model").set_value("fashion_cnn").run()
    assert "Which net learnt other labels than Fashion CNN?" in texts(app)
    # A title typed as it is shown is understood; what a person named stays.
    app = sanity(checked="gradient", test="labels", model="fashion_cnn_twin", image="fashion:0", other="fashion cnn")
    assert not app.exception
    app.selectbox(key="model").set_value("fashion_cnn_permuted").run()
    assert app.session_state["other"] == "fashion_cnn"


def test_a_twin_that_does_not_fit_costs_a_sentence(sanity: Open, tiny: str) -> None:
    app = sanity(checked="gradient", test="labels", other="fashion_cnn_permuted")
    assert not app.exception
    assert "prepares pictures differently" in texts(app)
    app = sanity(checked="gradient", test="labels", other=tiny)
    assert "cannot be compared with itself" in texts(app)


def test_another_class_is_asked_for(sanity: Open) -> None:
    app = sanity(checked="gradient", test="class", draws=2, copies=2, skip=1)
    assert not app.exception
    assert "Asked for another class, drawn at random, 2 draws each, maps averaged over 2 noisy copies" in texts(app)
    assert list(app.main.dataframe[0].value["Same prediction"]) == ["100 %"]
    assert app.query_params["copies"] == "2"
    assert app.query_params["skip"] == "1"


def captions(app: AppTest) -> list[str]:
    """Under all pictures of the page."""
    return [picture.caption for element in app.get("image") for picture in element.proto.imgs if picture.caption]


def test_the_class_that_stands_in_is_named_wherever_its_map_is_shown(sanity: Open, tiny: str) -> None:
    app = sanity(checked="gradient", test="class")
    assert not app.exception
    (predicted, drawn) = session_result().strip.explained
    assert predicted != drawn
    assert f"Asked for thing {drawn}, drawn at random, instead of thing {predicted}, one picture" in texts(app)
    assert captions(app)[-2:] == [f"Thing {predicted} \\(predicted\\)", f"Thing {drawn} \\(drawn at random\\)"]
    (told,) = [line for line in texts(app).splitlines() if line.startswith("Each map on its own scale")]
    assert f"thing {predicted} \\(predicted\\), thing {drawn} \\(drawn at random\\)." in told


def test_several_pictures_have_intervals_and_all_numbers(sanity: Open) -> None:
    from salviz.images import samples

    app = sanity(checked="gradient", order="full", pictures="many", image="sample:coins")
    assert not app.exception
    assert f"1 net with random weights, {len(samples())} pictures; the strips show the first." in texts(app)
    found = session_result()
    assert found.scores.shape[-1] == len(samples())
    curve = found.curve("gradient", "spearman_abs").stages[0]
    assert curve.low < curve.value < curve.high


def session_result() -> Any:
    """The newest result of the server's queue."""
    jobs = list(session.runner()._kept.values())
    return jobs[-1][0].result


def test_settings_under_which_equal_work_is_known_again(sanity: Open) -> None:
    """Methods in their default settings are the same work, named or not; any setting more is another."""
    from salviz.sanity import Check
    from salviz.sanity.report import described

    assert described(Check({"gradient": None})) == described(Check({"gradient": {}}))
    app = sanity(**FAST, order="full")
    first = session_result()
    app = sanity(**FAST, order="full", measure="ssim")
    assert session_result() is first
    sanity(**FAST, order="full", copies=2)
    assert session_result() is not first
    assert not app.exception


def test_one_stage_is_a_row_a_method_with_its_interval() -> None:
    """Where there is one stage, a curve would be a heap of points at one place."""
    import numpy as np

    from salviz.figures.curves import intervals
    from salviz.metrics.randomisation import curve

    drawn = np.random.default_rng(0).random((3, 1, 1, 20))
    names = ("gradient", "grad_cam", "random")
    known = {name: curve(values, np.ones(20)) for name, values in zip(names, drawn, strict=True)}
    known["lrp"] = curve(np.full((1, 1, 20), np.nan), np.ones(20))
    colours, titles = dict.fromkeys(known, "red"), {name: name.upper() for name in known}
    figure = intervals(known, colours, titles, measure="SSIM", theme="light")
    assert [trace.y[0] for trace in figure.data] == [0, 1, 2, 3]
    for name, trace in zip(names, figure.data, strict=False):
        score = known[name].stages[0]
        assert trace.x[0] == score.value
        assert trace.x[0] + trace.error_x.array[0] == pytest.approx(score.high)
        assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(score.low)
        low, high = figure.layout.xaxis.range
        assert low < score.low < score.high < high
    # Every row has its name and its value; what has none says so.
    told = [annotation.text for annotation in figure.layout.annotations]
    assert told[::2] == ["GRADIENT", "GRAD_CAM", "RANDOM", "LRP"]
    assert told[1] == "{0.value:.2f} [{0.low:.2f}, {0.high:.2f}]".format(known["gradient"].stages[0])
    assert told[-1] == "undefined"
    assert figure.data[3].x == (None,)
    # The random map's line runs down through all rows.
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == known["random"].stages[0].value
