"""What weights are, in one line: equal where they are, and other where they are others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from featreg.errors import WeightsError

__all__ = ["identify_path", "identify_state", "watch_path"]


def identify_path(path: str) -> str:
    """The SHA-256 of a file, or of all files in a folder by name; what is hidden in the folder does not count.

    Raises OSError for what cannot be read.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return f"sha256:{_hash(place)}"
    hashes = {name: _hash(file) for name, file in _files(place).items()}
    if not hashes:
        raise FileNotFoundError(f"no file in {path!r}")
    return f"folder sha256:{hashlib.sha256(json.dumps(hashes).encode()).hexdigest()}"


def watch_path(path: str) -> Callable[[], str]:
    """Put :func:`identify_path` off until it is asked for: hashing takes time, and few ask.

    What is returned raises WeightsError where a file has changed by then, so that it speaks of what was loaded.
    """
    place = Path(path).expanduser()
    before = _stamps(place)

    def identify() -> str:
        if _stamps(place) != before:
            raise WeightsError(
                f"{path!r} has changed since its weights were loaded", "the files as they were", remedy="open it again"
            )
        return identify_path(path)

    return identify


def identify_state(structure: str, arrays: Iterable[tuple[str, str, np.ndarray[Any, Any]]]) -> str:
    """The SHA-256 of a module in memory: its structure in words, and name, type and values of each of its weights.

    The values may come as any NumPy array of their bytes; ``arrays`` is read one at a time.
    """
    digest = hashlib.sha256(json.dumps(structure).encode())
    for name, kind, values in arrays:
        digest.update(json.dumps([name, kind, list(values.shape)]).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return f"state sha256:{digest.hexdigest()}"


def _files(place: Path) -> dict[str, Path]:
    """A file itself, or all in a folder by name, sorted, but for hidden ones."""
    if place.is_file():
        return {"": place}
    names = {file.relative_to(place).as_posix(): file for file in place.rglob("*") if file.is_file()}
    return {name: names[name] for name in sorted(names) if "/." not in f"/{name}"}


def _stamps(place: Path) -> dict[str, tuple[int, int, int]]:
    states = {name: file.stat() for name, file in _files(place).items()}
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states.items()}


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
