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
        archive.writestr("shirt/a.png", picture.getvalue())
    return file.getvalue()


def test_an_upload_stays_while_a_run_is_over_it(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    used, left, fresh = (uploads.keep(shelf, packed(index)) for index in range(3))
    assert len(open_set(used)) == 1
    name = shelf.submit(Spec(used, ("fashion_cnn",), {"gradient": {}}), "cpu")
    paths = [Path(one.removeprefix("zip:")) for one in (used, left, fresh)]
    long_ago = time.time() - uploads.KEPT_SECONDS - 1
    for path in paths[:2]:
        os.utime(path, (long_ago, long_ago))
    uploads.tidy(shelf)
    assert [path.exists() for path in paths] == [True, False, True]
    # Chosen again, it is not old any more.
    assert uploads.keep(shelf, packed(1)) == left
    os.utime(paths[0], (long_ago, long_ago))
    shelf.remove(name)
    uploads.tidy(shelf)
    assert [path.exists() for path in paths] == [False, True, True]
