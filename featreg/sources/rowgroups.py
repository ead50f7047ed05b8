"""Cells of Parquet files, of which whole row groups are decoded."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from threading import Lock
from typing import Any

from featreg.errors import SourceError
from featreg.sources.files import file_errors, open_file
from featreg.sources.tables import open_parquet
from featreg.sources.uris import shown

__all__ = ["RowGroups"]


class RowGroups:
    """The columns of the row groups that were read last; threads that want the same wait for one decoding of it."""

    KEPT = 2
    FILES = 256

    def __init__(self) -> None:
        self._lock = Lock()
        self._groups: dict[tuple[str, str, int], Any] = {}
        self._starts: dict[str, list[int]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def value(self, uri: str, column: str, row: int) -> Any:
        """What stands in a cell; raises SourceError."""
        with self._lock:
            starts = self._row_starts(uri)
            group = bisect_right(starts, row) - 1
            cells = self._cells(uri, column, group)
        if isinstance(cells, SourceError):
            raise SourceError(cells.problem, cells.expected, f"{cells.got}, row {row}") from cells
        if not 0 <= row - starts[group] < len(cells):
            raise SourceError(f"{shown(uri)!r} has no row {row} any more", got="another file than was indexed")
        with file_errors(uri):
            return cells[row - starts[group]].as_py()

    def _row_starts(self, uri: str) -> list[int]:
        if uri not in self._starts:
            with open_file(uri) as file, open_parquet(file, uri) as table:
                rows = [table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)]
            _make_room(self._starts, self.FILES)
            self._starts[uri] = [0, *itertools.accumulate(rows)][:-1] or [0]
        return self._starts[uri]

    def _cells(self, uri: str, column: str, group: int) -> Any:
        """The column of a row group, or why it cannot be read, which is remembered as well."""
        place = (uri, column, group)
        if place not in self._groups:
            _make_room(self._groups, self.KEPT)
            try:
                with open_file(uri) as file, open_parquet(file, uri) as table, file_errors(uri):
                    self._groups[place] = table.read_row_group(group, columns=[column]).column(column)
            except SourceError as error:
                self._groups[place] = error
        return self._groups[place]


def _make_room(kept: dict[Any, Any], most: int) -> None:
    """Drop the oldest entries until one more fits."""
    while len(kept) >= most:
        del kept[next(iter(kept))]
