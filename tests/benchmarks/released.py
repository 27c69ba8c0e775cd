"""COSE as the released pipeline computes it: one picture at a time, with the library calls it used.

Written from a description of its way of working, and in its favour where that is not known: nothing is written to disk
(it saves a figure of every explanation), no table grows, and no changed models are loaded.
"""

import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from skimage.metrics import structural_similarity
from skimage.morphology import erosion
from skimage.transform import AffineTransform, rotate, warp

from salviz.classifiers.classifier import Classifier
from salviz.images import Picture
from salviz.transforms import Variant
from tests.test_transforms import with_pillow


class Released:
    """The pipeline for one model and Grad-CAM.

    Args:
        classifier: Whose module is explained.
        layer: Name of the layer.
        saves_figures: Whether a figure of every explanation is drawn and saved, as it does unless told otherwise.
    """

    def __init__(self, classifier: Classifier, layer: str, *, saves_figures: bool = False) -> None:
        self.classifier, self.saves_figures = classifier, saves_figures
        # Its parameters take gradients, as those of a model do that was just loaded.
        self.module = copy.deepcopy(classifier.module).requires_grad_(True)
        self.layer = dict(self.module.named_modules())[layer]

    def explain(self, image: Image.Image) -> tuple[int, Any]:
        """Predicted class and map."""
        frame = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
        x = self.classifier.preprocessing.normalise(frame)
        with torch.no_grad():
            predicted = int(self.module(x).argmax())
        with GradCAM(model=self.module, target_layers=[self.layer]) as cam:
            found = cam(input_tensor=x, targets=[ClassifierOutputTarget(predicted)])[0]
        if self.saves_figures:
            _figure(image, found)
        return predicted, found

    def picture(self, picture: Picture, variants: Sequence[Variant]) -> list[tuple[int, float]]:
        """Class and similarity under each variant."""
        frame = self.classifier.preprocessing.frame(picture.image)
        image = Image.fromarray(frame.permute(1, 2, 0).numpy())
        _, clean = self.explain(image)
        rows = []
        for variant in variants:
            predicted, found = self.explain(with_pillow(image, variant))
            rows.append((predicted, similarity(clean, *laid_back(found, variant))))
        return rows


def laid_back(found: Any, variant: Variant) -> tuple[Any, Any]:
    """A map in the clean picture's frame, and where it is valid; None where it is everywhere."""
    match variant.augmentation:
        case "rotate":
            ones = np.ones_like(found)
            there = rotate(ones, variant.magnitude, order=0)
            back = rotate(there, -variant.magnitude, preserve_range=True)
            laid = rotate(found, -variant.magnitude, preserve_range=True, clip=False)
            return laid, back != 0
        case "translate_x" | "translate_y":
            shift = (variant.magnitude, 0) if variant.augmentation == "translate_x" else (0, variant.magnitude)
            moved = AffineTransform(translation=shift)
            return warp(found, moved, preserve_range=True), warp(np.ones_like(found), moved) != 0
        case "flip_lr":
            return found[:, ::-1], None
        case "flip_ud":
            return found[::-1], None
    return found, None


def similarity(clean: Any, laid: Any, valid: Any) -> float:
    """SSIM, over the valid part where there is one."""
    spread = max(clean.max() - clean.min(), laid.max() - laid.min())
    mean, full = structural_similarity(clean, laid, win_size=5, data_range=spread, full=True)
    if valid is None:
        return float(mean)
    return float(full[erosion(valid, np.ones((5, 5)))].mean())


def _figure(image: Image.Image, found: Any) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2)
    axes[0].imshow(image)
    axes[1].imshow(found)
    figure.savefig(io.BytesIO(), format="png")
    pyplot.close(figure)
