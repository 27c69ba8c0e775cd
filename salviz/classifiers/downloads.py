"""Fetching published weights: cached first, size-capped, and never a pickle that could run code."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import cast
from urllib.parse import urlparse

from salviz.classifiers.digests import sha256_of
from salviz.errors import ClassifierError

_DEFAULT_CAP_MB = 2000.0
_SECURE = ("https://",)
_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_HASHED_NAME = re.compile(r"-(?P<digest>[a-f0-9]{8,64})\.(?:pth|pth\.tar|pt)$")


def size_cap() -> float:
    """Largest download in megabytes (10^6 bytes): `SALVIZ_MAX_MODEL_MB`, 2000 where that is not set.

    Raises:
        ClassifierError: The variable is not a number.
    """
    text = os.environ.get("SALVIZ_MAX_MODEL_MB", "")
    try:
        return float(text) if text else _DEFAULT_CAP_MB
    except ValueError:
        raise ClassifierError(
            f"SALVIZ_MAX_MODEL_MB is {text!r}; set it to a number of megabytes or remove it."
        ) from None


def check_size(name: str, megabytes: float) -> None:
    """Refuse weights above the cap, before anything is fetched.

    Raises:
        ClassifierError: They are larger than `size_cap()`.
    """
    if megabytes > size_cap():
        raise ClassifierError(
            f"{name} has {megabytes:.0f} MB of weights and the limit is {size_cap():.0f} MB; pick a smaller"
            " classifier or raise SALVIZ_MAX_MODEL_MB."
        )


def fetch_from_hub(repository: str, filenames: tuple[str, ...]) -> tuple[Path, ...]:
    """Files of a Hugging Face repository, from its cache or the network.

    What the cache holds is used as it is and costs no request, so a fetched classifier works offline and does
    not change under a running study. To refresh it, delete it from the cache.

    Args:
        repository: `org/name` or `org/name@revision`.
        filenames: Files wanted. The first decides: where it is missing or too large nothing is fetched.

    Returns:
        Their paths in the cache, in order.

    Raises:
        ClassifierError: No such repository or file, no access, no network, offline mode, too large.
    """
    match = _REPOSITORY.fullmatch(repository)
    if match is None:
        raise ClassifierError(f"{repository!r} does not name a hub repository; write it as hf-hub:organisation/name.")
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The base of the hub's own error is that of the HTTP client it stands on, which differs between versions.
    client_error = cast(type[Exception], HfHubHTTPError.__mro__[1])
    failures = (HFValidationError, HfHubHTTPError, client_error, OSError)
    name, revision = match["name"], match["revision"]
    paths: list[Path] = []
    for filename in filenames:
        try:
            cached = try_to_load_from_cache(name, filename, revision=revision)
            if not isinstance(cached, str):
                # One request without retries: the size is known, and a missing network said, at once.
                about = get_hf_file_metadata(hf_hub_url(name, filename, revision=revision))
                check_size(name, (about.size or 0) / 1e6)
                cached = hf_hub_download(name, filename, revision=revision)
        except failures as error:
            raise ClassifierError(_explain(error, name, filename)) from error
        paths.append(Path(cached))
    return tuple(paths)


def _explain(error: BaseException, name: str, filename: str) -> str:
    """One sentence for what went wrong between here and the hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return (
            f"{name} is not in the local cache and offline mode is on; unset HF_HUB_OFFLINE or pick a"
            " classifier that is available offline."
        )
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated; accept its terms on its hub page and log in with `hf auth login` where Salviz runs."
    if isinstance(error, errors.DisabledRepoError):
        return f"{name} was disabled on the hub; pick another classifier."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no such revision; check what follows the @."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _no_connection(name)
    if isinstance(error, errors.EntryNotFoundError):
        if filename.endswith(".safetensors"):
            return (
                f"{name} has no {filename}, and other weight formats can run code when opened; ask its owner"
                " for safetensors or pick another classifier."
            )
        return f"{name} has no {filename}, so it is not in timm's format; pick a repository made with timm."
    if isinstance(error, errors.HFValidationError):
        return f"{name!r} does not name a hub repository; write it as hf-hub:organisation/name."
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return (
            f"{name} does not exist on the hub or is private; check its spelling, or log in with"
            " `hf auth login` where Salviz runs."
        )
    if status in (401, 403):
        return f"The hub refuses access to {name}; log in with `hf auth login` on the machine that runs Salviz."
    if status is not None:
        return f"The hub answered the request for {name} with error {status}; try again later."
    return _no_connection(name)


def _no_connection(name: str) -> str:
    return (
        f"{name} is not in the local cache and could not be fetched; check the network connection or pick a"
        " classifier that is available offline."
    )


def fetch_official(url: str, name: str) -> Path:
    """A published `.pth` whose name ends in the beginning of its SHA-256, from torch's cache or its site.

    Args:
        url: Where the library that published the weights keeps them.
        name: What to call them in messages.

    Returns:
        Path of the file, whose digest was checked.

    Raises:
        ClassifierError: No hash in the name, wrong digest, too large, no network.
    """
    filename = Path(urlparse(url).path).name
    match = _HASHED_NAME.search(filename)
    if match is None or not url.startswith(_SECURE):
        raise ClassifierError(
            f"The weights of {name} come as a pickle without a published hash; pick a classifier that has safetensors."
        )
    path = _fetch(url, name, match["digest"])
    if not sha256_of(path).startswith(match["digest"]):
        raise ClassifierError(
            f"The cached weights of {name} are not the published ones; delete {filename} from torch's cache"
            " and try again."
        )
    return path


def fetch_tensors(url: str, name: str) -> Path:
    """A published `.pth` without a hash, from torch's cache or its site; to be opened with `weights_only=True` alone.

    Args:
        url: Where its authors keep it.
        name: What to call it in messages.

    Raises:
        ClassifierError: Too large, no network.
    """
    if not url.startswith(_SECURE):
        raise ClassifierError(f"The weights of {name} would come over an open connection; pick another classifier.")
    return _fetch(url, name)


def _fetch(url: str, name: str, digest: str | None = None) -> Path:
    """Path of a file in torch's cache, fetched if it is not there."""
    import torch.hub

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        return path
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the caller checked the scheme
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            check_size(name, int(answer.headers.get("Content-Length") or 0) / 1e6)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest, progress=False)
    except urllib.error.HTTPError as error:
        raise ClassifierError(f"The site of {name} answered with error {error.code}; try again later.") from error
    except (OSError, http.client.HTTPException) as error:
        raise ClassifierError(_no_connection(name)) from error
    except RuntimeError as error:  # download_url_to_file's word for a wrong hash
        raise ClassifierError(f"The weights of {name} arrived damaged; try again.") from error
    return path
