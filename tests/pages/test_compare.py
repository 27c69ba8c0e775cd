"""The Compare page's states, by Streamlit's own test harness."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest

from salviz.classifiers.registry import SHIPPED
from salviz.classifiers.speed import Speed
from salviz.classifiers.store import Loaded
from salviz.colormaps import lookup
from salviz.images.gallery import open_sample
from salviz.methods import METHODS
from salviz.overlay import format_value
from salviz.request import request_for
from salviz.ui import compare as page
from salviz.ui import fields, follow, panels, rows, session
from tests.models import toy
from tests.pages.conftest import ROOT, TIMEOUT, pixels

Open = Callable[..., AppTest]


@pytest.fixture
def compare(tiny: str) -> Open:
    """Open the page as a link does."""

    def open_link(**fields: Any) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=TIMEOUT)
        for key, value in {"model": tiny, **fields}.items():
            app.query_params[key] = value
        return app.switch_page("pages/compare.py").run()

    return open_link


def texts(app: AppTest) -> str:
    return "\n".join(element.value for element in [*app.markdown, *app.caption, *app.warning])


def row_titles(app: AppTest) -> list[str]:
    """Titles of the rows on the page, from the top down."""
    return [
        element.value.partition("**")[2].partition("**")[0]
        for element in app.main.markdown
        if "cells, scale" in element.value
    ]


def row_texts(app: AppTest) -> list[str]:
    """What stands beside each row's pictures."""
    return [element.value for element in app.main.markdown if "cells, scale" in element.value]


def drawn(app: AppTest) -> dict[str, str]:
    """Address of every row's picture by its alt text; an address holds the picture."""
    found = [json.loads(element.proto.json) for element in app.main.get("bidi_component")]
    return {one["alt"]: one["src"] for one in found if "src" in one}


def values_of(text: str) -> tuple[float, float]:
    """The ends of a row's scale."""
    low, high = re.search(r"scale (\S+) to (\S+)", text).groups()
    return float(low.replace("−", "-")), float(high.replace("−", "-"))


def scale_of_rows(app: AppTest) -> list[Any]:
    """The control between each map's own scale and one for all."""
    return [widget for widget in app.main.get("button_group") if widget.key == "scale"]


def test_the_first_visit_compares_cheap_methods_and_controls(compare: Open) -> None:
    app = compare()
    assert not app.exception
    titles = row_titles(app)
    assert titles[:3] == ["Grad-CAM", "HiResCAM", "Eigen-CAM"]
    assert titles[-2:] == ["Edge detector (control)", "Random (control)"]
    assert "Who agrees with whom" in [header.value for header in app.subheader]
    assert texts(app).count("with the row above: Spearman") == len(titles) - 1
    assert "rows in" in texts(app)


def test_the_matrix_is_numbered_and_its_names_stand_in_the_same_order(compare: Open) -> None:
    app = compare(methods="edge,gradient,grad_cam,input_x_gradient")
    titles = ["Edge detector (control)", "Gradient", "Grad-CAM", "Input × gradient"]
    assert row_titles(app) == titles
    named = [line.value for line in app.markdown if line.value[2:3].isdigit()]
    assert [line.split("** ")[0] for line in named] == ["**1", "**2", "**3", "**4"]
    names = [line.split("** ")[1] for line in named]
    assert sorted(names) == sorted(titles)
    # The alike stand together.
    assert abs(names.index("Gradient") - names.index("Input × gradient")) == 1


def test_only_chosen_methods_stand_in_rows_and_the_link_holds_them(compare: Open, tiny: str) -> None:
    app = compare(methods="edge,gradient")
    assert row_titles(app) == ["Edge detector (control)", "Gradient"]
    app.multiselect(key="methods").select("random").run()
    assert row_titles(app) == ["Edge detector (control)", "Gradient", "Random (control)"]
    assert app.query_params == {"model": tiny, "methods": "edge,gradient,random"}


def test_the_sidebars_method_says_where_it_counts(compare: Open) -> None:
    said = "Methods are chosen on the page"
    assert any(said in caption.value for caption in compare(methods="edge,gradient").sidebar.caption)
    assert not any(said in caption.value for caption in compare(rows="classes").sidebar.caption)


def test_nothing_chosen_is_said(compare: Open) -> None:
    app = compare(methods="")
    assert not app.exception
    assert "Nothing is chosen" in texts(app)


def test_models_as_rows(compare: Open, tiny: str, tiny_vit: str) -> None:
    app = compare(rows="models", models=f"{tiny},{tiny_vit},timm:no_such_net")
    assert not app.exception
    assert row_titles(app) == ["Tiny", "Tiny ViT"]
    assert "no_such_net" in texts(app)


def test_the_most_probable_classes_as_rows(compare: Open) -> None:
    app = compare(rows="classes", top="3")
    assert not app.exception
    titles = row_titles(app)
    assert len(titles) == 3
    assert all(title.startswith("thing ") for title in titles)
    assert len(set(titles)) == 3


def test_a_model_of_few_classes_has_a_row_for_each(compare: Open, model_folder: Path) -> None:
    with torch.random.fork_rng():
        weights = timm.create_model("test_resnet", num_classes=3).state_dict()
    labels = json.dumps(["thing 0", "thing 1", "thing 2"])
    save_file(weights, model_folder / "few.safetensors", metadata={"title": "Few", "labels": labels})
    app = compare(rows="classes", top="5", model=f"{model_folder / 'few.safetensors'}@timm:test_resnet")
    assert not app.exception
    assert sorted(row_titles(app)) == ["thing 0", "thing 1", "thing 2"]
    assert "Few knows only 3 classes: each of them is a row." in texts(app)


@pytest.mark.parametrize("sign", ["unsigned", "signed"])
def test_one_scale_for_all_classes_holds_every_row(compare: Open, sign: str) -> None:
    app = compare(rows="classes", top="4", sign=sign)
    apart, before = [values_of(text) for text in row_texts(app)], drawn(app)
    assert len(set(apart)) > 1
    assert "Each map has its own scale. Click" in texts(app)
    (widget,) = scale_of_rows(app)
    widget.set_value("shared").run()
    common = min(low for low, _ in apart), max(high for _, high in apart)
    assert [values_of(text) for text in row_texts(app)] == [common] * 4
    # The row with the widest range is drawn as before, the others are not.
    widest = apart.index(common) if common in apart else None
    after = drawn(app)
    for place, name in enumerate(name for name in before if name.endswith(": map")):
        assert (after[name] == before[name]) == (place == widest), name
    assert re.search(r"One scale for all maps: \S+ to \S+\. Click", texts(app))
    told = re.search(r"maps: (\S+) to (\S+)\. Click", texts(app)).groups()
    assert tuple(float(end.replace("−", "-")) for end in told) == common


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"methods": "edge,gradient"}, "maps of different methods have different units"),
        ({"rows": "models"}, "scores of different models have different units"),
    ],
)
def test_there_is_no_scale_for_all_where_it_has_no_meaning(
    compare: Open, tiny: str, tiny_vit: str, fields: dict[str, str], reason: str
) -> None:
    own = compare(models=f"{tiny},{tiny_vit}", **fields)
    asked = compare(models=f"{tiny},{tiny_vit}", scale="shared", **fields)
    for app in (own, asked):
        assert not app.exception
        assert scale_of_rows(app) == []
        assert f"Each map has its own scale: {reason}. Click a map" in texts(app)
        assert len(drawn(app)) == 4
    # Rows may be remembered from another set, whose sums had another order: last digits can be a grey level or two.
    for name, picture in drawn(own).items():
        one, other = (pixels(uri) for uri in (picture, drawn(asked)[name]))
        assert np.abs(one - other).max() <= 3


@pytest.mark.parametrize(
    ("kind", "limits", "told"),
    [
        ("classes", (-0.25, 1.5), "One scale for all maps: −0.25 to 1.5."),
        ("classes", None, "Each map has its own scale."),
        ("methods", None, "Each map has its own scale: maps of different methods have different units."),
        ("models", None, "Each map has its own scale: scores of different models have different units."),
    ],
)
def test_the_scale_in_force_is_one_sentence(kind: str, limits: tuple[float, float] | None, told: str) -> None:
    assert page.scale_in_force(kind, limits) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, "under 1 ms"),
        (0.0004, "under 1 ms"),
        (0.0005, "0 ms"),
        (0.0123, "12 ms"),
        (9.9994, "9999 ms"),
        (10.0, "10 s"),
        (75.4, "75 s"),
    ],
)
def test_how_long_a_row_took_in_words(seconds: float, told: str) -> None:
    assert page.duration(seconds) == told


def test_every_row_says_how_long_it_took_and_in_how_many_passes(compare: Open) -> None:
    app = compare(methods="edge,grad_cam,gradient,occlusion")
    told = {
        title: re.search(r"(?:^|  \n)((?:under 1|\d+) ms|\d+ s), ([\d,.]+ pass(?:es)?)(?:  \n|$)", text)
        for title, text in zip(row_titles(app), row_texts(app), strict=True)
    }
    assert all(told.values()), row_texts(app)
    assert told["Gradient"].group(2) == "2 passes"
    assert told["Grad-CAM"].group(2) == "1 pass"
    for row in session.rows().known().values():
        title = METHODS[row.request.method].card.title
        assert told[title].group(1) == page.duration(row.seconds)
        assert told[title].group(2) == panels.counted(row.passes, "pass", "passes")


def test_rows_that_share_no_pass_teach_the_speed(compare: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[str] = []
    monkeypatch.setattr(follow, "CHEAP_SECONDS", 1e6)
    monkeypatch.setattr(Speed, "learn", lambda speed, method, **how: learned.append(method))
    compare(methods="gradient,input_x_gradient,occlusion")
    assert learned == ["occlusion"]
    compare(methods="gradient,occlusion")
    assert learned == ["occlusion"], "known rows took no time"
    compare(rows="classes", top="3", method="occlusion", p_window="64", p_stride="64")
    assert learned == ["occlusion"], "rows of classes share their passes"


def test_rows_of_one_model_cost_shared_passes_once() -> None:
    classifier, picture = toy(), open_sample("cat")
    asked = [
        request_for(picture, classifier, method=method, parameters={"samples": 50}, variants=())
        for method in ("smoothgrad", "smoothgrad_squared", "vargrad", "rise")
    ]
    chosen = rows.Chosen(
        "methods", asked, {classifier.digest: Loaded(classifier, Speed(1.0, 3.0), ("toy", "cpu", None))}
    )
    assert rows.comparing(chosen, asked, picture, is_costly=True).seconds == 100 * 3 + 50
    four = replace(chosen, top=4)
    assert rows.comparing(four, asked[:1], picture, is_costly=True).seconds == 4 * 100 * 3
    assert rows.comparing(four, asked[-1:], picture, is_costly=True).seconds == 50, "the net is asked once for all"


def clicked(app: AppTest, request: Any) -> AppTest:
    """The page after a click on a row: its callback has run before."""
    # One variant will do.
    for key, value in {"aug": ["flip_lr"], "twin": False, **page.opened(request)}.items():
        app.session_state[key] = value
    return app.run()


def test_a_click_on_a_class_opens_that_class_in_explore(compare: Open) -> None:
    app = compare(rows="classes", top="3", method="layer_cam")
    second = row_titles(app)[1]
    (request,) = (row.request for row in session.rows().known().values() if second == f"thing {int(row.classes[0])}")
    app = clicked(app, request)
    assert not app.exception
    assert app.title[0].value.startswith("Cat · Tiny · LayerCAM")
    assert app.query_params["target"] == str(request.target)
    assert app.sidebar.selectbox(key="target").value == request.target


def test_a_click_on_a_model_opens_that_model_in_explore(compare: Open, tiny: str) -> None:
    other = next(iter(SHIPPED))
    app = compare(rows="models", models=f"{tiny},{other}", method="occlusion", **{"set.window": "50"})
    (request,) = (row.request for row in session.rows().known().values() if row.request.classifier == other)
    title = row_titles(app)[1]
    app = clicked(app, request)
    assert not app.exception
    assert app.title[0].value.startswith(f"Cat · {title} · Occlusion")
    assert app.query_params["model"] == other
    assert app.sidebar.number_input(key="occlusion.window").value == 50


def test_a_click_on_a_method_opens_it_with_the_settings_of_its_row(compare: Open) -> None:
    app = compare(methods="edge,gradient")
    (request,) = (row.request for row in session.rows().known().values() if row.request.method == "gradient")
    assert page.opened(request) == {
        "method": "gradient",
        "model": request.classifier,
        "_settings": {},
        "_switch": "explore",
    }
    assert clicked(app, request).title[0].value.startswith("Cat · Tiny · Gradient")


def test_what_cannot_explain_the_model_is_said_beside_the_rest(compare: Open, tiny_vit: str) -> None:
    app = compare(model=tiny_vit, methods="gradient,guided_backprop")
    assert row_titles(app) == ["Gradient"]
    assert "ReLU nets only" in texts(app)


def test_slow_rows_wait_and_then_join(compare: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "CHEAP_SECONDS", 0.0)
    monkeypatch.setattr(follow, "TRIFLE_SECONDS", 0.0)
    slow = METHODS["smoothgrad"]

    def passes(parameters: Any, size: Any) -> float:
        return 1e4

    monkeypatch.setitem(METHODS, "smoothgrad", replace(slow, card=replace(slow.card, passes=passes)))
    monkeypatch.setattr(follow, "TRIFLE_SECONDS", 5.0)
    app = compare(methods="edge,smoothgrad")
    assert row_titles(app) == ["Edge detector (control)"]
    assert "1 row more will take about" in texts(app)
    app.button(key="compute").click().run()
    assert row_titles(app) == ["Edge detector (control)", "SmoothGrad"]
    assert "will take about" not in texts(app)
    # Once computed it stays, whatever comes beside it.
    app.multiselect(key="methods").select("random").run()
    assert row_titles(app) == ["Edge detector (control)", "SmoothGrad", "Random (control)"]
    assert "will take about" not in texts(app)


def test_cancel_keeps_what_was_there(compare: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = METHODS["gradient"]
    begun = threading.Event()

    def endless(*args: Any, work: Any, **options: Any) -> Any:
        begun.set()
        while True:
            work.tick(0)

    monkeypatch.setitem(METHODS, "gradient", replace(plain, explain=endless))
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 2.0)
    app = compare(methods="grad_cam,gradient")
    assert begun.wait(60)
    app.run()
    (job,) = session.runner()._open.values()
    assert row_titles(app) == ["Grad-CAM"]
    app.button(key="cancel.compare.cheap").click().run()
    assert job.finished.wait(60)
    assert row_titles(app) == ["Grad-CAM"]
    assert "was stopped" in texts(app)


def test_every_map_has_its_scale_below_it(compare: Open) -> None:
    app = compare(methods="gradient,edge")
    found = [json.loads(element.proto.json) for element in app.main.get("bidi_component")]
    bars = {data["alt"]: data["scale"] for data in found if "alt" in data}
    assert bars["Gradient: overlay"] is None
    for text in row_texts(app):
        bar = bars[f"{text.split('**')[1]}: map"]
        assert f"scale {bar['low']} to {bar['high']}" in text
        np.testing.assert_array_equal(pixels(bar["source"])[0], lookup("inferno"))
    # The map beside the overlay shows them as computed whatever is chosen.
    assert any(control.label == "Cells of the overlay" for control in app.get("button_group"))


def test_bad_parts_of_a_link_are_left_out(compare: Open) -> None:
    app = compare(rows="nonesuch", methods="edge,nonesuch", top="99", alike="x")
    assert not app.exception
    assert row_titles(app)
    assert "left out" in texts(app)


def test_what_makes_sense_of_a_list_is_taken(compare: Open) -> None:
    app = compare(methods="edge,nonesuch,random")
    assert row_titles(app) == ["Edge detector (control)", "Random (control)"]
    assert "Part of the link's “methods” was left out: there is no 'nonesuch'." in texts(app)
    assert app.query_params["methods"] == "edge,random"


def test_every_unknown_part_is_named_and_a_name_that_was_mistyped(compare: Open) -> None:
    app = compare(methods="edge,nonesuch,nowhere", modle="resnet18", __sign="1", utm_source="x", embed="true")
    said = texts(app)
    assert "“methods” was left out: there is no 'nonesuch' and no 'nowhere'." in said
    assert "The link's “modle” was left out: perhaps “model” is meant." in said
    assert said.count("left out") == 2


def test_of_many_unknown_names_the_rest_is_counted(compare: Open) -> None:
    app = compare(methods="edge,a,b,c,d,e")
    assert "was left out: there is no 'a' and no 'b' and no 'c', and 2 more are unknown." in texts(app)


@pytest.mark.parametrize(
    ("name", "page", "hint"),
    [
        ("changes", "explore", "twin"),
        ("changes", "batch", "change"),
        ("changes", "compare", None),
        ("data_range", "explore", "range"),
        ("colormap", "sanity", "cmap"),
        ("shwon", "sanity", "shown"),
        ("shwon", "explore", None),
        ("shown", "explore", None),
    ],
)
def test_a_hint_names_what_the_page_holds(name: str, page: str, hint: str | None) -> None:
    assert fields.meant(name, page) == hint


def test_the_pick_goes_along_from_page_to_page(compare: Open) -> None:
    app = compare(methods="edge", image="sample:espresso")
    app.query_params.clear()
    app.switch_page("pages/explore.py").run()
    assert not app.exception
    assert app.title[0].value.startswith("Espresso · Tiny")
    app.query_params.clear()
    app.switch_page("pages/compare.py").run()
    assert row_titles(app) == ["Edge detector (control)"]


def test_what_works_on_the_model_is_told_when_opened(compare: Open, tiny_vit: str, model_folder: Any) -> None:
    app = compare(model=tiny_vit, methods="edge")
    assert "picture of noise" not in texts(app)
    app.session_state["support"] = True
    app.run()
    assert not app.exception
    (table,) = [element.value for element in app.markdown if "| Works |" in element.value]
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()[2:]}
    assert len(rows) == len(METHODS)
    assert "✓\N{NO-BREAK SPACE}yes" in rows["Grad-CAM"]
    assert "blocks.5.norm1" in rows["Grad-CAM"] or "norm1" in rows["Grad-CAM"]
    assert "✕\N{NO-BREAK SPACE}refused" in rows["Guided backprop"]
    assert "fails" not in table.replace("Known failures", "")


@pytest.mark.parametrize(("methods", "is_told"), [("gradient,grad_cam,constant", True), ("gradient,grad_cam", False)])
def test_the_matrix_tells_of_maps_without_a_branch_where_there_are_any(
    compare: Open, methods: str, is_told: bool
) -> None:
    assert ("comes last and has no branch" in texts(compare(methods=methods))) == is_told


def test_a_row_whose_map_is_flat_says_so(compare: Open) -> None:
    app = compare(methods="gradient,constant")
    assert not app.exception
    told = [element.value for element in app.main.markdown if "cells, scale" in element.value]
    assert ["the map is flat: no place counts more than another" in row for row in told] == [False, True]


@pytest.mark.parametrize(
    ("method", "error", "output", "rivals", "told"),
    [
        ("lrp", -9.25, "logit", None, "completeness error −9.25: the map adds up to 9.25 less than the class's score"),
        ("lrp", 0.0, "logit", None, "error 0: the map adds up to no more and no less than the class's score"),
        # A probability is no sum of logits: what is handed back is its linear part in them.
        ("lrp", 0.5, "probability", None, "0.5 more than the sum of the logits, each times the derivative of the"),
        ("lrp", 0.5, "logit", [3], "0.5 more than the difference of the two classes' scores"),
        ("integrated_gradients", 0.5, "logit", None, "more than the change of the class's score (its logit) from the"),
        ("integrated_gradients", 0.5, "probability", None, "more than the change of the class's probability from the"),
        (
            "blur_ig",
            0.5,
            "probability",
            [3],
            "the difference of the two classes' probabilities from the most blurred",
        ),
        ("kernel_shap", 0.5, "logit", None, "the superpixels' values add up to 0.5 more than the change of the class"),
        ("full_grad", -0.5, "logit", None, "the terms of the picture and of the biases, before they are drawn as the"),
        ("full_grad", -0.5, "probability", None, "add up to 0.5 less than the class's probability"),
        ("ig_smoothgrad", 0.5, "logit", None, "more than the mean change of the class's score (its logit) from the"),
        ("expected_gradients", 0.5, "logit", None, "(its logit) from its mean over the random pictures"),
        ("lrp", float("nan"), "logit", None, "completeness error undefined"),
    ],
)
def test_a_completeness_error_says_what_should_add_up_to_what(
    method: str, error: float, output: str, rivals: list[int] | None, told: str
) -> None:
    request = SimpleNamespace(method=method, output=output)
    found = panels.completeness(SimpleNamespace(completeness=[error], request=request, rivals=rivals))
    assert told in found


def test_rows_show_what_they_are_short_of_and_how_unsure_they_are(
    compare: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "CHEAP_SECONDS", 1e6)
    app = compare(methods="gradient,integrated_gradients,smoothgrad")
    rows = {element.value.partition("**")[2].partition("**")[0]: element.value for element in app.main.markdown}
    known = {row.request.method: row for row in session.rows().known().values()}
    error = format_value(float(known["integrated_gradients"].completeness[0]))
    assert f"completeness error {error}: the map adds up to" in rows["Integrated gradients"]
    assert "the change of the class's score (its logit) from the blank image" in rows["Integrated gradients"]
    unsure = panels.share(float(known["smoothgrad"].standard_error[0]))
    assert f"standard error {unsure} of its spread after 50 samples" in rows["SmoothGrad"]
    for title, other in (("Gradient", "error"), ("Integrated gradients", "standard"), ("SmoothGrad", "completeness")):
        assert other not in rows[title]
