"""What a run is asked: one text from everywhere, and plain sentences for what it cannot say."""

import json
from typing import Any

import pytest

from salviz.errors import ClassifierError, RequestError
from salviz.runs import Spec, measures
from tests.runs.conftest import spec


def test_a_spec_goes_through_json_and_comes_back() -> None:
    asked = spec(classes=("Bag", 3), is_stratified=True, seed=5)
    assert Spec.from_text(json.dumps(asked.as_dict())) == asked
    short = Spec.from_dict({"data": "fashion", "models": ["a"], "methods": ["grad_cam"]})
    assert dict(short.methods) == {"grad_cam": {}}
    assert dict(short.metrics) == {"cose": {}}


GOOD: dict[str, Any] = {"data": "fashion", "models": ["a"], "methods": ["grad_cam"]}


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({**GOOD, "model": "b"}, "no field 'model'"),
        ({"data": "fashion", "models": ["a"]}, "does not say which methods"),
        ({**GOOD, "models": []}, "No model was chosen"),
        ({**GOOD, "models": "fashion_cnn"}, "value of the wrong kind"),
        ({**GOOD, "models": ["a", "a"]}, "named twice"),
        ({**GOOD, "images": 0}, "at least one picture"),
        ({**GOOD, "images": "ten"}, "value of the wrong kind"),
        ([1], "JSON object"),
    ],
)
def test_what_a_spec_cannot_say(plain: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Spec.from_dict(plain)


def test_no_json() -> None:
    with pytest.raises(RequestError, match="not valid JSON"):
        Spec.from_text("{data: fashion}")


@pytest.mark.parametrize(
    ("metric", "given", "words"),
    [
        ("cose", {"augmentation": "paper"}, "has no setting 'augmentation'"),
        ("cose", {"changes": "untrained"}, "is no value of changes"),
        ("cose", {"augmentations": "none", "changes": []}, "nothing to compare with"),
        ("cose", {"data_range": "-1"}, "a positive number"),
        ("cose", {"data_range": "wide"}, "a positive number"),
        ("randomisation", {"order": "sideways"}, "sideways"),
        ("randomisation", {"test": "labels"}, "Name the net"),
        ("randomisation", {"test": "luck"}, "weights, labels or class"),
        ("fidelity", {}, "There is no metric 'fidelity'"),
    ],
)
def test_what_a_metric_cannot_be_asked(metric: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises((RequestError, ClassifierError), match=words):
        measures.get(metric).settings(given)
