"""Maps of the toy CNN against those of COSE's own code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from salviz import engine, maps, methods
from salviz.methods.gradients.smooth import sample_gradients
from salviz.targets import ClassTarget, PredictedTarget
from salviz.work import Work
from tests.golden import cose_inputs
from tests.models import IMAGENET_MEAN, IMAGENET_STD, toy

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cose.json").read_text())["methods_toy"]
PICTURES = {"smooth32": cose_inputs.smooth_image_u8(32), "rand12_32": cose_inputs.image_u8(12, 32)}


def as_input(picture: np.ndarray) -> torch.Tensor:
    x = (picture.astype(np.float32) / 255 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    return torch.from_numpy(x.transpose(2, 0, 1).copy())[None]


def grid(maps_: torch.Tensor) -> np.ndarray:
    return maps_[0, ::4, ::4].numpy()


CASES = [
    ("gradcam", "grad_cam", {}, "logit"),
    ("gradcamPP", "grad_cam_pp", {}, "logit"),
    ("ig", "integrated_gradients", {"rule": "released", "steps": 25}, "probability"),
    ("blur_ig", "blur_ig", {}, "probability"),
]


# The file holds no BlurIG map of the smooth picture.
@pytest.mark.parametrize(
    ("picture", "name", "method", "parameters", "output"),
    [(picture, *case) for picture in PICTURES for case in CASES if f"{picture}_{case[0]}" in GOLDEN],
)
def test_maps_equal_those_of_the_papers_code(
    picture: str, name: str, method: str, parameters: dict, output: str
) -> None:
    found = engine.explain(
        toy(), as_input(PICTURES[picture]), method=method, parameters=parameters,
        target=PredictedTarget(output), digests=[picture],
    )  # fmt: skip
    comparable = maps.comparable(found.maps, methods.get(method).card, (32, 32))
    np.testing.assert_allclose(grid(comparable), GOLDEN[f"{picture}_{name}"]["grid"], atol=1e-5)


def test_probabilities_equal_those_of_the_papers_code() -> None:
    logits = toy().predict(as_input(PICTURES["smooth32"]))
    np.testing.assert_allclose(logits.softmax(1)[0].numpy(), GOLDEN["smooth32_probs"], atol=1e-6)


def test_smoothgrad_squared_equals_the_papers_code_given_its_noise() -> None:
    x = as_input(PICTURES["rand12_32"])
    np.random.seed(0)
    spread = 0.15 * float(x.max() - x.min())
    noises = [
        torch.from_numpy(np.random.normal(0, spread, (32, 32, 3)).transpose(2, 0, 1).copy()).float()[None]
        for _ in range(50)
    ]
    logits = toy().predict(x)
    target = ClassTarget(logits.argmax(1), "probability")
    stream = iter(noises)
    found = sample_gradients(toy(), x, target, lambda rows: next(stream), samples=50, work=Work()).square.mean
    scaled = maps.comparable(found, methods.get("smoothgrad_squared").card, (32, 32))
    np.testing.assert_allclose(grid(scaled), GOLDEN["rand12_32_smoothgrad"]["grid"], atol=1e-5)
