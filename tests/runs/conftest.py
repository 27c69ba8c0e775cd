"""Small runs on the tiny classifiers that come with Salviz."""

from pathlib import Path
from typing import Any

import pytest

from salviz.runs import Spec
from salviz.runs.bench import Options
from salviz.runs.execution import begin, resume
from salviz.runs.folder import RunFolder


def spec(**fields: Any) -> Spec:
    """Twelve pictures, one net, two methods, unless told otherwise."""
    known: dict[str, Any] = {
        "data": "fashion", "models": ("fashion_cnn",), "methods": {"grad_cam": {}, "gradient": {}},
        "metrics": {"cose": {"augmentations": "rotate:+30,flip_lr,blur"}}, "images": 10, "group": 4,
    }  # fmt: skip
    return Spec(**{**known, **fields})


def done(path: Path, asked: Spec, **options: Any) -> RunFolder:
    """A run that went through."""
    folder = RunFolder(path)
    begin(asked, folder)
    resume(folder, Options(**options))
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run of `spec()`, for others to be compared with."""
    return done(tmp_path_factory.mktemp("runs") / "undisturbed", spec())
