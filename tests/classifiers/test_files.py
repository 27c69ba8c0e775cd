import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import nn

from salviz.classifiers.architectures import find_architecture
from salviz.classifiers.files import draft_file
from salviz.classifiers.loading import at_checkpoint, load, untrained
from salviz.classifiers.registry import is_available_offline
from salviz.errors import ClassifierError

ARCHITECTURE = "timm:test_resnet"


def net(seed: int = 0, classes: int = 5, name: str = "test_resnet") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, pretrained=False, num_classes=classes).eval()


def save(path: Path, module: nn.Module, **metadata: str) -> Path:
    save_file(module.state_dict(), path, metadata=metadata or None)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "mine.safetensors", net())


def test_a_file_computes_what_the_saved_model_did(path: Path) -> None:
    classifier = load(f"{path}@{ARCHITECTURE}", device="cpu")
    height, width = classifier.preprocessing.input_size
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(classifier.predict(x), net()(x))
    assert classifier.id == f"{path}@{ARCHITECTURE}"
    assert classifier.architecture == ARCHITECTURE
    assert classifier.title == "mine"
    assert classifier.labels.names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert load(str(path), architecture=ARCHITECTURE, device="cpu").digest == classifier.digest
    twin = untrained(classifier, seed=7)
    assert twin.digest != classifier.digest
    assert twin.predict(x).shape == (2, 5)
    assert is_available_offline(classifier.id)
    assert not is_available_offline("nowhere.safetensors@timm:test_resnet")


def test_the_header_is_heeded(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.safetensors",
        net(classes=2),
        title="Mine",
        labels=json.dumps(["ant", "bee"]),
        input_size="128",
        mean="[0.1, 0.2, 0.3]",
        std="[1, 2, 4]",
    )
    classifier = load(str(path), architecture=ARCHITECTURE, device="cpu")
    published = find_architecture(ARCHITECTURE).preprocessing
    assert classifier.title == "Mine"
    assert classifier.labels.names == ("ant", "bee")
    assert classifier.preprocessing.input_size == (128, 128)
    assert published.input_size == (160, 160)
    assert isinstance(published.resize, int)
    assert classifier.preprocessing.resize == published.resize * 128 // 160
    assert classifier.preprocessing.mean == (0.1, 0.2, 0.3)
    assert classifier.preprocessing.std == (1.0, 2.0, 4.0)


def test_an_oblong_input_size(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", net(), input_size="[96, 64]")
    classifier = load(str(path), architecture=ARCHITECTURE, device="cpu")
    assert classifier.preprocessing.input_size == (96, 64)


def test_a_vision_transformer_of_another_size(tmp_path: Path) -> None:
    module = timm.create_model("test_vit", pretrained=False, num_classes=3, img_size=96)
    path = save(tmp_path / "m.safetensors", module, input_size="96")
    assert load(str(path), architecture="timm:test_vit", device="cpu").preprocessing.input_size == (96, 96)
    bare = save(tmp_path / "n.safetensors", module)
    with pytest.raises(ClassifierError, match="does not fit its architecture: tensor pos_embed has shape"):
        load(str(bare), architecture="timm:test_vit", device="cpu")


def test_a_torchvision_architecture(tmp_path: Path) -> None:
    module = torchvision.models.squeezenet1_1(num_classes=6)
    path = save(tmp_path / "m.safetensors", module)
    classifier = load(f"{path}@torchvision:squeezenet1_1", device="cpu")
    assert len(classifier.labels) == 6
    assert classifier.architecture == "torchvision:squeezenet1_1"


@pytest.mark.parametrize(
    "name", ["alexnet", "vgg11_bn", "densenet121", "mobilenet_v3_small", "maxvit_t", "vit_b_32", "swin_t"]
)
def test_the_head_of_torchvisions_models(name: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(name, weights=None, num_classes=7919).state_dict()
    head = next(key for key in find_architecture(f"torchvision:{name}").head if key in state)
    assert state[head].shape[0] == 7919


def test_half_precision_files_are_widened(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", net().half())
    classifier = load(str(path), architecture=ARCHITECTURE, device="cpu")
    assert next(classifier.module.parameters()).dtype == torch.float32


def test_checkpoints_beside_the_file_in_natural_order(path: Path) -> None:
    for label in ("10", "9", "epoch-2", "epoch-11", "100"):
        save(path.parent / f"mine.checkpoint-{label}.safetensors", net(seed=sum(label.encode())))
    save(path.parent / "other.checkpoint-1.safetensors", net())
    classifier = load(f"{path}@{ARCHITECTURE}", device="cpu")
    assert [c.label for c in classifier.checkpoints] == ["9", "10", "100", "epoch-2", "epoch-11"]
    early = at_checkpoint(classifier, classifier.checkpoints[0])
    expected = net(seed=sum(b"9")).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in early.module.state_dict().items())
    assert early.id == f"{classifier.id}#checkpoint-9"
    assert early.lock is not classifier.lock
    assert load(early.id, device="cpu").digest == early.digest
    save(path.parent / "mine.checkpoint-10.safetensors", net(classes=6))
    with pytest.raises(ClassifierError, match="does not fit"):
        at_checkpoint(classifier, classifier.checkpoints[1])


def broken(path: Path, what: str) -> str:
    state = net().state_dict()
    if what == "cut short":
        path.write_bytes(path.read_bytes()[:-500])
    elif what == "a pickle in disguise":
        torch.save(state, path)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "lacks a tensor":
        del state["bn1.weight"]
    elif what == "has one more":
        state["extra"] = torch.zeros(3)
    elif what == "lacks the head":
        del state["fc.weight"]
    elif what == "of another shape":
        state["bn1.weight"] = torch.zeros(3)
    elif what == "quantised":
        state["bn1.weight"] = state["bn1.weight"].to(torch.int8)
    elif what == "undefined":
        state["fc.weight"] = state["fc.weight"] * float("nan")
    if what not in ("cut short", "a pickle in disguise", "empty"):
        save_file(state, path)
    return f"{path}@{ARCHITECTURE}"


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("cut short", "not a sound safetensors file"),
        ("a pickle in disguise", "not a sound safetensors file"),
        ("empty", "not a sound safetensors file"),
        ("lacks a tensor", "1 tensors are missing (such as bn1.weight)"),
        ("has one more", "1 tensors are unknown to it (such as extra)"),
        ("lacks the head", "fc.weight"),
        ("of another shape", "bn1.weight has shape 3 where"),
        ("quantised", "torch.int8"),
        ("undefined", "undefined numbers"),
    ],
)
def test_a_broken_file_is_said_in_one_sentence(path: Path, what: str, part: str) -> None:
    with pytest.raises(ClassifierError) as refusal:
        load(broken(path, what), device="cpu")
    assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert str(path.parent) not in str(refusal.value)


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"labels": "ant, bee"}, "not valid JSON"),
        ({"labels": '["ant"]'}, "names 1 classes and its weights have 5"),
        ({"labels": '{"0": "ant"}'}, "JSON list of names"),
        ({"mean": "0.5"}, "list of three numbers"),
        ({"std": "[0, 0, 0]"}, "preprocessing"),
        ({"input_size": '"big"'}, "a number or [height, width]"),
        ({"input_size": "-4"}, "preprocessing"),
    ],
)
def test_a_wrong_header_is_said(tmp_path: Path, metadata: dict[str, str], part: str) -> None:
    path = save(tmp_path / "m.safetensors", net(), **metadata)
    with pytest.raises(ClassifierError) as refusal:
        draft_file(f"{path}@{ARCHITECTURE}")
    assert part in str(refusal.value)


def test_questions_about_the_architecture(path: Path) -> None:
    for id, architecture, part in [
        (str(path), None, "add its architecture"),
        (str(path), "resnet50", "timm:<name>"),
        (str(path), "timm:test_resnot", "timm:test_resnet"),
        (f"{path}@{ARCHITECTURE}", "timm:test_vit", "Two architectures"),
        (f"{path.with_name('absent.safetensors')}@{ARCHITECTURE}", None, "no file absent.safetensors"),
        (f"{path}@timm:test_vit", None, "head.weight"),
    ]:
        with pytest.raises(ClassifierError) as refusal:
            draft_file(id, architecture=architecture)
        assert part in str(refusal.value)


def test_a_pickle_never_runs(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    for name in ("m.pth", "m.safetensors", "m.bin"):
        torch.save({"x": Trap()}, tmp_path / name)
        with pytest.raises(ClassifierError):
            load(f"{tmp_path / name}@{ARCHITECTURE}")
    assert not (tmp_path / "sprung").exists()
