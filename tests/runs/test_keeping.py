"""Maps that a run keeps: those of the library, to half precision."""

from pathlib import Path

import numpy as np
import pytest
import torch

from salviz import explain, load
from salviz.datasets import open_set
from salviz.errors import DataError, RequestError
from salviz.runs.folder import RunFolder
from salviz.runs.keeping import MapFile, kept_map, read_maps
from tests.runs.conftest import done, spec


@pytest.mark.parametrize("which", ["clean", "all"])
def test_kept_maps_are_the_librarys(tmp_path: Path, which: str, undisturbed: RunFolder) -> None:
    folder = done(tmp_path / "run", spec(images=5, maps=which))
    classifier, pictures = load("fashion_cnn"), open_set("fashion")
    places = {entry.name: place for place, entry in enumerate(pictures.entries)}
    shown = [pictures.open(places[one.name]) for one in folder.sample]
    expected = explain(classifier, shown, methods=("grad_cam", "gradient"))
    seen: dict[str, set[int]] = {"grad_cam": set(), "gradient": set()}
    for shard in folder.plan:
        found = read_maps(folder.path / "maps" / f"{shard.key}.safetensors")
        for place, (rows, maps) in found.items():
            seen[shard.method].add(place)
            assert rows[0] == "clean"
            assert len(maps) == len(rows) == (1 if which == "clean" else 1 + 3 + 1)
            whole = expected[shard.method].maps[place].numpy()
            np.testing.assert_allclose(maps[0].numpy(), whole, atol=1e-3 * np.abs(whole).max())
            assert torch.equal(kept_map(folder, shard.model, shard.method, place), maps[0])
    assert kept_map(folder, "fashion_cnn", "gradient", 5) is None
    assert kept_map(folder, "fashion_cnn", "edge", 0) is None
    assert seen == {"grad_cam": set(range(5)), "gradient": set(range(5))}


def test_what_is_kept_is_there_where_the_rows_are(tmp_path: Path) -> None:
    folder = done(tmp_path / "run", spec())
    assert not (folder.path / "maps").exists()
    # The same run with its maps is another one: none of its shards is there yet.
    again = done(tmp_path / "run", spec(maps="clean"))
    assert {path.stem for path in (again.path / "maps").iterdir()} == {shard.key for shard in again.plan}


def test_files_are_read_back(tmp_path: Path) -> None:
    kept = MapFile("all")
    maps = torch.randn(3, 1, 4, 5) * torch.tensor([1e-9, 1.0, 1e7]).view(3, 1, 1, 1)
    kept.keep("gradient", 2, maps, ("clean", "blur", "smooth"))
    kept.keep("gradient", 4, torch.zeros(1, 4, 5), ("clean",))
    (tmp_path / "a.safetensors").write_bytes(kept.content("gradient"))
    found = read_maps(tmp_path / "a.safetensors")
    assert set(found) == {2, 4}
    assert found[2][0] == ["clean", "blur", "smooth"]
    for mine, theirs in zip(found[2][1], maps, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=float(theirs.abs().max()) * 1e-4)
    assert not found[4][1].any()
    (tmp_path / "b.safetensors").write_bytes(b"no maps")
    with pytest.raises(DataError, match="holds no maps"):
        read_maps(tmp_path / "b.safetensors")


def test_what_cannot_be_kept() -> None:
    with pytest.raises(RequestError, match="Maps are kept where COSE"):
        spec(metrics={"randomisation": {}}, maps="clean")
    with pytest.raises(RequestError, match="The maps that are kept"):
        spec(maps="some")
