"""Sets of torchvision: pixels and classes are those that were written in each class's own format."""

import hashlib
import io
import pickle
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

from salviz.datasets import PictureSet, open_set, sample
from salviz.datasets.foreign import named, with_options
from salviz.datasets.torchvisions import TorchvisionSet
from salviz.errors import DataError, ImageError
from salviz.runs import table
from tests.runs.conftest import done, spec

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def write(path: Path, pixels: NDArray[np.uint8], **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return path


def seen(pictures: PictureSet, place: int) -> NDArray[np.uint8]:
    return np.asarray(pictures.open(place).pixels())


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(pixels[..., None], 3, axis=-1)


def fashion(root: Path, count: int = 30, part: str = "t10k") -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Files of Fashion-MNIST's format for both parts, and what is in one."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    found = {}
    for seed, name in enumerate(("train", "t10k")):
        pixels, labels = noise(seed, count, 28, 28), (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
        found[name] = (pixels, labels)
    return found[part]


def test_mnist_files(tmp_path: Path) -> None:
    pixels, labels = fashion(tmp_path)
    found = open_set(f"torchvision:FashionMNIST@{tmp_path}?train=false")
    assert [entry.label for entry in found.entries] == [FASHION[label] for label in labels]
    assert [entry.name for entry in found.entries] == [f"FashionMNIST/{place}" for place in range(30)]
    for place in (0, 7, 29):
        assert np.array_equal(seen(found, place), grey(pixels[place]))
    assert len({found.fingerprint(place) for place in range(30)}) == 30
    train = open_set(f"torchvision:FashionMNIST@{tmp_path}")
    assert not np.array_equal(seen(train, 0), seen(found, 0))
    # The name opens it again.
    assert found.id == f"torchvision:FashionMNIST@{tmp_path}?train=false"
    again = open_set(found.id)
    assert again.entries == found.entries
    assert again.fingerprint(3) == found.fingerprint(3)
    numbered = open_set(f"torchvision:FashionMNIST@{tmp_path}?train=false&labels=numbers")
    assert [entry.label for entry in numbered.entries] == labels.tolist()
    assert open_set(numbered.id).entries == numbered.entries
    chosen = sample(found.entries, 10, is_stratified=True)
    assert {found.entries[place].label for place in chosen} == set(FASHION)
    assert {labels[place] for place in sample(found.entries, classes=["Coat"])} == {4}


def test_cifar_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = torchvision.datasets.CIFAR10
    folder = tmp_path / made.base_folder
    folder.mkdir()
    pixels, labels = noise(1, 5, 3, 32, 32), [3, 1, 2, 0, 1]

    def stored(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()  # noqa: S324 - as torchvision checks

    monkeypatch.setattr(made, "train_list", [])
    digest = stored("test_batch", {"data": pixels.reshape(5, -1), "labels": labels})
    monkeypatch.setattr(made, "test_list", [["test_batch", digest]])
    names = ["airplane", "automobile", "bird", "cat"]
    digest = stored("batches.meta", {"label_names": names})
    monkeypatch.setattr(made, "meta", {"filename": "batches.meta", "key": "label_names", "md5": digest})
    found = open_set(f"torchvision:CIFAR10@{tmp_path}?train=false")
    assert [entry.label for entry in found.entries] == ["cat", "automobile", "bird", "airplane", "automobile"]
    assert np.array_equal(seen(found, 2), np.moveaxis(pixels[2], 0, -1))
    # Pickles are only opened where they are the published ones.
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    with pytest.raises(DataError, match=r"does not find CIFAR10 whole in .*, or add download=true\.$"):
        open_set(f"torchvision:CIFAR10@{tmp_path}?train=false")


def test_an_image_folder_is_the_set_that_the_folder_is(tmp_path: Path) -> None:
    for place, name in enumerate(("7/a.png", "7/b.png", "n01440764/c.png", "Tiger cat/d.png")):
        write(tmp_path / name, noise(place, 20, 24, 3))
    # Opaque and upright by the rules of all files, not by torchvision's.
    write(tmp_path / "7" / "clear.png", np.zeros((8, 8, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "7" / "turned.jpg", noise(9, 20, 30, 3), exif=exif)
    here, there = open_set(f"folder:{tmp_path}"), open_set(f"torchvision:ImageFolder@{tmp_path}")
    assert {one.name: one.label for one in here.entries} == {one.name: one.label for one in there.entries}
    places = {entry.name: place for place, entry in enumerate(here.entries)}
    for place, entry in enumerate(there.entries):
        expected = here.open(places[entry.name])
        assert there.open(place) == replace(expected, source="upload", shareable=False)
        assert there.fingerprint(place) == here.fingerprint(places[entry.name])
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda place: there.open(place).digest, list(range(6)) * 5))
    assert digests == [there.open(place).digest for place in range(6)] * 5


def test_sets_that_list_files_and_labels_apart(tmp_path: Path) -> None:
    """DTD has its files opened by us, pets by torchvision."""
    labels = tmp_path / "dtd" / "dtd" / "labels"
    labels.mkdir(parents=True)
    (labels / "val1.txt").write_text("striped/a.png\nbanded/b.png\n")
    images = [write(labels.parent / "images" / name, noise(3, 9, 9, 3)) for name in ("striped/a.png", "banded/b.png")]
    found = open_set(f"torchvision:DTD@{tmp_path}?split=val&partition=1")
    assert {one.name: one.label for one in found.entries} == {
        path.relative_to(tmp_path).as_posix(): path.parent.name for path in images
    }
    pets = tmp_path / "oxford-iiit-pet"
    (pets / "annotations").mkdir(parents=True)
    (pets / "annotations" / "test.txt").write_text("Maine_Coon_1 2 1 1\nbeagle_7 1 2 1\n")
    pixels = {name: noise(place, 12, 16, 3) for place, name in enumerate(("Maine_Coon_1", "beagle_7"))}
    for name in pixels:
        write(pets / "images" / f"{name}.jpg", pixels[name], format="PNG")
    found = open_set(f"torchvision:OxfordIIITPet@{tmp_path}?split=test")
    assert [entry.label for entry in found.entries] == ["Maine Coon", "Beagle"]
    assert np.array_equal(seen(found, 1), pixels["beagle_7"])
    assert [entry.name for entry in found.entries][1] == "oxford-iiit-pet/images/beagle_7.jpg"


def test_imagenet_goes_by_wordnet_ids(tmp_path: Path) -> None:
    names = {"n02123045": ("tabby", "tabby cat"), "n01440764": ("tench", "Tinca tinca")}
    torch.save((names, ["n01440764", "n02123045"]), tmp_path / "meta.bin")
    for seed, name in enumerate(names):
        write(tmp_path / "val" / name / f"ILSVRC2012_val_{seed}.JPEG", noise(seed, 9, 9, 3))
    found = open_set(f"torchvision:ImageNet@{tmp_path}?split=val")
    assert {entry.name: entry.label for entry in found.entries} == {
        "val/n02123045/ILSVRC2012_val_0.JPEG": "n02123045", "val/n01440764/ILSVRC2012_val_1.JPEG": "n01440764",
    }  # fmt: skip
    assert found.open(0).wordnet_id == found.entries[0].label
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train\.tar"):
        open_set(f"torchvision:ImageNet@{tmp_path}")


def made(monkeypatch: pytest.MonkeyPatch, item: Callable[[int], Any], **kept: Any) -> None:
    """A class of torchvision that gives these items."""

    class Made(torchvision.datasets.VisionDataset):
        def __init__(self, root: str, size: int = 4, word: str = "x", needed: bool = False) -> None:
            super().__init__(root)
            vars(self).update(kept)
            self.size = size

        def __len__(self) -> int:
            return self.size

        def __getitem__(self, place: int) -> Any:
            return item(place)

    monkeypatch.setattr(torchvision.datasets, "Made", Made, raising=False)
    monkeypatch.setattr(torchvision.datasets, "__all__", (*torchvision.datasets.__all__, "Made"))


def test_labels_that_are_kept_nowhere_are_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pixels = noise(2, 4, 3, 8, 9)

    def item(place: int) -> tuple[torch.Tensor, torch.Tensor]:
        read.append(place)
        if place == 3:
            raise OSError
        return torch.from_numpy(pixels[place]), torch.tensor(place % 2)

    made(monkeypatch, item)
    found = open_set("torchvision:Made@/")
    assert sorted(sample(found.entries, 4)) == [0, 1, 2, 3]
    # The first tells that it is a classification set.
    assert read == [0]
    assert sorted(sample(found.entries, classes=[1])) == [1]
    assert [entry.label for entry in found.entries] == [0, 1, 0, None]
    assert read == [0, 0, 1, 2, 3]
    assert np.array_equal(seen(found, 1), np.moveaxis(pixels[1], 0, -1))
    with pytest.raises(ImageError, match="Picture 3 of Made cannot be read"):
        found.open(3)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 255], [7, 8]], np.uint8), np.array([[0, 255], [7, 8]])),
        (torch.full((1, 2, 2), 9, dtype=torch.uint8), np.full((2, 2), 9)),
        (Image.new("LA", (2, 2), (0, 0)), np.full((2, 2), 255)),
        (Image.fromarray(np.array([[0, 65535], [256, 512]], np.uint16)), np.array([[0, 255], [1, 2]])),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 255)), np.zeros((2, 2))),
        (Image.fromarray(np.array([[0, 1], [0.2, 0.4]], np.float32)), np.array([[0, 255], [51, 102]])),
    ],
    ids=["array", "tensor", "transparent", "16 bits", "CMYK", "floats"],
)
def test_pictures_of_every_kind_are_read_as_files_are(
    monkeypatch: pytest.MonkeyPatch, pixels: Any, expected: NDArray[np.uint8]
) -> None:
    made(monkeypatch, lambda place: (pixels, 1), classes=["no", "yes"], targets=[1] * 4)
    found = open_set("torchvision:Made@/")
    assert found.entries[0].label == "yes"
    assert np.array_equal(seen(found, 0), grey(expected.astype(np.uint8)))
    assert found.open(0).image.mode == "RGB"
    assert found.fingerprint(0) == open_set("torchvision:Made@/").fingerprint(0)


def test_names_of_classes_as_sets_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (8, 8))

    def labels(number: int = 1, **kept: Any) -> list[int | str | None]:
        made(monkeypatch, lambda place: (picture, number), **{"targets": [number] * 4, **kept})
        return [entry.label for entry in open_set("torchvision:Made@/").entries]

    # ImageNet's ids go before its synonyms; EMNIST's digits are numbers; unlabelled pictures of STL10 have -1.
    assert set(labels(wnids=["n1", "n2"], classes=[("a", "b"), ("c",)])) == {"n2"}
    assert set(labels(classes=[("a", "b"), ("c", "d")])) == {"c"}
    assert set(labels(classes=["0", "1"])) == {1}
    assert set(labels(class_to_idx={"Ada": 1, "Bob": 0})) == {"Ada"}
    assert set(labels(classes=["0 - zero", "1 - one"])) == {1}
    assert set(labels(number=-1, classes=["a"])) == {None}
    assert set(labels(number=5)) == {5}
    # QMNIST keeps eight numbers each.
    assert labels(targets=torch.tensor([[1, 9], [2, 9], [3, 9], [4, 9]])) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CIFAR10", "Name a torchvision set as torchvision:CLASS@FOLDER"),
        ("CIFAR10@", "Name a torchvision set as"),
        ("Nothing@/", "has no image set 'Nothing'"),
        ("VisionDataset.x@/", "has no image set"),
        ("FakeData@/", "has no image set 'FakeData'"),
        ("CIFAR10@/nowhere", r"does not find CIFAR10 whole in /nowhere; .* or add download=true\.$"),
        ("ImageFolder@/nowhere", "does not find ImageFolder whole in /nowhere: .*No such file"),
        ("CIFAR10@/nowhere?split=test", "CIFAR10 has no option 'split'; it has download, train"),
        ("CIFAR10@/nowhere?train=1", "train is true or false, not '1'"),
        ("CIFAR10@/nowhere?labels=ids", "labels is names or numbers, not 'ids'"),
        ("CIFAR10@/nowhere?train", "are written"),
        ("CIFAR10@/nowhere?train=", "has no value"),
        ("CIFAR10@/nowhere?train=true&train=false", "given twice"),
        ("DTD@/nowhere?partition=one", "partition is a number, not 'one'"),
        ("SVHN@/nowhere?split=half", "SVHN does not take these options.*half"),
        ("EMNIST@/nowhere", "EMNIST needs the option split"),
        ("ImageFolder@/nowhere?loader=eval", "ImageFolder has no option 'loader'; it has allow_empty"),
        ("OxfordIIITPet@/nowhere?target_types=segmentation", "no option 'target_types'"),
    ],
)
def test_names_that_open_nothing(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_set(f"torchvision:{name}")


@pytest.mark.parametrize(
    "item",
    [
        (Image.new("RGB", (8, 8)), "a caption"),
        (Image.new("RGB", (8, 8)), torch.zeros(40)),
        (Image.new("RGB", (8, 8)), {"boxes": []}),
        (torch.zeros(3, 16, 8, 8, dtype=torch.uint8), 1),
        Image.new("RGB", (8, 8)),
    ],
    ids=["captions", "attributes", "boxes", "videos", "no classes"],
)
def test_sets_of_something_else(monkeypatch: pytest.MonkeyPatch, item: Any) -> None:
    made(monkeypatch, lambda place: item)
    with pytest.raises(DataError, match="Made is no set of pictures with one class each"):
        open_set("torchvision:Made@/")


def test_labels_that_are_not_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    made(monkeypatch, lambda place: (Image.new("RGB", (8, 8)), 2), targets=[1] * 4)
    with pytest.raises(DataError, match="cannot tell how Made keeps its classes"):
        open_set("torchvision:Made@/")


@pytest.mark.parametrize("options", [{}, {"split": "train+test", "word": "a b&c=d?e%/ü"}])
@pytest.mark.parametrize("name", ["plain", "who?", "a@b/c"])
def test_names_with_options_are_read_as_they_are_written(name: str, options: dict[str, str]) -> None:
    assert with_options(named(name, options)) == (name, options)
    assert with_options("name?split=train+test") == ("name", {"split": "train+test"})


def test_folders_with_odd_names(tmp_path: Path) -> None:
    write(tmp_path / "who?x=1 & @" / "cat" / "a.png", noise(1, 9, 9, 3))
    found = open_set(f"torchvision:ImageFolder@{tmp_path}/who?x=1 & @?")
    assert isinstance(found, TorchvisionSet)
    assert open_set(found.id).entries == found.entries


def test_a_run_over_it_is_the_run_over_the_same_pictures_in_a_folder(tmp_path: Path) -> None:
    pixels, labels = fashion(tmp_path / "set", count=6)
    for place, (one, label) in enumerate(zip(pixels, labels, strict=True)):
        # The shipped classifiers call it so, and a folder's name can have no slash.
        name = "T-shirt" if label == 0 else FASHION[label]
        write(tmp_path / "folder" / name / f"{place}.png", one)

    def scores(name: str, data: str) -> list[tuple[Any, ...]]:
        run = done(tmp_path / name, spec(data=data, images=None))
        with table.scan(run.files()) as connection:
            query = (
                "select regexp_extract(image, '[0-9]+', 0), label, method, setting, value, outcome, error from rows "
                "where regexp_extract(image, '[0-9]+', 0) != '0' order by all"
            )
            return connection.execute(query).fetchall()

    there = scores("there", f"torchvision:FashionMNIST@{tmp_path / 'set'}?train=false")
    assert there == scores("here", f"folder:{tmp_path / 'folder'}")
    assert {row[1] for row in there} == {1, 2, 3, 4, 5}
    assert all(isinstance(row[4], float) and not row[6] for row in there)


def test_damaged_files_cost_a_sentence_each(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(1, 9, 9, 3)).save(buffer, "PNG")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "cat" / "b.png").write_bytes(buffer.getvalue()[:50])
    found = open_set(f"torchvision:ImageFolder@{tmp_path}")
    assert found.open(0).size == (9, 9)
    with pytest.raises(ImageError, match="damaged"):
        found.open(1)
    (tmp_path / "cat" / "b.png").unlink()
    with pytest.raises(ImageError, match=r"'b\.png' cannot be read"):
        found.fingerprint(1)
