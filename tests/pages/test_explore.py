"""The Explore page: what it shows for every pick, and what it says where it cannot."""

import ast
import io
import json
import re
import struct
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest

from salviz import maps
from salviz.classifiers.speed import Speed
from salviz.errors import MethodError, Refusal, SalvizError
from salviz.methods import METHODS
from salviz.transforms import AUGMENTATIONS
from salviz.ui import fields, follow, panels, session
from tests.pages.conftest import ROOT, TIMEOUT, Visit


def warnings_of(app: AppTest) -> str:
    return "\n".join(box.value for box in app.warning)


def markdown_of(app: AppTest) -> str:
    return "\n".join(element.value for element in [*app.markdown, *app.caption, *app.warning])


def pictures_of(app: AppTest) -> dict[str, str]:
    """Address of every picture by its caption or alt text; an address holds the picture."""
    images = [image for element in app.get("image") for image in element.proto.imgs]
    cards = [card for column in ("kept", "changed") for card in _cards(app, column)]
    return {image.caption or image.alt: image.url for image in images} | {card["alt"]: card["source"] for card in cards}


def cards_of(app: AppTest) -> tuple[list[str], list[str]]:
    """Labels of the variants' cards in the left and in the right column."""
    kept, changed = ([card["title"] for card in _cards(app, column)] for column in ("kept", "changed"))
    return kept, changed


def _cards(app: AppTest, column: str) -> list[dict[str, Any]]:
    lists = [element.proto for element in app.get("bidi_component") if element.proto.id.endswith(f"-cards.{column}")]
    return [card for found in lists for card in json.loads(found.json)["cards"]]


def metrics_of(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def link_of(app: AppTest) -> str:
    return app.code[0].value


def field_of(key: str) -> fields.Field:
    (field,) = [field for field in fields.FIELDS if field.key == key]
    return field


def works(app: AppTest) -> bool:
    """No exception, and a map on the page."""
    assert not app.exception, [box.value for box in app.exception]
    return "Overlay" in pictures_of(app)


def png(size: tuple[int, int] = (90, 70), *, mode: str = "RGB", seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    channels = len(mode)
    pixels = rng.integers(0, 255, (size[1], size[0], channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode=None).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception | None]:
    """The method `gradient` raises what is put here."""
    fate: dict[str, Exception | None] = {"error": None}
    plain = METHODS["gradient"]

    def explain(*args: Any, **options: Any) -> Any:
        if fate["error"] is not None:
            raise fate["error"]
        return plain.explain(*args, **options)

    monkeypatch.setitem(METHODS, "gradient", replace(plain, explain=explain))
    return fate


# What a visit shows


def test_the_first_visit_shows_everything_computed(visit: Visit) -> None:
    app = visit(model=None)
    assert works(app)
    assert app.title[0].value == "Cat · EfficientNet-Lite0 · Grad-CAM"
    assert not app.warning
    assert not app.error
    assert {"Photograph", "Map", "Overlay"} <= set(pictures_of(app))
    scores = metrics_of(app)
    assert set(scores) == {"Consistency", "Sensitivity", "COSE"}
    assert all(0 <= float(value) <= 1 for value in scores.values())
    kept, changed = cards_of(app)
    assert len(kept) + len(changed) == 14
    assert "untrained twin" in changed
    # Nothing differs from the defaults, so the link needs no parameters.
    assert "?" not in link_of(app)
    assert not app.query_params


def test_a_photograph_is_told_what_a_net_of_few_classes_knows(visit: Visit) -> None:
    remarks = "\n".join(caption.value for caption in visit(model=None).caption)
    assert "tabby, tiger cat and Egyptian cat" in remarks
    remarks = "\n".join(caption.value for caption in visit(model="fashion_cnn").caption)
    assert "tabby" not in remarks
    assert "Fashion CNN knows 10 classes and no other: T-shirt, Trouser, Pullover" in remarks


def test_a_target_that_is_not_in_the_picture_is_told_as_such(visit: Visit) -> None:
    (facts,) = [caption.value for caption in visit(model=None, target="0").caption if "Explains" in caption.value]
    assert "(<0.01, which the model hardly sees here)" in facts
    (facts,) = [caption.value for caption in visit(model=None).caption if "Explains" in caption.value]
    assert "hardly" not in facts


def test_the_columns_agree_with_the_predictions(visit: Visit) -> None:
    app = visit()
    exploration = session.runner().peek(app.session_state["_shown"][0])
    same = (exploration.predicted[1:] == exploration.predicted[0]).tolist()
    names = [variant.label for variant in exploration.variants] + ["untrained twin"]
    kept, changed = cards_of(app)
    assert kept == [name for name, stays in zip(names, same, strict=True) if stays]
    assert changed == [name for name, stays in zip(names, same, strict=True) if not stays]
    assert kept
    assert changed


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * bool(n % 9)) for n, name in enumerate(METHODS)]
)
def test_every_method_can_be_picked(
    visit: Visit, tiny: str, tiny_vit: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It explains, or waits for Compute and says how long it will take."""
    monkeypatch.setattr(follow, "CHEAP_SECONDS", 0.3)
    card = METHODS[method].card
    app = visit(aug="", twin="0", model=tiny_vit if card.family == "attention" else tiny)
    app.sidebar.selectbox(key="method").select(method).run()
    assert works(app)
    assert method == "grad_cam" or f"method={method}" in link_of(app)
    if not app.title[0].value.endswith(f" · {panels.plain(card.title)}"):
        assert f"{card.title} will take about" in markdown_of(app)
        assert app.button(key="compute").label == "Compute"


def test_costly_work_says_how_long_it_takes_and_waits(visit: Visit) -> None:
    app = visit(model=None)
    before = pictures_of(app)["Overlay"]
    app.sidebar.selectbox(key="method").select("occlusion").run()
    assert "Occlusion will take about" in markdown_of(app)
    assert "Shown below: what was there before, Cat · " in markdown_of(app)
    assert pictures_of(app)["Overlay"] == before


def test_compute_computes(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PATIENT_SECONDS", 0.0)
    app = visit()
    assert not app.exception
    assert "Overlay" not in pictures_of(app)
    assert "Grad-CAM will take about 1 s" in markdown_of(app)
    assert "Photograph" in pictures_of(app)
    assert not app.get("skeleton"), "nothing is on its way"
    app.button(key="compute").click().run()
    assert works(app)
    assert app.title[0].value == "Cat · Tiny · Grad-CAM"
    assert "will take about" not in markdown_of(app).partition("Going through")[0]


def test_the_work_that_fails_leaves_the_picture_and_one_sentence(visit: Visit, raising: dict[str, Any]) -> None:
    app = visit()
    before = pictures_of(app)["Overlay"]
    raising["error"] = MethodError("It does not fit into memory. Choose a smaller classifier.")
    app.sidebar.selectbox(key="method").select("gradient").run()
    assert works(app)
    assert "It does not fit into memory. Choose a smaller classifier." in markdown_of(app)
    assert "Shown below: what was there before, Cat · " in markdown_of(app)
    assert pictures_of(app)["Overlay"] == before
    assert app.title[0].value == "Cat · Tiny · Grad-CAM"
    raising["error"] = None
    app.button(key="compute").click().run()
    assert app.title[0].value == f"Cat · Tiny · {METHODS['gradient'].card.title}"
    assert pictures_of(app)["Overlay"] != before


def test_what_is_refused_is_not_offered_again(visit: Visit, raising: dict[str, Any]) -> None:
    app = visit()
    raising["error"] = Refusal("It is undefined there.")
    app.sidebar.selectbox(key="method").select("gradient").run()
    assert works(app)
    assert "It is undefined there." in markdown_of(app)
    assert all(button.key != "compute" for button in app.button)


def test_a_link_to_what_is_refused_shows_the_photograph_and_awaits_nothing(visit: Visit, tiny_vit: str) -> None:
    app = visit(model=tiny_vit, method="guided_backprop")
    assert "ReLU" in markdown_of(app)
    assert "Photograph" in pictures_of(app)
    assert not app.get("skeleton")


def test_a_fault_inside_is_told_without_its_words(
    visit: Visit, raising: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = visit()
    raising["error"] = RuntimeError("tensor a (3) must match tensor b (5)")
    app.sidebar.selectbox(key="method").select("gradient").run()
    assert works(app)
    assert "Something went wrong inside Salviz" in markdown_of(app)
    assert "tensor a" not in markdown_of(app)
    assert "tensor a" in caplog.text


def test_work_that_fails_between_two_looks_is_told_and_not_begun_again(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = METHODS["gradient"]
    released, runs = threading.Event(), []

    def late(*args: Any, **options: Any) -> Any:
        runs.append(1)
        assert released.wait(60)
        raise MethodError("It does not fit into memory. Choose a smaller classifier.")

    app = visit()
    monkeypatch.setitem(METHODS, "gradient", replace(plain, explain=late))
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.05)
    app.sidebar.selectbox(key="method").select("gradient").run()
    (job,) = session.runner()._open.values()
    released.set()
    assert job.finished.wait(60)
    for _ in range(3):
        app.run()
        assert "It does not fit into memory. Choose a smaller classifier." in markdown_of(app)
    assert len(runs) == 1
    assert works(app)


def test_costly_work_that_runs_already_is_joined(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a second visitor, or by the first one after a reload."""
    plain = METHODS["gradient"]
    released, runs = threading.Event(), []

    def slow(*args: Any, **options: Any) -> Any:
        runs.append(1)
        assert released.wait(60)
        return plain.explain(*args, **options)

    quick = {"aug": "flip_lr", "twin": "0"}
    first = visit(**quick)
    monkeypatch.setitem(METHODS, "gradient", replace(plain, explain=slow))
    monkeypatch.setattr(follow, "PATIENT_SECONDS", 0.0)
    first.sidebar.selectbox(key="method").select("gradient").run()
    assert "will take about" in markdown_of(first)
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.05)
    first.button(key="compute").click().run()
    second = visit(method="gradient", **quick)
    assert "will take about" not in markdown_of(second).partition("Going through")[0]
    released.set()
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 120.0)
    second.run()
    assert works(second)
    assert len(runs) == 1


def test_a_refusal_is_told(visit: Visit, tiny_vit: str) -> None:
    app = visit(model=tiny_vit)
    before = pictures_of(app)["Overlay"]
    app.sidebar.selectbox(key="method").select("guided_backprop").run()
    assert works(app)
    assert "ReLU" in markdown_of(app)
    assert pictures_of(app)["Overlay"] == before


def test_cancelled_work_can_start_again(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = METHODS["gradient"]
    begun, released = threading.Event(), threading.Event()

    def slow(*args: Any, work: Any, **options: Any) -> Any:
        begun.set()
        # Ends when it is cancelled: `tick` raises then.
        while not released.wait(0.01):
            work.tick(0)
        return plain.explain(*args, work=work, **options)

    app = visit()
    before = pictures_of(app)["Overlay"]
    monkeypatch.setitem(METHODS, "gradient", replace(plain, explain=slow))
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.05)
    app.sidebar.selectbox(key="method").select("gradient").run()
    assert begun.wait(60)
    (job,) = [job for job in session.runner()._open.values() if job.state == "running"]
    assert works(app)
    app.button(key="cancel.explore").click().run()
    assert job.finished.wait(60)
    assert job.state == "cancelled"
    assert "was stopped." in markdown_of(app)
    assert pictures_of(app)["Overlay"] == before
    released.set()
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 120.0)
    app.button(key="compute").click().run()
    assert works(app)
    assert app.title[0].value.endswith(plain.card.title)


def test_work_stopped_before_the_variants_says_so(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean map is there and no variant yet: nobody chose none."""
    plain = METHODS["smoothgrad"]
    calls: list[int] = []
    begun, released = threading.Event(), threading.Event()

    def slow(*args: Any, work: Any, **options: Any) -> Any:
        calls.append(1)
        while len(calls) > 1 and not released.wait(0.01):
            begun.set()
            # Ends when it is cancelled: `tick` raises then.
            work.tick(0)
        return plain.explain(*args, work=work, **options)

    monkeypatch.setitem(METHODS, "smoothgrad", replace(plain, explain=slow))
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(follow, "CHEAP_SECONDS", 1e9)
    app = visit(method="smoothgrad")
    assert begun.wait(60)
    (job,) = [job for job in session.runner()._open.values() if job.state == "running"]
    app.run()
    app.button(key="cancel.explore").click().run()
    assert job.finished.wait(60)
    app.run()
    assert app.title[0].value.endswith(plain.card.title)
    assert cards_of(app) == ([], [])
    said = markdown_of(app)
    released.set()
    assert "The work was stopped before the variants." in said
    assert "No augmentation" not in said


# Links

EXPLORE = [field for field in fields.FIELDS if field.page in ("", "explore")]
CHANGED = {
    "image": "sample:espresso",
    "method": "gradient",
    "target": "3",
    "against": "9",
    "label": "7",
    "output": "probability",
    "aug": "flip_lr,rotate",
    "draw": "paper",
    "twin": "0",
    "range": "2.0",
    "seed": "5",
    "device": "cpu",
    "precision": "bf16",
    "cmap": "viridis",
    "alpha": "0.8",
    "sign": "signed",
    "span": "full",
    "veil": "even",
    "scale": "shared",
    "cells": "cells",
    "turn": "brightness",
    "at": "0.99",
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "nonesuch"),
        ("target", "-1"),
        ("target", "unknown"),
        ("target", "2147483648"),
        ("label", "predicted"),
        ("label", "cat"),
        ("output", "loss"),
        ("aug", "flip_lr,swirl"),
        ("draw", "all"),
        ("twin", "yes"),
        ("range", "3"),
        ("seed", "-4"),
        ("seed", "1e9"),
        ("seed", "99999999999999999999"),
        ("device", "cuda:77"),
        ("precision", "int4"),
        ("cmap", "nonesuch"),
        ("alpha", "2"),
        ("alpha", "nan"),
        ("sign", "both"),
        ("span", "wide"),
        ("veil", "thick"),
        ("scale", "log"),
        ("cells", "hexagons"),
        ("turn", "flip_lr"),
        ("at", "far"),
        ("at", "nan"),
        ("at", "inf"),
    ],
)
def test_fields_refuse_what_makes_no_sense(field: str, value: str) -> None:
    with pytest.raises((ValueError, SalvizError)):
        field_of(field).read(value)


@pytest.mark.parametrize("field", fields.FIELDS, ids=lambda field: field.key)
def test_fields_read_what_they_write(field: fields.Field) -> None:
    assert field.read(field.write(field.default)) == field.default
    if field.key in CHANGED:
        assert field.write(field.read(CHANGED[field.key])) == CHANGED[field.key]


BAD_LINKS = {
    "picture": {"image": "sample:nonesuch", "target": "1000", "label": "5000", "alpha": "nan", "at": "nan"},
    "folder": {"image": "file:../../etc/passwd", "method": "nonesuch", "seed": "99999999999999999999"},
    "upload": {"image": "upload", "device": "cuda:77", "cmap": "nonesuch", "span": "wide", "turn": "flip_lr"},
    "nothing": {
        "image": "",
        "twin": "yes",
        "target": "unknown",
        "label": "predicted",
        "at": "inf",
        "precision": "int4",
    },
    "settings": {"set.steps": "0", "set.baseline": "7", "set.nonesuch": "1", "draw": "all", "range": "3"},
}


@pytest.mark.parametrize("link", BAD_LINKS.values(), ids=BAD_LINKS)
def test_a_bad_link_costs_a_sentence_a_part(visit: Visit, link: dict[str, str]) -> None:
    method = {"method": "integrated_gradients"} if "set.steps" in link else {}
    app = visit(**{"aug": "flip_lr", "twin": "0", **method, **link})
    assert works(app)
    told = warnings_of(app).split("\n\n")
    assert len(told) == min(len(link), 4), "three sentences and how many more there are"
    if len(link) > 3:
        more = panels.counted(len(link) - 3, "part more", "parts more")
        assert told[3] == f"And {more} of the link {'was' if len(link) == 4 else 'were'} left out."
    sentences = app.session_state["_notices"]
    assert len(sentences) == len(link)
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
    for field, value in link.items():
        words = {"image": "picture"}.get(field, field)
        assert any(words in sentence for sentence in sentences), (field, sentences)
        assert app.query_params.get(field) != value


def test_a_notice_stays_until_something_else_is_chosen(visit: Visit) -> None:
    app = visit(aug="flip_lr", image="sample:nonesuch")
    assert "picture" in warnings_of(app)
    app.run()
    assert "picture" in warnings_of(app)
    app.slider(key="alpha").set_value(0.8).run()
    assert "picture" in warnings_of(app)
    app.sidebar.selectbox(key="method").select("edge").run()
    assert not app.warning


@pytest.mark.parametrize(
    "model",
    [
        "nonesuch",
        "timm:nonesuch",
        "/etc/passwd.safetensors@timm:resnet18",
        "{folder}/../outside.safetensors@timm:test_resnet",
        "{folder}/missing.safetensors@timm:test_resnet",
        "{folder}/test_resnet.pth",
        "hf-hub:../../etc",
    ],
)
def test_a_model_that_cannot_be_had_costs_one_sentence(visit: Visit, model_folder: Path, tiny: str, model: str) -> None:
    app = visit(model=model.format(folder=model_folder), method="layer_cam")
    assert not app.exception
    (sentence,) = warnings_of(app).split("\n\n")
    assert sentence.endswith((".", ";"))
    assert str(model_folder) not in sentence
    # And the way out of it.
    app.query_params["model"] = tiny
    app.run()
    assert works(app)
    assert not app.warning
    assert app.title[0].value == "Cat · Tiny · LayerCAM"


def test_a_model_that_cannot_be_had_leaves_the_picture(visit: Visit) -> None:
    app = visit()
    before = pictures_of(app)["Overlay"]
    app.query_params["model"] = "timm:nonesuch"
    app.run()
    assert works(app)
    assert app.warning
    assert pictures_of(app)["Overlay"] == before


def test_fields_are_the_keys_of_the_widgets(visit: Visit) -> None:
    app = visit()
    keyed = [
        *app.sidebar.selectbox,
        *app.sidebar.toggle,
        *app.sidebar.number_input,
        *app.sidebar.get("button_group"),
        *app.main.slider,
        *app.main.select_slider,
        *app.main.selectbox,
        *app.main.get("button_group"),
    ]
    settings = {f"{card.card.id}.{p.name}" for card in METHODS.values() for p in card.card.parameters}
    assert {element.key for element in keyed} - settings == {field.key for field in EXPLORE}


def test_a_link_holds_every_field(visit: Visit, tiny: str) -> None:
    assert {*CHANGED, "model"} == {field.key for field in EXPLORE}
    app = visit(**CHANGED)
    assert works(app)
    assert not app.warning
    assert app.query_params == {**CHANGED, "model": tiny}
    for field in EXPLORE:
        assert app.session_state[field.key] != field.default, field.key
    again = visit(**app.query_params)
    assert pictures_of(again) == pictures_of(app)
    assert metrics_of(again) == metrics_of(app)


@pytest.mark.slow
def test_a_link_holds_the_settings_of_a_method(visit: Visit, tiny: str) -> None:
    app = visit(aug="flip_lr", method="smoothgrad", **{"set.samples": "5"})
    assert works(app)
    assert app.sidebar.number_input(key="smoothgrad.samples").value == 5
    assert app.query_params == {"model": tiny, "aug": "flip_lr", "method": "smoothgrad", "set.samples": "5"}
    app.sidebar.number_input(key="smoothgrad.samples").set_value(3).run()
    assert app.query_params["set.samples"] == "3"
    app.sidebar.selectbox(key="method").select("edge").run()
    assert "set.samples" not in app.query_params


def _settings_of_all() -> None:
    import streamlit as st

    from salviz.methods import METHODS
    from salviz.ui import settings

    st.session_state["found"] = {id: settings._parameters(method.card) for id, method in METHODS.items()}


def test_every_setting_begins_at_its_default() -> None:
    from salviz.methods import METHODS

    app = AppTest.from_function(_settings_of_all).run()
    assert not app.exception
    assert app.session_state["found"] == {id: method.card.check_parameters(None) for id, method in METHODS.items()}
    switches = [p for method in METHODS.values() for p in method.card.parameters if isinstance(p.default, bool)]
    assert len(app.toggle) == len(switches) > 0


def test_a_switch_of_a_method_travels(visit: Visit) -> None:
    app = visit(aug="flip_lr", method="eigen_cam", **{"set.centre": "True"})
    assert works(app)
    assert "left out" not in markdown_of(app)
    assert app.query_params["set.centre"] == "true"
    app.sidebar.toggle(key="eigen_cam.centre").set_value(False).run()
    assert works(app)
    assert "set.centre" not in app.query_params


def test_scores_of_flat_maps_say_so(visit: Visit) -> None:
    app = visit(method="constant")
    assert works(app)
    assert metrics_of(app)["Consistency"] == "undefined"
    assert "The maps are flat: they have no similarity." in markdown_of(app)
    assert "No augmentation" not in markdown_of(app)


FLAT = "the map is flat: no place counts more than another"


def test_a_flat_map_is_told_and_no_other(visit: Visit) -> None:
    for method, is_told in (("constant", True), ("gradient", False)):
        app = visit(method=method)
        assert works(app)
        (facts,) = [caption.value for caption in app.caption if "Explains" in caption.value]
        assert (FLAT in facts) is is_told
        assert "no place speaks for it" not in facts


@pytest.mark.slow
def test_masks_that_make_no_difference_are_told_as_such(
    visit: Visit, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RISE on a net that hears nothing: what is left is how often a place happened to be seen."""
    path, _, architecture = tiny.partition("@")
    weights = load_file(path)
    weights["fc.weight"].zero_()
    save_file(weights, tmp_path / "deaf.safetensors")
    monkeypatch.setenv("SALVIZ_MODEL_DIR", str(tmp_path))
    model = f"{tmp_path / 'deaf.safetensors'}@{architecture}"
    app = visit(model=model, method="rise", aug="", twin="0", **{"set.samples": "16"})
    assert works(app)
    (facts,) = [caption.value for caption in app.caption if "Explains" in caption.value]
    assert FLAT in facts


@pytest.mark.parametrize(
    ("values", "evidence", "told"),
    [
        ([[1.0, 1.0]], "as_is", [FLAT]),
        ([[3.0, 3.0 + 1e-6]], "as_is", [FLAT]),
        ([[-1.0, -2.0]], "positive", ["no place speaks for it: see “For and against” under Display"]),
        ([[-1.0, 2.0]], "positive", []),
        ([[-1e-12, 2e-12]], "as_is", []),
    ],
)
def test_what_is_said_of_a_map_that_shows_nothing(values: Any, evidence: Any, told: list[str]) -> None:
    raw = torch.tensor([values])

    def native_map(*, is_signed: bool) -> torch.Tensor:
        return (maps.signed(raw) if is_signed else maps.unsigned(raw, evidence))[0]

    assert panels.flatness(SimpleNamespace(native_map=native_map)) == told


def test_without_changes_nothing_is_advised_that_would_not_help(visit: Visit) -> None:
    app = visit(aug="", twin="0", draw="paper")
    assert works(app)
    assert "No augmentation is chosen" in markdown_of(app)
    assert "Try the paper's 48" not in markdown_of(app)


def test_the_target_is_told_by_index(visit: Visit) -> None:
    app = visit(aug="flip_lr", target="281")
    assert works(app)
    assert "Explains **thing 281**" in markdown_of(app)
    assert "All maps explain thing 281" in markdown_of(app)
    predicted = visit(aug="flip_lr")
    assert pictures_of(predicted)["Overlay"] != pictures_of(app)["Overlay"]


def test_scores_of_a_wrong_prediction_are_undefined_with_the_reason(visit: Visit) -> None:
    app = visit(label="5")
    assert works(app)
    assert set(metrics_of(app).values()) == {"undefined"}
    assert "The clean prediction is not thing 5" in markdown_of(app)


def test_scores_of_a_right_prediction_need_no_stand_in(visit: Visit) -> None:
    standing_in = visit()
    predicted = standing_in.selectbox(key="target").options[1].removeprefix("thing ")
    app = visit(label=predicted)
    assert metrics_of(app) == metrics_of(standing_in)
    assert "stands in for it" in markdown_of(standing_in)
    assert "stands in for it" not in markdown_of(app)


def test_variants_are_sorted_by_the_prediction_whatever_the_label(visit: Visit) -> None:
    """A wrong label leaves nothing to score, but a kept prediction is a kept one."""
    app = visit(aug="flip_lr,blur,brightness", label="5")
    assert cards_of(app) == cards_of(visit(aug="flip_lr,blur,brightness"))
    assert markdown_of(app).count("COSE counts only images") == 1


@pytest.mark.slow
def test_a_suggestion_typed_as_it_is_shown_is_found(visit: Visit) -> None:
    for typed in ("efficientnet-LITE0", "EfficientNet-Lite0"):
        app = visit(model=typed)
        assert app.sidebar.selectbox(key="model").value == "tf_efficientnet_lite0"
        assert works(app)


def test_a_model_that_cannot_be_had_leaves_a_way_on(visit: Visit) -> None:
    app = visit(model="timm:no_such_net")
    assert not app.exception
    assert "no_such_net" in warnings_of(app)
    app.button(key="use_default").click().run()
    assert works(app)
    assert app.sidebar.selectbox(key="model").value == "tf_efficientnet_lite0"
    app.sidebar.selectbox(key="model").select("timm:resnet50.tv_in1k").run()
    assert "Shown below: what was there before, Cat · EfficientNet-Lite0 · Grad-CAM." in markdown_of(app)


def test_no_augmentation_at_all(visit: Visit) -> None:
    app = visit(aug="", twin="0")
    assert works(app)
    assert cards_of(app) == ([], [])
    assert set(metrics_of(app).values()) == {"undefined"}
    assert "No augmentation is chosen" in markdown_of(app)
    assert "Nothing changed the prediction" not in markdown_of(app)
    assert app.query_params["aug"] == ""


@pytest.mark.slow
def test_the_papers_draw_has_48_variants(visit: Visit) -> None:
    kept, changed = cards_of(visit(draw="paper", twin="0"))
    assert len(kept) + len(changed) == 48
    assert len(set(kept + changed)) == 48
    other, _ = cards_of(visit(draw="paper", twin="0", seed="1"))
    assert other != kept


def test_the_untrained_twin_can_be_left_out(visit: Visit) -> None:
    app = visit()
    app.sidebar.toggle(key="twin").set_value(False).run()
    kept, changed = cards_of(app)
    assert "untrained twin" not in kept + changed
    assert len(kept) + len(changed) == len(AUGMENTATIONS)


def test_fewer_augmentations_give_fewer_cards(visit: Visit) -> None:
    app = visit(twin="0")
    app.sidebar.get("button_group")[0].set_value(["rotate", "blur"]).run()
    kept, changed = cards_of(app)
    assert len(kept) + len(changed) == 2
    assert app.query_params["aug"] == "rotate,blur"


# Display choices


def test_display_choices_never_call_the_model(visit: Visit, tiny: str) -> None:
    app = visit(method="gradient")
    calls = []
    module = session.classifiers().get(tiny).classifier.module
    hook = module.register_forward_pre_hook(lambda *_: calls.append(1))
    twins = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: calls.append(1))
    try:
        seen = pictures_of(app)["Overlay"]
        for key, value in (
            ("cmap", "viridis"), ("alpha", 0.9), ("sign", "signed"), ("span", "full"), ("veil", "even"),
        ):  # fmt: skip
            (widget,) = [w for w in [*app.main.selectbox, *app.slider, *app.main.get("button_group")] if w.key == key]
            widget.set_value(value).run()
            assert works(app)
            assert pictures_of(app)["Overlay"] != seen, key
            seen = pictures_of(app)["Overlay"]
            assert app.query_params[key] == field_of(key).write(value)
        assert not calls
        app.sidebar.selectbox(key="method").select("input_x_gradient").run()
        assert calls
    finally:
        hook.remove()
        twins.remove()


@pytest.mark.parametrize(
    ("method", "sign", "needs"),
    [
        ("guided_backprop", "signed, above zero for the class", "ReLU or ReLU6"),
        ("edge", "unsigned, how much a place counts", "any classifier"),
        (
            "grad_cam",
            "signed, above zero for the class and below zero against it. “How much” under Display keeps what is above",
            "a layer with a spatial map",
        ),
    ],
)
def test_about_this_method_says_its_sign_and_what_it_needs(visit: Visit, method: str, sign: str, needs: str) -> None:
    app = visit(method=method, aug="", twin="0")
    told = [element.value for element in app.sidebar.markdown]
    assert f"Needs: {needs}." in told
    assert any(line.startswith(f"Map: {sign}") for line in told)


def test_cells_are_shown_as_computed(visit: Visit) -> None:
    app = visit(aug="flip_lr", twin="0")
    smooth = pictures_of(app)["Map"]
    (widget,) = [w for w in app.main.get("button_group") if w.key == "cells"]
    widget.set_value("cells").run()
    assert pictures_of(app)["Map"] != smooth


def test_a_shared_scale_changes_the_variants_only(visit: Visit) -> None:
    app = visit(aug="rotate,blur")
    before = pictures_of(app)
    (widget,) = [w for w in app.main.get("button_group") if w.key == "scale"]
    widget.set_value("shared").run()
    after = pictures_of(app)
    assert after["Overlay"] == before["Overlay"]
    cards = [name for name in before if "its map laid back on the original" in name]
    assert any(after[name] != before[name] for name in cards)


def test_the_slider_goes_through_stored_maps(visit: Visit, tiny: str) -> None:
    app = visit(aug="rotate")
    calls = []
    hook = session.classifiers().get(tiny).classifier.module.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        seen = {frozenset(pictures_of(app).items())}
        slider = app.select_slider(key="at")
        for value in (-135.0, 54.0):
            slider.set_value(value).run()
            assert works(app)
            seen.add(frozenset(pictures_of(app).items()))
            assert float(app.query_params["at"]) == value
        assert len(seen) == 3
        assert not calls
    finally:
        hook.remove()


# Uploads


def upload(app: AppTest, name: str, content: bytes, mime: str = "image/png") -> AppTest:
    app.sidebar.get("file_uploader")[0].upload(name, content, mime)
    return app.run()


def test_an_upload_becomes_the_picture(visit: Visit) -> None:
    app = upload(visit(aug="flip_lr"), "mine.png", png(mode="RGBA"))
    assert works(app)
    assert app.title[0].value.startswith("mine.png · ")
    assert app.sidebar.selectbox(key="image").value == "upload"
    assert "Transparent parts were laid on white." in markdown_of(app)
    assert not app.code
    assert "An uploaded picture cannot travel in a link" in markdown_of(app)


def test_a_photograph_is_turned_upright(visit: Visit) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(png((120, 60)))).save(buffer, format="JPEG", exif=exif)
    app = upload(visit(aug="flip_lr"), "phone.jpg", buffer.getvalue(), "image/jpeg")
    assert works(app)
    assert app.session_state["_shown"][1].image.size == (60, 120)


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 40 000 x 40 000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is no picture", "picture"),
        (png()[:200], "damaged"),
        (bomb(), "megapixels"),
        (b"", "empty"),
        (png() + b"\0" * (16 * 2**20), "16.0 MB"),
    ],
    ids=["text", "truncated", "bomb", "empty", "huge"],
)
def test_a_bad_upload_costs_one_sentence_and_no_picture(visit: Visit, content: bytes, words: str) -> None:
    app = visit(aug="flip_lr")
    before = pictures_of(app)["Overlay"]
    upload(app, "bad.png", content)
    assert works(app)
    (sentence,) = warnings_of(app).split("\n\n")
    assert words in sentence
    assert pictures_of(app)["Overlay"] == before
    assert app.title[0].value.startswith("Cat · ")
    # Another choice stays possible.
    app.sidebar.selectbox(key="image").select("sample:espresso").run()
    assert app.title[0].value.startswith("Espresso · ")


def test_a_bad_upload_after_a_good_one_keeps_the_good_one(visit: Visit) -> None:
    app = upload(visit(aug="flip_lr"), "mine.png", png())
    before = pictures_of(app)["Overlay"]
    upload(app, "bad.png", b"this is no picture")
    assert works(app)
    (sentence,) = warnings_of(app).split("\n\n")
    assert "upload it again" not in sentence
    assert app.title[0].value.startswith("mine.png · ")
    assert pictures_of(app)["Overlay"] == before


def test_from_an_upload_to_a_sample_and_back(visit: Visit) -> None:
    app = upload(visit(aug="flip_lr"), "mine.png", png())
    mine = pictures_of(app)["Overlay"]
    app.sidebar.selectbox(key="image").select("sample:espresso").run()
    assert app.title[0].value.startswith("Espresso · ")
    assert pictures_of(app)["Overlay"] != mine
    app.sidebar.selectbox(key="image").select("upload").run()
    assert app.title[0].value.startswith("mine.png · ")
    assert pictures_of(app)["Overlay"] == mine
    upload(app, "other.png", png(seed=1))
    assert app.title[0].value.startswith("other.png · ")
    assert pictures_of(app)["Overlay"] != mine


def test_an_upload_with_a_name_full_of_marks_is_shown_as_it_is(visit: Visit) -> None:
    app = upload(visit(aug="flip_lr"), "a*b*c $x$ [y](z) <b>.png", png())
    assert works(app)
    shown = app.title[0].value.partition(" · ")[0]
    assert "<b>" not in shown.replace("\\<", "")
    assert all(f"\\{mark}" in shown for mark in "*$[")


# The frame


@pytest.mark.parametrize("page", sorted((ROOT / "pages").glob("*.py")), ids=lambda path: path.stem)
def test_every_page_begins_with_the_guard(page: Path) -> None:
    body = [node for node in ast.parse(page.read_text(encoding="utf-8")).body if not isinstance(node, ast.ImportFrom)]
    first = body[1]  # after the docstring
    assert isinstance(first, ast.Assign)
    assert ast.unparse(first.value) == "frame.guard()"


@pytest.mark.parametrize("page", sorted((ROOT / "pages").glob("*.py")), ids=lambda path: path.stem)
def test_every_page_runs_inside_the_frame(page: Path, tiny: str) -> None:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=TIMEOUT)
    app.query_params["model"] = tiny
    app.query_params["aug"] = "flip_lr"
    app.switch_page(f"pages/{page.name}").run()
    assert not app.exception, [box.value for box in app.exception]
    if page.stem == "batch":
        # Runs have pictures, models and methods of their own.
        assert app.title[0].value == "New batch run"
        return
    assert app.title[0].value.startswith("Cat · ")
    assert app.sidebar.selectbox(key="method").value == "grad_cam"


def facts_of(app: AppTest) -> str:
    (found,) = [caption.value for caption in app.caption if "Explains **" in caption.value]
    return found


@pytest.mark.slow
def test_a_completeness_error_is_shown_with_what_it_is_between(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow the machine is, nothing waits for Compute.
    monkeypatch.setattr(follow, "CHEAP_SECONDS", 1e6)
    facts = facts_of(visit(method="integrated_gradients", aug="flip_lr"))
    told = re.search(
        r"completeness error (\S+): the map adds up to (\S+) (more|less) than the change of the class's", facts
    )
    assert told is not None
    assert told[1].lstrip("−") == told[2]
    assert told[1].startswith("−") == (told[3] == "less")
    assert "standard error" not in facts
    assert "completeness" not in facts_of(visit(method="gradient", aug="flip_lr"))


@pytest.mark.slow
def test_a_standard_error_is_shown_with_its_samples_and_the_passes_made(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[float] = []
    monkeypatch.setattr(follow, "CHEAP_SECONDS", 1e6)
    monkeypatch.setattr(Speed, "learn", lambda speed, method, *, passes, **how: learned.append(passes))
    app = visit(method="smoothgrad", aug="flip_lr", **{"set.samples": "500", "set.tolerance": "0.9"})
    facts = facts_of(app)
    told = re.search(r"([\d,]+) passes in .* standard error ([\d.]+) % of its spread after (\d+) samples", facts)
    assert told is not None
    assert float(told[2]) <= 90
    assert "asked for" not in facts
    assert int(told[3]) < 500
    made = int(told[1].replace(",", ""))
    # Of the picture and its mirror image, which stops by itself.
    assert 2 * int(told[3]) < made < 2 * 2 * 500
    assert made in learned


@pytest.mark.slow
def test_a_tolerance_that_was_not_reached_is_told(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "CHEAP_SECONDS", 1e6)
    facts = facts_of(visit(method="smoothgrad", aug="flip_lr", **{"set.samples": "8", "set.tolerance": "0.01"}))
    assert "of its spread after 8 samples, above the 1 % asked for: allow more samples" in facts


@pytest.mark.parametrize(
    ("error", "tolerance", "told"),
    [
        (
            1.42,
            0,
            ", the map is mostly noise: allow more samples, and a tolerance to stop once they are enough",
        ),
        (1.42, 0.1, ", the map is mostly noise, above the 10 % asked for: allow more samples"),
        (0.3, 0.1, ", above the 10 % asked for: allow more samples"),
        (0.99, 0, ""),
        (0.09, 0.1, ""),
        (float("nan"), 0, ""),
    ],
)
def test_a_map_that_is_mostly_noise_is_told_as_such_with_what_to_do(error: float, tolerance: float, told: str) -> None:
    request = SimpleNamespace(settings={"tolerance": tolerance})
    said = panels.standard_error(SimpleNamespace(standard_error=[error], samples=[8], request=request))
    assert said == f"standard error {panels.share(error)} of its spread after 8 samples{told}"
