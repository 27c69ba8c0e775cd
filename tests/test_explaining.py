"""The front door: whatever form the images come in, the same maps come out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import salviz
from salviz import engine
from salviz.errors import RequestError
from salviz.images import Picture, open_path
from salviz.targets import ClassTarget, PredictedTarget, TopTarget
from tests.golden import cose_inputs
from tests.models import images, timm_model, toy

PIXELS = [cose_inputs.image_u8(12, 40), cose_inputs.smooth_image_u8(40)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{place}.png" for place in range(2)]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_files_pillow_images_and_pictures_are_the_same(files: list[Path]) -> None:
    options = {"methods": ["random", "gradient"]}
    forms = [files, [str(file) for file in files], [Image.open(file) for file in files], [open_path(f) for f in files]]
    results = [salviz.explain(toy(), form, **options) for form in forms]
    for found in results:
        assert list(found) == ["random", "gradient"]
        for method, explained in found.items():
            assert torch.equal(explained.maps, results[0][method].maps)
    one = salviz.explain(toy(), files[1], **options)
    assert torch.equal(one["random"].maps[0], results[0]["random"].maps[1]), "seeded by content, not by place"


def test_a_batch_in_model_space_is_seeded_by_its_content() -> None:
    x = images(3, 32)
    found = salviz.explain(toy(), x, methods=["smoothgrad"])["smoothgrad"]
    turned = salviz.explain(toy(), x.flip(0), methods={"smoothgrad": {"samples": 50}})["smoothgrad"]
    torch.testing.assert_close(turned.maps.flip(0), found.maps)


def test_targets_in_every_form() -> None:
    x = images(2, 32)
    by_object = engine.explain(
        toy(), x, method="gradient", target=ClassTarget(torch.tensor([4, 4])), digests=["a", "b"]
    ).maps
    four = np.zeros(10)
    four[4] = 1.0
    for target in (
        4, np.argmax(four), np.int8(4), np.array(4), torch.tensor(4), PredictedTarget(chosen=np.uint8(4)),
        [4, 4], (np.int64(4), torch.tensor(4)), np.array([4, 4]), np.array([4, 4], dtype=np.uint8),
        torch.tensor([4, 4]), torch.tensor([4, 4], dtype=torch.int32), ClassTarget(torch.tensor([4, 4])),
    ):  # fmt: skip
        assert torch.equal(salviz.explain(toy(), x, methods=["gradient"], target=target)["gradient"].maps, by_object)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (2.0, r"a whole number, not 2\.0\."),
        (np.float32(2), "a whole number, not"),
        (torch.tensor(2.0), "a whole number, not"),
        (True, "a whole number, not True"),
        (np.bool_(True), "a whole number, not"),
        (torch.tensor(True), "a whole number, not"),
        ("tabby", "a whole number, not 'tabby'"),
        ([2.0, 3.0], "a whole number, not 2.0"),
        ([2, True], "a whole number, not True"),
        (np.array([2.0, 3.0]), "a whole number, not"),
        (torch.tensor([2.0, 3.0]), "whole numbers, not float32"),
        (torch.tensor([True, False]), "whole numbers, not bool"),
        ([[2], [3]], r"a whole number, not \[2\]"),
        ([torch.zeros(1000), 3], r"a whole number, not numbers of shape \(1000,\)"),
        (np.array([[2, 3]]), r"one an image, not as \(1, 2\)"),
        (torch.tensor([[2], [3]]), r"one an image, not as \(2, 1\)"),
        (ClassTarget(torch.tensor(2)), r"one an image, not as \(\)"),
        (ClassTarget(torch.tensor([2.0, 3.0])), "whole numbers, not float32"),
        ([2], "2 images but 1 target classes"),
        (np.int64(10), "no class 10"),
        (TopTarget(2.5), "most probable 2.5 classes cannot"),
    ],
)
def test_what_is_no_class_gets_one_sentence(target: object, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence) as caught:
        salviz.explain(toy(), images(2, 32), methods=["gradient"], target=target)
    assert "\n" not in str(caught.value)


def test_maps_at_the_inputs_resolution_keep_their_signs() -> None:
    x = images(2, (48, 32))
    found = salviz.explain(toy(), x, methods=["gradient", "grad_cam"])
    expected = found["gradient"].maps.double().numpy().sum(axis=1)
    np.testing.assert_allclose(found["gradient"].at_input().numpy(), expected, rtol=1e-5, atol=1e-6)
    native, laid = found["grad_cam"].maps, found["grad_cam"].at_input()
    assert tuple(native.shape) == (2, 24, 16)
    for own, large in zip(native, laid, strict=True):
        bilinear = Image.fromarray(own.numpy()).resize((32, 48), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(large.numpy(), np.asarray(bilinear), rtol=1e-4, atol=1e-5)


def test_the_most_probable_classes_one_by_one() -> None:
    classifier, x = timm_model("test_vit"), images(2, 160)
    found = salviz.explain(classifier, x, methods=["grad_cam"], target=TopTarget(3))["grad_cam"]
    top = classifier.predict(x).topk(3).indices
    assert found.classes.tolist() == top.flatten().tolist()
    for image in range(2):
        for rank in range(3):
            alone = salviz.explain(classifier, x[[image]], methods=["grad_cam"], target=int(top[image, rank]))
            torch.testing.assert_close(found.maps[3 * image + rank], alone["grad_cam"].maps[0], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        ([], {}, "no image to explain"),
        (Picture.from_rgb(Image.fromarray(PIXELS[0])), {"methods": []}, "No method was chosen"),
        (Picture.from_rgb(Image.fromarray(PIXELS[0])), {"target": 10}, "no class 10"),
        (Picture.from_rgb(Image.fromarray(PIXELS[0])), {"target": TopTarget(11)}, "there are 10"),
        *[
            (torch.zeros(shape), {"target": target}, "N, 3, H, W")
            for shape in ((3, 32, 32), (), (0, 3, 32, 32), (1, 1, 32, 32))
            for target in (None, TopTarget(2))
        ],
        (torch.zeros(1, 3, 32, 32), {"target": TopTarget(2), "batch_size": 0}, "the batch size cannot be 0"),
        (torch.zeros(1, 3, 32, 32), {"target": TopTarget(2), "batch_size": -1}, "the batch size cannot be -1"),
    ],
)
def test_what_cannot_be_done_gets_one_sentence(given: object, options: dict, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        salviz.explain(toy(), given, **options)
