"""Training the small classifiers: what a recipe decides, what is written, and that it can be loaded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import salviz
from salviz.datasets.arrays import LabelledImages
from salviz.errors import ClassifierError, DataError
from salviz.images.fashion import FASHION
from salviz.training import RECIPES, Recipe, model_space, train, training_set, write

QUICK = Recipe("quick", "Quick", "salviz:small_cnn", epochs=2, checkpoints=4, batch=16)


def pictures(count: int, seed: int = 0) -> LabelledImages:
    """Ten classes that differ in where a bright bar lies."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 28, 28), generator=generator).to(torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 6, :] += 150
    return LabelledImages(images, labels, FASHION)


def test_recipes_of_twins_differ_in_the_labels_alone() -> None:
    for kind in ("cnn", "vit"):
        true, permuted = RECIPES[f"fashion_{kind}_twin"], RECIPES[f"fashion_{kind}_permuted"]
        assert replace(permuted, id=true.id, title=true.title, is_permuted=False) == true
        everything = pictures(12_000)
        a, b = training_set(true, everything), training_set(permuted, everything)
        assert torch.equal(a.images, b.images)
        assert len(a) == 10_000
        assert torch.equal(a.labels.bincount(), b.labels.bincount())
        # A permutation of ten equal classes leaves a tenth of the labels right.
        assert 0.08 < float((a.labels == b.labels).float().mean()) < 0.12
    with pytest.raises(DataError, match="needs 10000 pictures"):
        training_set(true, pictures(50))


@pytest.mark.parametrize("architecture", ["salviz:small_cnn", pytest.param("salviz:small_vit", marks=pytest.mark.slow)])
def test_training_learns_is_reproducible_and_can_be_loaded(architecture: str, tmp_path: Path) -> None:
    recipe = replace(QUICK, architecture=architecture, is_augmented=architecture.endswith("cnn"))
    told: list[tuple[int, int]] = []
    made = train(recipe, pictures(320), pictures(200, 1), progress=lambda step, steps, loss: told.append((step, steps)))
    again = train(recipe, pictures(320), pictures(200, 1))
    other = train(replace(recipe, seed=1, epochs=1, checkpoints=0), pictures(32), pictures(8))
    assert made.digest == again.digest != other.digest
    assert told[-1] == (40, 40)
    assert made.test_accuracy > 0.15
    assert list(made.states) == ["step-2", "step-6", "step-14", "step-26", ""]

    files = write(made, tmp_path)
    assert {file.name for file in files} == {
        "quick.safetensors", "quick.json", *(f"quick.checkpoint-{label}.safetensors" for label in made.states if label)
    }  # fmt: skip
    about = json.loads((tmp_path / "quick.json").read_text())
    assert about["digest"] == made.digest
    assert about["recipe"]["seed"] == 0
    classifier = salviz.load(f"{tmp_path / 'quick.safetensors'}@{architecture}")
    assert classifier.digest == made.digest
    assert classifier.title == "Quick"
    assert tuple(classifier.labels) == FASHION
    assert [checkpoint.label for checkpoint in classifier.checkpoints] == ["step-2", "step-6", "step-14", "step-26"]

    test = pictures(200, 1)
    logits = classifier.predict(model_space(test.images))
    right = float((logits.argmax(dim=1) == test.labels).float().mean())
    # Folded batch norms may tip a tie.
    assert right == pytest.approx(about["test_accuracy"], abs=0.011)
    early = salviz.load(f"{classifier.id}#checkpoint-step-2")
    assert not torch.allclose(early.predict(model_space(test.images)), logits, atol=0.1)


def test_model_space_is_the_preprocessing_of_the_small_classifiers(tmp_path: Path) -> None:
    from PIL import Image

    write(train(replace(QUICK, epochs=1, checkpoints=0), pictures(32), pictures(8)), tmp_path)
    classifier = salviz.load(f"{tmp_path / 'quick.safetensors'}@salviz:small_cnn")
    image = pictures(1).images[0]
    prep = classifier.preprocessing
    seen = prep.normalise(prep.frame(Image.fromarray(image.numpy()).convert("RGB"))[None])
    torch.testing.assert_close(seen, model_space(image[None]))


def test_an_unknown_architecture_of_our_own_is_refused(tmp_path: Path) -> None:
    write(train(replace(QUICK, epochs=1, checkpoints=0), pictures(32), pictures(8)), tmp_path)
    with pytest.raises(ClassifierError, match="salviz:small_cnn and salviz:small_vit"):
        salviz.load(f"{tmp_path / 'quick.safetensors'}@salviz:small_mlp")
