"""Arrays of images in HDF5 files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote

from featreg.errors import SourceError, near_matches
from featreg.extras import extra
from featreg.images import Pixels
from featreg.sources.arrays import ArraySource
from featreg.sources.base import Sample
from featreg.sources.files import file_errors, open_file
from featreg.sources.pixels import check_form, row_pixels
from featreg.sources.uris import shown

__all__ = ["Hdf5Source"]

CACHE_BYTES = 64 * 2**20
"""What HDF5 keeps of decompressed chunks, which may hold many rows."""


class Hdf5Source(ArraySource):
    """The images of one dataset in an HDF5 file, in the forms that :class:`~featreg.sources.arrays.NumpySource` takes.

    ``dataset`` is its path in the file; without it, it is the only one that has the form of images. ``target`` is a
    dataset of N whole numbers, ``classes`` are their names. ``rows`` are the rows to take, in that order: whole
    numbers, or a dataset of them. The key of an image is its row.

    Raises SourceError for a file that is missing; reading and ``index()`` do for one that is damaged or holds no such
    dataset, ``index()`` for a row that is not there, and MissingDependencyError without h5py.
    """

    kind = "hdf5"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dataset: str | None = None,
        target: str | None = None,
        classes: Sequence[str] | None = None,
        rows: Sequence[int] | str | None = None,
    ) -> None:
        super().__init__(path, dataset=dataset, target=target, classes=classes, rows=rows)
        self._file = _File(self.uri)

    def read(self, sample: Sample) -> Pixels:
        name, _, row = sample.uri.rpartition("#")[2].removesuffix("]").rpartition("[")
        images = self._file.dataset(unquote(name, errors="surrogateescape"))
        check_form(images.shape, images.dtype, sample.uri)
        with file_errors(self.uri, sample.key):
            return row_pixels(images[int(row)])

    @cached_property
    def _dataset(self) -> str:
        given = self.options.get("dataset")
        if given is not None:
            images = self._file.dataset(given)
            check_form(images.shape, images.dtype, f"{shown(self.uri)}#{given}")
            return str(given)
        found = self._file.image_datasets()
        if len(found) == 1:
            return found[0]
        raise SourceError(
            f"which dataset of {shown(self.uri)!r} is it?",
            "one of (N, H, W) or (N, H, W, C) in uint8 or uint16",
            f"{len(found)} of them",
            tuple(found),
            "dataset='...' with its path in the file",
        )

    def _images(self) -> Any:
        return self._array(self._dataset)

    def _array(self, name: str) -> Any:
        return self._file.dataset(name)

    def _row_uri(self, row: int) -> str:
        return f"{self.uri}#{quote(os.fsencode(self._dataset))}[{row}]"


class _File:
    """An HDF5 file that is opened when it is first needed, once in every process."""

    def __init__(self, uri: str) -> None:
        self._uri, self._lock, self._opened = uri, Lock(), None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._uri,)

    def dataset(self, name: str) -> Any:
        """A dataset that is not null, by its path; raises SourceError."""
        file = self._open()
        with extra("hdf5", "HDF5 files"):
            import h5py
        with file_errors(self._uri):
            found = file.get(os.fsencode(name))
        if isinstance(found, h5py.Dataset) and found.shape is not None:
            return found
        names = self._names()
        raise SourceError(
            f"{shown(self._uri)!r} has no dataset {name!r}",
            "one of its datasets",
            ", ".join(map(repr, names[:20])) or "none",
            near_matches(name, names),
        )

    def image_datasets(self) -> list[str]:
        """The paths of the datasets that have the form of images."""
        found = []
        for name in self._names():
            dataset = self.dataset(name)
            try:
                check_form(dataset.shape, dataset.dtype, name)
            except SourceError:
                continue
            found.append(name)
        return found

    def _names(self) -> list[str]:
        with extra("hdf5", "HDF5 files"):
            import h5py
        names: list[str] = []

        def visit(name: str | bytes, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                names.append(os.fsdecode(name))  # bytes where they are no Unicode

        with file_errors(self._uri):
            self._open().visititems(visit)
        return names

    def _open(self) -> Any:
        with extra("hdf5", "HDF5 files"):
            import h5py
        with self._lock:
            if self._opened is None:
                try:
                    self._opened = h5py.File(open_file(self._uri), "r", rdcc_nbytes=CACHE_BYTES)
                except OSError as error:
                    raise SourceError(f"{shown(self._uri)!r} is no readable HDF5 file", got=str(error)) from error
            return self._opened
