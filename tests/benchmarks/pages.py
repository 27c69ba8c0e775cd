"""How long a visitor waits for the Explore page, beside a page of Streamlit's that does nothing.

`python -m tests.benchmarks.pages` starts the app and a page of one line, opens both in Chromium by turns, and prints a
Markdown table of medians. Everything shown has been computed before, but on a new
server. "Map" is the moment the map over the photograph can be seen. The server's part of it is what passes between the
browser's first question and the answer that carries the map, on two cores that the browser uses as well.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.conftest import WIDE, Server, launched, start_server
from tests.e2e.test_explore import settled
from tests.readme import put_into

BARE = 'import streamlit as st\nst.title("Bare")\n'


def _map(page: Any) -> Any:
    return page.get_by_role("img", name="over the photograph")


def _title(page: Any) -> Any:
    return page.get_by_role("heading", level=1)


def _starting(page: Any) -> Any:
    return page.get_by_text("loading PyTorch")


def _answers(page: Any) -> list[float]:
    """Seconds between the first question of the page's next visit and answers that hold the map, as they come."""
    found: list[float] = []

    def listen(socket: Any) -> None:
        asked: list[float] = []
        socket.on("framesent", lambda frame: asked.append(time.perf_counter()))

        def received(frame: Any) -> None:
            content = frame if isinstance(frame, bytes) else frame.encode()
            if b"over the photograph" in content and asked:
                found.append(time.perf_counter() - asked[0])

        socket.on("framereceived", received)

    page.on("websocket", listen)
    return found


def measured(repeat: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of every wait, by name."""
    seconds: dict[str, list[float]] = defaultdict(list)
    bare = folder / "bare.py"
    bare.write_text(BARE, encoding="utf-8")

    def visit(name: str, page: Any, url: str, *seen: tuple[str, Callable[[Any], Any]]) -> None:
        started = time.perf_counter()
        page.goto(url)
        for what, find in seen:
            find(page).first.wait_for(timeout=180_000)
            seconds[f"{name}: {what}"].append(time.perf_counter() - started)

    def picks(browser: Any) -> None:
        """Between two methods whose maps are there already."""
        context = browser.new_context(viewport=WIDE)
        page = context.new_page()
        page.goto(servers[0].url)
        _map(page).first.wait_for()
        for name in ("Gradient", "Grad-CAM") * (1 + repeat // 2):
            settled(page)
            before = _map(page).get_attribute("src")
            page.locator(".st-key-method input").click()
            page.locator(".st-key-method input").fill(name)
            page.get_by_role("option", name=name, exact=True).wait_for()
            started = time.perf_counter()
            page.keyboard.press("Enter")
            page.wait_for_function(
                """before => [...document.images].some(image =>
                    image.alt.includes("over the photograph") && image.complete && image.src !== before)""",
                arg=before,
                polling="raf",
            )
            seconds["Salviz, another method picked: map"].append(time.perf_counter() - started)
        context.close()
        del seconds["Salviz, another method picked: map"][:2]

    def both(browser: Any, name: str, server: Server, seen: tuple[str, Callable[[Any], Any]]) -> None:
        context = browser.new_context(viewport=WIDE)
        page = context.new_page()
        visit(f"{name}, new browser", page, server.url, seen)
        answers = _answers(page)
        visit(f"{name}, known browser", page, server.url, seen)
        seconds[f"{name}, known browser: the server's part"] += answers[:1]
        context.close()

    with launched() as browser:
        for turn in range(max(1, repeat // 3)):
            server = start_server(folder / f"cold{turn}.log")
            context = browser.new_context(viewport=WIDE)
            visit("Salviz, new server", context.new_page(), server.url, ("its frame", _starting), ("map", _map))
            context.close()
            server.stop()
        servers = start_server(folder / "app.log"), start_server(folder / "bare.log", script=bare)
        visit("", browser.new_page(), servers[0].url, ("", _map))
        seconds.pop(": ")
        for _ in range(repeat):
            both(browser, "Salviz", servers[0], ("map", _map))
            both(browser, "One line of Streamlit", servers[1], ("title", _title))
        picks(browser)
        for server in servers:
            server.stop()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9, help="visits of each kind (default: %(default)s)")
    parser.add_argument("--markdown-into", type=Path, metavar="FILE", help="put the table between the file's marks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measured(options.repeat, Path(folder))
    rows = [
        f"| {name} | {statistics.median(times):.2f} s | {min(times):.2f} to {max(times):.2f} s |"
        for name, times in seconds.items()
        if times
    ]
    text = "\n".join(
        ["| seen in Chromium | median | range |", "|---|---|---|", *rows, "", f"Medians of {options.repeat} visits."]
    )
    print(text)
    if options.markdown_into:
        put_into(options.markdown_into, "benchmark:pages", text)


if __name__ == "__main__":
    main()
