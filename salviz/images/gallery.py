"""The sample gallery: photographs that scikit-image and scikit-learn ship inside their wheels.

The files are found without importing either package and are never downloaded. The order teaches: first what
an ImageNet classifier knows, then what it half knows, then what it was never shown.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from salviz.errors import ImageError
from salviz.images.decoding import decode
from salviz.images.picture import Picture

_log = logging.getLogger(__name__)

_CC0 = "CC0"
_PUBLIC_DOMAIN = "public domain"
_UNRESTRICTED = "no known copyright restrictions"


@dataclass(frozen=True)
class Sample:
    """A photograph of the gallery and where it comes from.

    Attributes:
        id: Stable public id, standing in links as ``sample:<id>``.
        title: One or two words for the gallery.
        package: Import name of the package whose wheel holds the file.
        file: Path inside that package, with forward slashes.
        sha256: Digest of the file, 64 hex digits.
        licence: Terms as stated by the package.
        credit: Author or origin as stated by the package.
        alt: What the photograph shows.
        remark: Why it is worth explaining, one sentence.
    """

    id: str
    title: str
    package: str
    file: str
    sha256: str
    licence: str
    credit: str
    alt: str
    remark: str


SAMPLES = (
    Sample(
        id="cat",
        title="Cat",
        package="skimage",
        file="data/chelsea.png",
        sha256="596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        licence=_CC0,
        credit="Stefan van der Walt",
        alt="The face of a ginger tabby cat looking to the right.",
        remark="One object, several right names: tabby, tiger cat and Egyptian cat are three classes.",
    ),
    Sample(
        id="espresso",
        title="Espresso",
        package="skimage",
        file="data/coffee.png",
        sha256="cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        licence=_CC0,
        credit="Rachel Michetti, courtesy of Pikolo Espresso Bar",
        alt="A red cup of espresso on a red saucer with a spoon, on a wooden table.",
        remark="An easy picture: does the map mark the drink, the cup or the table?",
    ),
    Sample(
        id="cameraman",
        title="Cameraman",
        package="skimage",
        file="data/camera.png",
        sha256="b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        licence=_CC0,
        credit="Lav Varshney",
        alt="A grey photograph of a man in a dark coat looking through a camera on a tripod.",
        remark="The large figure has no class of its own; the thin tripod has one.",
    ),
    Sample(
        id="motorcycle",
        title="Motorcycle",
        package="skimage",
        file="data/motorcycle_left.png",
        sha256="db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        licence="not stated by scikit-image",
        credit=(
            "Middlebury 2014 stereo benchmark: Nera Nesic, Porter Westling, Xi Wang, York Kitajima, "
            "Greg Krathwohl and Daniel Scharstein, Middlebury College"
        ),
        alt="A red motorcycle in a garage in front of shelves full of tools and boxes.",
        remark="A crowded scene: the background holds objects of other classes.",
    ),
    Sample(
        id="palace",
        title="Palace",
        package="sklearn",
        file="datasets/images/china.jpg",
        sha256="8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        licence="CC BY 2.0",
        credit="danielbuechele on Flickr",
        alt="A many-storeyed Chinese pavilion above trees, a lake behind it.",
        remark="The class is a guess from style; several kinds of building compete.",
    ),
    Sample(
        id="rocket",
        title="Rocket",
        package="skimage",
        file="data/rocket.jpg",
        sha256="c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        licence=_PUBLIC_DOMAIN,
        credit="SpaceX",
        alt="A white rocket on its launch pad at dusk between lattice towers.",
        remark="ImageNet has missiles and space shuttles but no such rocket.",
    ),
    Sample(
        id="flower",
        title="Flower",
        package="sklearn",
        file="datasets/images/flower.jpg",
        sha256="a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        # The package's notice names one photographer and links to the page of another.
        licence="CC BY 2.0",
        credit="vultilion on Flickr (scikit-learn's notice links there, but names danielbuechele)",
        alt="An orange dahlia in full bloom against dark green leaves.",
        remark="ImageNet has hardly any flowers: the classifier must name a neighbour.",
    ),
    Sample(
        id="astronaut",
        title="Astronaut",
        package="skimage",
        file="data/astronaut.png",
        sha256="88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        licence=_PUBLIC_DOMAIN,
        credit="NASA",
        alt="The astronaut Eileen Collins in an orange suit, a flag and a model shuttle behind her.",
        remark="People are no class: what does the classifier look at instead?",
    ),
    Sample(
        id="coins",
        title="Coins",
        package="skimage",
        file="data/coins.png",
        sha256="f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        licence=_UNRESTRICTED,
        credit="Brooklyn Museum Collection",
        alt="A grey photograph of 24 ancient coins in four rows on a dark ground.",
        remark="Many equal objects of no known class: evidence is spread or arbitrary.",
    ),
    Sample(
        id="horse",
        title="Silhouette",
        package="skimage",
        file="data/horse.png",
        sha256="c7fb60789fe394c485f842291ea3b21e50d140f39d6dcb5fb9917cc178225455",
        licence=_CC0,
        credit="Andreas Preuss (marauder), openclipart.org",
        alt="The black silhouette of a standing horse on white.",
        remark="Shape without texture: trained on photographs, the classifier sees something else.",
    ),
    Sample(
        id="clock",
        title="Blurred clock",
        package="skimage",
        file="data/clock_motion.png",
        sha256="f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955",
        licence=_PUBLIC_DOMAIN,
        credit="Stefan van der Walt",
        alt="A grey photograph of a wall clock smeared sideways by the moving camera.",
        remark="Motion has wiped out the detail the class depends on.",
    ),
    Sample(
        id="hubble",
        title="Deep field",
        package="skimage",
        file="data/hubble_deep_field.jpg",
        sha256="3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        licence=_PUBLIC_DOMAIN,
        credit="NASA, Hubble eXtreme Deep Field",
        alt="Thousands of small galaxies on black.",
        remark="Nothing the classifier was taught, yet it answers and a map can be drawn.",
    ),
)
"""Every sample, in the gallery's order, whether or not its file is there."""


@lru_cache(maxsize=1)
def samples() -> tuple[Sample, ...]:
    """The samples whose file is there and unchanged, in the gallery's order.

    Costs a few milliseconds on the first call and nothing after it. What is left out is logged with the
    reason.
    """
    usable = []
    for sample in SAMPLES:
        try:
            _sample_bytes(sample)
        except ImageError as error:
            _log.warning("%s", error)
        else:
            usable.append(sample)
    return tuple(usable)


@lru_cache(maxsize=len(SAMPLES))
def open_sample(sample_id: str) -> Picture:
    """Open a photograph of the gallery.

    Args:
        sample_id: A `Sample.id`.

    Returns:
        The picture, shareable, with source ``sample:<id>``. Kept, so the same object comes back.

    Raises:
        ImageError: No sample has this id, or its file is missing or altered.
    """
    sample = next((sample for sample in SAMPLES if sample.id == sample_id), None)
    if sample is None:
        known = ", ".join(sample.id for sample in SAMPLES)
        raise ImageError(f"There is no sample called '{sample_id}': choose one of {known}.")
    return decode(
        _sample_bytes(sample),
        name=sample.title,
        source=f"sample:{sample.id}",
        shareable=True,
        alt=sample.alt,
    )


def _sample_bytes(sample: Sample) -> bytes:
    advice = f"reinstall {_DISTRIBUTIONS.get(sample.package, sample.package)} or choose another picture."
    # For a top-level name, find_spec looks the package up without running any of its code.
    spec = find_spec(sample.package)
    folders = spec.submodule_search_locations if spec is not None else None
    try:
        data = Path(next(iter(folders or ())), sample.file).read_bytes()
    except (OSError, StopIteration) as error:
        raise ImageError(f"The file of the sample '{sample.title}' is missing: {advice}") from error
    if hashlib.sha256(data).hexdigest() != sample.sha256:
        raise ImageError(f"The file of the sample '{sample.title}' is not the one this version knows: {advice}")
    return data


_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
