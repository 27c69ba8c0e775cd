import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from salviz.classifiers import dino, downloads
from salviz.classifiers.hub import draft_folder, timm_names
from salviz.classifiers.loading import load
from salviz.classifiers.registry import CARDS, DINO
from salviz.errors import ClassifierError
from tests.serving import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model as timm itself saves it for a hub."""
    folder = tmp_path_factory.mktemp("saved")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model("test_vit", pretrained=False, num_classes=3)
    config = {"label_names": ["ant", "bee", "cat"]}
    save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
    return folder


def changed(saved: Path, folder: Path, **config: Any) -> Path:
    shutil.copytree(saved, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_a_folder_in_timms_format(saved: Path) -> None:
    draft = draft_folder(saved, id="hf-hub:me/mine", name="me/mine")
    state = load_file(saved / "model.safetensors")
    assert all(torch.equal(tensor, state[key]) for key, tensor in draft.module.state_dict().items())
    assert draft.labels.names == ("ant", "bee", "cat")
    assert draft.preprocessing.input_size == (160, 160)
    assert draft.architecture == "timm:test_vit"
    twin = draft.rebuild().state_dict()
    assert twin["head.weight"].shape == (3, 64)
    assert not torch.equal(twin["head.weight"], state["head.weight"])


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"architecture": "no_such_net"}, "no architecture 'no_such_net'"),
        ({"architecture": None}, "not in timm's format"),
        ({"num_classes": 0, "model_args": {}}, "not an image classifier"),
        ({"num_classes": 4, "model_args": {}}, "does not fit its architecture"),
        ({"architecture": "test_resnet", "model_args": {}}, "does not fit its architecture"),
        ({"model_args": {"pretrained_strict": False}}, "not in timm's format"),
        ({"model_args": {"no_such_option": 1}}, "do not fit the architecture"),
    ],
)
def test_a_folder_that_does_not_fit_together(saved: Path, tmp_path: Path, config: dict[str, Any], part: str) -> None:
    folder = changed(saved, tmp_path / "changed", **config)
    with pytest.raises(ClassifierError) as refusal:
        draft_folder(folder, id="hf-hub:me/mine", name="me/mine")
    assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_cap_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SALVIZ_MAX_MODEL_MB", raising=False)
    assert downloads.size_cap() == 2000
    monkeypatch.setenv("SALVIZ_MAX_MODEL_MB", "50")
    with pytest.raises(ClassifierError, match="has 98 MB of weights and the limit is 50 MB"):
        load("torchvision:resnet50")
    monkeypatch.setenv("SALVIZ_MAX_MODEL_MB", "much")
    with pytest.raises(ClassifierError, match="number of megabytes"):
        downloads.size_cap()


@pytest.mark.parametrize("url", ["https://host/net.pth", "http://host/net-0123abcd.pth"])
def test_a_pickle_without_a_published_hash_is_refused(url: str) -> None:
    with pytest.raises(ClassifierError, match="pickle without a published hash"):
        downloads.fetch_official(url, "net")


def test_names_are_found_as_people_type_them() -> None:
    every = timm_names()
    assert every == timm.list_models(pretrained=True)
    assert timm_names("resnet50")[0].partition(".")[0] == "resnet50"
    assert timm_names("resnet50")[:2] == ["resnet50.a1_in1k", "resnet50.a1h_in1k"]
    assert timm_names("ResNet-50")[0] == "resnet50.a1_in1k"
    assert timm_names("vit base patch16 dino")[0].startswith("vit_base_patch16")
    assert timm_names("tiny convnext")[0].startswith("convnext_tiny")
    assert timm_names("convnxt_tiny")[0].startswith("convnext_tiny")
    assert timm_names("zzzzzzzz") == []
    assert "vit_base_patch16_224.dino" in every
    classifiers = timm_names(classifiers_only=True)
    assert "vit_base_patch16_224.dino" not in classifiers
    assert set(classifiers) < set(every)


def test_every_suggestion_from_timm_exists_and_is_a_classifier() -> None:
    classifiers = set(timm_names(classifiers_only=True))
    suggested = [card.id.removeprefix("timm:") for card in CARDS if card.id.startswith("timm:")]
    assert len(suggested) >= 5
    assert set(suggested) <= classifiers


def test_the_sizes_on_the_cards_are_the_parameters_of_the_models() -> None:
    for card in CARDS:
        if card.source == "hub":
            with torch.device("meta"):
                name = card.id.removeprefix("timm:")
                model = dino.build() if card.id == DINO else timm.create_model(name, pretrained=False)
            bytes_ = sum(4 * parameter.numel() for parameter in model.parameters())
            assert card.megabytes == pytest.approx(bytes_ / 1e6, abs=1)


# --- a hub of our own -------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub needs of a hub: `resolve` with its headers, and its error codes."""

    root: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        self.requests.append(self.path)
        repository, _, file = self.path.strip("/").partition("/resolve/main/")
        folder = self.root / repository
        if "gated" in repository:
            self._refuse(403, "GatedRepo")
        elif "private" in repository:
            self._refuse(401, "RepoNotFound")
        elif "broken" in repository:
            self._refuse(500, "")
        elif not folder.is_dir():
            self._refuse(404, "RepoNotFound")
        elif not (folder / file).is_file():
            self._refuse(404, "EntryNotFound")
        else:
            body = (folder / file).read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{repository.replace("/", "-")}-{file}"')
            self.send_header("Content-Length", str(3_000_000_000 if "huge" in repository else len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(saved: Path, tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    root = tmp_path / "hub"
    for name in ("me/good", "me/pickle", "me/huge", "me/cut", "me/foreign", "me/gated", "me/private"):
        shutil.copytree(saved, root / name)
    (root / "me/pickle/model.safetensors").rename(root / "me/pickle/pytorch_model.bin")
    weights = root / "me/cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (root / "me/foreign/config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = timm.create_model("test_resnet", pretrained=False)
    (root / "timm/test_resnet.r160_in1k").mkdir(parents=True)
    save_file(model.state_dict(), root / "timm/test_resnet.r160_in1k/model.safetensors")
    handler = type("OurHub", (Hub,), {"root": root, "requests": []})
    with serving(handler) as address:
        yield address, handler


SCRIPT = """
import json, sys
from salviz.classifiers import is_available_offline
from salviz.classifiers.loading import load
from salviz.errors import ClassifierError
answers = {}
for id in sys.argv[1:]:
    try:
        classifier = load(id, device="cpu")
        answers[id] = [classifier.digest, len(classifier.labels), classifier.labels.short(0),
                       is_available_offline(id)]
    except ClassifierError as error:
        answers[id] = str(error)
print(json.dumps(answers))
"""


def ask(home: Path, endpoint: str, *ids: str, offline: bool = False) -> dict[str, Any]:
    """What a fresh process makes of ids, with its own cache and hub."""
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE", "SALVIZ_MAX_MODEL_MB"):
        environment.pop(name, None)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        environment.pop(name, None)
        environment.pop(name.upper(), None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *ids],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.mark.slow
def test_a_hub_that_answers_and_one_that_does_not(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, handler = hub
    home = tmp_path / "home"
    good, timm_id = "hf-hub:me/good", "timm:test_resnet.r160_in1k"
    same_id = f"hf-hub:{timm_id.replace(':', '/')}"
    refusals = {
        "hf-hub:me/gated": "is gated; accept its terms",
        "hf-hub:me/private": "does not exist on the hub or is private",
        "hf-hub:me/unknown": "does not exist on the hub or is private",
        "hf-hub:me/pickle": "has no model.safetensors, and other weight formats can run code",
        "hf-hub:me/huge": "has 3000 MB of weights and the limit is 2000 MB",
        "hf-hub:me/cut": "arrived damaged and were removed from the cache",
        "hf-hub:me/foreign": "not in timm's format",
        "hf-hub:me/broken": "answered the request for me/broken with error 500",
        "timm:test_vit.r160_in1k": "does not exist on the hub",
    }
    answers = ask(home, endpoint, good, timm_id, same_id, *refusals)
    assert answers[good][1:] == [3, "ant", True]
    assert answers[timm_id][1:] == [1000, "tench", True]
    assert answers[same_id] == answers[timm_id]
    for id, part in refusals.items():
        assert isinstance(answers[id], str), id
        assert part in answers[id]
        assert "\n" not in answers[id]
        assert answers[id].endswith(".")
    asked = "\n".join(handler.requests)
    assert "pytorch_model.bin" not in asked
    assert ".py" not in asked
    assert asked.count("me/huge") == 1, "the size is known from one request; nothing of it is fetched"

    handler.requests.clear()
    dead = "http://127.0.0.1:9"  # nothing listens there
    later = ask(home, dead, good, timm_id, "hf-hub:me/other", "hf-hub:me/cut", "timm:test_vit.r160_in1k")
    assert later[good] == answers[good]
    assert later[timm_id] == answers[timm_id]
    assert "could not be fetched; check the network connection" in later["hf-hub:me/other"]
    assert "could not be fetched" in later["hf-hub:me/cut"], "the damaged file must not be used again"
    assert "could not be fetched" in later["timm:test_vit.r160_in1k"]

    offline = ask(home, endpoint, good, timm_id, "hf-hub:me/gated", "timm:test_vit.r160_in1k", offline=True)
    assert offline[good] == answers[good]
    assert offline[timm_id] == answers[timm_id]
    assert "offline mode is on" in offline["hf-hub:me/gated"]
    assert "offline mode is on" in offline["timm:test_vit.r160_in1k"]
    assert handler.requests == []
