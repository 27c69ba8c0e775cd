"""Fashion-MNIST from a folder: the right files, damaged ones, others."""

import gzip
import hashlib
from pathlib import Path

import pytest
import torch

from salviz import datasets
from salviz.datasets import DEBIAN, FASHION, fashion_mnist
from salviz.errors import DataError


def write(folder: Path, name: str, content: bytes) -> str:
    with gzip.open(folder / f"{name}.gz", "wb") as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny set in the published format, whose digests count as the published ones."""
    pixels = bytes(range(256)) * 10
    images = bytes(16) + pixels[: 3 * 784]
    digests = {
        "t10k-images-idx3-ubyte": write(tmp_path, "t10k-images-idx3-ubyte", images),
        "t10k-labels-idx1-ubyte": write(tmp_path, "t10k-labels-idx1-ubyte", bytes(8) + bytes([9, 0, 3])),
    }
    monkeypatch.setattr(datasets, "_SHA256", {**datasets._SHA256, **digests})
    return tmp_path


def test_pixels_and_labels_stand_in_the_order_of_the_file(folder: Path) -> None:
    found = fashion_mnist("test", folder=folder)
    assert found.images.shape == (3, 28, 28)
    assert found.images.dtype == torch.uint8
    assert found.images[0, 0, :4].tolist() == [0, 1, 2, 3]
    assert found.images[1, 0, 0] == 784 % 256
    assert found.labels.tolist() == [9, 0, 3]
    assert [found.names[label] for label in found.labels] == ["Ankle boot", "T-shirt", "Dress"]
    part = found.part(torch.tensor([2, 0]))
    assert part.labels.tolist() == [3, 9]
    assert torch.equal(part.images[1], found.images[0])


def test_other_missing_and_damaged_files_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"train-images.* is missing"):
        fashion_mnist("train", folder=folder)
    with pytest.raises(DataError, match="not 'validation'"):
        fashion_mnist("validation", folder=folder)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="damaged"):
        fashion_mnist("test", folder=folder)
    write(folder, "t10k-labels-idx1-ubyte", bytes(8) + bytes([1, 0, 3]))
    with pytest.raises(DataError, match="not Fashion-MNIST's"):
        fashion_mnist("test", folder=folder)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_package_holds_the_published_files() -> None:
    train, test = fashion_mnist("train"), fashion_mnist("test")
    assert train.labels.bincount().tolist() == [6000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.names == FASHION
