"""The front door: whatever form the images come in, the same maps come out."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import salviz
from salviz import engine
from salviz.errors import RequestError
from salviz.images import Picture, open_path
from salviz.targets import ClassTarget, TopTarget
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
    for target in (4, [4, 4], ClassTarget(torch.tensor([4, 4]))):
        assert torch.equal(salviz.explain(toy(), x, methods=["gradient"], target=target)["gradient"].maps, by_object)


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
        (torch.zeros(3, 32, 32), {}, "N, 3, H, W"),
    ],
)
def test_what_cannot_be_done_gets_one_sentence(given: object, options: dict, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        salviz.explain(toy(), given, **options)
