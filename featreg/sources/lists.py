"""A list of files: one path a line, or a table with a column of paths and one of targets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from featreg.errors import SourceError
from featreg.sources.base import Sample, Source
from featreg.sources.files import check_exists, read_file
from featreg.sources.npy import npy_rows
from featreg.sources.options import plain_options
from featreg.sources.tables import Row, lines, parquet_rows, text_rows
from featreg.sources.targets import Targets
from featreg.sources.uris import file_name, file_uri, locate, parent, readable, shown, suffix

__all__ = ["ListSource"]


APPLICABLE = {".txt": {"root", "strip"}, ".npy": {"target", "classes", "root", "strip"}}
"""The options of lists that are no tables."""


class ListSource(Source):
    """Images that a .txt, .csv, .tsv, .parquet or .npy file names, in its order.

    A .txt file has one path a line; blank lines are left out and counted in ``skipped``. A table has a header, and the
    columns ``uri``, ``target``, ``key`` and ``size`` by their names: where nothing else is said, paths are in the
    column ``uri``, targets in ``target``, if there is one, and keys and sizes in none. A .npy file holds an array of
    texts; ``target`` is then a .npy file beside it, of as many whole numbers or names.

    A path is relative to the folder of the list, or to ``root``, a folder or a URL. URLs are those of fsspec, and
    ``file://`` ones are percent-encoded. ``strip`` is a folder that is cut off the front of the paths below it, which
    makes them relative.

    Whole numbers are the targets as they are; where one is none, all are names, and ``classes`` are those in code point
    order, unless given. A row without a path keeps its place, and fails when it is read. The key is the path as it
    stands in the list, or the column ``key``.

    Raises SourceError for a file that is missing, and for options that it has not; ``index()`` does for columns that
    are not there, for what cannot be parsed, and for a list without rows.
    """

    kind = "list"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        uri: str | None = None,
        target: str | None = None,
        key: str | None = None,
        size: str | None = None,
        classes: Sequence[str] | None = None,
        delimiter: str | None = None,
        root: str | os.PathLike[str] | None = None,
        strip: str | None = None,
    ) -> None:
        self.uri = file_uri(path)
        check_exists(self.uri, folder=False)
        self._end = suffix(file_name(self.uri))
        base = None if root is None else file_uri(root)
        self.options = plain_options(
            uri=uri, target=target, key=key, size=size, classes=classes, delimiter=delimiter, root=base, strip=strip
        )
        _check_options(self.options, self._end)
        self._folder = base or parent(self.uri)

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        return self._targets.classes

    @cached_property
    def skipped(self) -> int:
        return sum(not line for line in lines(self.uri)) if self._end == ".txt" else 0

    def index(self) -> Iterator[Sample]:
        count = 0
        for row in self._rows("uri", "target", "key", "size"):
            yield self._sample(count, row)
            count += 1
        if not count:
            raise SourceError(f"{shown(self.uri)!r} lists no images", "at least one row", "none")

    def read(self, sample: Sample) -> bytes:
        if not sample.uri:
            raise SourceError("the row of the list has no path", got=repr(sample.key))
        return read_file(sample.uri, sample.key, sample.size)

    @cached_property
    def _targets(self) -> Targets:
        given = self.options.get("classes")
        if given is not None or self._end == ".txt":
            return Targets(None if given is None else tuple(given))
        return Targets.of(row.target for row in self._rows("uri", "target"))

    def _rows(self, *wanted: str) -> Iterator[Row]:
        if self._end == ".txt":
            return (Row(line) for line in lines(self.uri) if line)
        if self._end == ".npy":
            target = self.options.get("target")
            return npy_rows(self.uri, None if target is None else locate(target, parent(self.uri)))
        columns = {name: self.options.get(name) for name in wanted} | {"uri": self.options.get("uri", "uri")}
        if self._end == ".parquet":
            return parquet_rows(self.uri, columns)
        return text_rows(self.uri, columns, self.options.get("delimiter", "\t" if self._end == ".tsv" else ","))

    def _sample(self, number: int, row: Row) -> Sample:
        key = readable(row.key or row.uri or f"row {number}")
        return Sample(key, self._locate(row.uri) if row.uri else "", self._targets.number(row.target, key), row.size)

    def _locate(self, path: str) -> str:
        above = self.options.get("strip", "").rstrip("/") + "/"
        if "strip" in self.options and path.startswith(above):
            path = path.removeprefix(above).lstrip("/")
        return locate(path, self._folder)


def _check_options(options: Mapping[str, Any], end: str) -> None:
    known = APPLICABLE.get(end, options)
    for name in options:
        if name not in known:
            raise SourceError(
                f"a list in a {end} file has no option {name!r}",
                ", ".join(sorted(known)),
                name,
                remedy="a .csv or .parquet file has columns",
            )
    delimiter = options.get("delimiter", ",")
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise SourceError("the delimiter of a list is no such thing", "one character, such as ;", repr(delimiter))
