"""`salviz sanity` and `salviz train`: the library's numbers, files, and one sentence for what cannot be done."""

import copy
import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from salviz import training
from salviz.classifiers import loading
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.randomising import Randomisation
from salviz.cli import main
from salviz.datasets import arrays
from salviz.datasets.arrays import LabelledImages
from salviz.engine import explain
from salviz.images import open_path
from salviz.images.fashion import FASHION
from salviz.sanity import Check, check_randomisation, report
from tests.golden import cose_inputs
from tests.models import toy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "photos"
    made.mkdir()
    for number in (12, 13):
        Image.fromarray(cose_inputs.image_u8(number, 32)).save(made / f"{number}.png")
    return made


LOAD = loading.load


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """The toy net in place of every classifier."""
    original = toy()
    classifier = dataclasses.replace(original, rebuild=lambda: copy.deepcopy(original.module))
    monkeypatch.setattr(loading, "load", lambda id, **options: classifier)
    return classifier


ASKED = ["--methods", "gradient,grad_cam", "--init", "permute", "--draws", "2", "--measures", "spearman_abs,cosine"]


def direct(classifier: Classifier, folder: Path):
    pictures = [open_path(folder / name) for name in ("12.png", "13.png")]
    prep = classifier.preprocessing
    x = prep.normalise(torch.stack([prep.frame(picture.image) for picture in pictures]))
    check = Check(
        {"gradient": None, "grad_cam": None}, Randomisation(initialisation="permute"), draws=2,
        measures=("spearman_abs", "cosine"),
    )  # fmt: skip
    return check_randomisation(classifier, x, check, digests=[picture.digest for picture in pictures])


def test_files_hold_the_librarys_numbers(
    small: Classifier, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["sanity", str(folder), *ASKED, "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    found = direct(small, folder)
    text = (out / "scores.csv").read_bytes().decode()
    assert text == report.scores_csv(found, ["12.png", "13.png"])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == found.scores.size
    picked = [row for row in rows if row["method"] == "grad_cam" and row["measure"] == "cosine" and row["draw"] == "1"]
    values = [float(row["similarity"] or "nan") for row in picked]
    np.testing.assert_allclose(values, found.scores[1, 1, 1].reshape(-1), rtol=1e-6)
    assert [row["stage"] for row in rows[:6:2]] == list(found.stages) == ["linear", "features", "conv1"]

    with Image.open(out / "strips.png") as strips:
        # A line of names, and a row a method and control.
        assert strips.height > 112 * len(found.methods)
        assert strips.width > 112 * (1 + len(found.stages))
    written = json.loads((out / "manifest.json").read_text())
    with np.load(out / "maps.npz") as maps:
        assert set(maps) == {*found.methods, "stages", "frame", "manifest"}
        assert maps["stages"].tolist() == ["trained", *found.stages]
        assert json.loads(str(maps["manifest"])) == written
        assert maps["gradient"].shape == (4, *maps["frame"].shape[1:])
        x = small.preprocessing.normalise(torch.from_numpy(maps["frame"])[None])
        digest = [open_path(folder / "12.png").digest]
        raw = explain(small, x, method="gradient", digests=digest).maps[0].sum(dim=0).numpy()
        np.testing.assert_allclose(maps["gradient"][0], raw, atol=1e-3 * np.abs(raw).max())
    assert written["stages"] == list(found.stages)
    first = found.curve("gradient", "cosine").stages[0]
    assert written["curves"]["cosine"]["gradient"]["stages"][0]["value"] == pytest.approx(first.value)
    assert written["check"]["how"]["initialisation"] == "permute"
    assert written["images"][0] == {"name": "12.png", "digest": open_path(folder / "12.png").digest}

    # Every number of the table is a mean of the library's.
    lines = told.out.splitlines()
    assert lines[0] == "toy, 2 pictures, 2 draws: top down, initialisation permute, statistics reset"
    line = next(line for line in lines if line.startswith("Gradient "))
    means = [report.number(score.value) for score in found.curve("gradient", "spearman_abs").stages]
    assert line.split()[1 : 1 + len(means)] == means
    assert "; ".join(report.verdicts(found, "spearman_abs")["gradient"]) in line
    assert any(line.startswith("Random (control)") and line.endswith("what passes") for line in lines)


def test_the_manifest_can_be_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sanity", str(folder / "12.png"), *ASKED, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert set(written["curves"]) == {"spearman_abs", "cosine"}
    # One picture has no interval.
    assert written["curves"]["cosine"]["gradient"]["area"]["low"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", ""], "No method was chosen"),
        (["--methods", "grad"], "grad"),
        (["--order", "sideways"], "There is no order 'sideways'"),
        (["--init", "zeros"], "There is no initialisation 'zeros'"),
        (["--measures", "psnr"], "There is no similarity 'psnr'"),
        (["--methods", "legrad"], "has no attention"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    folder: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sanity", str(folder), *arguments]) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""


def test_methods_that_cannot_explain_the_model_are_left_out_and_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sanity", str(folder), "--methods", "gradient,legrad", "--order", "full", "--measures", "cosine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Left out: LeGrad. toy has no attention") for line in lines)
    assert any(line.startswith("Gradient ") for line in lines)


def test_an_empty_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["sanity", str(tmp_path / "empty")]) == 2
    assert "There is no picture in" in capsys.readouterr().err


def test_training_writes_what_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = LabelledImages(
        torch.randint(0, 256, (64, 28, 28), generator=generator).to(torch.uint8), torch.arange(64) % 10, FASHION
    )
    monkeypatch.setattr(arrays, "fashion_mnist", lambda part, folder: images)
    quick = training.Recipe("quick", "Quick", "salviz:small_cnn", epochs=1, checkpoints=1, batch=16)
    monkeypatch.setattr(training, "RECIPES", {"quick": quick})
    assert main(["train", "quick", "--seed", "3", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("quick: ")
    assert "3 files" in told.out
    assert json.loads((tmp_path / "quick.json").read_text())["recipe"]["seed"] == 3
    with np.load(tmp_path / "test.npz") as sample:
        assert (sample["images"] == images.images.numpy()).all()
        assert (sample["labels"] == images.labels.numpy()).all()
    (tmp_path / "file").touch()
    assert main(["train", "quick", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("Nothing can be written to")
    assert main(["train", "slow", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "There is no recipe 'slow'; there are quick.\n"


def test_the_shipped_pair_needs_no_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(loading, "load", LOAD)
    assert (
        main(["sanity", "fashion:3", "--model", "fashion_cnn_twin", "--test", "labels", "--methods", "gradient"]) == 0
    )
    told = capsys.readouterr().out
    assert "Fashion CNN, permuted labels in its place" in told
    assert "moves with Fashion CNN, permuted labels" in told


def test_another_class_can_be_asked_for(small: Classifier, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sanity", str(folder), *ASKED, "--test", "class"]) == 0
    assert "asked for another class" in capsys.readouterr().out


def test_labels_need_a_twin(small: Classifier, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (["--test", "labels"], "Which net learnt other labels than"),
        (["--test", "labels", "--twin", "itself"], "cannot be compared with itself"),
        (["--twin", "fashion_cnn"], "--twin belongs to --test labels."),
    ):
        assert main(["sanity", str(folder), *ASKED, *arguments]) == 2
        assert sentence in capsys.readouterr().err
