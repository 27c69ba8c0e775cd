"""The sample gallery, folders on the server, and what a picture's source leads back to."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salviz.errors import ImageError
from salviz.images import (
    FOLDER_VARIABLE,
    SAMPLES,
    Picture,
    Sample,
    folder_images,
    image_folder,
    open_from_folder,
    open_path,
    open_sample,
    open_source,
    samples,
    thumbnail,
    wordnet_id,
)
from salviz.images.gallery import _sample_bytes

RED = Image.new("RGB", (40, 40), "red")


def save(path: Path, image: Image.Image = RED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


# --- samples ---------------------------------------------------------------------------------------------


def test_every_sample_is_there_and_the_cat_comes_first() -> None:
    assert samples() == SAMPLES
    assert SAMPLES[0].id == "cat"
    assert len({sample.id for sample in SAMPLES}) == len(SAMPLES) == 12


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)
def test_sample(sample: Sample) -> None:
    spec = find_spec(sample.package)
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / sample.file
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sample.sha256
    picture = open_sample(sample.id)
    assert picture.source == f"sample:{sample.id}"
    assert picture.shareable
    assert picture.alt == sample.alt
    assert picture.name == sample.title
    assert min(picture.size) >= 224
    for text in (sample.alt, sample.remark):
        assert text.endswith((".", "?"))
    assert sample.licence
    assert sample.credit
    with Image.open(file) as stored:
        if stored.mode == "RGB":
            np.testing.assert_array_equal(picture.pixels(), np.asarray(stored))


def test_samples_are_opened_once() -> None:
    assert open_sample("cat") is open_sample("cat")


def test_unknown_sample_is_refused_with_the_choices() -> None:
    with pytest.raises(ImageError, match="'dog': choose one of cat, espresso"):
        open_sample("dog")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "data/none.png"}, "missing"),
        ({"package": "no_such_package_here"}, "missing"),
        ({"sha256": "0" * 64}, "not the one"),
    ],
)
def test_missing_or_altered_samples_are_left_out(
    change: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    odd = replace(SAMPLES[0], **change)
    with pytest.raises(ImageError, match=words):
        _sample_bytes(odd)
    monkeypatch.setattr("salviz.images.gallery.SAMPLES", (odd, *SAMPLES[1:]))
    samples.cache_clear()
    try:
        assert samples() == SAMPLES[1:]
    finally:
        samples.cache_clear()
    assert words in caplog.text


def test_thumbnails_keep_proportions_or_are_square() -> None:
    cat = open_sample("cat")
    assert thumbnail(cat, 90).size == (90, 60)
    assert thumbnail(cat, 90, square=True).size == (90, 90)
    assert thumbnail(cat, 5000).size == cat.size
    assert cat.size == (451, 300)
    with pytest.raises(ValueError, match="at least one"):
        thumbnail(cat, 0)


# --- folders ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for name in (
        "img10.png",
        "img2.png",
        "Img1.PNG",
        "n01440764_tench.jpg",
        "n02123045/7.png",
        "n02123045/deep/x.png",
        ".hidden.png",
        ".git/x.png",
    ):
        save(root / name)
    (root / "notes.txt").write_text("not a picture")
    (root / "fake.png").write_text("not a picture")
    save(tmp_path / "secret.png")
    save(tmp_path / "outside" / "far.png")
    (root / "leaving.png").symlink_to(tmp_path / "secret.png")
    (root / "leaving").symlink_to(tmp_path / "outside")
    (root / "staying.png").symlink_to(root / "img2.png")
    (root / "dangling.png").symlink_to(root / "none.png")
    return root


def test_listing(folder: Path) -> None:
    expected = [
        "dangling.png",
        "fake.png",
        "Img1.PNG",
        "img2.png",
        "img10.png",
        "n01440764_tench.jpg",
        "staying.png",
        "n02123045/7.png",
        "n02123045/deep/x.png",
    ]
    assert folder_images(folder) == expected
    assert folder_images(str(folder), limit=4) == expected[:4]
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert folder_images(link) == expected


@pytest.mark.parametrize("name", ["a\nb.png", "\udcff.png", "\u202egnp.png"])
def test_names_no_page_can_show_are_left_out(tmp_path: Path, name: str) -> None:
    data = io.BytesIO()
    RED.save(data, "PNG")
    Path(tmp_path, name).write_bytes(data.getvalue())
    assert folder_images(tmp_path) == []
    with pytest.raises(ImageError, match="not the name of a picture"):
        open_from_folder(tmp_path, name)


def test_opening_from_a_folder(folder: Path) -> None:
    picture = open_from_folder(folder, "n02123045/7.png")
    assert (picture.source, picture.name) == ("file:n02123045/7.png", "n02123045/7.png")
    assert picture.shareable
    assert picture.wordnet_id == "n02123045"
    assert open_from_folder(folder, "n01440764_tench.jpg").wordnet_id == "n01440764"
    assert open_from_folder(folder, "img2.png").wordnet_id is None
    assert open_from_folder(folder, "n02123045/deep/x.png").wordnet_id is None
    assert open_from_folder(folder, "staying.png").digest == open_from_folder(folder, "img2.png").digest


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "../secret.png",
        "n02123045/../../secret.png",
        "n02123045/../img2.png",
        "./../secret.png",
        "leaving.png",
        "leaving/far.png",
        "dangling.png",
        "none.png",
        "n02123045",
        ".hidden.png",
        ".git/x.png",
        "notes.txt",
        "fake.png",
        "img2.png/x.png",
        "..\\secret.png",
        "C:secret.png",
        "img2.png\0",
        "x" * 5000 + ".png",
    ],
)
def test_names_that_must_not_be_opened(folder: Path, name: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_from_folder(folder, name)
    assert str(caught.value).endswith(".")
    assert str(folder.parent) not in str(caught.value)


def test_absolute_names_must_not_be_opened(folder: Path) -> None:
    for path in (folder.parent / "secret.png", folder / "img2.png"):
        with pytest.raises(ImageError, match="not the name of a picture"):
            open_from_folder(folder, str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_do_not_block(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ImageError, match="not a file"):
        open_from_folder(folder, "pipe.png")


def test_limits_hold_for_files_too(folder: Path) -> None:
    with pytest.raises(ImageError, match="limit is 10 bytes"):
        open_from_folder(folder, "img2.png", max_bytes=10)
    with pytest.raises(ImageError, match="40 x 40 pixels"):
        open_path(folder / "img2.png", max_pixels=100)


def test_the_folder_comes_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert image_folder() is None
    monkeypatch.setenv(FOLDER_VARIABLE, " ")
    assert image_folder() is None
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    assert image_folder() == folder.resolve()
    for wrong in ("img2.png", "none"):
        monkeypatch.setenv(FOLDER_VARIABLE, str(folder / wrong))
        with pytest.raises(ImageError, match=FOLDER_VARIABLE):
            image_folder()
    with pytest.raises(ImageError, match="does not exist"):
        folder_images(folder / "none")


def test_open_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = open_path(folder / "n02123045" / "7.png")
    assert (picture.name, picture.source, picture.shareable) == ("7.png", "file:7.png", False)
    assert picture.wordnet_id == "n02123045"
    monkeypatch.chdir(folder / "n02123045")
    assert open_path("7.png") == picture
    for wrong in ("none.png", ".", "img\0.png"):
        with pytest.raises(ImageError):
            open_path(wrong)


def test_wordnet_id() -> None:
    assert wordnet_id("n01440764.jpg") == "n01440764"
    assert wordnet_id("n01440764_10026.JPEG") == "n01440764"
    assert wordnet_id("train/n01440764/x.jpg") == "n01440764"
    assert wordnet_id("n02123045/n01440764_1.jpg") == "n01440764"
    for name in ("n014407641.jpg", "xn01440764.jpg", "n0144076.jpg", "n01440764/a/x.jpg", ""):
        assert wordnet_id(name) is None


# --- sources ---------------------------------------------------------------------------------------------


def test_shareable_pictures_come_back_by_their_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    for picture in (open_sample("cat"), open_from_folder(folder, "n02123045/7.png")):
        assert open_source(picture.source) == picture
    assert open_source("file:img2.png", root=folder).name == "img2.png"


@pytest.mark.parametrize("source", ["upload", "upload:x", "", "cat", "sample:", "file:img2.png", "https://x/y.png"])
def test_sources_that_lead_nowhere(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with pytest.raises(ImageError) as caught:
        open_source(source)
    assert str(caught.value).endswith(".")


def test_pictures_made_in_memory() -> None:
    picture = Picture.from_rgb(RED, name="red")
    assert picture.digest == Picture.from_rgb(RED.copy()).digest
    assert len(picture.digest) == 32
