"""A request's digest: equal exactly for equal requests, and the same tomorrow."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from salviz import methods
from salviz.errors import RequestError
from salviz.images import Picture
from salviz.request import Request, request_for
from tests.models import toy

SMOOTHGRAD = methods.get("smoothgrad").card

FIXED = Request(
    image="616f676cdff3621641154dc5385e4c9f",
    classifier="tf_efficientnet_lite0",
    weights="ea27a1bb",
    method="smoothgrad",
    parameters=(("noise", 0.15), ("samples", 25)),
    target=281,
    output="probability",
    label=282,
    variants=("rotate:+27", "flip_lr"),
    changes=("untrained",),
    data_range=2.0,
    seed=3,
    version="0.1.0",
)

settings = st.fixed_dictionaries(
    {}, optional={"samples": st.integers(1, 3), "noise": st.sampled_from([0, 0.0, -0.0, 0.5, 1, 1.0])}
)
requests = st.builds(
    Request,
    image=st.sampled_from(["a", "b"]),
    classifier=st.sampled_from(["a", "b"]),
    weights=st.just("w"),
    method=st.sampled_from(["gradient", "random"]),
    parameters=settings.map(lambda given: tuple(SMOOTHGRAD.check_parameters(given).items())),
    target=st.one_of(st.none(), st.integers(0, 1)),
    label=st.one_of(st.none(), st.integers(0, 1)),
    variants=st.lists(st.sampled_from(["flip_lr", "blur"]), max_size=1).map(tuple),
    changes=st.sampled_from([(), ("untrained",)]),
    data_range=st.sampled_from(["pair", 2, 2.0, 1.5]),
    seed=st.integers(0, 1),
    precision=st.sampled_from(["float32", "bfloat16"]),
)


def test_the_digest_is_stable() -> None:
    assert FIXED.digest == "fb5fa59a6602f7f5afe722b30e0ba04d"


@given(requests, requests)
def test_digests_are_equal_exactly_for_equal_requests(one: Request, other: Request) -> None:
    assert (one.digest == other.digest) == (one == other)
    assert one.digest == dataclasses.replace(one).digest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", "x"), ("classifier", "x"), ("weights", "x"), ("method", "x"), ("parameters", ()),
        ("target", None), ("target", 0), ("against", 3), ("against", "runner_up"), ("output", "logit"), ("label", None),
        ("variants", ()),
        ("variants", ("flip_lr", "rotate:+27")), ("changes", ()), ("data_range", "pair"), ("seed", 4),
        ("precision", "float16"), ("version", "0.2.0"),
    ],
)  # fmt: skip
def test_every_field_enters_the_digest(field: str, value: object) -> None:
    assert dataclasses.replace(FIXED, **{field: value}).digest != FIXED.digest


def test_neither_order_of_settings_nor_kind_of_number_matters() -> None:
    other = dataclasses.replace(FIXED, parameters=(("samples", 25), ("noise", 0.15)), data_range=2)
    assert other == FIXED
    assert other.digest == FIXED.digest
    assert hash(other) == hash(FIXED)


def test_a_request_survives_json() -> None:
    plain = json.loads(json.dumps(FIXED.as_dict()))
    assert plain["parameters"] == {"noise": 0.15, "samples": 25}
    again = Request(
        **{
            **plain,
            "parameters": tuple(plain["parameters"].items()),
            "variants": tuple(plain["variants"]),
            "changes": tuple(plain["changes"]),
        }
    )
    assert again == FIXED
    assert again.digest == FIXED.digest


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FIXED.seed = 4  # type: ignore[misc]


def test_classes_of_a_request_may_be_numpys() -> None:
    picture = Picture.from_rgb(Image.new("RGB", (32, 32)))
    plain = request_for(picture, toy(), target=3, against=4, label=5)
    assert (
        request_for(picture, toy(), target=np.int64(3), against=np.uint8(4), label=np.array(5)).digest == plain.digest
    )
    for wrong in ({"target": np.int64(10)}, {"against": np.int64(10)}, {"label": np.int64(10)}):
        with pytest.raises(RequestError, match="10 is no class"):
            request_for(picture, toy(), **wrong)
    with pytest.raises(RequestError, match="whole number"):
        request_for(picture, toy(), target=1.0)
