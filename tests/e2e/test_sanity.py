"""The Sanity checks page in a real browser: a cold deep link, stages, verdicts, its link; wide, narrow, light, dark."""

import re
from typing import Any

import pytest
from PIL import Image

from tests.e2e.conftest import NARROW, Open, Server
from tests.e2e.test_explore import LITE, expect, fields, heading, screenshot, settled

FEW = "sanity?checked=gradient,grad_cam&order=full"


def is_complete(page: Any, sentence: str, *, patience: int = 45_000) -> None:
    expect(page.get_by_text(sentence)).to_be_visible(timeout=patience)
    settled(page)
    expect(page.locator(".st-key-curves .js-plotly-plot")).to_be_visible()


@pytest.mark.slow
def test_a_cold_deep_link_checks_and_the_link_comes_back(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/{FEW}&stage=all&measure=top_k")
    expect(heading(page)).to_have_text(f"Cat · {LITE}")
    is_complete(page, "1 net with random weights")
    for title in ("Gradient", "Grad-CAM", "Random (control)", "Edge detector (control)"):
        expect(page.get_by_role("img", name=f"{title}: maps of trained, all")).to_be_visible()
    expect(page.get_by_role("img", name="Gradient: Random: all")).to_be_visible()
    expect(page.get_by_text("Its class scores (logits) spread")).to_be_visible()
    assert fields(page) == {"checked": "gradient,grad_cam", "order": "full", "stage": "all", "measure": "top_k"}
    page.get_by_text("Numbers", exact=True).click()
    expect(page.get_by_text("Efficient MPRT")).to_be_visible()
    again = open_page(page.url)
    is_complete(again, "1 net with random weights")
    assert fields(again) == fields(page)


@pytest.mark.slow
def test_stages_come_one_by_one_and_the_first_visit_tells_the_papers_story(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/sanity?checked=gradient")
    # Nineteen nets on a slow machine: the first strips are there long before the last.
    expect(page.get_by_role("img", name="Gradient: maps of").first).to_be_visible(timeout=90_000)
    is_complete(page, "19 nets with random weights", patience=150_000)
    expect(page.get_by_text("Gradient: moves with classifier")).to_be_visible()
    screenshot(page, "sanity", whole=True)


@pytest.mark.slow
def test_narrow_and_dark_nothing_is_cut(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/{FEW}", viewport=NARROW, color_scheme="dark")
    is_complete(page, "1 net with random weights")
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    screenshot(page, "sanity-narrow-dark", whole=True)


@pytest.mark.slow
def test_labels_of_controls_in_a_row_stand_at_one_height(server: Server, open_page: Open) -> None:
    """Beside select boxes, which are higher than the rest, and a button without a label."""
    page = open_page(f"{server.url}/{FEW}")
    is_complete(page, "1 net with random weights")
    row = page.locator(".st-key-controls")
    tops = [label.bounding_box()["y"] for label in row.get_by_test_id("stWidgetLabel").all()]
    assert len(tops) == 3
    assert max(tops) - min(tops) < 1
    box = row.get_by_test_id("stSelectbox").bounding_box()
    settings = row.get_by_role("button", name="Settings").bounding_box()
    assert abs(box["y"] + box["height"] - settings["y"] - settings["height"]) <= 3


@pytest.mark.slow
def test_the_pair_that_comes_with_salviz_tells_what_labels_do(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/sanity?test=labels&checked=gradient,grad_cam")
    expect(page.get_by_text("Which net learnt other labels than")).to_be_visible(timeout=45_000)
    page.get_by_role("button", name="Use the pair that comes with Salviz").click()
    is_complete(page, "Beside Fashion CNN, permuted labels, 64 pictures; the strips show the first.")
    expect(page.get_by_role("img", name="Gradient: maps of trained, Fashion CNN, permuted labels")).to_be_visible()
    screenshot(page, "sanity-labels", whole=True)
    page.get_by_text("Numbers", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Film strips (PNG)").click()
    assert download.value.suggested_filename == "ankle-boot-0-sanity.png"
    with Image.open(download.value.path()) as sheet:
        assert sheet.height > 4 * 112
    # The address opens the same for somebody else.
    again = open_page(page.url)
    is_complete(again, "Beside Fashion CNN, permuted labels, 64 pictures; the strips show the first.")


STEPS = re.compile(r"Randomising: (\d+) of \d+ steps")


def steps(page: Any) -> int:
    """How far the check is."""
    told = page.get_by_text(STEPS)
    expect(told.first).to_be_visible()
    found = STEPS.search(told.first.inner_text())
    assert found is not None
    return int(found[1])


@pytest.mark.slow
def test_visitors_share_a_check_and_a_reload_finds_it_under_way(server: Server, open_page: Open) -> None:
    link = f"{server.url}/sanity?image=sample%3Arocket&checked=gradient,guided_backprop,integrated_gradients"
    first, second = open_page(link), open_page(link)
    for page in (first, second):
        button = page.get_by_role("button", name="Compute")
        expect(button.or_(page.get_by_text(STEPS)).first).to_be_visible()
        if button.is_visible():
            button.click()
        steps(page)
    first.wait_for_function("() => !document.body.innerText.includes('Randomising: 0 of')")
    before = steps(first)
    assert before > 0
    # Both look at the same work: the second never begins from nothing.
    assert steps(second) > 0
    first.reload()
    assert steps(first) >= before
    for page in (first, second):
        is_complete(page, "19 nets with random weights", patience=240_000)
    for title in ("Gradient", "Guided backprop", "Integrated gradients"):
        strips = [
            page.get_by_role("img", name=f"{title}: maps of").first.get_attribute("src") for page in (first, second)
        ]
        assert strips[0] == strips[1]
        assert str(strips[0]).startswith("data:image/")
