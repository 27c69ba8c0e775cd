"""Sets of pictures: what they list, what they call their classes, how they are sampled, and archives that lie."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salviz.datasets import Entry, open_set, sample
from salviz.datasets.archives import MAX_RATIO
from salviz.errors import DataError, ImageError
from salviz.images import open_source


def png(shade: int, size: int = 24) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(shade).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


FILES = {
    "n02123045_tabby.png": 1,
    "7/one.png": 2,
    "7/two.png": 3,
    "n01440764/tench.png": 4,
    "Tiger cat/three.png": 5,
    "flat.png": 6,
}
LABELS = {"n02123045_tabby.png": "n02123045", "7/one.png": 7, "7/two.png": 7, "n01440764/tench.png": "n01440764",
          "Tiger cat/three.png": "Tiger cat", "flat.png": None}  # fmt: skip


def folder(path: Path) -> Path:
    for name, shade in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(shade))
    (path / "readme.txt").write_text("no picture")
    return path


def archive(path: Path, files: dict[str, bytes], *, packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def test_a_folder_and_its_zip_are_the_same_set(tmp_path: Path) -> None:
    here = open_set(str(folder(tmp_path / "set")))
    packed = open_set(str(archive(tmp_path / "set.zip", {name: png(shade) for name, shade in FILES.items()})))
    assert {entry.name: entry.label for entry in here.entries} == LABELS
    assert {entry.name: entry.label for entry in packed.entries} == LABELS
    of_name = {entry.name: place for place, entry in enumerate(packed.entries)}
    for place, entry in enumerate(here.entries):
        assert here.open(place).digest == packed.open(of_name[entry.name]).digest
        assert here.fingerprint(place) == packed.fingerprint(of_name[entry.name])
    # The name of a set opens it again.
    assert open_set(here.id).entries == here.entries
    assert open_set(packed.id).entries == packed.entries


def test_sets_that_come_with_salviz() -> None:
    fashion, samples = open_set("fashion"), open_set("samples")
    assert len(fashion) == 1000
    assert fashion.entries[0] == Entry("fashion:0", "Ankle boot")
    assert fashion.open(3).digest == open_source("fashion:3").digest
    assert samples.open(1).digest == open_source(samples.entries[1].name).digest


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere", "There is no image set"), ("folder:/nowhere", "no folder"), ("zip:/nowhere.zip", "no file")],
)
def test_sets_that_are_not_there(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_set(name)


def test_empty_and_damaged_ones(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture"):
        open_set(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="no picture"):
        open_set(str(archive(tmp_path / "texts.zip", {"a.txt": b"text"})))
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(DataError, match="no zip file"):
        open_set(str(tmp_path / "no.zip"))


def test_names_that_lead_out_of_an_archive_are_left_out(tmp_path: Path) -> None:
    names = ("../out.png", "/root.png", "a/../../out.png", "c:/drive.png", ".hidden/x.png", "__MACOSX/y.png", "ok.png")
    found = open_set(str(archive(tmp_path / "slip.zip", {name: png(1) for name in names})))
    assert [entry.name for entry in found.entries] == ["ok.png"]


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
        file.writestr("ok.png", png(1))
    assert [entry.name for entry in open_set(str(tmp_path / "link.zip")).entries] == ["ok.png"]


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = bytes(50_000_000)
    found = open_set(str(archive(tmp_path / "bomb.zip", {"bomb.png": bomb, "ok.png": png(1)})))
    assert Path(tmp_path / "bomb.zip").stat().st_size * MAX_RATIO < len(bomb)
    with pytest.raises(ImageError, match="unpacks to more"):
        found.open(0)
    assert found.open(1).size == (24, 24)


def test_damaged_and_locked_files_cost_a_sentence_each(tmp_path: Path) -> None:
    path = archive(tmp_path / "cut.zip", {"one.png": png(1, 64), "two.png": png(2)})
    content = bytearray(path.read_bytes())
    # The first file's content begins after its header of 30 bytes and its name.
    content[60:200] = bytes(140)
    path.write_bytes(content)
    found = open_set(str(path))
    with pytest.raises(ImageError, match=r"'one\.png' is damaged"):
        found.open(0)
    assert found.open(1).size == (24, 24)


def test_a_sample_depends_on_names_alone_and_smaller_ones_are_parts() -> None:
    entries = [Entry(f"{place}.png", place % 7) for place in range(100)]
    chosen = sample(entries, 20, seed=3)
    assert sample(entries, 8, seed=3) == chosen[:8]
    backwards = entries[::-1]
    assert [backwards[place] for place in sample(backwards, 20, seed=3)] == [entries[place] for place in chosen]
    assert sample(entries, 20, seed=4) != chosen
    assert sorted(sample(entries)) == list(range(100))


def test_a_stratified_sample_has_as_many_of_each_class_as_there_are() -> None:
    entries = [Entry(f"{place}.png", "rare" if place < 3 else "often") for place in range(50)]
    chosen = [entries[place].label for place in sample(entries, 10, is_stratified=True)]
    assert chosen.count("rare") == 3
    assert chosen[:6].count("rare") == 3
    only = sample(entries, classes=["rare"])
    assert sorted(only) == [0, 1, 2]
    with pytest.raises(DataError, match="has 3 pictures of these classes, not 4"):
        sample(entries, 4, classes=["rare"])
    with pytest.raises(DataError, match="no picture of class 'absent'"):
        sample(entries, classes=["absent"])
