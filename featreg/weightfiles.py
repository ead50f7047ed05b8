"""Files of weights, whatever framework reads them: which strings name one, and what is said of one that cannot be read.

Nothing here knows a framework: what a file holds is read by the backends.
"""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featreg.errors import FeatregError, WeightsError

__all__ = ["SUFFIXES", "is_path", "read_npz", "reading_weights"]

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".torch")


def is_path(weights: str) -> bool:
    """Whether ``weights`` names a file rather than a tag: it has a separator or a checkpoint's suffix."""
    return Path(weights).suffix in SUFFIXES or "/" in weights or "\\" in weights


@contextlib.contextmanager
def reading_weights(path: str, convert: str = "") -> Iterator[Path]:
    """The file of weights at a path, under a name that has its suffix where a link has one.

    Raises WeightsError where there is no file, for a pickle of more than weights, and for whatever else goes wrong
    inside. ``convert`` is added to how a pickle is converted.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise WeightsError(
            f"there is no checkpoint {path!r}",
            f"a file: {', '.join(SUFFIXES)}",
            "a folder" if file.is_dir() else "no such file",
            remedy="weights=None gives random weights from a fixed seed",
        )
    try:
        yield _with_suffix(file)
    except FeatregError:
        raise
    except Exception as error:
        if content := _other_content(file):  # what a framework made of it says nothing
            raise WeightsError(
                f"{path!r} holds no weights",
                f"a checkpoint: {', '.join(SUFFIXES)}",
                content,
                remedy="fetch the file again: what should have led to it, or an empty file, lies in its place",
            ) from None
        raise _refusal(path, convert, error) from error


def _refusal(path: str, convert: str, error: Exception) -> WeightsError:
    if isinstance(error, pickle.UnpicklingError):
        return WeightsError(
            f"{path!r} holds more than tensors, and pickled objects are not loaded",
            "a state_dict saved by torch.save, or safetensors",
            _first_line(error),
            remedy="where you trust the file, convert it: content = torch.load(path, weights_only=False), then "
            f"torch.save the state_dict in it alone{convert}",
        )
    return WeightsError(
        f"{path!r} cannot be read as a checkpoint",
        f"one of {', '.join(SUFFIXES)}",
        f"{type(error).__name__}: {_first_line(error)}",
        remedy="check that the file is whole, and that its suffix says what it is",
    )


def _other_content(file: Path) -> str:
    """What a file is that cannot hold weights: empty, or text, such as a pointer of Git LFS or a page."""
    with file.open("rb") as opened:
        start = opened.read(256)
    if not start:
        return "an empty file"
    text = start.decode("ascii", "ignore")
    written = start.isascii() and all(char.isprintable() or char.isspace() for char in text)
    return f"text, beginning with {text.strip().splitlines()[0][:40]!r}" if written and text.strip() else ""


def read_npz(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an ``.npz`` by name; raises ValueError for one that holds pickled objects."""
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _with_suffix(file: Path) -> Path:
    """A hub's cache links to files without a suffix, or the other way."""
    target = file.resolve()
    return target if file.suffix not in SUFFIXES and target.suffix in SUFFIXES else file


def _first_line(error: Exception) -> str:
    """What an error says first, without the colours of a terminal."""
    return next(iter(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()), "")
