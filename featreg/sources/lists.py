"""A list of files: one path a line, or a table with a column of paths and one of targets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from featreg.errors import SourceError
from featreg.sources.base import Sample, Source
from featreg.sources.files import check_exists, read_file
from featreg.sources.tables import Row, lines, parquet_rows, text_rows
from featreg.sources.targets import Targets
from featreg.sources.uris import file_name, file_uri, locate, parent, readable, shown, suffix

__all__ = ["ListSource"]


class ListSource(Source):
    """Images that a .txt, .csv, .tsv or .parquet file names, in its order.

    A .txt file has one path a line; blank lines are left out and counted in ``skipped``. A table has a header, and the
    columns ``uri`` and, unless None, ``target``, ``key`` and ``size`` by their names; where no name is given for the
    target, the column ``target`` is taken if there is one. A path is relative to the folder of the list; URLs are
    those of fsspec, and ``file://`` ones are percent-encoded.

    Whole numbers are the targets as they are; where one is none, all are names, and ``classes`` are those in code point
    order, unless given. A row without a path keeps its place, and fails when it is read. The key is the path as it
    stands in the list, or the column ``key``.

    Raises SourceError for a file that is missing; ``index()`` does for columns that are not there, for what cannot be
    parsed, and for a list without rows.
    """

    kind = "list"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        uri: str = "uri",
        target: str | None = None,
        key: str | None = None,
        size: str | None = None,
        classes: tuple[str, ...] | list[str] | None = None,
        delimiter: str | None = None,
    ) -> None:
        self.uri = file_uri(path)
        check_exists(self.uri, folder=False)
        given = {"target": target, "key": key, "size": size, "classes": classes, "delimiter": delimiter}
        self.options = {"uri": uri, **{name: value for name, value in given.items() if value is not None}}
        self._columns = {"uri": uri, "target": target, "key": key, "size": size}
        self._end = suffix(file_name(self.uri))
        self._delimiter = delimiter or ("\t" if self._end == ".tsv" else ",")
        self._folder = parent(self.uri)

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        return self._targets.classes

    @cached_property
    def skipped(self) -> int:
        return sum(not line for line in lines(self.uri)) if self._end == ".txt" else 0

    def index(self) -> Iterator[Sample]:
        count = 0
        for row in self._rows(self._columns):
            yield self._sample(count, row)
            count += 1
        if not count:
            raise SourceError(f"{shown(self.uri)!r} lists no images", "at least one row", "none")

    def read(self, sample: Sample) -> bytes:
        if not sample.uri:
            raise SourceError("the row of the list has no path", got=repr(sample.key))
        return read_file(sample.uri, sample.key)

    @cached_property
    def _targets(self) -> Targets:
        given = self.options.get("classes")
        if given is not None or self._end == ".txt":
            return Targets(None if given is None else tuple(given))
        only = {**self._columns, "key": None, "size": None}
        return Targets.of(row.target for row in self._rows(only))

    def _rows(self, columns: dict[str, Any]) -> Iterator[Row]:
        if self._end == ".txt":
            return (Row(line) for line in lines(self.uri) if line)
        if self._end == ".parquet":
            return parquet_rows(self.uri, columns)
        return text_rows(self.uri, columns, self._delimiter)

    def _sample(self, number: int, row: Row) -> Sample:
        key = readable(row.key or row.uri or f"row {number}")
        return Sample(
            key, locate(row.uri, self._folder) if row.uri else "", self._targets.number(row.target, key), row.size
        )
