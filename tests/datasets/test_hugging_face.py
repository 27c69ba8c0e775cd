"""Sets of Hugging Face: from folders in the formats of its package, and from a hub that is played by the test."""

import io
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import errors
from numpy.typing import NDArray
from PIL import Image

from salviz.datasets import hugging_face, open_set, sample
from salviz.errors import DataError, ImageError
from salviz.runs import table
from salviz.runs.execution import begin, resume
from salviz.runs.folder import RunFolder
from tests.runs.conftest import done, spec

datasets = pytest.importorskip("datasets")
_load_dataset = datasets.load_dataset

NAMES = ["Trouser", "7", "Coat"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pixels(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (28, 30, 3), dtype=np.uint8)


def png(image: Image.Image, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", **how})
    return buffer.getvalue()


def examples(seeds: Sequence[int], *, more: dict[str, Any] | None = None, **columns: Any) -> Any:
    """Random pictures in a column `img`, and class `seed % 3` in a column `kind`."""
    features = {"img": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES), **(more or {})}
    content = {
        "img": [Image.fromarray(pixels(seed)) for seed in seeds],
        "kind": [seed % 3 for seed in seeds],
        **columns,
    }
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def parquet(folder: Path, examples: Any, split: str = "test") -> Path:
    folder.mkdir(exist_ok=True)
    examples.to_parquet(str(folder / f"{split}-0.parquet"))
    return folder


@pytest.mark.parametrize("kind", ["saved", "saved splits", "parquet", "stream", "sorted and formatted"])
def test_pictures_and_classes_are_those_that_were_stored(tmp_path: Path, kind: str) -> None:
    stored, seeds = examples(range(7)), list(range(7))
    if kind == "saved":
        stored.save_to_disk(str(tmp_path / "set"))
    elif kind == "saved splits":
        datasets.DatasetDict(train=stored.select([0]), test=stored).save_to_disk(str(tmp_path / "set"))
    elif kind == "sorted and formatted":
        seeds = [6, 2, 4]
        stored.select(seeds).with_format("numpy").save_to_disk(str(tmp_path / "set"))
    else:
        parquet(tmp_path / "set", stored)
        parquet(tmp_path / "set", stored.select([0]), "train")
    split = "all" if kind in ("saved", "sorted and formatted") else "test"
    options = {"saved": "", "sorted and formatted": "", "stream": "?stream=7&split=test"}.get(kind, "?split=test")
    found = open_set(f"hf:{tmp_path / 'set'}{options}")
    assert [entry.name for entry in found.entries] == [f"{split}/{place}" for place in range(len(seeds))]
    assert [entry.label for entry in found.entries] == [["Trouser", 7, "Coat"][seed % 3] for seed in seeds]
    for place, seed in enumerate(seeds):
        assert np.array_equal(found.open(place).pixels(), pixels(seed))
        assert found.open(place).image.mode == "RGB"
    assert len({found.fingerprint(place) for place in range(len(seeds))}) == len(seeds)
    numbered = open_set(f"{found.id}&labels=numbers")
    assert [entry.label for entry in numbered.entries] == [seed % 3 for seed in seeds]
    again = open_set(found.id)
    assert again.id == found.id
    assert again.entries == found.entries
    assert again.fingerprint(1) == found.fingerprint(1)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda place: found.open(place).digest, list(range(len(seeds))) * 10))
    assert together == [found.open(place).digest for place in range(len(seeds))] * 10
    chosen = sample(found.entries, 3, is_stratified=True)
    assert len({found.entries[place].label for place in chosen}) == len({seed % 3 for seed in seeds})
    assert sample(found.entries, classes=["Coat"])


@pytest.mark.parametrize("options", ["", "?stream=3"])
def test_a_folder_of_pictures_is_decoded_as_everywhere(tmp_path: Path, options: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "cat/a.png": png(Image.new("LA", (9, 9), (0, 0))),
        "cat/b.jpg": png(Image.fromarray(pixels(1)), format="JPEG", exif=exif),
        "Tiger cat/c.png": png(Image.fromarray(pixels(2))),
    }
    for name, content in files.items():
        (tmp_path / "set" / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "test" / name).write_bytes(content)
    here, there = open_set(f"folder:{tmp_path / 'set'}"), open_set(f"hf:{tmp_path / 'set'}{options}")
    expected = {here.open(place).digest: entry.label for place, entry in enumerate(here.entries)}
    assert {there.open(place).digest: entry.label for place, entry in enumerate(there.entries)} == expected
    assert len(expected) == 3
    of_file = {here.fingerprint(place) for place in range(3)}
    assert {there.fingerprint(place) for place in range(3)} == of_file


def test_a_stream_is_its_beginning(tmp_path: Path) -> None:
    parquet(tmp_path / "set", examples(range(9)))
    found = open_set(f"hf:{tmp_path / 'set'}?stream=4")
    assert len(found) == 4
    assert sorted(sample(found.entries, 4)) == [0, 1, 2, 3]
    # What is kept needs the files no more.
    shutil.rmtree(tmp_path / "set")
    assert np.array_equal(found.open(3).pixels(), pixels(3))
    with pytest.raises(DataError, match="has 4 pictures, not 5"):
        sample(found.entries, 5)


def test_a_stream_that_would_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "set", examples(range(9)))
    monkeypatch.setattr(hugging_face, "MOST_STREAMED_BYTES", 6000)
    with pytest.raises(DataError, match=r"The first 2 pictures of .* fill the disk; stream fewer"):
        open_set(f"hf:{tmp_path / 'set'}?stream=4")


def test_columns_that_are_named(tmp_path: Path) -> None:
    more = {
        "small": datasets.Image(), "fine": datasets.ClassLabel(names=["a", "b"]), "number": datasets.Value("int64"),
        "word": datasets.Value("string"),
    }  # fmt: skip
    columns = {
        "small": [Image.fromarray(pixels(90)), Image.fromarray(pixels(91))], "fine": [-1, 1], "number": [12, None],
        "word": ["tench, Tinca tinca", None],
    }  # fmt: skip
    place = f"hf:{parquet(tmp_path / 'set', examples([0, 1], more=more, **columns))}"
    with pytest.raises(DataError, match=r"Which column\? Add \?image= and one of img, small\."):
        open_set(place)
    with pytest.raises(DataError, match=r"Which column\? Add \?label= and one of kind, fine\."):
        open_set(f"{place}?image=img")
    found = open_set(f"{place}?image=small&label=fine")
    assert [entry.label for entry in found.entries] == [None, "b"]
    assert np.array_equal(found.open(1).pixels(), pixels(91))
    assert found.id == f"hf:{tmp_path / 'set'}?image=small&label=fine&split=test"
    assert [entry.label for entry in open_set(f"{place}?image=img&label=number").entries] == [12, None]
    found = open_set(f"{place}?image=img&label=word&stream=2")
    assert [entry.label for entry in found.entries] == ["tench, Tinca tinca", None]
    with pytest.raises(DataError, match="no column 'small' of class numbers or names"):
        open_set(f"{place}?image=img&label=small")
    with pytest.raises(DataError, match="no column of pictures 'word'"):
        open_set(f"{place}?image=word")


def test_pictures_without_classes(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "set", examples([0, 1]).remove_columns("kind"))
    for options in ("", "?stream=2"):
        assert [entry.label for entry in open_set(f"hf:{folder}{options}").entries] == [None, None]
    parquet(tmp_path / "texts", examples([0]).remove_columns("img"))
    with pytest.raises(DataError, match="has no column of pictures"):
        open_set(f"hf:{tmp_path / 'texts'}")


@pytest.mark.parametrize("options", ["", "?stream=4"])
def test_damaged_examples_cost_a_sentence_each(tmp_path: Path, options: str) -> None:
    content = [
        {"bytes": png(Image.fromarray(pixels(0))), "path": None},
        {"bytes": png(Image.fromarray(pixels(0)))[:60], "path": None},
        None,
        {"bytes": None, "path": str(tmp_path / "gone.png")},
    ]
    schema = datasets.Features({"img": datasets.Image()}).arrow_schema
    (tmp_path / "set").mkdir()
    # The package's own writer would look for the file.
    pq.write_table(pa.table({"img": content}, schema=schema), tmp_path / "set" / "plain.parquet")
    found = open_set(f"hf:{tmp_path / 'set'}{options}")
    assert found.open(0).size == (30, 28)
    for place, words in ((1, "damaged"), (2, "has no picture"), (3, r"'gone\.png' cannot be read")):
        with pytest.raises(ImageError, match=words):
            found.open(place)
    with pytest.raises(ImageError, match="has no picture"):
        found.fingerprint(2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{}/nowhere", "There is no folder"),
        ("{}/set?split=train", "cannot read .*train.*test"),
        ("{}/set?split=train&stream=2", "cannot read .*train.*test"),
        ("{}/splits?split=no", "has no split 'no'; it has test"),
        ("{}/two", r"Which split\? Add \?split= and one of (train, test|test, train)\."),
        ("{}/saved?stream=3", "save_to_disk is not streamed"),
        ("{}/set?stream=0", "stream is a number of examples from 1 to 100000, not '0'"),
        ("{}/set?stream=all", "stream is a number of examples"),
        (
            "{}/set?trust_remote_code=true",
            "no option 'trust_remote_code'; it has config, image, label, labels,",
        ),
        ("{}/set?labels=ids", "labels is names or numbers, not 'ids'"),
        ("{}/set?config=other", "The package datasets cannot read .*other"),
        ("{}/empty", "The package datasets cannot read"),
        ("{}/cut", "The package datasets cannot read"),
        ("a b/c", "'a b/c' names no data set of the hub"),
        ("a/b/c", "names no data set of the hub"),
        ("", "names no data set of the hub"),
    ],
)
def test_names_that_open_nothing(tmp_path: Path, name: str, words: str) -> None:
    parquet(tmp_path / "set", examples([0]))
    parquet(parquet(tmp_path / "two", examples([0])), examples([1]), "train")
    examples([0]).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(test=examples([0])).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "empty").mkdir()
    examples([0]).save_to_disk(str(tmp_path / "cut"))
    next((tmp_path / "cut").glob("*.arrow")).write_bytes(b"no arrow file")
    with pytest.raises(DataError, match=words) as caught:
        open_set(f"hf:{name.format(tmp_path)}")
    assert "\n" not in str(caught.value)


def test_a_folder_has_no_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "set", examples([0]))
    monkeypatch.chdir(tmp_path)
    assert open_set("hf:set").id == f"hf:{tmp_path}/set?split=test"
    with pytest.raises(DataError, match="set is a folder here, which has no revisions"):
        open_set("hf:set@main")


class Hub:
    """A hub with one data set, of which new versions come."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.commit, self.loaded = folder, COMMIT, []  # type: ignore[var-annotated]
        self.error: Exception | None = None
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", self.info)
        monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *given, **named: ["train", "test"])
        monkeypatch.setattr(datasets, "load_dataset_builder", self.builder)
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def info(self, name: str, *, revision: str | None, timeout: float) -> Any:
        if self.error is not None:
            raise self.error
        assert (name, revision) in (("org/set", None), ("org/set", "v1"))
        return huggingface_hub.DatasetInfo(id=name, sha=self.commit, tags=[])

    def builder(self, name: str, config: str | None, *, revision: str) -> Any:
        return SimpleNamespace(hash=revision)

    def load(self, name: str, config: str | None, **options: Any) -> Any:
        self.loaded.append((name, config, options["revision"], options["streaming"]))
        return _load_dataset(str(self.folder), split=options["split"], streaming=options["streaming"])


def test_a_resumed_run_reads_the_commit_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(parquet(tmp_path / "set", examples(range(6))), monkeypatch)
    folder = RunFolder(tmp_path / "run")
    begin(spec(data="hf:org/set@v1?split=test", images=3), folder)
    assert folder.about["data"] == f"hf:org/set@{COMMIT}?split=test"
    hub.commit = COMMIT[::-1]
    resume(folder)
    assert hub.loaded == [("org/set", None, COMMIT, False)] * 2
    assert open_set("hf:org/set?split=test&config=plain&stream=2").id == (
        f"hf:org/set@{COMMIT[::-1]}?config=plain&split=test&stream=2"
    )
    assert hub.loaded[-1] == ("org/set", "plain", COMMIT[::-1], True)
    # Who names the commit needs no hub.
    hub.error = OSError("no network")
    assert len(open_set(f"hf:org/set@{COMMIT}?split=test")) == 6


def test_the_cache_serves_the_commit_that_is_named_and_no_other(tmp_path: Path) -> None:
    """Offline, as the tests are; the cache is laid out as the package lays it out."""
    open_set(f"hf:{parquet(tmp_path / 'set', examples(range(5)))}?split=test")
    (made,) = (path.parent for path in (tmp_path / "cache").rglob("dataset_info.json"))
    shutil.copytree(made, tmp_path / "cache" / "org___set" / "default" / "0.0.0" / COMMIT)
    found = open_set(f"hf:org/set@{COMMIT}?split=test")
    assert [entry.label for entry in found.entries] == ["Trouser", 7, "Coat", "Trouser", 7]
    assert np.array_equal(found.open(4).pixels(), pixels(4))
    assert open_set(f"hf:org/set@{COMMIT}").id == found.id
    other = COMMIT[::-1]
    with pytest.raises(DataError, match=f"the local cache has another commit of org/set than {other}"):
        open_set(f"hf:org/set@{other}?split=test")


def test_what_the_hub_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path, monkeypatch)
    for kind, words in (
        (errors.RepositoryNotFoundError, "does not exist on the hub or is private"),
        (errors.GatedRepoError, "is gated"),
        (errors.RevisionNotFoundError, "has no revision 'v1'"),
        (OSError, "The hub cannot be asked which commit"),
    ):
        # Their own beginning wants an answer of the HTTP client's kind.
        hub.error = kind.__new__(kind)
        with pytest.raises(DataError, match=words):
            open_set("hf:org/set@v1?split=test")
    monkeypatch.undo()
    # Offline, as the tests are, and not in the cache.
    with pytest.raises(DataError, match="The hub cannot be asked"):
        open_set("hf:org/set?split=test")
    with pytest.raises(DataError, match="org/set"):
        open_set(f"hf:org/set@{COMMIT}?split=test")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"need the package datasets: pip install -r requirements-hf\.txt"):
        open_set("hf:org/set")


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "?stream=6"])
def test_a_run_over_it_is_the_run_over_the_same_pictures_in_a_folder(tmp_path: Path, options: str) -> None:
    parquet(tmp_path / "set", examples(range(6)))
    for seed in range(6):
        path = tmp_path / "folder" / NAMES[seed % 3] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(path)

    def scores(name: str, data: str) -> list[tuple[Any, ...]]:
        run = done(tmp_path / name, spec(data=data, images=None))
        with table.scan(run.files()) as connection:
            query = (
                "select regexp_extract(image, '([0-9]+)(\\.png)?$', 1), label, method, setting, value, outcome, error "
                "from rows order by all"
            )
            return connection.execute(query).fetchall()

    there = scores("there", f"hf:{tmp_path / 'set'}{options}")
    assert there == scores("here", f"folder:{tmp_path / 'folder'}")
    # Trouser and Coat by their names, 7 by its number.
    assert {row[:2] for row in there} == {(str(seed), (1, 7, 4)[seed % 3]) for seed in range(6)}
    assert all(isinstance(row[4], float) and not row[6] for row in there)
