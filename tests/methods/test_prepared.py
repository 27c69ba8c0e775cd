"""Maps of the net as it is prepared for running, folded, fused and laid out anew, against the published one's."""

import copy
import dataclasses
import functools

import pytest
import torch

import salviz
from salviz import engine
from salviz.classifiers import Classifier
from salviz.classifiers.folding import Folding
from salviz.images import open_sample
from salviz.targets import ClassTarget
from tests.models import timm_model

SLOW = pytest.mark.slow
# What asks the net for scores alone; the gradients of folded nets are compared where folding is tested.
SETTINGS = {
    "occlusion": {"window": 56, "stride": 56},
    "superpixel_ablation": {"segments": 16},
    "score_cam": {"channels": 16},
    "ablation_cam": {"channels": 16},
    "rise": {"samples": 40},
    "lime": {"samples": 60},
    "kernel_shap": {"samples": 120},
}
CASES = [
    pytest.param(name, method, marks=[SLOW] if method in ("rise", "lime", "kernel_shap") else [])
    for name in ("tf_efficientnet_lite0", "test_resnet")
    for method in SETTINGS
]


@functools.cache
def pair(name: str) -> tuple[Classifier, Classifier]:
    """A classifier as it is loaded on a CPU, and one whose passes run through the published module as it was made."""
    if name == "test_resnet":
        module = copy.deepcopy(timm_model(name).module).to(memory_format=torch.channels_last)
        prepared = dataclasses.replace(timm_model(name), module=module, channels_last=True)
    else:
        prepared = salviz.load(name, device="cpu")
    module = copy.deepcopy(prepared.module).to(memory_format=torch.contiguous_format)
    published = dataclasses.replace(prepared, module=module, channels_last=False)
    object.__setattr__(published, "_folding", Folding(module))
    assert published.runtime is module
    assert prepared.channels_last
    assert prepared.folded
    return prepared, published


@pytest.mark.parametrize("output", ["logit", pytest.param("probability", marks=SLOW)])
@pytest.mark.parametrize(("name", "method"), CASES)
def test_maps_are_the_published_nets(name: str, method: str, output: str) -> None:
    prepared, published = pair(name)
    frame = prepared.preprocessing.frame(open_sample("cat").image)
    x = prepared.preprocessing.normalise(frame[None])
    target = ClassTarget(published.predict(x).argmax(1), output)
    found, expected = (
        engine.explain(
            classifier, x, method=method, parameters=SETTINGS[method], target=target, digests=["cat"], batch_size=16
        ).maps
        for classifier in (prepared, published)
    )
    span = float(expected.amax() - expected.amin())
    assert span > 0
    torch.testing.assert_close(found, expected, atol=1e-4 * span, rtol=0)
