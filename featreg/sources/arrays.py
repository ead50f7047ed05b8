"""Arrays of images in .npy files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import attrs
import numpy as np

from featreg.errors import SourceError
from featreg.images import Pixels
from featreg.sources.base import Sample, Source
from featreg.sources.files import check_exists, file_errors, open_file, read_range, size_of
from featreg.sources.pixels import check_form, row_pixels
from featreg.sources.uris import file_uri, locate, parent, shown

__all__ = ["NumpySource"]


class NumpySource(Source):
    """The images of one .npy file: (N, H, W) or (N, H, W, C) in uint8 or uint16, with C of 1, 3 or 4.

    Grey becomes RGB, of uint16 the high byte counts and alpha is dropped, as in files of images. The key of an image is
    its row. ``target`` is a .npy file of N whole numbers beside, ``classes`` are their names. Rows are read by their
    place in the file, so that nothing of the array stays in memory.

    Raises SourceError for a file that is missing, and, once its header is needed, for one that is no array of images;
    ``index()`` does for one that is cut.
    """

    kind = "numpy"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        target: str | None = None,
        classes: tuple[str, ...] | list[str] | None = None,
    ) -> None:
        self.uri = file_uri(path)
        check_exists(self.uri, folder=False)
        given = {"target": target, "classes": classes}
        self.options = {name: value for name, value in given.items() if value is not None}
        self.classes = None if classes is None else tuple(classes)

    def index(self) -> Iterator[Sample]:
        header = self._header
        there, whole = size_of(self.uri), header.offset + header.shape[0] * header.row_bytes
        if there is not None and there < whole:
            raise SourceError(f"{shown(self.uri)!r} is cut", f"{whole} bytes", f"{there} bytes")
        for row, target in enumerate(self._targets(header.shape[0])):
            yield Sample(str(row), f"{self.uri}#{row}", target, header.row_bytes)

    def read(self, sample: Sample) -> Pixels:
        row, header = int(sample.uri.rpartition("#")[2]), self._header
        data = read_range(self.uri, header.offset + row * header.row_bytes, header.row_bytes, sample.key)
        return row_pixels(np.frombuffer(data, header.dtype).reshape(header.shape[1:]))

    @cached_property
    def _header(self) -> _Header:
        header = _read_header(self.uri)
        check_form(header.shape, header.dtype, shown(self.uri))
        return header

    def _targets(self, rows: int) -> Iterator[int | None]:
        if "target" not in self.options:
            yield from (None for _ in range(rows))
            return
        uri = locate(self.options["target"], parent(self.uri))
        header = _read_header(uri)
        if header.shape != (rows,) or header.dtype.kind not in "iu":
            raise SourceError(
                f"{shown(uri)!r} does not hold the targets",
                f"({rows},) of whole numbers",
                f"{header.shape} of {header.dtype}",
            )
        with open_file(uri) as file, file_errors(uri):
            file.seek(header.offset)
            for start in range(0, rows, 8192):
                count = min(8192, rows - start)
                yield from np.frombuffer(file.read(count * header.row_bytes), header.dtype, count).tolist()


@attrs.frozen
class _Header:
    """Where the rows of a .npy file lie."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


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
        raise SourceError(f"{shown(uri)!r} holds pickled objects", "an array of numbers", str(dtype))
    if fortran and len(shape) > 1:
        raise SourceError(
            f"the images in {shown(uri)!r} do not lie together",
            "an array in C order",
            "Fortran order",
            remedy="numpy.save(path, numpy.ascontiguousarray(array))",
        )
    return _Header(shape, dtype, offset)
