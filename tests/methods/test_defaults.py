"""Defaults of every card against the papers', value by value.

A default is the paper's (or its authors' code's, where the paper names none), or an addition's value at which the
method is the paper's, or another one: then the card itself says why.
"""

import pytest

from salviz.methods import METHODS

SMILKOV = "Smilkov et al. 2017: little change beyond n = 50; noise of 10 to 20 %"
COSE = "Daroya et al. 2023, code"
PAIR = "PAIR saliency, the authors' code"
ADEBAYO = "Adebayo et al. 2018"
NOISY = {"samples": (50, f"{SMILKOV}; {ADEBAYO}; {COSE}"), "noise": (0.15, f"{PAIR}; {ADEBAYO}; {COSE}")}

PAPERS: dict[str, dict[str, tuple[object, str]]] = {
    "smoothgrad": NOISY,
    "smoothgrad_squared": NOISY,
    "vargrad": NOISY,
    "ig_smoothgrad": {**NOISY, "steps": (25, f"Sundararajan et al. 2017: 20 to 300; {COSE}")},
    "integrated_gradients": {"steps": (25, f"Sundararajan et al. 2017: 20 to 300; {COSE}")},
    "blur_ig": {"max_sigma": (50.0, f"{PAIR}; {COSE}"), "steps": (100, f"{PAIR}; {COSE}")},
    "guided_ig": {
        "steps": (200, f"{PAIR}; {COSE}"),
        "fraction": (0.25, f"{PAIR}; {COSE}"),
        "max_dist": (0.02, f"{PAIR}; {COSE}"),
    },
    "expected_gradients": {"samples": (200, "shap's GradientExplainer, the authors' code")},
    "xrai": {"steps": (100, PAIR), "rule": ("released", PAIR)},
    "finer_cam": {"strength": (0.6, "Zhang et al. 2025"), "references": (3, "Zhang et al. 2025")},
    "opti_cam": {"steps": (100, "Zhang et al. 2024, code"), "rate": (0.1, "Zhang et al. 2024, code")},
    "rise": {
        "samples": (4000, "Petsiuk et al. 2018, for VGG16"),
        "cells": (7, "Petsiuk et al. 2018"),
        "keep": (0.5, "Petsiuk et al. 2018"),
        "fill": ("mean", "Petsiuk et al. 2018: the normalised image times the mask, so zero"),
    },
    "lime": {
        "samples": (1000, f"lime_image, the authors' code; {COSE}"),
        "segmentation": ("quickshift", f"lime_image; {COSE}"),
        "pixels": ("picture", "lime_image"),
        "fill": ("mean", COSE),
        "width": (0.25, f"lime_image; {COSE}"),
        "ridge": (1.0, f"lime_image; {COSE}"),
    },
    "extremal_perturbation": {
        "area": (0.1, "TorchRay, the authors' code"),
        "areas": ("one", "TorchRay"),
        "variant": ("preserve", "TorchRay"),
        "iterations": (800, "Fong et al. 2019; TorchRay"),
        "rate": (0.01, "Fong et al. 2019; TorchRay"),
        "stride": (7, "TorchRay"),
        "sigma": (20.0, "TorchRay"),
    },
    "meaningful_perturbation": {
        "iterations": (300, "Fong, Vedaldi 2017"),
        "rate": (0.1, "Fong, Vedaldi 2017"),
        "size_weight": (1e-4, "Fong, Vedaldi 2017"),
        "tv_weight": (1e-2, "Fong, Vedaldi 2017"),
        "tv_power": (3.0, "Fong, Vedaldi 2017"),
        "grid": (28, "Fong, Vedaldi 2017"),
        "smooth": (5.0, "Fong, Vedaldi 2017"),
        "sigma": (10.0, "Fong, Vedaldi 2017"),
        "jitter": (4, "Fong, Vedaldi 2017"),
        "start": ("circle", "Fong, Vedaldi 2017"),
        "output": ("probability", "Fong, Vedaldi 2017"),
    },
    "lrp": {
        "composite": (
            "standard",
            "Montavon et al. 2019 for convolutions; Achtibat et al. 2024 for transformers",
        ),
        "epsilon": (1e-6, "zennit"),
        "gamma": (0.25, "zennit; Achtibat et al. 2024"),
        "linear_gamma": (0.05, "Achtibat et al. 2024"),
        "bias_share": (True, "zennit"),
    },
    "attention_rollout": {
        "fusion": ("mean", "Abnar, Zuidema 2020"),
        "residual": (0.5, "Abnar, Zuidema 2020"),
    },
    "grad_attention_rollout": {"residual": (0.5, "Abnar, Zuidema 2020")},
}
"""Value and source."""

NONE_TAKEN: dict[str, object] = {
    # By rule the last layer with places, as the papers of class activation maps take it.
    "layer": "", "tolerance": 0.0, "channels": 0, "centre": False, "top": 0, "blocks": 0, "discard": 0.0,
}  # fmt: skip
"""Additions, at the value at which there are none: no layer named, no early stop, all channels, all blocks."""

OURS: dict[tuple[str, str], tuple[object, str]] = {
    **{
        (method, "baseline"): ("mean", "zero for the model as in COSE's code; or black, as the paper of integrated")
        for method in ("integrated_gradients", "ig_smoothgrad", "guided_ig", "deeplift")
    },
    **{
        (method, "rule"): (
            "gauss_legendre",
            "closest to the integral with few points; the paper weighs all",
        )
        for method in ("integrated_gradients", "ig_smoothgrad")
    },
    ("expected_gradients", "reference"): ("colours", "The paper draws training images, which no classifier brings"),
    ("occlusion", "window"): (32, "the paper gives none"),
    ("occlusion", "stride"): (16, "the paper gives none"),
    ("occlusion", "fill"): ("mean", "close to the paper's grey"),
    ("extremal_perturbation", "smooth"): (7.0, "10.5 with steeper sides in the authors' code"),
    ("kernel_shap", "samples"): (1000, "The paper names none; 1000 of 50 superpixels as in its authors' example"),
    ("kernel_shap", "segmentation"): ("slic", "How the picture is cut"),
    ("kernel_shap", "segments"): (50, "Superpixels wanted of SLIC"),
    ("kernel_shap", "pixels"): ("picture", "What is segmented"),
    ("kernel_shap", "fill"): ("mean", "mean colour as in COSE"),
    # Quickshift finds its own number.
    ("lime", "segments"): (50, "the two others find their own number"),
    # Salviz' own: an occlusion by superpixels, and a control.
    ("superpixel_ablation", "segmentation"): ("slic", "How the picture is cut"),
    ("superpixel_ablation", "segments"): (50, "Superpixels wanted of SLIC"),
    ("superpixel_ablation", "pixels"): ("picture", "What is segmented"),
    ("superpixel_ablation", "fill"): ("mean", "mean colour as in COSE"),
    ("center", "width"): (0.25, "share of each side"),
}
"""Neither a paper's nor none: the value, and words of the card's that say what it is or why."""

SETTINGS = [
    pytest.param(method, parameter, id=f"{method}-{parameter.name}")
    for method, found in METHODS.items()
    for parameter in found.card.parameters
]


@pytest.mark.parametrize(("method", "parameter"), SETTINGS)
def test_a_default_is_the_papers_or_the_card_says_why(method: str, parameter: object) -> None:
    known = [
        *([PAPERS[method][parameter.name][0]] if parameter.name in PAPERS.get(method, {}) else []),
        *([OURS[method, parameter.name][0]] if (method, parameter.name) in OURS else []),
        *([NONE_TAKEN[parameter.name]] if parameter.name in NONE_TAKEN else []),
    ]
    assert len(known) == 1, "say once where the default comes from"
    assert parameter.default == known[0]
    assert type(parameter.default) is type(known[0])
    if (method, parameter.name) in OURS:
        assert OURS[method, parameter.name][1] in parameter.meaning


def test_the_tables_name_no_setting_that_is_gone() -> None:
    there = {(method, parameter.name) for method, found in METHODS.items() for parameter in found.card.parameters}
    assert set(OURS) <= there
    assert {(method, name) for method, found in PAPERS.items() for name in found} <= there
    assert set(NONE_TAKEN) <= {name for _, name in there}
