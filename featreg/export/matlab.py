"""MAT-files of version 5, which MATLAB, Octave and scipy.io.loadmat read.

SciPy writes them from whole arrays in memory; MATLAB keeps arrays column by column, so that a block of rows lies
scattered over the file. Here the file is mapped into memory and filled block by block. The format: "MAT-File Format",
MathWorks, https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np

from featreg.errors import CapabilityError
from featreg.export.content import Content, Entry

__all__ = ["write_mat"]

LIMIT = 2**31 - 1
"""The most bytes of one array: MATLAB's own limit for this version."""

_MATRIX, _INT8, _INT32, _UINT32 = 14, 1, 5, 6
_TYPES = {"float32": (7, 7), "float64": (6, 9), "int64": (14, 12)}
"""The class of the array and the type of its numbers, by NumPy's name."""

_NAME = 63
"""The most characters of a name in MATLAB."""


def write_mat(folder: Path, content: Content) -> dict[str, str]:
    """All arrays in one file, (rows, ...) as everywhere; float16, which MATLAB has not, becomes single.

    Raises CapabilityError where an array is larger than the format allows.
    """
    wide = {entry.name: np.dtype(np.float32 if entry.dtype == np.float16 else entry.dtype) for entry in content.entries}
    for entry in content.entries:
        _check_size(entry, wide[entry.name])
    names = _identifiers([entry.name for entry in content.entries])
    with open(folder / "features.mat", "x+b") as file:
        file.write(b"MATLAB 5.0 MAT-file, written by featreg".ljust(124) + struct.pack("<H2s", 0x0100, b"IM"))
        for entry in content.entries:
            _write_array(file, names[entry.name], entry, wide[entry.name])
    return {entry.name: "features.mat" for entry in content.entries}


def _check_size(entry: Entry, dtype: np.dtype[Any]) -> None:
    weight = int(np.prod(entry.shape, dtype=np.int64)) * dtype.itemsize
    if weight > LIMIT:
        raise CapabilityError(
            f"{entry.name!r} is too large for a MAT-file",
            f"at most {LIMIT} bytes",
            f"{weight} bytes",
            remedy="--format hdf5, which MATLAB reads with h5read",
        )


def _write_array(file: IO[bytes], name: str, entry: Entry, dtype: np.dtype[Any]) -> None:
    kind, number = _TYPES[str(dtype)]
    shape = entry.shape if len(entry.shape) > 1 else (*entry.shape, 1)
    weight = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    body = _element(_UINT32, struct.pack("<II", kind, 0)) + _element(_INT32, struct.pack(f"<{len(shape)}i", *shape))
    body += _element(_INT8, name.encode()) + struct.pack("<II", number, weight)
    padded = weight + -weight % 8
    file.write(struct.pack("<II", _MATRIX, len(body) + padded) + body)
    start = file.tell()
    _allocate(file, start, padded)
    row = 0
    for block in entry.blocks() if weight else ():
        values = np.memmap(file, dtype, "r+", start, shape, "F")  # a new map each time: pages of an old one stay held
        values[row : row + len(block)] = block.reshape(len(block), *shape[1:])
        row += len(block)
    file.seek(start + padded)


def _allocate(file: IO[bytes], start: int, size: int) -> None:
    """Make a file longer by bytes that have their place on the disk: a full one kills who writes through a map."""
    file.truncate(start + size)
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, size)


def _element(kind: int, data: bytes) -> bytes:
    """A tag and its data, filled up to whole eight bytes."""
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def _identifiers(names: list[str]) -> dict[str, str]:
    """Names that MATLAB takes for variables, each once."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        base = word = (plain if plain[:1].isalpha() else f"x{plain}")[:_NAME]
        number = 1
        while word in found.values():
            number += 1
            word = f"{base[: _NAME - 8]}_{number}"
        found[name] = word
    return found
