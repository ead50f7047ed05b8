"""Rows of text, CSV and Parquet files, streamed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from featreg.errors import SourceError, near_matches
from featreg.extras import data_extra
from featreg.sources.files import file_errors, open_file
from featreg.sources.uris import shown

__all__ = ["Row", "lines", "open_parquet", "parquet_batches", "parquet_rows", "read_footer", "text_rows"]

BATCH_ROWS = 8192
"""Rows of a Parquet file that are held at once."""


@attrs.frozen
class Row:
    """One row of a list as it stands there."""

    uri: str
    target: Any = None
    key: str = ""
    size: int | None = None


def lines(uri: str) -> Iterator[str]:
    r"""The lines of a UTF-8 file without ``\n`` or ``\r\n``; bytes that are no UTF-8 are kept, as in file names."""
    with _text(uri, newline="\n") as file, file_errors(uri):
        for line in file:
            yield line.removesuffix("\n").removesuffix("\r")


def text_rows(uri: str, columns: Mapping[str, str | None], delimiter: str) -> Iterator[Row]:
    """The rows of a CSV file with a header; raises SourceError with the line that cannot be parsed."""
    with _text(uri, newline="") as file, file_errors(uri):
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            places = _places(next(reader, []), columns, uri)
            width = max(places.values()) + 1
            for cells in reader:
                if not cells:
                    continue
                if len(cells) < width:
                    raise _bad_line(uri, reader.line_num, f"{len(cells)} cells")
                found = {name: cells[place] for name, place in places.items()}
                yield Row(found["uri"], found.get("target"), found.get("key", ""), _size(found.get("size")))
        except csv.Error as error:
            raise _bad_line(uri, reader.line_num, str(error)) from error


def parquet_rows(uri: str, columns: Mapping[str, str | None]) -> Iterator[Row]:
    """The rows of a Parquet file; raises SourceError where it cannot be read."""
    with open_file(uri) as file, open_parquet(file, uri) as table:
        names = table.schema_arrow.names
        wanted = {name: names[place] for name, place in _places(names, columns, uri).items()}
        with file_errors(uri):
            for batch in parquet_batches(table, list(dict.fromkeys(wanted.values()))):
                values = [batch.column(column).to_pylist() for column in wanted.values()]
                for cells in zip(*values, strict=True):
                    found = dict(zip(wanted, cells, strict=True))
                    key = found.get("key")
                    yield Row(
                        _path(found["uri"]),
                        found.get("target"),
                        "" if key is None else str(key),
                        _size(found.get("size")),
                    )


def parquet_batches(table: Any, columns: list[str]) -> Iterator[Any]:
    """The record batches of an open Parquet file.

    One row group after the other, and without threads: both take memory, by as much as pyarrow likes to read ahead.
    """
    for group in range(table.num_row_groups):
        yield from table.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)


def open_parquet(file: Any, uri: str) -> Any:
    """An open file as a ``pyarrow.parquet.ParquetFile``; raises SourceError."""
    opened = read_footer(file, uri)
    if isinstance(opened, Exception):
        said = (str(opened).splitlines() or [type(opened).__name__])[0]
        raise SourceError(f"{shown(uri)!r} is no readable Parquet file", got=said) from opened
    return opened


def read_footer(file: Any, uri: str) -> Any:
    """An open file as a ``pyarrow.parquet.ParquetFile``, or the exception that says that it is none.

    Raises SourceError for what is the disk's or the network's fault.
    """
    with data_extra():
        import pyarrow as pa
        from pyarrow import parquet
    with file_errors(uri):
        try:
            return parquet.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None):  # pyarrow's own have none
                raise
            return error


def _text(uri: str, newline: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_file(uri), encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _places(names: Sequence[str], columns: Mapping[str, str | None], uri: str) -> dict[str, int]:
    """Where the wanted columns stand; the target is left out where it is not named and there is none."""
    places = {}
    for wanted, column in columns.items():
        if column is None and wanted == "target":
            column = "target" if "target" in names else None  # noqa: PLW2901
        if column is None:
            continue
        if column not in names:
            raise SourceError(
                f"{shown(uri)!r} has no column {column!r}",
                f"a column with the {wanted} of every row",
                ", ".join(map(repr, names)) or "no header",
                near_matches(column, names),
                _column_remedy(wanted, names),
            )
        places[wanted] = names.index(column)
    return places


def _column_remedy(wanted: str, names: Sequence[str]) -> str:
    other = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
    return f"{wanted}='...' with the name of the column" if other is None else f"delimiter={other!r}"


def _path(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise SourceError("the column of paths holds no text", "paths or URLs", type(value).__name__)
    return value or ""


def _size(value: Any) -> int | None:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _bad_line(uri: str, number: int, said: str) -> SourceError:
    return SourceError(
        f"line {number} of {shown(uri)!r} cannot be parsed", "a cell for every column of the header", said
    )
