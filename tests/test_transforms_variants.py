"""Cards and variants: the paper's grids and draws, labels, tokens, and no torch."""

import math
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from salviz.errors import RequestError
from salviz.transforms import (
    AUGMENTATIONS,
    Variant,
    default_variants,
    draw_variants,
    draw_variants_as_released,
    sweep,
)
from tests.golden.cose_inputs import RELEASED_NAMES, golden

GRADED = [id for id, card in AUGMENTATIONS.items() if card.has_magnitude]


def test_grids_are_the_papers():
    levels = golden()["levels"]
    assert list(AUGMENTATIONS["brightness"].levels) == levels["photometric"][1:]
    assert list(AUGMENTATIONS["rotate"].levels) == levels["rotate_deg"][1:]
    assert list(AUGMENTATIONS["translate_x"].levels) == levels["translate_px_pos"][1:]
    assert [-level for level in AUGMENTATIONS["translate_y"].levels] == levels["translate_px_neg"][1:]


def test_thirteen_in_the_papers_order():
    released = [name for name in golden()["sampling"]["order"] if name not in ("random", "mid_ckpt")]
    assert [RELEASED_NAMES[name] for name in released] == list(AUGMENTATIONS)
    assert Counter(card.kind for card in AUGMENTATIONS.values()) == {"geometric": 5, "photometric": 8}
    for id, card in AUGMENTATIONS.items():
        assert card.id == id
        assert card.signed == card.has_magnitude == (len(card.levels) == 30)


def test_needs_no_torch():
    code = "import sys; from salviz.transforms import sweep; sweep('rotate'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_unknown_attribute_is_an_attribute_error():
    import salviz.transforms

    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = salviz.transforms.no_such_thing


@pytest.mark.parametrize(
    ("variant", "label", "token"),
    [
        (Variant("rotate", 45), "rotate +45°", "rotate:+45"),
        (Variant("rotate", -31.5), "rotate −31.5°", "rotate:-31.5"),
        (Variant("rotate", -0.0), "rotate 0°", "rotate:0"),
        (Variant("brightness", -0.495), "brightness −0.50", "brightness:-0.495"),
        (Variant("translate_x", 16.9), "translate X +16 px", "translate_x:+16"),
        (Variant("translate_y", -16.9), "translate Y −16 px", "translate_y:-16"),
        (Variant("flip_lr"), "flip left-right", "flip_lr"),
        (Variant("auto_contrast"), "auto contrast", "auto_contrast"),
    ],
)
def test_label_and_token(variant, label, token):
    assert variant.label == label
    assert variant.token == token
    assert Variant.from_token(token) == variant


def test_tokens_round_trip():
    generator = np.random.RandomState(0)
    for id in GRADED:
        low, high = AUGMENTATIONS[id].bounds
        magnitudes = [*AUGMENTATIONS[id].levels, *(generator.uniform(low, high) for _ in range(200)), 1e-7]
        for magnitude in magnitudes:
            v = Variant(id, magnitude)
            assert Variant.from_token(v.token) == v
            assert "e" not in v.token.partition(":")[2]
    assert Variant.from_token("rotate: 45") == Variant.from_token("rotate:45") == Variant("rotate", 45)


@pytest.mark.parametrize(
    "token",
    ["", "shear", "rotate", "rotate:", "rotate:fast", "rotate:nan", "rotate:inf", "blur:+1", "rotate:361"],
)
def test_bad_tokens_get_one_sentence(token):
    with pytest.raises(RequestError) as caught:
        Variant.from_token(token)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("augmentation", "magnitude"),
    [
        ("brightness", -1.01),
        ("brightness", math.nan),
        ("rotate", None),
        ("flip_lr", 1.0),
        ("translate_x", 5000),
    ],
)
def test_bad_magnitudes(augmentation, magnitude):
    with pytest.raises(RequestError):
        Variant(augmentation, magnitude)


def test_sorted_as_the_paper_lists_them():
    variants = [*draw_variants(0, "digest"), *default_variants()]
    np.random.RandomState(1).shuffle(variants)
    ordered = sorted(variants)
    ranks = [list(AUGMENTATIONS).index(v.augmentation) for v in ordered]
    assert ranks == sorted(ranks)
    for a, b in pairwise(ordered):
        assert a.augmentation != b.augmentation or a == b or a.magnitude < b.magnitude
    assert len({Variant("rotate", 9), Variant("rotate", 9.0), Variant("rotate", -9)}) == 2
    with pytest.raises(TypeError):
        _ = Variant("blur") < 3


def test_draws_as_released():
    random_state = np.random.RandomState(0)
    order = np.arange(10000)
    random_state.shuffle(order)
    sampling = golden()["sampling"]
    assert order[:10].tolist() == sampling["first10_test_indices_N10000"]
    drawn = draw_variants_as_released(random_state)
    expected = []
    for name, magnitudes in sampling["first_image_draws"]:
        if id := RELEASED_NAMES.get(name):
            expected += [Variant(id, m if id in GRADED else None) for m in magnitudes]
    assert list(drawn) == expected


def test_draws_belong_to_the_image():
    drawn = draw_variants(0, "a")
    assert drawn == draw_variants(0, "a")
    assert drawn != draw_variants(0, "b")
    assert drawn != draw_variants(1, "a")
    assert len(drawn) == len(set(drawn)) == 48
    assert Counter(v.augmentation for v in drawn) == {id: 6 if id in GRADED else 1 for id in AUGMENTATIONS}
    assert all(v.magnitude is None or abs(v.magnitude) in v.card.levels for v in drawn)


def test_draws_never_change():
    # Stored results name their draws by (seed, digest): a new numpy must not change them.
    assert [v.token for v in draw_variants(0, "a")[12:18]] == [
        "rotate:-76.5",
        "rotate:+18",
        "rotate:+130.5",
        "rotate:+45",
        "rotate:+103.5",
        "rotate:+54",
    ]


def test_draws_cover_the_grid_evenly():
    counts = Counter(v.magnitude for i in range(1000) for v in draw_variants(0, str(i)) if v.augmentation == "rotate")
    assert len(counts) == 60
    # 6000 draws over 60 levels: 100 each, standard deviation below 10.
    assert all(50 < count < 150 for count in counts.values())


def test_default_is_one_of_each_on_the_grid():
    variants = default_variants()
    assert [v.augmentation for v in variants] == list(AUGMENTATIONS)
    assert all(v.magnitude is None or abs(v.magnitude) in v.card.levels for v in variants)


def test_sweep():
    assert [v.magnitude for v in sweep("rotate")] == [4.5 * step for step in range(-30, 31)]
    assert [v.magnitude for v in sweep("rotate", 7)] == [-135, -90, -45, 0, 45, 90, 135]
    for id in GRADED:
        for steps in (3, 9, 13, 61):
            magnitudes = [v.magnitude for v in sweep(id, steps)]
            assert magnitudes == sorted(set(magnitudes)) == [-m + 0.0 for m in reversed(magnitudes)]
            assert len(magnitudes) == steps
            assert magnitudes[-1] == AUGMENTATIONS[id].levels[-1]


@pytest.mark.parametrize(
    ("augmentation", "steps"), [("blur", None), ("shear", None), ("rotate", 4), ("rotate", 1), ("rotate", 63)]
)
def test_bad_sweeps(augmentation, steps):
    with pytest.raises(RequestError):
        sweep(augmentation, steps)
