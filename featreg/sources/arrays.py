"""Arrays of images: what all of their sources share, and the one of .npy files."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from featreg.errors import SourceError
from featreg.images import Pixels
from featreg.sources.base import Sample, Source
from featreg.sources.files import check_exists, file_errors
from featreg.sources.npy import NpyFile
from featreg.sources.options import plain_options
from featreg.sources.pixels import check_form, row_pixels
from featreg.sources.targets import Targets
from featreg.sources.uris import file_uri, locate, parent, shown

__all__ = ["ArraySource", "NumpySource"]

BLOCK_ROWS = 8192
"""The targets that are read at once."""


class Array(Protocol):
    """An array in a file, read by slices of its rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: slice) -> np.ndarray[Any, Any]: ...


class ArraySource(Source):
    """The rows of an array of images, all of them or those of the option ``rows``, with the targets of a second array.

    A subclass says where an array and a row lie.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self.uri = file_uri(path)
        check_exists(self.uri, folder=False)
        self.options = plain_options(**options)
        self.classes = tuple(self.options["classes"]) if "classes" in self.options else None

    def index(self) -> Iterator[Sample]:
        images, targets = self._images(), Targets(self.classes)
        size = images.dtype.itemsize * math.prod(images.shape[1:])
        values = self._numbers("target", images.shape[0])
        for row in self._rows(images.shape[0]):
            key = str(row)
            target = None if values is None else targets.number(values[row], key)
            yield Sample(key, self._row_uri(row), target, size)

    @abstractmethod
    def _images(self) -> Array:
        """The array of images; raises SourceError for another one."""

    @abstractmethod
    def _array(self, name: str) -> Array:
        """The array that an option names; raises SourceError."""

    @abstractmethod
    def _row_uri(self, row: int) -> str: ...

    def _rows(self, count: int) -> Iterator[int]:
        """The rows that are asked for, in that order."""
        given: Any = self.options.get("rows", range(count))
        for row in self._numbers("rows") or () if isinstance(given, str) else given:
            if not 0 <= row < count:
                raise SourceError(f"{shown(self.uri)!r} has no row {row}", f"0 to {count - 1}", str(row))
            yield row

    def _numbers(self, option: str, count: int | None = None) -> _Numbers | None:
        """The array of whole numbers that an option names; of ``count`` of them, where that is given."""
        name = self.options.get(option)
        if name is None:
            return None
        array = self._array(name)
        if len(array.shape) != 1 or array.dtype.kind not in "iu" or count not in (None, array.shape[0]):
            raise SourceError(
                f"{name!r} does not hold the {'targets' if option == 'target' else option}",
                f"({'N' if count is None else count},) of whole numbers",
                f"{array.shape} of {array.dtype}",
            )
        return _Numbers(array, self.uri)


class _Numbers(Sequence[int]):
    """A long column of numbers, of which one block is held."""

    def __init__(self, array: Array, uri: str) -> None:
        self._array, self._uri = array, uri
        self._start, self._block = -1, [0]

    def __len__(self) -> int:
        return self._array.shape[0]

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(row)
        start = row - row % BLOCK_ROWS
        if start != self._start:
            with file_errors(self._uri):
                self._start, self._block = start, self._array[start : start + BLOCK_ROWS].tolist()
        return self._block[row - start]


class NumpySource(ArraySource):
    """The images of one .npy file: (N, H, W) or (N, H, W, C) in uint8 or uint16, with C of 1, 3 or 4.

    Grey becomes RGB, of uint16 the high byte counts and alpha is dropped, as in files of images. The key of an image is
    its row. ``target`` is a .npy file of N whole numbers beside, ``classes`` are their names. ``rows`` are the rows to
    take, in that order: whole numbers, or a .npy file of them beside. Rows are read by their place in the file, so that
    nothing of the array stays in memory.

    Raises SourceError for a file that is missing, and, once its header is needed, for one that is no array of images;
    ``index()`` does for one that is cut, and for a row that is not there.
    """

    kind = "numpy"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        target: str | None = None,
        classes: Sequence[str] | None = None,
        rows: Sequence[int] | str | None = None,
    ) -> None:
        super().__init__(path, target=target, classes=classes, rows=rows)

    def read(self, sample: Sample) -> Pixels:
        row = int(sample.uri.rpartition("#")[2])
        return row_pixels(self._file.read(row, row + 1, sample.key)[0])

    @cached_property
    def _file(self) -> NpyFile:
        file = NpyFile(self.uri)
        check_form(file.shape, file.dtype, shown(self.uri))
        return file

    def _images(self) -> NpyFile:
        self._file.check_whole()
        return self._file

    def _array(self, name: str) -> NpyFile:
        return NpyFile(locate(name, parent(self.uri)))

    def _row_uri(self, row: int) -> str:
        return f"{self.uri}#{row}"
