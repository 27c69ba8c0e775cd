"""Fashion-MNIST from a folder: the right files, damaged ones, others."""

import gzip
import hashlib
from pathlib import Path

import pytest
import torch

from salviz.datasets import arrays
from salviz.datasets.arrays import DEBIAN, fashion_mnist, fashion_sample
from salviz.errors import DataError, ImageError
from salviz.images import open_source
from salviz.images.fashion import FASHION


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
    monkeypatch.setattr(arrays, "_SHA256", {**arrays._SHA256, **digests})
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


def test_the_sample_comes_with_salviz() -> None:
    found = fashion_sample()
    assert found.images.shape == (1000, 28, 28)
    assert found.names == FASHION
    # The published test set begins with an ankle boot, a pullover and two trousers.
    assert found.labels[:4].tolist() == [9, 2, 1, 1]
    assert found.labels.bincount().tolist() == [107, 105, 111, 93, 115, 87, 97, 95, 95, 95]


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_sample_is_the_beginning_of_the_test_set() -> None:
    whole, found = fashion_mnist("test"), fashion_sample()
    assert torch.equal(found.images, whole.images[:1000])
    assert torch.equal(found.labels, whole.labels[:1000])


def test_pictures_of_the_sample_open_by_their_place() -> None:
    picture = open_source("fashion:1")
    assert picture.name == "Pullover 1"
    assert picture.source == "fashion:1"
    assert picture.shareable
    assert (torch.from_numpy(picture.pixels().copy())[..., 0] == fashion_sample().images[1]).all()
    with pytest.raises(ImageError, match="from 0 to 999; there is no 1000"):
        open_source("fashion:1000")
    for nothing in ("fashion:first", "fashion:-1", "fashion:" + "9" * 5000):
        with pytest.raises(ImageError, match="does not say which picture"):
            open_source(nothing)
