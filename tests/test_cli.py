"""The command line: the app's digits, calm words, one sentence for what cannot be done."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from salviz import __version__, export, load, methods, summary, support
from salviz.classifiers import CARDS, loading
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.labels import Labels
from salviz.cli import main
from salviz.exploring import explore
from salviz.images import open_path, open_sample
from salviz.request import request_for
from salviz.transforms import Variant, draw_variants
from tests.golden import cose_inputs
from tests.models import classifier_of, toy

ROOT = Path(__file__).parents[1]
LABELS = Labels(
    ("tabby, tabby cat", "tiger cat", "lynx, catamount", *(f"class {index}" for index in range(3, 10))),
    wordnet_ids=("n02123045", "n02123159", "n02127052", *(f"n0000000{index}" for index in range(3, 10))),
)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.fromarray(cose_inputs.image_u8(12, 32)).save(path)
    return str(path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """The toy net in place of every classifier."""
    classifier = dataclasses.replace(toy(), labels=LABELS)
    monkeypatch.setattr(loading, "load", lambda id, **options: classifier)
    return classifier


def manifest_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["explain", *arguments, "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return json.loads(told.out)


def test_results_equal_the_apps_to_the_last_bit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["explain", "sample:cat", "--changes", "untrained", "--out", str(tmp_path)]) == 0
    classifier, picture = load("tf_efficientnet_lite0"), open_sample("cat")
    direct = explore(classifier, picture, request_for(picture, classifier, changes=["untrained"]))
    with np.load(tmp_path / "maps.npz", allow_pickle=False) as arrays:
        for name in ("raw", "frames", "ssim", "spearman", "logits", "classes"):
            np.testing.assert_array_equal(arrays[name], getattr(direct, name).numpy())
    assert (tmp_path / "similarities.csv").read_bytes().decode() == export.similarities_csv(direct, classifier.labels)
    written = json.loads((tmp_path / "manifest.json").read_text())
    expected = export.manifest(direct, classifier, picture)
    assert {**written, "seconds": 0} == {**expected, "seconds": 0}
    told = capsys.readouterr()
    assert told.err == "", "no progress where nobody watches"
    assert "tiger cat (282)" in told.out
    for name in ("Consistency", "Sensitivity", "COSE"):
        assert re.search(rf"^{name} +0\.\d\d \[0\.\d\d, 0\.\d\d\] n = \d+$", told.out, re.MULTILINE)
    assert "Variants     13" in told.out
    assert "Models       1" in told.out
    assert "maps.npz" in told.out.splitlines()[-1]


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:salviz", "-m", "salviz", "explain", "sample:cat",
         "--method", "gradient", "--augment", "flip_lr", "--out", str(tmp_path / "out")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "undefined: no augmentation" in done.stdout or "n = 1" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "map.png", "overlay.png", "maps.npz", "manifest.json", "similarities.csv",
    }  # fmt: skip


def test_without_a_folder_nothing_is_written(
    small: Classifier, image: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(image).parent
    monkeypatch.chdir(folder)
    assert main(["explain", image]) == 0
    assert list(folder.iterdir()) == [Path(image)]
    told = capsys.readouterr().out
    assert told.startswith("picture.png, 32 x 32: Grad-CAM at features of toy\n")
    assert "Wrote" not in told
    assert told.endswith("No label is known, so the clean prediction stands in for it.\n")


def test_what_is_unsure_is_said_with_what_to_do(
    small: Classifier, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled = ["explain", image, "--method", "smoothgrad", "--set", "samples=4", "--augment", "none"]
    assert main([*sampled, "--set", "tolerance=0.001"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"% of the map's spread after 4 samples, above the 0\.1 % asked for: allow more samples\n", told)
    assert re.search(r"^Predicted    .+, [<>]?[01]\.\d\d$", told, re.MULTILINE)


def test_options_reach_the_request(small: Classifier, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = manifest_of(
        capsys, image, "--method", "integrated_gradients", "--set", "steps=7", "--set", "baseline=black",
        "--target", "tiger cat", "--label", "n02123045", "--output", "probability",
        "--augment", "rotate:-45, flip_lr", "--changes", "untrained", "--data-range", "2.0", "--seed", "9",
        "--batch-size", "3",
    )  # fmt: skip
    expected = request_for(
        open_path(image), small, method="integrated_gradients", parameters={"steps": 7, "baseline": "black"},
        target=1, label=0, output="probability", changes=["untrained"], data_range=2.0, seed=9,
        variants=[Variant.from_token("rotate:-45"), Variant.from_token("flip_lr")],
    )  # fmt: skip
    assert told["request"] == expected.as_dict()
    assert told["digest"] == expected.digest
    assert told["files"] == []


def test_the_defaults_are_those_of_the_page(small: Classifier, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert manifest_of(capsys, image)["digest"] == request_for(open_path(image), small, changes=["untrained"]).digest
    assert manifest_of(capsys, image, "--changes", "none")["digest"] == request_for(open_path(image), small).digest


@pytest.mark.parametrize("text", ["none", "paper"])
def test_sets_of_augmentations(text: str, small: Classifier, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = manifest_of(capsys, image, "--augment", text, "--seed", "4", "--method", "edge")
    drawn = [] if text == "none" else [variant.token for variant in draw_variants(4, open_path(image).digest)]
    assert told["request"]["variants"] == drawn


@pytest.mark.parametrize(
    ("text", "index"),
    [("1", 1), ("tabby", 0), ("Tabby  CAT", 0), ("n02127052", 2), ("catamount", 2), ("class 7", 7)],
)
def test_classes_are_given_by_number_id_or_name(
    text: str, index: int, small: Classifier, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = manifest_of(capsys, image, "--target", text, "--label", text, "--augment", "none")
    assert (told["request"]["target"], told["request"]["label"]) == (index, index)


def test_the_most_probable_classes_are_explained_one_after_the_other(
    small: Classifier, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prep, picture = small.preprocessing, open_path(image)
    top = small.predict(prep.normalise(prep.frame(picture.image)[None]))[0].topk(3).indices.tolist()
    options = [image, "--augment", "flip_lr", "--changes", "none"]
    told = manifest_of(capsys, *options, "--target", "top:3", "--out", str(tmp_path / "out"))
    assert [one["request"]["target"] for one in told] == top
    folders = [tmp_path / "out" / f"{rank}_class_{index}" for rank, index in enumerate(top, start=1)]
    assert sorted((tmp_path / "out").iterdir()) == folders
    for folder, one, index in zip(folders, told, top, strict=True):
        alone = manifest_of(capsys, *options, "--target", str(index), "--out", str(tmp_path / "alone"))
        assert one["digest"] == alone["digest"]
        assert one["files"] == [str(folder / Path(file).name) for file in alone["files"]]
        with np.load(folder / "maps.npz") as found, np.load(tmp_path / "alone" / "maps.npz") as expected:
            for name in ("raw", "signed", "logits", "classes"):
                np.testing.assert_array_equal(found[name], expected[name])
    assert main(["explain", *options, "--target", "top:2"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^Explained .*\((\d+)\)$", text, re.MULTILINE) == [str(index) for index in top[:2]]
    assert text.count("\n\npicture.png") == 1


def test_more_classes_than_there_are_is_said_and_all_are_explained(
    small: Classifier, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["explain", image, "--augment", "none", "--changes", "none", "--json", "--target"]
    assert main([*options, "top:99"]) == 0
    told = capsys.readouterr()
    assert len(json.loads(told.out)) == 10
    assert told.err == f"{small.title} knows only 10 classes, not 99: all of them are explained.\n"
    assert main([*options, "top:10"]) == 0
    assert capsys.readouterr().err == ""


def test_the_most_probable_classes_against_another(
    small: Classifier, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [image, "--augment", "none", "--changes", "none"]
    first, second = (one["request"]["target"] for one in manifest_of(capsys, *options, "--target", "top:2"))
    told = manifest_of(capsys, *options, "--target", "top:2", "--against", str(first))
    assert [one["request"]["target"] for one in told] == [first, second]
    # A class cannot stand against itself: the runner-up takes its place.
    assert [one["rival_classes"] for one in told] == [[second], [first]]


def test_a_file_named_after_its_class_has_a_label(
    small: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "n02123159_tiger.png"
    Image.fromarray(cose_inputs.image_u8(12, 32)).save(path)
    assert manifest_of(capsys, str(path), "--augment", "none")["request"]["label"] == 1
    unknown = manifest_of(capsys, str(path), "--augment", "none", "--label", "unknown")
    assert unknown["request"]["label"] is None


def test_a_wrong_label_leaves_the_scores_undefined(
    small: Classifier, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted = int(small.predict(small.preprocessing.normalise(
        small.preprocessing.frame(open_path(image).image)[None])).argmax())  # fmt: skip
    assert main(["explain", image, "--label", str((predicted + 1) % 10)]) == 0
    told = capsys.readouterr().out
    assert told.count("undefined: the clean prediction is not the label") == 3


def test_display_choices_change_pictures_and_no_number(small: Classifier, image: str, tmp_path: Path) -> None:
    plain, coloured = tmp_path / "plain", tmp_path / "coloured"
    assert main(["explain", image, "--out", str(plain)]) == 0
    choices = ["--signed", "--colormap", "coolwarm", "--opacity", "0.8"]
    assert main(["explain", image, "--out", str(coloured), *choices]) == 0
    for name in ("map.png", "overlay.png"):
        assert (plain / name).read_bytes() != (coloured / name).read_bytes()
    with np.load(plain / "maps.npz") as one, np.load(coloured / "maps.npz") as other:
        np.testing.assert_array_equal(one["raw"], other["raw"])


def test_progress_is_shown_to_a_person_and_erased(
    small: Classifier, image: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["explain", image, "--augment", "none", "--changes", "none"]) == 0
    told = capsys.readouterr().err
    assert "Explaining: pass 1 of 1" in told
    assert told.endswith("\r\033[K")
    assert "\n" not in told


REFUSED = [
    (["explain", "nowhere.png"], "nowhere.png"),
    (["explain", "sample:dog"], "no sample called 'dog'"),
    (["explain", "IMAGE", "--model", "resnet5000"], "no classifier"),
    (["explain", "IMAGE", "--model", "weights.pth"], "safetensors"),
    (["explain", "IMAGE", "--device", "cuda:77"], "cuda:77"),
    (["explain", "IMAGE", "--autocast", "int8"], "bf16"),
    (["explain", "IMAGE", "--method", "grad_cm"], "no method 'grad_cm'"),
    (["explain", "IMAGE", "--set", "samples=3"], "no setting 'samples'"),
    (["explain", "IMAGE", "--method", "smoothgrad", "--set", "samples"], "name=value"),
    (["explain", "IMAGE", "--method", "smoothgrad", "--set", "samples=many"], "whole number"),
    (["explain", "IMAGE", "--target", "5000"], "target 5000"),
    (["explain", "IMAGE", "--target", "unicorn"], "No class is called 'unicorn'"),
    (["explain", "IMAGE", "--label", "cat"], "'cat' may mean"),
    (["explain", "IMAGE", "--output", "loss"], "logit or probability"),
    (["explain", "IMAGE", "--target", "top:0"], "top:3, not 'top:0'"),
    (["explain", "IMAGE", "--target", "top:"], "top:3, not 'top:'"),
    (["explain", "IMAGE", "--target", "top:2.5"], "top:3, not 'top:2.5'"),
    (["explain", "IMAGE", "--augment", "rotate"], "needs a magnitude"),
    (["explain", "IMAGE", "--augment", "twist:+3"], "no augmentation"),
    (["explain", "IMAGE", "--changes", "retrained"], "no change 'retrained'"),
    (["explain", "IMAGE", "--data-range", "wide"], "not 'wide'"),
    (["explain", "IMAGE", "--data-range", "-1"], "positive"),
    (["explain", "IMAGE", "--colormap", "rainbow"], "no colormap called 'rainbow'"),
    (["explain", "IMAGE", "--out", "IMAGE/results"], "cannot be written"),
    (["methods", "--model", "resnet5000"], "no classifier"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED, ids=lambda value: str(value)[-40:])
def test_what_cannot_be_done_is_said_in_one_sentence(
    arguments: list[str], sentence: str, image: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    keeps_load = {"--model", "--device", "--autocast"} & set(arguments)
    if not keeps_load:
        classifier = dataclasses.replace(toy(), labels=LABELS)
        monkeypatch.setattr(loading, "load", lambda id, **options: classifier)
    assert main([part.replace("IMAGE", image) for part in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert sentence in told.err
    assert told.err.count("\n") == 1
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "arguments are required"),
        (["explain"], "IMAGE"),
        (["fly"], "'fly'"),
        (["explain", "a.png", "--opacity", "3"], "--opacity: must be a number from 0 to 1, not '3'"),
        (["explain", "a.png", "--batch-size", "0"], "a whole number from 1"),
        (["explain", "a.png", "--seed", "x"], "a whole number from 0"),
        (["explain", "a.png", "--method", "edge", "--method", "random"], "--method: can be given once only"),
        (["explain", "a.png", "--colour", "x"], "nrecognized arguments: --colour x"),
    ],
)
def test_arguments_that_do_not_parse(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    told = capsys.readouterr()
    assert left.value.code == 2
    assert sentence in told.err
    assert told.err.count("\n") == 1
    assert told.err.rstrip().endswith("--help.")


def test_ctrl_c_ends_quietly(
    small: Classifier, image: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("salviz.exploring.explore_set", interrupt)
    assert main(["explain", image]) == 130
    assert capsys.readouterr() == ("", "Stopped.\n")


def test_the_version_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"salviz {__version__}\n"


def test_models_are_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [card["id"] for card in told] == [card.id for card in CARDS]
    assert told[0]["available_offline"] is True
    assert {**told[0], "available_offline": None} == {**dataclasses.asdict(CARDS[0]), "available_offline": None}
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert all(card.id in table and card.title in table for card in CARDS)


def test_methods_are_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [card["id"] for card in told] == list(methods.METHODS)
    smoothgrad = next(card for card in told if card["id"] == "smoothgrad")
    assert [parameter["name"] for parameter in smoothgrad["parameters"]] == ["samples", "noise", "tolerance"]
    assert smoothgrad["passes"] == 100
    assert "refusal" not in smoothgrad
    guided = next(card for card in told if card["id"] == "guided_backprop")
    assert (guided["needs"], smoothgrad["needs"]) == ("ReLU or ReLU6", "")
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = {line.split("  ")[0]: [word.strip() for word in line.split("  ") if word.strip()] for line in lines[1:]}
    assert words["guided_backprop"][2:] == ["gradients", "signed", "ReLU or ReLU6"]
    assert words["vargrad"][3:5] == ["unsigned", "any classifier"]
    assert words["grad_cam"][-1] == "layer=chosen by rule"
    assert words["score_cam"][-1] == "layer=chosen by rule, channels=all"
    assert not [line for line in lines if line.endswith("=") or "= " in line or "=," in line]
    assert [line.split()[0] for line in lines[1:]] == list(methods.METHODS)


def test_methods_say_whether_they_can_explain_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 12), nn.GELU(), nn.Linear(12, 3))
    flat = classifier_of(net, size=8, classes=3, name="flat")
    monkeypatch.setattr(loading, "load", lambda id, **options: flat)
    assert main(["methods", "--model", "flat", "--json"]) == 0
    told = {card["id"]: card for card in json.loads(capsys.readouterr().out)}
    assert told["gradient"]["explains_model"] is True
    assert told["gradient"]["refusal"] is None
    assert told["grad_cam"]["explains_model"] is False
    assert "no layer with a spatial map" in told["grad_cam"]["refusal"]
    assert "ReLU nets only" in told["guided_backprop"]["refusal"]
    tried = []
    monkeypatch.setattr(support, "_try", lambda *given, plain=support._try: (tried.append(given[2]), plain(*given))[1])
    lines = summary.method_lines(flat)
    assert next(lines).endswith("explains flat")
    assert not tried
    assert next(lines).startswith("full_grad ")
    assert tried == ["full_grad"], "a method's line does not wait for the next"
    assert main(["methods", "--model", "flat"]) == 0
    table = capsys.readouterr().out
    assert "explains flat" in table
    assert "no layer with a spatial map" in table
