"""Pages run by Streamlit's own test harness, mostly on a tiny classifier with random weights."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest

from salviz.ui import follow, session
from tests.models import timm_model

ROOT = Path(__file__).parents[2]
TIMEOUT = 120

Visit = Callable[..., AppTest]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder of weights with a tiny convolutional and a tiny attention network."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("test_resnet", "test_vit"):
        weights = {key: value.contiguous() for key, value in timm_model(name).module.state_dict().items()}
        labels = json.dumps([f"thing {index}" for index in range(1000)])
        save_file(weights, folder / f"{name}.safetensors", metadata={"title": name, "labels": labels})
    return folder


@pytest.fixture(scope="session")
def tiny(model_folder: Path) -> str:
    return f"{model_folder / 'test_resnet.safetensors'}@timm:test_resnet"


@pytest.fixture(scope="session")
def tiny_vit(model_folder: Path) -> str:
    return f"{model_folder / 'test_vit.safetensors'}@timm:test_vit"


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> Iterator[None]:
    """A warm server without remembered results, whose pages wait for what they ask for."""
    assert session.wait_until_warm(TIMEOUT)
    monkeypatch.setenv("SALVIZ_MODEL_DIR", str(model_folder))
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", float(TIMEOUT))
    yield
    session.runner.clear()


@pytest.fixture
def visit(tiny: str) -> Visit:
    """Open the app as a link does; by default with the tiny classifier."""

    def open_link(*, model: str | None = tiny, run: bool = True, **fields: str) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=TIMEOUT)
        for key, value in ({"model": model} if model else {} | fields).items():
            app.query_params[key] = value
        for key, value in fields.items():
            app.query_params[key.replace("__", ".")] = value
        return app.run() if run else app

    return open_link


@pytest.fixture
def loaded(tiny: str) -> Any:
    return session.classifiers().get(tiny)
