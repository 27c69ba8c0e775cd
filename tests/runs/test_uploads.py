"""Uploaded zip files: kept while somebody needs them."""

import io
import os
import time
import zipfile
from pathlib import Path

from salviz.datasets import open_set
from salviz.images import open_fashion
from salviz.runs import Spec, uploads
from salviz.runs.shelf import Shelf


def packed(index: int) -> bytes:
    picture, file = io.BytesIO(), io.BytesIO()
    open_fashion(index).image.save(picture, format="PNG")
    with zipfile.ZipFile(file, "w") as archive:
        # With a date of its own: by its name alone it would get the hour, and the same file other bytes later.
        archive.writestr(zipfile.ZipInfo("shirt/a.png"), picture.getvalue())
    return file.getvalue()


def test_an_upload_stays_while_a_run_is_over_it(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    used, left, fresh = (uploads.keep(shelf, packed(index), "mine.zip") for index in range(3))
    assert len(open_set(used)) == 1
    name = shelf.submit(Spec(used, ("fashion_cnn",), {"gradient": {}}), "cpu")
    paths = [Path(one.removeprefix("zip:")) for one in (used, left, fresh)]
    long_ago = time.time() - uploads.KEPT_SECONDS - 1
    for path in paths[:2]:
        os.utime(path, (long_ago, long_ago))
    uploads.tidy(shelf)
    assert [path.exists() for path in paths] == [True, False, True]
    # Chosen again, it is not old any more.
    assert uploads.keep(shelf, packed(1), "mine.zip") == left
    os.utime(paths[0], (long_ago, long_ago))
    shelf.remove(name)
    uploads.tidy(shelf)
    assert [path.exists() for path in paths] == [False, True, True]


def test_names_of_uploads_lead_nowhere_else(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "runs")
    for name, expected in (
        ("my shirts (2).zip", "my shirts (2).zip"), ("../../evil.zip", "evil.zip"), ("..", "pictures.zip"),
        ("C:\\x\\a*b?.zip", "a_b_.zip"), ("ü" * 300, "ü" * 60 + ".zip"),
    ):  # fmt: skip
        path = Path(uploads.keep(shelf, packed(0), name).removeprefix("zip:"))
        assert path.name == expected
        assert path.parent.parent == (shelf.root / uploads.FOLDER).resolve()
