"""Errors meant for people: each carries one plain sentence saying what is wrong and what to do."""

from __future__ import annotations


class SalvizError(Exception):
    """Base of every error whose message is written for the person using Salviz."""


class ImageError(SalvizError):
    """A picture that cannot be read, or must not be."""


class ClassifierError(SalvizError):
    """A classifier that cannot be found, fetched, trusted or built."""


class DataError(SalvizError):
    """A set of images that is missing, damaged or not the one expected."""


class MethodError(SalvizError):
    """A saliency method that is unknown, wrongly parametrised, or cannot explain this classifier."""


class Refusal(MethodError):  # noqa: N818 - no fault: the method has no meaning there
    """A saliency method that is undefined for this classifier: trying again is of no use."""


class RequestError(SalvizError):
    """A request that names something which does not exist or does not fit together."""


class Cancelled(SalvizError):  # noqa: N818 - not a fault: the person asked for it
    """Raised inside running work after somebody cancelled it."""

    def __init__(self, message: str = "Cancelled.") -> None:
        super().__init__(message)
