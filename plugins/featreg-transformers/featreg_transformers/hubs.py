"""Places that hold a model of the library's: folders, and repositories of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers.utils import logging

from featreg.plugin import SUFFIXES, errors

__all__ = ["HUBS", "arguments", "cache_of", "is_hub", "lacks", "muted", "reading", "with_prefix"]

HUBS = ("hf-hub:", "local-dir:")
"""What stands before a repository of the hub, or a folder, as ``save_pretrained`` writes it."""

_LOCK = threading.RLock()  # the library's verbosity belongs to the process


def is_hub(name: str | None) -> bool:
    """Whether a name stands for a repository or a folder."""
    return name is not None and name.startswith(HUBS)


def with_prefix(weights: str) -> str:
    """The weights of a request, where a bare folder or ``owner/name`` stands for itself with its prefix."""
    place = Path(weights).expanduser()
    if place.is_dir():
        return f"local-dir:{weights}"
    if not place.exists() and place.suffix not in SUFFIXES and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", weights):
        return f"hf-hub:{weights}"
    return weights


def arguments(place: str) -> dict[str, Any]:
    """The arguments of every ``from_pretrained`` for ``"local-dir:FOLDER"`` and ``"hf-hub:OWNER/NAME@REVISION"``.

    Code that lies in a repository is never run.
    """
    kind, _, name = place.partition(":")
    if kind == "local-dir":
        path, local = str(Path(name).expanduser()), True
        return {"pretrained_model_name_or_path": path, "local_files_only": local, "trust_remote_code": False}
    name, _, revision = name.partition("@")
    return {"pretrained_model_name_or_path": name, "revision": revision or "main", "trust_remote_code": False}


def lacks(place: str, file: str) -> bool:
    """Whether a folder or repository is known to have no such file; a network that cannot be reached proves nothing."""
    kind, _, name = place.partition(":")
    if kind == "local-dir":
        return not (Path(name).expanduser() / file).is_file()
    name, _, revision = name.partition("@")
    try:
        hf_hub_download(name, file, revision=revision or None)
    except LocalEntryNotFoundError:
        return try_to_load_from_cache(name, file, revision=revision or None) is _CACHED_NO_EXIST
    except EntryNotFoundError:
        return True
    return False


def cache_of(place: str) -> str:
    """Where a place is looked for: the hub's cache, or the folder itself."""
    return place.removeprefix("local-dir:") if place.startswith("local-dir:") else HF_HUB_CACHE


@contextlib.contextmanager
def reading(place: str, what: str) -> Iterator[None]:
    """Raise WeightsError, with the place and a remedy, where something of it cannot be read."""
    try:
        with muted():
            yield
    except errors.FeatregError:
        raise
    except Exception as error:
        raise errors.WeightsError(
            f"{what} of {place!r} cannot be had",
            f"files as save_pretrained writes them, in {cache_of(place)}",
            f"{type(error).__name__}: {_first_line(error)}",
            remedy="open it once while online, or pass a folder with config.json and model.safetensors as "
            "'local-dir:FOLDER'",
        ) from error


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Keep the library from printing reports and progress bars: what matters of them is raised or reported."""
    with _LOCK:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
