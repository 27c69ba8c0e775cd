"""Sets of a hub that answers over HTTP, and torchvision's download from a mirror: a server of our own plays both."""

import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from salviz.errors import DataError
from tests.serving import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATE = "2026-01-01T00:00:00.000Z"


def pictures(count: int) -> list[bytes]:
    found = []
    for seed in range(count):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8)).save(file, "PNG")
        found.append(file.getvalue())
    return found


class Server(BaseHTTPRequestHandler):
    """What `datasets` asks of a hub: what there is at a commit, and the files; anything else is plain files."""

    files: dict[str, bytes]
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = json.loads(self.rfile.read(length) or b"{}") if length else {}
        paths = asked.get("paths", []) if isinstance(asked, dict) else []
        self._json([self._about(name) for name in paths if name in self.files])

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _about(self, name: str) -> dict[str, object]:
        content = self.files[name]
        oid = hashlib.sha1(content).hexdigest()  # noqa: S324 - as git names blobs
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def _answer(self, *, with_body: bool) -> None:
        self.requests.append(self.path)
        path = self.path.partition("?")[0]
        if "gated" in path:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "missing" in path:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/datasets/me/mine/tree/"):
            self._json([self._about(name) for name in self.files])
        elif path.startswith("/api/datasets/me/mine"):
            siblings = [{"rfilename": name} for name in self.files]
            self._json({
                "id": "me/mine", "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": [],
                "downloads": 0, "likes": 0, "lastModified": DATE, "createdAt": DATE, "siblings": siblings,
            })  # fmt: skip
        else:
            name = path.rpartition(f"/resolve/{COMMIT}/")[2] if "/resolve/" in path else path.lstrip("/")
            if name not in self.files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            content = self.files[name]
            tag = hashlib.sha256(content).hexdigest()
            span = self.headers.get("Range")
            more = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
            if span:
                first, _, last = span.removeprefix("bytes=").partition("-")
                stop = min(int(last) if last else len(content) - 1, len(content) - 1)
                more["Content-Range"] = f"bytes {first}-{stop}/{len(content)}"
                self._send(206, content[int(first) : stop + 1], more, with_body=with_body)
            else:
                self._send(200, content, more, with_body=with_body)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[tuple[str, type[Server]]]:
    handler = type("OurServer", (Server,), {"files": {}, "requests": []})
    with serving(handler) as address:
        yield address, handler


def run(home: Path, endpoint: str, data: str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A run of a process of its own, which knows no other hub."""
    environment = {
        **os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        environment.pop(name, None)
        environment.pop(name.upper(), None)
    command = [
        sys.executable, "-m", "salviz", "run", "--data", data, "--models", "fashion_cnn", "--methods", "edge",
        "--set", "cose.augmentations=blur", "--set", "cose.changes=none", "--out", str(out), *more,
    ]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_sets_of_a_hub_are_downloaded_streamed_and_refused(server: tuple[str, type[Server]], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    endpoint, hub = server
    stored = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": content, "path": None} for content in pictures(6)],
            "label": [seed % 3 for seed in range(6)],
        },
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["Trouser", "Coat", "Bag"])}
        ),
    )
    file = tmp_path / "test-00000-of-00001.parquet"
    stored.to_parquet(str(file))
    hub.files[file.name] = file.read_bytes()
    home = tmp_path / "home"
    done = run(home, endpoint, "hf:me/mine?split=test", tmp_path / "whole")
    assert done.returncode == 0, done.stderr + "\n".join(hub.requests)
    assert any(f"/resolve/{COMMIT}/test-" in path for path in hub.requests)
    rows = [row for path in (tmp_path / "whole" / "scores").iterdir() for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 6
    assert {row["error"] for row in rows} == {None}
    # Trouser is class 1 of the model, Coat 4, Bag 8.
    assert sorted(row["label"] for row in rows) == [1, 1, 4, 4, 8, 8]
    # The revision is the commit that the hub named.
    assert COMMIT in (tmp_path / "whole" / "run.json").read_text()
    done = run(tmp_path / "other", endpoint, "hf:me/mine?split=test&stream=4", tmp_path / "stream")
    assert done.returncode == 0, done.stderr
    assert len(list(pq.read_table(next((tmp_path / "stream" / "scores").iterdir())).to_pylist())) == 4
    for name, sentence in (("me/gated", "gated"), ("me/missing", "hub")):
        done = run(tmp_path / "other", endpoint, f"hf:{name}?split=test", tmp_path / name)
        assert done.returncode != 0
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_torchvision_downloads_what_is_asked_for(
    server: tuple[str, type[Server]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import FashionMNIST

    from salviz.datasets import open_set

    address, mirror = server
    images = np.random.default_rng(0).integers(0, 255, (5, 28, 28), dtype=np.uint8)
    labels = np.array([9, 0, 3, 3, 8], dtype=np.uint8)
    resources = []
    for kind in ("train", "t10k"):
        for what, content in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{content.ndim}I", 0, 8, content.ndim, *content.shape)
            packed = gzip.compress(head + content.tobytes())
            mirror.files[f"{kind}-{what}-ubyte.gz"] = packed
            resources.append((f"{kind}-{what}-ubyte.gz", hashlib.md5(packed).hexdigest()))  # noqa: S324 - torchvision's
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"{address}/"])
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    name = f"torchvision:FashionMNIST@{tmp_path / 'data'}?train=false"
    with pytest.raises(DataError):
        open_set(name)
    assert mirror.requests == []
    found = open_set(f"{name}&download=true")
    assert len(set(mirror.requests)) == 4
    asked = len(mirror.requests)
    assert len(found) == 5
    assert np.array_equal(np.asarray(found.open(2).image.convert("L")), images[2])
    assert found.entries[0].label == "Ankle boot"
    # Once it is there nothing is asked for.
    assert len(open_set(name)) == 5
    assert len(mirror.requests) == asked
