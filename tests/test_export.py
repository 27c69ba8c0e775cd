"""What leaves Salviz can be read back, with every digit, and says how it came about."""

import csv
import dataclasses
import io
import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import salviz
from salviz import __version__, export, render
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.labels import Labels
from salviz.errors import RequestError
from salviz.exploration import Exploration
from salviz.exploring import explore
from salviz.images import Picture
from salviz.render import Display
from salviz.request import request_for
from salviz.scores import scores
from salviz.transforms import Variant
from tests.golden import cose_inputs
from tests.models import toy

NAMES = tuple(f'class {index}, "the {index}th"\nof ten' for index in range(10))


def wide_picture() -> Picture:
    """A picture wider than the model's square input, so that the frame covers its middle only."""
    pixels = np.concatenate([cose_inputs.image_u8(12, 40), cose_inputs.image_u8(13, 40)], axis=1)
    return Picture.from_rgb(Image.fromarray(pixels), name="two, halves", source="file:two.png")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    prep = dataclasses.replace(toy().preprocessing, resize=32)
    return dataclasses.replace(toy(), labels=Labels(NAMES), preprocessing=prep)


@pytest.fixture(scope="module")
def picture() -> Picture:
    return wide_picture()


@pytest.fixture(scope="module")
def found(classifier: Classifier, picture: Picture) -> Exploration:
    asked = request_for(
        picture, classifier, method="integrated_gradients", parameters={"steps": 4}, label=2, seed=5,
        variants=[Variant.from_token(token) for token in ("rotate:+27", "flip_lr", "brightness:-1")],
        changes=["untrained"],
    )  # fmt: skip
    return explore(classifier, picture, asked)


def test_the_table_has_every_digit(found: Exploration, classifier: Classifier) -> None:
    text = export.similarities_csv(found, classifier.labels)
    assert text.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert tuple(rows[0]) == export.COLUMNS
    assert [row["token"] for row in rows] == ["rotate:+27", "flip_lr", "brightness:-1", "untrained"]
    assert [row["kind"] for row in rows] == ["geometric", "geometric", "photometric", "untrained"]
    assert rows[0]["label"] == "rotate +27°"
    for index, row in enumerate(rows, start=1):
        predicted = int(found.predicted[index])
        assert int(row["row"]) == index
        assert int(row["predicted_class"]) == predicted
        assert row["predicted_name"] == classifier.labels.short(predicted)
        assert float(row["probability"]) == float(found.probabilities[index, predicted])
        assert int(row["clean_class"]) == int(found.predicted[0])
        assert row["kept"] == ("true" if predicted == found.predicted[0] else "false")
        assert int(row["explained_class"]) == int(found.classes[index])
        for name, values in (("ssim", found.ssim), ("spearman", found.spearman)):
            if values[index].isnan():
                assert row[name] == ""
            else:
                assert float(row[name]) == float(values[index])


def test_undefined_numbers_are_empty_cells(found: Exploration, classifier: Classifier) -> None:
    undefined = dataclasses.replace(found, ssim=torch.full_like(found.ssim, float("nan")))
    rows = csv.DictReader(io.StringIO(export.similarities_csv(undefined, classifier.labels), newline=""))
    assert {row["ssim"] for row in rows} == {""}


def test_the_manifest_says_how_to_get_the_result_again(
    found: Exploration, classifier: Classifier, picture: Picture
) -> None:
    told = json.loads(json.dumps(export.manifest(found, classifier, picture), allow_nan=False))
    assert told["request"]["parameters"]["steps"] == 4
    assert told["request"]["seed"] == 5
    assert told["digest"] == found.request.digest
    assert told["complete"] is True
    assert told["versions"]["salviz"] == __version__
    assert told["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert told["versions"]["numpy"] == np.__version__
    assert told["versions"]["timm"]
    assert told["classifier"]["id"] == classifier.id
    assert told["classifier"]["weights"] == classifier.digest
    assert told["classifier"]["input_size"] == [32, 32]
    assert told["classifier"]["device"] == "cpu"
    assert told["classifier"]["autocast"] is None
    assert told["picture"] == {
        "name": "two, halves", "source": "file:two.png", "digest": picture.digest, "size": [80, 40],
        "placement": [20.0, 0.0, 60.0, 40.0],
    }  # fmt: skip
    assert told["layer"] is None
    assert told["grid"] == [32, 32]
    assert told["explained_classes"] == found.classes.tolist()
    assert told["predicted_classes"] == found.predicted.tolist()
    assert [entry["class"] for entry in told["top"]] == found.logits[0].topk(5).indices.tolist()
    assert told["top"][0]["probability"] == float(found.probabilities[0].max())
    assert len(told["completeness"]) == 5
    assert told["passes"] == found.passes == 45
    assert told["seconds"] > 0


def test_scores_in_the_manifest_are_the_apps(found: Exploration, classifier: Classifier, picture: Picture) -> None:
    told = export.manifest(found, classifier, picture)["scores"]
    result = scores(found)
    for name in ("consistency", "sensitivity", "cose"):
        score = getattr(result, name)
        for field in ("value", "low", "high"):
            value = getattr(score, field)
            assert told[name][field] == (None if np.isnan(value) else value)
        assert (told[name]["count"], told[name]["undefined"]) == (score.count, score.undefined)
    assert told["rows"] == 4
    assert told["misclassified"] == result.misclassified
    assert set(told["splits"]) == set(result.splits)
    assert told["bootstrap"] == {"unit": "row", "draws": 1000, "level": 0.95, "seed": 5}


def test_the_archive_opens_without_pickle(found: Exploration, classifier: Classifier, picture: Picture) -> None:
    data = export.archive(found, classifier, picture)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for name in ("raw", "frames", "ssim", "spearman", "logits", "classes"):
            np.testing.assert_array_equal(arrays[name], getattr(found, name).numpy())
            assert arrays[name].dtype == getattr(found, name).numpy().dtype
        laid = arrays["map_on_photograph"]
        assert json.loads(str(arrays["manifest"])) == export.manifest(found, classifier, picture)
        signed = arrays["signed"]
    # Pixels are attributed three channels; the sums are at the input's resolution already.
    assert signed.dtype == np.float32
    assert (signed < 0).any()
    np.testing.assert_allclose(signed, found.raw.numpy().sum(axis=1), rtol=1e-6, atol=1e-7)
    assert laid.shape == (40, 80)
    assert laid.dtype == np.float32
    assert np.isnan(laid[:, :20]).all()
    assert np.isnan(laid[:, 60:]).all()
    assert np.isfinite(laid[:, 20:60]).all()
    expected = found.placement.lay(found.display_map(0, is_signed=False)[0][None])[0].numpy()
    np.testing.assert_array_equal(laid, expected)


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The definition, a pixel at a time: linear between the cells' centres, the border's values beyond them."""
    height, width = values.shape

    def between(place: int, count: int, cells: int) -> tuple[int, int, float]:
        where = min(max((place + 0.5) * cells / count - 0.5, 0.0), cells - 1.0)
        return int(where), min(int(where) + 1, cells - 1), where - int(where)

    found = np.zeros(size)
    for i in range(size[0]):
        top, bottom, down = between(i, size[0], height)
        for j in range(size[1]):
            left, right, across = between(j, size[1], width)
            upper = (1 - across) * values[top, left] + across * values[top, right]
            lower = (1 - across) * values[bottom, left] + across * values[bottom, right]
            found[i, j] = (1 - down) * upper + down * lower
    return found


def test_signed_maps_are_there_at_native_and_at_input_resolution(classifier: Classifier, picture: Picture) -> None:
    asked = request_for(picture, classifier, method="grad_cam", variants=[Variant.from_token("flip_lr")])
    explored = explore(classifier, picture, asked)
    x = classifier.preprocessing.normalise(explored.frames)
    explained = salviz.explain(classifier, x, methods=["grad_cam"])["grad_cam"]
    with np.load(io.BytesIO(export.archive(explored, classifier, picture)), allow_pickle=False) as arrays:
        raw, signed = arrays["raw"], arrays["signed"]
    assert raw.shape == (2, 16, 16)
    assert (raw < 0).any()
    expected = np.stack([resized(native, (32, 32)) for native in raw.astype(np.float64)])
    assert signed.shape == explained.at_input().shape == (2, 32, 32)
    np.testing.assert_allclose(signed, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(explained.at_input().numpy(), expected, rtol=1e-4, atol=1e-5)
    for row in range(2):
        shown, _ = explored.display_map(row, is_signed=True, is_aligned=False)
        np.testing.assert_array_equal(signed[row], shown.numpy())


def test_equal_results_give_equal_bytes(found: Exploration, classifier: Classifier, picture: Picture) -> None:
    assert export.archive(found, classifier, picture) == export.archive(found, classifier, picture)


@pytest.mark.parametrize("part", ["photo", "map", "overlay"])
def test_pictures_are_what_the_page_shows(found: Exploration, picture: Picture, part: export.Part) -> None:
    display = Display(opacity=0.7, is_signed=True)
    with Image.open(io.BytesIO(export.overlay_png(found, picture, display, part=part))) as image:
        shown = np.asarray(image)
    assert shown.shape == (40, 80, 3)
    np.testing.assert_array_equal(shown, getattr(render.pictures(found, picture, display, width=80), part))
    with Image.open(io.BytesIO(export.overlay_png(found, picture, display, part=part, width=120))) as image:
        assert image.size == (120, 60)


def test_an_unknown_picture_is_refused(found: Exploration, picture: Picture) -> None:
    with pytest.raises(RequestError, match="photo, map, overlay"):
        export.overlay_png(found, picture, Display(), part="frame")  # type: ignore[arg-type]


def test_a_partial_result_can_be_exported(classifier: Classifier, picture: Picture) -> None:
    parts: list[Exploration] = []
    asked = request_for(picture, classifier, method="smoothgrad", parameters={"samples": 3})
    explore(classifier, picture, asked, publish=parts.append)
    first = parts[0]
    assert export.similarities_csv(first, classifier.labels).count("\r\n") == 1
    told = export.manifest(first, classifier, picture)
    assert told["complete"] is False
    assert told["scores"]["cose"]["value"] is None
    assert export.archive(first, classifier, picture)


def test_save_writes_all_files(found: Exploration, classifier: Classifier, picture: Picture, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "results"
    paths = export.save(found, classifier, picture, Display(), folder)
    assert [path.name for path in paths] == [
        "map.png", "overlay.png", "maps.npz", "manifest.json", "similarities.csv",
    ]  # fmt: skip
    assert sorted(folder.iterdir()) == sorted(paths), "no leftovers"
    contents = {path.name: path.read_bytes() for path in paths}
    assert contents["overlay.png"] == export.overlay_png(found, picture, Display())
    assert contents["map.png"] == export.overlay_png(found, picture, Display(), part="map")
    assert contents["maps.npz"] == export.archive(found, classifier, picture)
    assert json.loads(contents["manifest.json"]) == export.manifest(found, classifier, picture)
    assert contents["similarities.csv"].decode() == export.similarities_csv(found, classifier.labels)
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(paths[0].stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    export.save(found, classifier, picture, Display(), str(folder))
    assert sorted(folder.iterdir()) == sorted(paths), "saved twice, files are replaced"


def test_a_folder_that_cannot_be_is_said_in_one_sentence(
    found: Exploration, classifier: Classifier, picture: Picture, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match="cannot be written") as caught:
        export.save(found, classifier, picture, Display(), tmp_path / "file" / "results")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_failure_half_way_leaves_the_old_file_and_no_rest(
    found: Exploration, classifier: Classifier, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export.save(found, classifier, picture, Display(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RequestError, match="No space left"):
        export.save(found, classifier, picture, Display(colormap="viridis"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
