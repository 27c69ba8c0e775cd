"""Pages run by Streamlit's own test harness, mostly on tiny classifiers with random weights."""

import base64
import copy
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from salviz.classifiers.randomising import Randomisation, randomised
from salviz.ui import follow, session, state
from tests.models import timm_model

ROOT = Path(__file__).parents[2]
TIMEOUT = 120

Visit = Callable[..., AppTest]


def pixels(uri: str) -> np.ndarray:
    """What a data URI shows."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=float)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder of weights: a tiny convolutional and a tiny attention network."""
    folder = tmp_path_factory.mktemp("models")
    labels = json.dumps([f"thing {index}" for index in range(1000)])
    for name, title in (("test_resnet", "Tiny"), ("test_vit", "Tiny ViT")):
        weights = {key: value.contiguous() for key, value in timm_model(name).module.state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors", metadata={"title": title, "labels": labels})
    original = timm_model("test_resnet")
    original = replace(original, rebuild=lambda: copy.deepcopy(original.module))
    other = next(iter(randomised(original, Randomisation("full", "permute")))).module.state_dict()
    weights = {key: value.contiguous() for key, value in other.items()}
    save_file(weights, folder / "test_twin.safetensors", metadata={"title": "Tiny, other labels", "labels": labels})
    return folder


@pytest.fixture(scope="session")
def tiny(model_folder: Path) -> str:
    return f"{model_folder / 'test_resnet.safetensors'}@timm:test_resnet"


@pytest.fixture(scope="session")
def tiny_vit(model_folder: Path) -> str:
    return f"{model_folder / 'test_vit.safetensors'}@timm:test_vit"


@pytest.fixture(scope="session")
def tiny_twin(model_folder: Path) -> str:
    return f"{model_folder / 'test_twin.safetensors'}@timm:test_resnet"


@pytest.fixture(scope="session", autouse=True)
def _components() -> Iterator[None]:
    """Streamlit looks through all installed packages for components anew for every `AppTest`; once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", cache(manifest_scanner.scan_component_manifests))
        yield


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> Iterator[None]:
    """A warm server without remembered results, whose pages wait for what they ask for."""
    assert session.wait_until_warm(TIMEOUT)
    monkeypatch.setenv("SALVIZ_MODEL_DIR", str(model_folder))
    # The address changes here as it does when a person presses Back.
    monkeypatch.setattr(state, "went_back", lambda: True)
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", float(TIMEOUT))
    yield
    session.runner.clear()
    session.rows.clear()


@pytest.fixture
def visit(tiny: str) -> Visit:
    """Open the app as a link does, with the tiny classifier unless the link names another."""

    def open_link(**fields: Any) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=TIMEOUT)
        for key, value in {"model": tiny, **fields}.items():
            if value is not None:
                app.query_params[key] = value
        return app.run()

    return open_link
