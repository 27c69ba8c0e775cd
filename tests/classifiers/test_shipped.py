"""The small classifiers that come with Salviz: their cards are true, and pairs differ in nothing but labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from salviz import explore, load
from salviz.assets import find_asset
from salviz.changes import known_changes
from salviz.classifiers.registry import CARDS, SHIPPED, TWINS, is_available_offline, shipped_file
from salviz.datasets.arrays import DEBIAN, fashion_mnist, fashion_sample
from salviz.errors import ClassifierError
from salviz.images import open_fashion
from salviz.images.fashion import FASHION
from salviz.request import request_for
from salviz.training import RECIPES, accuracy, model_space, training_set

FOLDER = Path(str(find_asset(shipped_file("fashion_cnn")))).parent


def card(id: str) -> dict:
    found: dict = json.loads((FOLDER / f"{id}.json").read_text())
    return found


def test_there_is_one_for_every_recipe() -> None:
    assert set(SHIPPED) == set(RECIPES)
    assert [(known.id, known.title) for known in CARDS if known.source == "shipped"] == [
        (recipe.id, recipe.title) for recipe in RECIPES.values()
    ]
    assert all(is_available_offline(id) for id in SHIPPED)


@pytest.mark.parametrize("id", SHIPPED)
def test_a_card_tells_the_truth_of_its_weights(id: str) -> None:
    classifier, about = load(id), card(id)
    assert classifier.id == id
    assert classifier.digest == about["digest"]
    assert classifier.labels.names == FASHION
    recipe = RECIPES[id]
    assert about["recipe"] == {name: getattr(recipe, name) for name in about["recipe"]}
    # A thousand pictures of the ten thousand: four standard errors of a share.
    share = about["test_accuracy"]
    assert abs(accuracy(classifier.module, fashion_sample()) - share) < 4 * (share * (1 - share) / 1000) ** 0.5


def test_they_learnt_what_they_should() -> None:
    assert card("fashion_cnn")["test_accuracy"] >= 0.92
    assert card("fashion_vit")["test_accuracy"] >= 0.88
    for true, permuted in TWINS.items():
        first, second = card(true), card(permuted)
        assert min(first["train_accuracy"], second["train_accuracy"]) >= 0.95
        # Chance: a tenth, and three standard errors of ten thousand answers.
        assert second["test_accuracy"] == pytest.approx(0.1, abs=0.009)
        own = {"id", "title", "is_permuted"}
        assert {key for key, value in first["recipe"].items() if second["recipe"][key] != value} == own


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("id", [name for pair in TWINS.items() for name in pair])
@pytest.mark.slow
def test_they_know_their_labels_by_heart(id: str) -> None:
    chosen = training_set(RECIPES[id], fashion_mnist("train"))
    assert accuracy(load(id).module, chosen) == pytest.approx(card(id)["train_accuracy"], abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("id", ["fashion_cnn", "fashion_vit"])
def test_their_checkpoints_are_classifiers_on_the_way(id: str) -> None:
    classifier, sample = load(id), fashion_sample()
    steps = [int(checkpoint.label.removeprefix("step-")) for checkpoint in classifier.checkpoints]
    assert len(steps) == 10
    assert steps == sorted(steps)
    first = load(f"{id}#checkpoint-step-{steps[0]}")
    assert accuracy(first.module, sample) < accuracy(classifier.module, sample) - 0.05


@pytest.mark.slow
def test_checkpoints_serve_sensitivity() -> None:
    """COSE's changed models: the map of a net on its way is less like the last one the earlier it is."""
    classifier = load("fashion_cnn")
    changes = [change for change in known_changes(classifier) if change.startswith("checkpoint:")]
    alike = []
    for index in range(8):
        request = request_for(open_fashion(index), classifier, variants=[], changes=changes)
        alike.append(explore(classifier, open_fashion(index), request).ssim[1:].numpy())
    means = np.nanmean(alike, axis=0)
    assert means.shape == (10,)
    assert means[:5].mean() < means[5:].mean()


def test_pictures_are_seen_as_in_training() -> None:
    """The way of a picture through the app ends in the tensor that training saw."""
    classifier = load("fashion_cnn")
    prep = classifier.preprocessing
    x = prep.normalise(prep.frame(open_fashion(17).image)[None])
    torch.testing.assert_close(x, model_space(fashion_sample().images[17:18]))


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12e6


def test_a_missing_file_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from salviz.classifiers import loading

    monkeypatch.setattr(loading, "find_asset", lambda name: None)
    with pytest.raises(ClassifierError, match="fashion_vit are missing from this installation"):
        load("fashion_vit")
