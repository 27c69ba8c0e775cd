"""The Compare page in a real browser."""

import re
from typing import Any

import pytest

from tests.e2e.conftest import NARROW, Open, Server
from tests.e2e.test_explore import LITE, expect, fields, heading, screenshot, settled, shows

FEW = "methods=grad_cam,gradient,edge,random"


def rows(page: Any) -> Any:
    return page.get_by_role("button", name=re.compile(": overlay$"))


def is_complete(page: Any, count: int) -> None:
    """Wait until all rows and their agreement are on the page."""
    expect(page.get_by_text(f"{count} rows in")).to_be_visible()
    expect(rows(page)).to_have_count(count)
    settled(page)
    expect(page.locator(".st-key-agreement .js-plotly-plot")).to_be_visible()


def test_a_deep_link_compares_and_a_click_opens_explore(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/compare?{FEW}")
    expect(heading(page)).to_have_text(f"Cat · {LITE}")
    is_complete(page, 4)
    screenshot(page, "compare", whole=True)
    assert fields(page) == {"methods": "grad_cam,gradient,edge,random"}
    page.get_by_role("button", name="Gradient: map", exact=True).click()
    shows(page, "Cat", LITE, "Gradient")
    assert fields(page) == {"method": "gradient"}
    settled(page)
    page.go_back()
    # To what was left, not to its rows under the method that was opened.
    page.wait_for_function("location.search.includes('methods=grad_cam') && !location.search.includes('method=')")
    is_complete(page, 4)
    assert fields(page) == {"methods": "grad_cam,gradient,edge,random"}
    shown = page.locator("section[data-testid=stSidebar]").get_by_role("combobox", name="Method", exact=True)
    expect(shown).to_have_value("Grad-CAM")


@pytest.mark.slow
def test_a_link_is_kept_where_the_browser_is_slow_to_load_a_widget(server: Server, open_page: Open) -> None:
    page = open_page("about:blank")

    def late(route: Any) -> None:
        page.wait_for_timeout(2500)
        route.continue_()

    page.route("**/Selectbox*.js", late)
    page.goto(f"{server.url}/compare?image=sample%3Aespresso&method=gradient")
    # Rows come one after the other, each with a run of the page.
    is_complete(page, 10)
    sidebar = page.locator("section[data-testid=stSidebar]")
    for label, value in (("Image", "Espresso"), ("Method", "Gradient")):
        expect(sidebar.get_by_role("combobox", name=label, exact=True)).to_have_value(value)
    # A click tells the server what the widgets hold.
    page.get_by_role("radio", name="SSIM").or_(page.get_by_role("button", name="SSIM")).first.click()
    settled(page)
    assert fields(page)["image"] == "sample:espresso"
    assert fields(page)["method"] == "gradient"


@pytest.mark.slow
def test_enter_takes_the_best_match(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/compare?methods=edge,random")
    is_complete(page, 2)
    box = page.locator(".st-key-methods input")
    box.click()
    box.fill("constant")
    page.get_by_role("option").first.wait_for()
    box.press("Enter")
    # The open list hides the rest of the page from readers.
    box.press("Escape")
    is_complete(page, 3)
    assert fields(page)["methods"] == "edge,random,constant"


@pytest.mark.slow
def test_the_pick_goes_along_and_rows_can_be_classes(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    shows(page, "Cat", LITE, "Grad-CAM")
    # Twice: the second click cuts the first run of the page short.
    page.get_by_role("link", name="Compare").dblclick(delay=50)
    expect(rows(page).first).to_be_visible()
    settled(page)
    # What was never touched is not written, and not lost.
    assert fields(page) == {}
    page.get_by_role("link", name="Explore").click()
    shows(page, "Cat", LITE, "Grad-CAM")
    assert fields(page) == {}
    page.goto(f"{server.url}/?image=sample:espresso&method=layer_cam")
    shows(page, "Espresso", LITE, "LayerCAM")
    page.get_by_role("link", name="Compare").click()
    expect(heading(page)).to_have_text(f"Espresso · {LITE}")
    page.get_by_role("radio", name="Most probable classes").click()
    expect(heading(page)).to_have_text(f"Espresso · {LITE} · LayerCAM")
    is_complete(page, 5)
    expect(page.get_by_role("button", name="espresso: overlay", exact=True)).to_be_visible()
    assert fields(page) == {"image": "sample:espresso", "method": "layer_cam", "rows": "classes"}


@pytest.mark.slow
def test_narrow_and_dark_nothing_is_cut(server: Server, open_page: Open) -> None:
    for name, options in (
        ("compare-narrow", {"viewport": NARROW}),
        ("compare-dark", {"color_scheme": "dark"}),
    ):
        page = open_page(f"{server.url}/compare?{FEW}", **options)
        is_complete(page, 4)
        main = page.locator('[data-testid="stMain"]')
        assert main.evaluate("element => element.scrollWidth <= element.clientWidth"), name
        screenshot(page, name, whole=True)
