"""DINO's two published files, put together: from a local hub cache and a local HTTP server."""

import gc
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from salviz.classifiers import dino, downloads
from salviz.classifiers.layers import target_layer
from salviz.classifiers.loading import load, untrained
from salviz.classifiers.registry import is_available_offline
from salviz.errors import ClassifierError

# torch.hub.download_url_to_file leaves its connection to the garbage collector, which warns of it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files as their publishers lay them out, with random numbers in them."""
    folder = tmp_path_factory.mktemp("published")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        backbone = timm.create_model("vit_base_patch16_224.dino", pretrained=False)
        linear = nn.Linear(2 * 768, 1000)
    save_file(backbone.state_dict(), folder / "model.safetensors")
    state = {f"module.linear.{name}": tensor for name, tensor in linear.state_dict().items()}
    torch.save({"epoch": 100, "state_dict": state, "best_acc": 78.2}, folder / "dino_vitbase16_linearweights.pth")
    return folder


@pytest.fixture
def site(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site that serves the head, a hub cache that holds the backbone, an empty torch cache."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for file in published.iterdir():
        (tmp_path / file.name).symlink_to(file)
    url = f"http://127.0.0.1:{server.server_port}/dino_vitbase16_linearweights.pth"
    monkeypatch.setattr(dino, "DINO_HEAD", url)
    monkeypatch.setattr(dino, "fetch_from_hub", lambda repository, names: tuple(tmp_path / name for name in names))
    monkeypatch.setattr(downloads, "_SECURE", ("http://127.0.0.1",))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield tmp_path
    server.shutdown()
    server.server_close()
    gc.collect()


@pytest.mark.slow
def test_logits_are_those_of_the_authors_evaluation(site: Path, published: Path) -> None:
    """The forward of DINO's `eval_linear` (n_last_blocks=1, avgpool), written out on timm's own backbone."""
    classifier = load("dino_vitb16", device="cpu", channels_last=False)
    backbone = timm.create_model("vit_base_patch16_224.dino", pretrained=False, checkpoint_path="").eval()
    from safetensors.torch import load_file

    backbone.load_state_dict(load_file(published / "model.safetensors"))
    head: dict[str, Any] = torch.load(published / "dino_vitbase16_linearweights.pth", weights_only=True)["state_dict"]
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = backbone.forward_features(x)
        output = tokens[:, 0].unsqueeze(-1)
        output = torch.cat([output, tokens[:, 1:].mean(dim=1).unsqueeze(-1)], dim=-1).reshape(2, -1)
        wanted = output @ head["module.linear.weight"].T + head["module.linear.bias"]
    torch.testing.assert_close(classifier.predict(x), wanted, rtol=1e-4, atol=1e-5)
    assert classifier.labels.short(0) == "tench"
    assert classifier.preprocessing.resize == 256
    layer = target_layer(classifier)
    assert (layer.name, layer.grid, layer.prefix) == ("blocks.11.norm1", (14, 14), 1)
    twin = untrained(classifier, seed=0)
    assert twin.digest != classifier.digest
    assert twin.predict(x).shape == (2, 1000)


@pytest.mark.slow
def test_a_second_load_needs_no_network(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("dino_vitb16", device="cpu")
    (site / "dino_vitbase16_linearweights.pth").unlink()
    assert load("dino_vitb16", device="cpu").digest == first.digest
    assert not is_available_offline("dino_vitb16")  # its backbone is in no hub cache here


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"no archive", "arrived damaged and was removed"),
        (None, "answered with error 404"),
    ],
)
def test_a_head_that_cannot_be_had(site: Path, content: bytes | None, part: str) -> None:
    file = site / "dino_vitbase16_linearweights.pth"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ClassifierError) as refusal:
        load("dino_vitb16", device="cpu")
    assert part in str(refusal.value)
    assert not list((site / "torch").rglob("*.pth"))


def test_a_head_that_would_run_code_is_refused(site: Path) -> None:
    file = site / "dino_vitbase16_linearweights.pth"
    file.unlink()
    torch.save({"state_dict": Path("somewhere")}, file)  # an object no tensor file holds
    with pytest.raises(ClassifierError, match="arrived damaged"):
        load("dino_vitb16", device="cpu")


def test_a_head_of_another_shape_is_refused(site: Path) -> None:
    file = site / "dino_vitbase16_linearweights.pth"
    file.unlink()
    torch.save({"state_dict": {f"module.linear.{k}": v for k, v in nn.Linear(768, 1000).state_dict().items()}}, file)
    with pytest.raises(ClassifierError, match="does not fit its architecture"):
        load("dino_vitb16", device="cpu")


def test_an_open_connection_is_refused() -> None:
    with pytest.raises(ClassifierError, match="over an open connection"):
        downloads.fetch_tensors("http://somewhere.example/head.pth", "net")
