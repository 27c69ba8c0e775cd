"""The library's front door: photographs in, maps of several methods out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

import torch
from PIL import Image
from torch import Tensor

from salviz import engine
from salviz.classifiers.classifier import Classifier
from salviz.engine import Explained, Settings
from salviz.errors import RequestError
from salviz.images import Picture, open_path
from salviz.seeds import tensor_digest
from salviz.targets import Target, target_of
from salviz.work import Progress, silent

Images = Tensor | Picture | Image.Image | str | Path | Sequence[Picture | Image.Image | str | Path]
"""What can be explained: a batch in model space, or photographs in any of these forms."""


def explain(
    classifier: Classifier,
    images: Images,
    *,
    methods: Sequence[str] | Mapping[str, Settings | None] = ("grad_cam",),
    target: SupportsIndex | Sequence[SupportsIndex] | Tensor | Target | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> dict[str, Explained]:
    """Explain images with several methods in the fewest passes (see `engine.explain_set`).

    Args:
        classifier: What is explained.
        images: Photographs (files, Pillow images, `Picture`s), one or many; or `(N, 3, H, W)` float32 in model space.
        methods: Ids, or settings that differ from the defaults by id.
        target: A class for all images, one an image (whole numbers of Python, NumPy or PyTorch), a target object, or
            None for each image's predicted class. With `TopTarget(k)` every image has k rows, one a class, image by
            image.
        seed: Seeds everything random, together with each image's content.
        batch_size: Images in one model pass at the most; None for what suits the device.
        progress: Called with (done, total) image passes; may raise `Cancelled`.

    Returns:
        Results by method id, in the order asked for; raw maps, in the order of the images. `maps` are at the method's
        own resolution, `at_input()` at the input's.

    Raises:
        SalvizError: One plain sentence.
    """
    x, digests = _batch(classifier, images)
    return engine.explain_set(
        classifier,
        x,
        methods=dict(methods) if isinstance(methods, Mapping) else dict.fromkeys(methods),
        target=None if target is None else target_of(target),
        digests=digests,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )


def _batch(classifier: Classifier, images: Images) -> tuple[Tensor, list[str]]:
    """Images in model space on the classifier's device, and their content digests."""
    if isinstance(images, Tensor):
        engine.check_images(images)
        x = images.to(classifier.device)
        # Where the content cannot be read (on the meta device), the place in the batch has to do.
        digests = [str(i) for i in range(len(x))] if x.is_meta else [tensor_digest(image) for image in x]
        return x, digests
    given = [images] if isinstance(images, Picture | Image.Image | str | Path) else list(images)
    if not given:
        raise RequestError("There is no image to explain. Give at least one.")
    pictures = [_picture(image) for image in given]
    prep = classifier.preprocessing
    frames = torch.stack([prep.frame(picture.image) for picture in pictures]).to(classifier.device)
    return prep.normalise(frames), [picture.digest for picture in pictures]


def _picture(image: Picture | Image.Image | str | Path) -> Picture:
    if isinstance(image, Picture):
        return image
    return Picture.from_rgb(image.convert("RGB")) if isinstance(image, Image.Image) else open_path(image)
