"""The arrays of .npy files, read by the place of their rows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cached_property
from itertools import repeat
from typing import Any

import attrs
import numpy as np

from featreg.errors import SourceError
from featreg.sources.files import file_errors, open_file, read_range, size_of
from featreg.sources.tables import Row
from featreg.sources.uris import shown

__all__ = ["NpyFile", "holds_paths", "npy_rows"]

BLOCK_BYTES = 2**20
"""What is read of a list at once."""


@attrs.frozen
class _Header:
    """Where the rows of a .npy file lie."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


class NpyFile:
    """An array in a .npy file, of which nothing stays in memory.

    Its header is read when it is first needed, which raises SourceError for a file that is no array of numbers or texts
    in C order: pickled objects are never loaded.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    def shape(self) -> tuple[int, ...]:
        return self._header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._header.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def check_whole(self) -> None:
        """Raise SourceError where the file ends before its array does."""
        there, whole = size_of(self.uri), self._header.offset + self.shape[0] * self.row_bytes
        if there is not None and there < whole:
            raise SourceError(f"{shown(self.uri)!r} is cut", f"{whole} bytes", f"{there} bytes")

    def read(self, start: int, stop: int, key: str = "") -> np.ndarray[Any, Any]:
        """The rows from ``start`` to before ``stop``; raises SourceError, which names ``key``."""
        offset = self._header.offset + start * self.row_bytes
        data = read_range(self.uri, offset, (stop - start) * self.row_bytes, key or self.uri)
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def __getitem__(self, rows: slice) -> np.ndarray[Any, Any]:
        start, stop, _ = rows.indices(self.shape[0])
        return self.read(start, stop)

    @cached_property
    def _header(self) -> _Header:
        return _read_header(self.uri)


def holds_paths(uri: str) -> bool:
    """Whether a .npy file is a list of paths; raises SourceError where it cannot be read."""
    return NpyFile(uri).dtype.kind in "US"


def npy_rows(uri: str, target: str | None) -> Iterator[Row]:
    """The rows of an array of paths, with the targets of another; raises SourceError where they are none."""
    paths = _column(uri, "paths", "US")
    targets = None if target is None else _column(target, "targets", "iuUS")
    if targets is not None and targets.shape != paths.shape:
        raise SourceError(
            f"{shown(targets.uri)!r} does not hold the targets",
            f"one for each of {paths.shape[0]} paths",
            f"{targets.shape[0]} of them",
        )
    step = max(BLOCK_BYTES // paths.row_bytes, 1)
    for start in range(0, paths.shape[0], step):
        values = repeat(None) if targets is None else _plain(targets, start, start + step)
        for path, value in zip(_plain(paths, start, start + step), values, strict=False):
            yield Row(path, value)


def _column(uri: str, what: str, kinds: str) -> NpyFile:
    array = NpyFile(uri)
    if len(array.shape) != 1 or array.dtype.kind not in kinds or not array.row_bytes:
        raise SourceError(
            f"{shown(uri)!r} holds no {what}",
            f"(N,) of {'texts' if kinds == 'US' else 'whole numbers or names'}",
            f"{array.shape} of {array.dtype}",
        )
    array.check_whole()
    return array


def _plain(array: NpyFile, start: int, stop: int) -> list[Any]:
    with file_errors(array.uri):  # there are numbers that are no character
        values = array[start:stop].tolist()
    return list(map(os.fsdecode, values)) if array.dtype.kind == "S" else values


def _read_header(uri: str) -> _Header:
    npy: Any = np.lib.format  # without types in NumPy 1
    with open_file(uri) as file:
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
        except Exception as error:  # a header is Python, and what is wrong with it is tokenize's or ast's to say
            raise SourceError(f"{shown(uri)!r} is no .npy file", "what numpy.save writes", str(error)) from error
    if dtype.hasobject:
        raise SourceError(
            f"{shown(uri)!r} holds pickled objects, which are never loaded",
            "an array of numbers, or of texts",
            str(dtype),
            remedy="if you trust the file, as loading it may run any program: "
            "numpy.save(path, numpy.load(path, allow_pickle=True).astype(str)) makes texts of it",
        )
    if fortran and len(shape) > 1:
        raise SourceError(
            f"the rows of {shown(uri)!r} do not lie together",
            "an array in C order",
            "Fortran order",
            remedy="numpy.save(path, numpy.ascontiguousarray(array))",
        )
    return _Header(shape, dtype, offset)
