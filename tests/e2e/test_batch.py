"""The Batch page in a real browser: launch, watch, close the browser, look at what was found, open it in Explore."""

import re
from typing import Any

import pytest

from tests.e2e.conftest import NARROW, Open, Server
from tests.e2e.test_explore import expect, fields, heading, screenshot, settled

PATIENCE = 120_000


def begin(page: Any, pictures: int) -> None:
    """Start a run of the form's suggestion over so many pictures."""
    expect(page.get_by_text("on this machine")).to_be_visible()
    box = page.get_by_role("spinbutton", name="Pictures")
    box.fill(str(pictures))
    box.press("Enter")
    expect(page.get_by_text(f"maps of {pictures} pictures")).to_be_visible()
    settled(page)
    page.get_by_role("button", name="Start").click()
    page.wait_for_function("location.search.includes('run=')")


@pytest.mark.slow
def test_a_run_goes_on_without_the_browser_and_its_cases_open_in_explore(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/batch")
    expect(heading(page)).to_have_text("New batch run")
    begin(page, 12)
    expect(heading(page)).to_have_text("Fashion-MNIST sample · COSE")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    address = page.url
    # Nobody watches: the worker is a process of its own.
    page.goto(f"{server.url}/_stcore/health")
    page = open_page(address)
    expect(page.get_by_text("Complete: 48 explanations.")).to_be_visible(timeout=PATIENCE)
    settled(page)
    expect(page.locator(".st-key-chart_against .js-plotly-plot")).to_be_visible()
    screenshot(page, "batch-scores", whole=True)
    for name in ("Spread", "Groups", "Strength of change"):
        page.get_by_role("radio", name=name, exact=True).click()
        settled(page)
        expect(page.locator(".js-plotly-plot")).to_have_count(1)
    page.get_by_role("radio", name="Pictures", exact=True).click()
    maps = page.get_by_title("Open in Explore")
    expect(maps.first).to_be_visible()
    expect(maps).to_have_count(6 * 4)
    settled(page)
    screenshot(page, "batch-pictures", whole=True)
    score = page.locator("[class*=st-key-case]").first.get_by_text(re.compile(r"^Gradient"))
    expect(score).to_be_visible()
    page.get_by_role("button", name=re.compile(r"^Gradient on fashion:")).first.click()
    expect(heading(page)).to_have_text(re.compile(r" · Fashion CNN · Gradient$"))
    assert fields(page)["method"] == "gradient"
    assert fields(page)["image"].startswith("fashion:")
    settled(page)


@pytest.mark.slow
def test_narrow_and_dark_nothing_is_cut(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/batch", viewport=NARROW, color_scheme="dark")
    begin(page, 8)
    expect(page.get_by_text("Complete: 32 explanations.")).to_be_visible(timeout=PATIENCE)
    for part in ("scores", "groups", "pictures"):
        page.goto(f"{page.url.partition('&')[0]}&part={part}")
        expect(page.get_by_text("Complete: 32 explanations.")).to_be_visible()
        settled(page)
        if part == "pictures":
            expect(page.get_by_title("Open in Explore").first).to_be_visible()
        else:
            expect(page.locator(".js-plotly-plot")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        screenshot(page, f"batch-{part}-narrow-dark", whole=True)
