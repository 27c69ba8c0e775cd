"""Training the small classifiers of the sanity checks: on true labels with checkpoints, and on permuted ones.

A net that learnt permuted labels by heart has the architecture and the pictures of its twin, and knows nothing
about them: maps of the two should differ (Adebayo et al., NeurIPS 2018, section 5).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from salviz.classifiers.architectures import find_architecture
from salviz.classifiers.building import building
from salviz.classifiers.digests import weights_digest
from salviz.classifiers.preprocessing import Preprocessing
from salviz.classifiers.weights import fill
from salviz.datasets.arrays import LabelledImages
from salviz.errors import DataError
from salviz.images.fashion import COUNT, FILE

_THREADS = 1
"""Sums are cut by the number of threads: with another number training ends in other weights. Two trainings side by side
use two cores better than one with two threads."""

Progress = Callable[[int, int, float], None]
"""Called with (step, steps, loss)."""


@dataclass(frozen=True)
class Recipe:
    """All that decides what a training ends in.

    Attributes:
        id: Of the classifier and stem of its files.
        title: For people.
        architecture: `salviz:<name>`.
        epochs: Passes over the pictures.
        subset: Pictures, drawn once for all recipes of one seed; None takes all.
        is_permuted: Whether the labels are one permutation of the true ones.
        is_augmented: Whether pictures are mirrored and shifted by up to two pixels.
        checkpoints: Saved on the way, the early ones closer together.
        batch: Pictures a step.
        rate: Highest learning rate of the one-cycle schedule.
        decay: AdamW's weight decay.
        seed: Of weights, subset, permutation and order.
    """

    id: str
    title: str
    architecture: str
    epochs: int
    subset: int | None = None
    is_permuted: bool = False
    is_augmented: bool = False
    checkpoints: int = 0
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.01
    seed: int = 0


def _recipes() -> Iterator[Recipe]:
    for kind, title, epochs, memorising, rate in (("cnn", "CNN", 8, 25, 2e-3), ("vit", "ViT", 10, 45, 2e-3)):
        architecture = f"salviz:small_{kind}"
        yield Recipe(
            f"fashion_{kind}",
            f"Fashion {title}",
            architecture,
            epochs,
            is_augmented=True,
            checkpoints=10,
            rate=rate,
            decay=0.05,
        )
        # The twins differ in the labels and in nothing else.
        for name, is_permuted in (("twin", False), ("permuted", True)):
            words = "permuted labels" if is_permuted else "same pictures, true labels"
            yield Recipe(
                f"fashion_{kind}_{name}", f"Fashion {title}, {words}", architecture, memorising,
                subset=10_000, is_permuted=is_permuted, rate=rate, decay=0.0,
            )  # fmt: skip


RECIPES: dict[str, Recipe] = {recipe.id: recipe for recipe in _recipes()}


@dataclass(frozen=True)
class Trained:
    """What a training ended in.

    Attributes:
        recipe: How.
        names: Of the classes.
        states: State dicts by label: the checkpoints `step-<n>` and last of all the end, ``""``.
        train_accuracy: Share of right answers on the pictures and labels it was trained with.
        test_accuracy: Share of right answers on the test pictures with their true labels.
        seconds: It took.
        digest: Of the weights, as `Classifier.digest`.
    """

    recipe: Recipe
    names: tuple[str, ...]
    states: dict[str, dict[str, Tensor]]
    train_accuracy: float
    test_accuracy: float
    seconds: float
    digest: str


def training_set(recipe: Recipe, everything: LabelledImages) -> LabelledImages:
    """The pictures and labels of a recipe.

    Args:
        recipe: Its seed draws the subset and then the permutation.
        everything: The whole training set.

    Raises:
        DataError: It has fewer pictures than the recipe wants.
    """
    if recipe.subset is not None and recipe.subset > len(everything):
        raise DataError(f"{recipe.id} needs {recipe.subset} pictures and there are {len(everything)}.")
    generator = torch.Generator().manual_seed(recipe.seed)
    chosen = everything
    if recipe.subset is not None:
        chosen = everything.part(torch.randperm(len(everything), generator=generator)[: recipe.subset])
    if recipe.is_permuted:
        order = torch.randperm(len(chosen), generator=generator)
        chosen = LabelledImages(chosen.images, chosen.labels[order], chosen.names)
    return chosen


def model_space(images: Tensor) -> Tensor:
    """`(N, H, W)` uint8 -> `(N, 3, H, W)` float32 in [-1, 1], as the small classifiers' preprocessing makes them."""
    return Preprocessing.plain(images.shape[-1]).normalise(images.unsqueeze(1).expand(-1, 3, -1, -1))


def train(
    recipe: Recipe, train_set: LabelledImages, test_set: LabelledImages, *, progress: Progress | None = None
) -> Trained:
    """Train a classifier: the same weights every time on one kind of machine.

    Args:
        recipe: How.
        train_set: The whole training set; see `training_set`.
        test_set: Pictures never trained on.
        progress: Told of every step.

    Raises:
        DataError: Too few pictures.
    """
    started = time.monotonic()
    chosen = training_set(recipe, train_set)
    architecture = find_architecture(recipe.architecture)
    with building(recipe.seed):
        module = architecture.build(len(chosen.names))
    module.to(memory_format=torch.channels_last)
    with _threads(_THREADS):
        states = _fit(module, recipe, chosen, progress)
        # What is stored is what is judged: the weights as half precision keeps them.
        fill(module, states[""], recipe.id)
        module.eval()
        train_accuracy, test_accuracy = accuracy(module, chosen), accuracy(module, test_set)
    return Trained(
        recipe, chosen.names, states, train_accuracy, test_accuracy, time.monotonic() - started, weights_digest(module)
    )


def _fit(
    module: nn.Module, recipe: Recipe, chosen: LabelledImages, progress: Progress | None
) -> dict[str, dict[str, Tensor]]:
    steps_an_epoch = len(chosen) // recipe.batch
    steps = recipe.epochs * steps_an_epoch
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    # Squares: half of the checkpoints fall in the first quarter, where most is learnt.
    wanted = {max(1, round(steps * (k / (recipe.checkpoints + 1)) ** 2)) for k in range(1, recipe.checkpoints + 1)}
    states: dict[str, dict[str, Tensor]] = {}
    module.train()
    for step in range(1, steps + 1):
        place = (step - 1) % steps_an_epoch
        if place == 0:
            order = torch.randperm(len(chosen), generator=generator)
        rows = order[place * recipe.batch : (place + 1) * recipe.batch]
        x = model_space(chosen.images[rows]).contiguous(memory_format=torch.channels_last)
        if recipe.is_augmented:
            x = _augmented(x, generator)
        optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(module(x), chosen.labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step in wanted:
            states[f"step-{step}"] = halved(module)
        if progress is not None:
            progress(step, steps, float(loss.detach()))
    return {**states, "": halved(module)}


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures mirrored at random and shifted by up to two pixels, black beyond the edge."""
    count, _, height, width = x.shape
    mirrored = torch.rand(count, generator=generator) < 0.5
    x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
    shift = torch.randint(0, 5, (count, 2), generator=generator)
    padded = F.pad(x, (2, 2, 2, 2), value=-1.0)
    rows = (shift[:, :1] + torch.arange(height)).view(count, 1, height, 1).expand(-1, 3, -1, width + 4)
    columns = (shift[:, 1:] + torch.arange(width)).view(count, 1, 1, width).expand(-1, 3, height, -1)
    return padded.gather(2, rows).gather(3, columns).contiguous(memory_format=torch.channels_last)


def halved(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state: parameters in half precision, batch norms' statistics as they are."""
    parameters = dict(module.named_parameters())
    return {
        name: (tensor.half() if name in parameters else tensor).detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }


@torch.no_grad()
def accuracy(module: nn.Module, images: LabelledImages, *, batch: int = 500) -> float:
    """Share of right answers."""
    right = 0
    for start in range(0, len(images), batch):
        x = model_space(images.images[start : start + batch])
        right += int((module(x).argmax(dim=1) == images.labels[start : start + batch]).sum())
    return right / len(images)


def card(trained: Trained) -> dict[str, object]:
    """What is told of a trained classifier: how it was made and how good it is."""
    return {
        "recipe": asdict(trained.recipe),
        "train_accuracy": trained.train_accuracy,
        "test_accuracy": trained.test_accuracy,
        "seconds": round(trained.seconds),
        "threads": _THREADS,
        "torch": torch.__version__,
        "digest": trained.digest,
    }


def write(trained: Trained, folder: Path) -> list[Path]:
    """Write a trained classifier as `salviz.load` reads it.

    Args:
        trained: Classifier and checkpoints.
        folder: Made where it does not exist.

    Returns:
        `<id>.safetensors`, `<id>.json` (its card), and `<id>.checkpoint-<label>.safetensors` of each checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = trained.recipe
    header = {
        "title": recipe.title,
        "architecture": recipe.architecture,
        "labels": json.dumps(trained.names),
    }
    files = []
    for label, state in trained.states.items():
        path = folder / (f"{recipe.id}.checkpoint-{label}.safetensors" if label else f"{recipe.id}.safetensors")
        save_file(state, path, metadata=header)
        files.append(path)
    about = folder / f"{recipe.id}.json"
    about.write_text(json.dumps(card(trained), indent=2) + "\n", encoding="utf-8")
    return [*files, about]


def write_sample(test_set: LabelledImages, folder: Path) -> Path:
    """Write the first thousand pictures of the test set as `images.fashion` reads them; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(FILE).name
    np.savez_compressed(
        path, images=test_set.images[:COUNT].numpy(), labels=test_set.labels[:COUNT].to(torch.uint8).numpy()
    )
    return path


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
