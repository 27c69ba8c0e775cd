"""A server, a browser, and pages that watch themselves for errors while a test drives them."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCREENSHOTS = Path(__file__).parent / "screenshots"
WIDE = {"width": 1440, "height": 900}
NARROW = {"width": 390, "height": 844}
STARTING = 60

# Streamlit's page asks for both below the page's own address before it asks at the root.
_KNOWN_404 = re.compile(r"^http://[^/]+/[a-z]+/_stcore/(health|host-config)$")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.e2e)
    # The longest file first: the others run beside it, and nobody waits for it at the end.
    items.sort(key=lambda item: item.path != here / "test_explore.py")


def _missing(what: str) -> None:
    """No browser: a skip, but a failure where somebody counts on these tests."""
    if os.environ.get("SALVIZ_REQUIRE_E2E") == "1":
        pytest.fail(f"browser tests are required here, but there is no {what}")
    pytest.skip(f"no {what}")


@dataclass
class Server:
    """A running app and the file its log goes to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)


def start_server(log: Path, *, script: str | Path = "app.py", **environment: str) -> Server:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(port)]
    command += ["--server.address", "127.0.0.1", "--server.headless", "true", "--server.fileWatcherType", "none"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    until = time.monotonic() + STARTING
    while True:
        try:
            with urllib.request.urlopen(f"{server.url}/_stcore/health", timeout=5):  # noqa: S310 - own server
                return server
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > until:
                server.stop()
                pytest.fail(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
            # Nothing announces that a port is open.
            time.sleep(0.05)


_NORMAL = (
    "Uvicorn server started on",
    "You can now view your Streamlit app in your browser.",
    "URL: http://127.0.0.1:",
    "Stopping...",
    # A poll of progress that was on its way while the page was drawn without it; Streamlit drops it, and says so in
    # one of two ways.
    "it might have been removed during a preceding full-app rerun.",
    "for example because a full app rerun happened that did not register the fragment.",
)

# Streamlit closes a socket that the browser is closing at the same moment, and the server tells of it; the visit is
# over by then.
_CLOSED_TWICE = re.compile(
    r"^Exception in ASGI application\n"
    r"(?:Traceback .*\n|  .*\n|\n|During handling .*\n|[\w.]*WebSocketDisconnected.*\n)*"
    r"starlette\.websockets\.WebSocketDisconnected: Cannot call \"send\" once a close message has been sent\.$",
    re.MULTILINE,
)


def unexpected_lines(server: Server) -> list[str]:
    """Lines of the server's log that an app in order does not write."""
    lines = _CLOSED_TWICE.sub("", server.log.read_text(encoding="utf-8")).splitlines()
    return [line for line in lines if line.strip() and not any(words in line for words in _NORMAL)]


@contextmanager
def launched() -> Iterator[Any]:
    """A running Chromium; the test that needs it is skipped where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        _missing("chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with launched() as started:
        yield started


@pytest.fixture(scope="session")
def attention_network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Id of a tiny ViT with random weights, in the folder that the shared server offers."""
    from safetensors.torch import save_file

    from tests.models import timm_model

    path = tmp_path_factory.mktemp("models") / "test_vit.safetensors"
    weights = {key: value.contiguous() for key, value in timm_model("test_vit").module.state_dict().items()}
    save_file(weights, path, metadata={"title": "Tiny ViT"})
    return f"{path}@timm:test_vit"


@pytest.fixture(scope="session")
def server(browser: Any, attention_network: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server most tests share; warm, with the first map computed."""
    folder = str(Path(attention_network.partition("@")[0]).parent)
    runs = str(tmp_path_factory.mktemp("runs"))
    log = tmp_path_factory.mktemp("server") / "log.txt"
    started = start_server(log, SALVIZ_MODEL_DIR=folder, SALVIZ_RUNS_DIR=runs)
    try:
        page = browser.new_context(viewport=WIDE).new_page()
        page.goto(started.url)
        page.get_by_role("img", name="laid back: SSIM").first.wait_for(timeout=120_000)
        page.context.close()
        yield started
    finally:
        started.stop()
    assert unexpected_lines(started) == []


@pytest.fixture
def cold_server(browser: Any, tmp_path: Path) -> Iterator[Server]:
    """A server nobody has visited yet."""
    started = start_server(tmp_path / "log.txt")
    yield started
    started.stop()
    assert unexpected_lines(started) == []


@dataclass
class Watch:
    """What went wrong in the pages of a test."""

    errors: list[str] = field(default_factory=list)

    def over(self, page: Any) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not _KNOWN_404.match(message.location.get("url", "")):
            self.errors.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.errors.append(f"request to another host: {request.url}")


Open = Callable[..., Any]

# Without a graphics card a spinner that turns costs half a core, which the work it waits for would need.
_STILL = """addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = "*, *::before, *::after { animation: none !important; transition: none !important; }";
    document.head.append(style);
})"""


@dataclass
class Browsers:
    """Browsers that have been here before, one for each visitor of a test, by their settings.

    A new one fetches and compiles all of Streamlit's scripts, three seconds each time.
    """

    chromium: Any
    idle: dict[str, list[Any]] = field(default_factory=dict)

    def take(self, settings: dict[str, Any]) -> Any:
        known = self.idle.setdefault(repr(settings), [])
        if known:
            return known.pop()
        context = self.chromium.new_context(reduced_motion="reduce", **settings)
        context.add_init_script(_STILL)
        # A click must reach its place within seconds even on a busy machine.
        context.set_default_timeout(30_000)
        return context

    def give_back(self, settings: dict[str, Any], context: Any) -> None:
        """What a visitor left behind goes; what the browser has cached stays."""
        for page in context.pages:
            page.evaluate("localStorage.clear(), sessionStorage.clear()")
            page.close()
        context.clear_cookies()
        self.idle[repr(settings)].append(context)


@pytest.fixture(scope="session")
def browsers(browser: Any) -> Browsers:
    return Browsers(browser)


@pytest.fixture
def open_page(browsers: Browsers) -> Iterator[Open]:
    """Open an address in a browser of its own; at the end nothing may have gone wrong in any of them."""
    watch = Watch()
    with ExitStack() as visitors:

        def open_at(url: str, *, viewport: dict[str, int] | None = None, **options: Any) -> Any:
            settings = {"viewport": viewport or WIDE, **options}
            context = browsers.take(settings)
            visitors.callback(browsers.give_back, settings, context)
            page = context.new_page()
            watch.over(page)
            page.goto(url)
            return page

        yield open_at
    assert watch.errors == []
