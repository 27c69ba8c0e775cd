"""The Explore page in a real Chromium."""

import csv
import hashlib
import io
import json
import re
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import NARROW, SCREENSHOTS, Open, Server

LITE = "EfficientNet-Lite0"
PASSES = re.compile(r"(\d+) of (\d+) passes")
SLOW = "method=occlusion&set.stride=24"


def expect(target: Any) -> Any:
    from playwright.sync_api import expect as playwright_expect

    playwright_expect.set_options(timeout=45_000)
    return playwright_expect(target)


def heading(page: Any) -> Any:
    return page.get_by_role("heading", level=1)


def shows(page: Any, *names: str) -> None:
    """Wait for the heading of a view, and until its pictures have followed."""
    expect(heading(page)).to_have_text(" · ".join(names))
    settled(page)
    expect(overlay(page)).to_be_visible()


def settled(page: Any) -> None:
    """Wait until the app has answered the last interaction."""
    app = page.locator('[data-testid="stApp"]')
    expect(app).to_have_attribute("data-test-connection-state", "CONNECTED")
    expect(app).to_have_attribute("data-test-script-state", "notRunning")


def overlay(page: Any) -> Any:
    return page.get_by_role("img", name="over the photograph")


def address(picture: Any) -> str:
    """Digest of a picture's address, which holds the picture itself."""
    source = str(picture.get_attribute("src"))
    assert source.startswith("data:image/jpeg;base64,")
    return hashlib.sha256(source.encode()).hexdigest()


def pick(page: Any, key: str, text: str) -> None:
    """Choose in a select box of the sidebar by typing."""
    box = page.locator(f".st-key-{key} input")
    box.click()
    box.fill(text)
    page.get_by_role("option").first.wait_for()
    box.press("Enter")


def fields(page: Any) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlsplit(page.url).query, keep_blank_values=True).items()}


def scores(page: Any) -> list[str]:
    return page.locator('[data-testid="stMetricValue"]').all_inner_texts()


def screenshot(page: Any, name: str, *, whole: bool = False) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    # The pointer must not leave a hover behind.
    page.mouse.move(0, 0)
    if whole:
        before = page.viewport_size
        height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
        page.set_viewport_size({"width": before["width"], "height": height})
        settled(page)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")
    if whole:
        page.set_viewport_size(before)


def noise(size: tuple[int, int] = (160, 120)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def choose_file(page: Any, name: str, data: bytes) -> None:
    page.locator('input[type="file"]').set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


# Starting


@pytest.mark.slow
def test_a_cold_deep_link_opens_the_right_view_inside_the_frame(cold_server: Server, open_page: Open) -> None:
    page = open_page(f"{cold_server.url}/explore?image=sample:espresso&method=layer_cam")
    # One look at both: on a busy machine loading may be over between two.
    page.wait_for_function(
        """document.body.innerText.includes("loading PyTorch")
           && document.querySelector('[data-testid="stSidebar"] [data-testid="stSkeleton"]')"""
    )
    screenshot(page, "cold")
    first = open_page(cold_server.url)
    shows(page, "Espresso", LITE, "LayerCAM")
    expect(page.locator(".st-key-method input")).to_have_value("LayerCAM")
    assert urlsplit(page.url).path == "/explore"
    assert fields(page) == {"image": "sample:espresso", "method": "layer_cam"}
    # And whoever came to the front door in the meantime sees the default.
    shows(first, "Cat", LITE, "Grad-CAM")
    assert fields(first) == {}


# Picking


def test_picks_change_the_map(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    shows(page, "Cat", LITE, "Grad-CAM")
    seen = [address(overlay(page))]
    page.get_by_role("button", name="Espresso").click()
    shows(page, "Espresso", LITE, "Grad-CAM")
    seen.append(address(overlay(page)))
    pick(page, "method", "LayerCAM")
    shows(page, "Espresso", LITE, "LayerCAM")
    seen.append(address(overlay(page)))
    pick(page, "model", "EfficientNet-Lite1")
    shows(page, "Espresso", "EfficientNet-Lite1", "LayerCAM")
    seen.append(address(overlay(page)))
    assert len(set(seen)) == len(seen)
    expected = {"image": "sample:espresso", "model": "tf_efficientnet_lite1", "method": "layer_cam"}
    assert fields(page) == expected


@pytest.mark.slow
def test_a_link_travels(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    shows(page, "Cat", LITE, "Grad-CAM")
    pick(page, "image", "Motorcycle")
    shows(page, "Motorcycle", LITE, "Grad-CAM")
    pick(page, "method", "Grad-CAM++")
    shows(page, "Motorcycle", LITE, "Grad-CAM++")
    pick(page, "target", "crash helmet")
    expect(page.get_by_text("All maps explain crash helmet")).to_be_visible()
    page.get_by_role("button", name="Display").click()
    page.get_by_role("radio", name="Even").click()
    page.keyboard.press("Escape")
    slider = page.locator(".st-key-at").get_by_role("slider")
    slider.focus()
    slider.press("ArrowRight")
    expect(page).to_have_url(re.compile(r"at=40\.5"))
    settled(page)
    assert set(fields(page)) == {"image", "method", "target", "veil", "at"}
    page.get_by_role("button", name="Link").click()
    code = page.locator('[data-testid="stPopoverBody"] code')
    # Display choices and the slider run a part of the page only; the link must follow all the same.
    expect(code).to_contain_text("at=40.5")
    link = code.inner_text()
    page.keyboard.press("Escape")
    other = open_page(link)
    shows(other, "Motorcycle", LITE, "Grad-CAM++")
    moved = other.get_by_role("img", name="rotate +40.5°")
    expect(moved).to_be_visible()
    settled(other)
    assert fields(other) == fields(page)
    assert scores(other) == scores(page)
    assert address(overlay(other)) == address(overlay(page))
    assert address(moved) == address(page.get_by_role("img", name="rotate +40.5°"))


@pytest.mark.slow
def test_the_back_button_goes_back(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    shows(page, "Cat", LITE, "Grad-CAM")
    pick(page, "image", "Espresso")
    shows(page, "Espresso", LITE, "Grad-CAM")
    expect(page).to_have_url(re.compile("image=sample"))
    page.go_back()
    shows(page, "Cat", LITE, "Grad-CAM")
    assert fields(page) == {}
    page.go_forward()
    shows(page, "Espresso", LITE, "Grad-CAM")
    page.go_back()
    shows(page, "Cat", LITE, "Grad-CAM")
    assert fields(page) == {}


@pytest.mark.slow
def test_keyboard_alone_changes_the_method(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    shows(page, "Cat", LITE, "Grad-CAM")
    settled(page)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("!!document.activeElement.closest('.st-key-method')"):
            break
    else:
        pytest.fail("Tab never came to the method")
    page.keyboard.type("LayerCAM")
    expect(page.get_by_role("option", name="LayerCAM")).to_be_visible()
    page.keyboard.press("Enter")
    shows(page, "Cat", LITE, "LayerCAM")


# Uploads


@pytest.mark.slow
def test_uploads_good_and_bad(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    shows(page, "Cat", LITE, "Grad-CAM")
    choose_file(page, "bad.png", b"this is no picture")
    expect(page.get_by_text("This is not a picture Salviz can read")).to_be_visible()
    shows(page, "Cat", LITE, "Grad-CAM")
    settled(page)
    screenshot(page, "upload-error")
    choose_file(page, "mine.png", noise())
    shows(page, "mine.png", LITE, "Grad-CAM")
    expect(page.get_by_text("This is not a picture Salviz can read")).to_have_count(0)
    for content in (b"this is no picture", noise()[:200]):
        # The uploader is drawn anew with the page; what is given to the one before is lost.
        settled(page)
        choose_file(page, "worse.png", content)
        expect(page.get_by_text("mine.png is still shown")).to_be_visible()
        shows(page, "mine.png", LITE, "Grad-CAM")
        expect(page).to_have_url(re.compile(r"image=upload$"))
    page.get_by_role("button", name="Link").click()
    expect(page.get_by_text("An uploaded picture cannot travel in a link")).to_be_visible()


# Visitors


@pytest.mark.slow
def test_two_visitors_do_not_mix(server: Server, open_page: Open) -> None:
    picks = [("sample:rocket", "gradient", "Rocket", "Gradient"), ("sample:palace", "layer_cam", "Palace", "LayerCAM")]
    links = [f"{server.url}/?image={image}&method={method}" for image, method, _, _ in picks]
    together = [open_page(link) for link in links]
    for page, (_, _, image, method) in zip(together, picks, strict=True):
        shows(page, image, LITE, method)
    for page in together:
        # All work is over, and nothing is drawn anew.
        expect(page.get_by_role("img", name="laid back: SSIM")).to_be_visible()
        settled(page)
    found = [address(overlay(page)) for page in together]
    assert found[0] != found[1]
    for link, digest, (_, _, image, method) in zip(links, found, picks, strict=True):
        alone = open_page(link)
        shows(alone, image, LITE, method)
        expect(alone.get_by_role("img", name="laid back: SSIM")).to_be_visible()
        settled(alone)
        assert address(overlay(alone)) == digest
        assert alone.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


@pytest.mark.slow
def test_equal_picks_share_one_job_and_cancel_is_ones_own(server: Server, open_page: Open) -> None:
    link = f"{server.url}/?{SLOW}&seed=1"
    first, second = open_page(link), open_page(link)
    for page in (first, second):
        expect(page.get_by_text("Occlusion will take about")).to_be_visible()
    first.get_by_role("button", name="Compute").click()
    progress = first.get_by_text(PASSES)
    expect(progress).to_have_text(re.compile(r"[1-9]\d* of"))
    done = int(PASSES.search(progress.inner_text()).group(1))
    second.get_by_role("button", name="Compute").click()
    joined = second.get_by_text(PASSES)
    expect(joined).to_be_visible()
    # A job of its own would wait behind the first one, or start at zero.
    assert int(PASSES.search(joined.inner_text()).group(1)) >= done
    first.get_by_role("button", name="Cancel").click()
    expect(first.get_by_text("Occlusion was stopped.")).to_be_visible()
    before = int(PASSES.search(joined.inner_text()).group(1))
    expect(joined).not_to_have_text(re.compile(rf"\b{before} of"))
    assert int(PASSES.search(joined.inner_text()).group(1)) > before
    second.get_by_role("button", name="Cancel").click()
    expect(second.get_by_text("Occlusion was stopped.")).to_be_visible()


# Slow work


@pytest.mark.slow
def test_a_link_to_slow_work_shows_the_photograph(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/?image=sample:espresso&method=occlusion")
    expect(page.get_by_role("button", name="Compute")).to_be_visible()
    expect(page.get_by_role("img", name="A red cup of espresso")).to_be_visible()
    settled(page)
    screenshot(page, "waiting-first")


@pytest.mark.slow
def test_slow_work_can_be_watched_stopped_and_reloaded(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/?method=edge")
    shows(page, "Cat", LITE, "Edge detector (control)")
    settled(page)
    old = address(overlay(page))
    pick(page, "method", "Occlusion")
    expect(page.get_by_text(re.compile(r"Occlusion will take about \d+ (s|min)"))).to_be_visible()
    settled(page)
    screenshot(page, "waiting")
    assert address(overlay(page)) == old
    page.get_by_role("button", name="Compute").click()
    expect(page.get_by_text(PASSES)).to_be_visible()
    expect(page.get_by_text("Shown below: what was there before, ")).to_be_visible()
    screenshot(page, "running")
    assert address(overlay(page)) == old
    # The clean map comes first, the variants follow.
    shows(page, "Cat", LITE, "Occlusion")
    screenshot(page, "running-partial", whole=True)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Occlusion was stopped.")).to_be_visible()
    shows(page, "Cat", LITE, "Occlusion")
    page.get_by_role("button", name="Compute again").click()
    expect(page.get_by_text(PASSES)).to_be_visible()
    page.reload()
    expect(page.get_by_text(re.compile(r"Occlusion will take about|of \d+ passes"))).to_be_visible()
    expect(page.locator(".st-key-method input")).to_have_value("Occlusion")
    assert fields(page)["method"] == "occlusion"


@pytest.mark.slow
def test_what_fails_says_so_and_leaves_the_picture(server: Server, open_page: Open, attention_network: str) -> None:
    page = open_page(f"{server.url}/?model={quote(attention_network)}")
    shows(page, "Cat", "Tiny ViT", "Grad-CAM")
    settled(page)
    old = address(overlay(page))
    pick(page, "method", "Guided backprop")
    expect(page.get_by_text("Guided backpropagation is defined for ReLU nets only")).to_be_visible()
    settled(page)
    screenshot(page, "failed")
    assert address(overlay(page)) == old


# Looking


@pytest.mark.slow
def test_the_slider_shows_stored_maps(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    laid_back = page.get_by_role("img", name="laid back: SSIM")
    expect(laid_back).to_be_visible()
    settled(page)
    facts = page.get_by_text(re.compile(r"passes in")).first.inner_text()
    slider = page.locator(".st-key-at").get_by_role("slider")
    slider.focus()
    seen = {address(laid_back)}
    top = laid_back.bounding_box()["y"]
    for degrees in ("+40.5°", "+54°", "+67.5°"):
        slider.press("ArrowRight")
        expect(page.get_by_role("img", name=f"rotate {degrees}")).to_be_visible()
        settled(page)
        seen.add(address(laid_back))
        assert page.get_by_text(PASSES).count() == 0
    assert len(seen) == 4
    assert page.get_by_text(re.compile(r"passes in")).first.inner_text() == facts
    assert abs(laid_back.bounding_box()["y"] - top) < 1


@pytest.mark.slow
def test_display_choices_neither_scroll_nor_recompute(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/?method=gradient")
    shows(page, "Cat", LITE, "Gradient")
    expect(page.get_by_role("img", name="laid back: SSIM")).to_be_visible()
    settled(page)
    main = page.locator('[data-testid="stMain"]')
    main.evaluate("element => element.scrollTo(0, 60)")
    page.get_by_role("button", name="Display").click()
    seen = overlay(page).get_attribute("src")
    for name in ("Even", "For and against"):
        page.get_by_role("radio", name=name).click()
        expect(overlay(page)).not_to_have_attribute("src", seen)
        seen = overlay(page).get_attribute("src")
        assert page.get_by_text(PASSES).count() == 0
        assert main.evaluate("element => element.scrollTop") == 60
    expect(page).to_have_url(re.compile("sign=signed"))
    settled(page)
    assert fields(page) == {"method": "gradient", "veil": "even", "sign": "signed"}
    screenshot(page, "display")


@pytest.mark.slow
def test_downloads_hold_what_is_shown(server: Server, open_page: Open) -> None:
    page = open_page(f"{server.url}/?method=layer_cam&image=sample:espresso")
    shows(page, "Espresso", LITE, "LayerCAM")
    expect(page.get_by_role("img", name="laid back: SSIM")).to_be_visible()
    page.get_by_role("button", name="Download").click()
    settled(page)
    found = {}
    for label in ("Overlay (PNG)", "Map (PNG)", "Raw arrays", "Similarities"):
        with page.expect_download() as download:
            page.get_by_role("button", name=label).click()
        assert download.value.suggested_filename.startswith("espresso-layer_cam-")
        found[label] = download.value.path().read_bytes()
    for label in ("Overlay (PNG)", "Map (PNG)"):
        with Image.open(io.BytesIO(found[label])) as image:
            assert image.size == (600, 400)
            image.load()
    arrays = np.load(io.BytesIO(found["Raw arrays"]), allow_pickle=False)
    manifest = json.loads(str(arrays["manifest"]))
    assert manifest["picture"]["source"] == "sample:espresso"
    assert manifest["request"]["method"] == "layer_cam"
    assert manifest["classifier"]["id"] == "tf_efficientnet_lite0"
    consistency, sensitivity, cose = scores(page)
    for name, shown in (("consistency", consistency), ("sensitivity", sensitivity), ("cose", cose)):
        assert f"{manifest['scores'][name]['value']:.2f}" == shown
    rows = list(csv.DictReader(io.StringIO(found["Similarities"].decode())))
    assert len(rows) == 14 == len(arrays["raw"]) - 1
    assert np.allclose([float(row["ssim"]) for row in rows], arrays["ssim"][1:])
    cards = page.get_by_role("img", name="its map laid back on the original")
    said = {re.search(r"SSIM (\S+)", alt).group(1) for alt in cards.evaluate_all("all => all.map(one => one.alt)")}
    assert said == {f"{float(row['ssim']):.2f}" for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_windows_and_themes(server: Server, open_page: Open, scheme: str, width: str) -> None:
    page = open_page(server.url, viewport=NARROW if width == "narrow" else None, color_scheme=scheme)
    shows(page, "Cat", LITE, "Grad-CAM")
    expect(page.get_by_role("img", name="laid back: SSIM")).to_be_visible()
    settled(page)
    ground = page.locator('[data-testid="stApp"]').evaluate("element => getComputedStyle(element).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 384) == (scheme == "light")
    window = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= window
    assert page.locator('[data-testid="stMain"]').evaluate("element => element.scrollWidth") <= window
    cut = page.locator('[data-testid="stMain"] :is(img, button, p, h1, h3, input)').evaluate_all(
        "(all, width) => all.filter(one => one.offsetParent && one.getBoundingClientRect().right > width + 1)"
        ".map(one => one.outerHTML.slice(0, 90))",
        window,
    )
    assert cut == []
    silent = page.locator("img:not([alt]), img[alt='']")
    assert silent.evaluate_all("all => all.map(one => one.outerHTML.slice(0, 90))") == []
    assert page.locator("img").count() > 15 + (12 if width == "wide" else 0)
    method = page.locator(".st-key-method input")
    if width == "wide":
        expect(method).to_be_in_viewport()
    else:
        expect(method).not_to_be_in_viewport()
        photograph = page.locator('[data-testid="stMain"] img').first
        assert photograph.bounding_box()["y"] < NARROW["height"] / 2
    screenshot(page, f"{width}-{scheme}")
    screenshot(page, f"{width}-{scheme}-whole", whole=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["blur_ig", "kernel_shap"])
def test_a_formula_is_whole_on_a_phone(server: Server, open_page: Open, method: str) -> None:
    page = open_page(f"{server.url}/?method={method}", viewport=NARROW, color_scheme="dark")
    page.get_by_test_id("stExpandSidebarButton").click()
    card = page.get_by_role("button", name="About this method")
    quiet = card.evaluate("card => getComputedStyle(card).color")
    card.click()
    formula = page.locator('[data-testid="stPopoverBody"] .katex').first
    expect(formula).to_be_visible()
    # Every box around it up to the card's own, which scrolls, holds all of it.
    cut = formula.evaluate("""formula => {
        const parts = [...formula.querySelectorAll(".katex-html *")].map(part => part.getBoundingClientRect());
        const found = [];
        for (let box = formula; !box.matches('[data-testid="stPopoverBody"]'); box = box.parentElement) {
            const { overflowX, overflowY } = getComputedStyle(box);
            if (overflowX !== "visible" && box.scrollWidth > box.clientWidth) found.push("sideways");
            if (overflowY !== "visible" && box.scrollHeight > box.clientHeight) found.push("up and down");
        }
        const card = formula.closest('[data-testid="stPopoverBody"]').getBoundingClientRect();
        if (parts.some(part => part.right > card.right || part.left < card.left)) found.push("beyond the card");
        return found;
    }""")
    assert cut == []
    # An opened card's label is as easy to read as before.
    assert card.evaluate("card => getComputedStyle(card).color") == quiet
