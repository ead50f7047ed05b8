"""Images inside of Parquet files, as bytes or as Hugging Face's struct of bytes and path."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from featreg.errors import SourceError, near_matches
from featreg.extras import data_extra
from featreg.sources.base import Sample, Source
from featreg.sources.files import file_errors, open_file, read_file
from featreg.sources.options import plain_options
from featreg.sources.patterns import check_files, find_files
from featreg.sources.rowgroups import RowGroups
from featreg.sources.tables import open_parquet, parquet_batches, read_footer
from featreg.sources.targets import Targets
from featreg.sources.uris import file_uri, locate, parent, shown, split_part, with_part

__all__ = ["ParquetSource", "holds_images", "image_content"]

USUAL = ("target", "label")
"""The columns of targets where none is named."""

DAMAGED = "damaged"
"""The word that stands in the URI of a row in place of a file that cannot be read."""


class ParquetSource(Source):
    """Images in a column of Parquet files: one file, a folder of them, or a pattern.

    The column holds encoded images as bytes, or structs of ``bytes`` and ``path`` as Hugging Face writes them; where
    ``bytes`` is null, ``path`` is read, relative to the folder of the file. Without ``image`` it is the only such
    column. ``target`` is a column of numbers, or of names, by default ``target`` or ``label`` where there is one;
    names are the places in ``classes``, by default those of Hugging Face's ``ClassLabel`` where the files have it, in
    which -1 is no target, or else the distinct names in code point order. The key is
    ``file.parquet#row``, or what the column ``key`` holds. A null keeps its row and fails when it is read, and so does
    a row in place of a file that is damaged.

    Reading keeps the row groups that were read last, so that a file is decoded once when its rows are read in order:
    memory is that of a few row groups.

    Raises SourceError for files that are missing; ``index()`` does for columns that are not there, for targets that
    are neither numbers nor classes, and where there is no row.
    """

    kind = "parquet"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image: str | None = None,
        target: str | None = None,
        key: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.uri = file_uri(path)
        check_files(self.uri, ".parquet")
        self.options = plain_options(image=image, target=target, key=key, classes=classes)
        self._cache = RowGroups()

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        return self._targets.classes

    def index(self) -> Iterator[Sample]:
        count = 0
        for name, uri in find_files(self.uri, ".parquet"):
            for sample in self._file_samples(name, uri):
                count += 1
                yield sample
        if not count:
            raise SourceError(f"no images found in {shown(self.uri)!r}", "Parquet files with rows", "no row")

    def read(self, sample: Sample) -> bytes:
        file, part = split_part(sample.uri)
        if DAMAGED in part:
            raise SourceError("the Parquet file is damaged, and its rows are lost", got=repr(sample.key))
        return image_content(self._cache.value(file, part["column"], int(part["row"])), parent(file), sample.key)

    @cached_property
    def _targets(self) -> Targets:
        given = self.options.get("classes")
        if given is not None:
            return Targets(tuple(given))
        files = [uri for _, uri in find_files(self.uri, ".parquet") if not _is_damaged(uri)]
        labels = self._labels(files[0]) if files else None
        if labels is not None:
            return Targets(labels, unknown=-1)
        return Targets.of(target for uri in files for target, _ in self._rows(uri, with_key=False))

    def _labels(self, uri: str) -> tuple[str, ...] | None:
        """The classes that Hugging Face's metadata of a file names."""
        with open_file(uri) as file, open_parquet(file, uri) as table:
            schema = table.schema_arrow
        target = _column(schema.names, self.options.get("target"), uri, *USUAL)
        try:
            names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][target]["names"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return None
        return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None

    def _file_samples(self, name: str, uri: str) -> Iterator[Sample]:
        if _is_damaged(uri):
            yield Sample(f"{name}#{DAMAGED}", with_part(uri, **{DAMAGED: "footer"}))
            return
        column = self._image_column(uri)
        for row, (target, given) in enumerate(self._rows(uri, with_key=True)):
            key = f"{name}#{row}" if given in (None, "") else str(given)
            yield Sample(key, with_part(uri, row=row, column=column), self._targets.number(target, key))

    def _image_column(self, uri: str) -> str:
        with open_file(uri) as file, open_parquet(file, uri) as table:
            found = _image_columns(table.schema_arrow)
        given = self.options.get("image")
        if given in found or (given is None and len(found) == 1):
            return str(given or found[0])
        raise SourceError(
            f"{shown(uri)!r} has no column of images {given!r}" if given else f"which column of {shown(uri)!r} is it?",
            "a column of bytes, or of structs of bytes and path",
            ", ".join(map(repr, found)) or "none",
            near_matches(str(given), found) if given else tuple(found),
            "image='...' with the name of the column",
        )

    def _rows(self, uri: str, *, with_key: bool) -> Iterator[tuple[Any, Any]]:
        """The target and the key of every row, None where there is none."""
        with open_file(uri) as file, open_parquet(file, uri) as table, file_errors(uri):
            names = table.schema_arrow.names
            target = _column(names, self.options.get("target"), uri, *USUAL)
            key = _column(names, self.options.get("key"), uri) if with_key else None
            wanted = [name for name in (target, key) if name is not None]
            if not wanted:
                yield from ((None, None) for _ in range(table.metadata.num_rows))
                return
            for batch in parquet_batches(table, wanted):
                nothing = [None] * batch.num_rows
                values = [nothing if name is None else batch.column(name).to_pylist() for name in (target, key)]
                yield from zip(*values, strict=True)


def holds_images(uri: str) -> bool:
    """Whether a Parquet file has a column that may hold images; raises SourceError where it cannot be read."""
    with open_file(uri) as file, open_parquet(file, uri) as table:
        return bool(_image_columns(table.schema_arrow))


def image_content(value: Any, folder: str, key: str) -> bytes:
    """The bytes behind a cell: the bytes themselves, or a struct of ``bytes`` and ``path``; raises SourceError."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return data
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str):
        raise SourceError("the row holds no image", "bytes, or the path of a file", f"null for {key!r}")
    return read_file(locate(path, folder), key)


def _is_damaged(uri: str) -> bool:
    """Whether a file has no footer, or one that contradicts itself."""
    with open_file(uri) as file:
        table = read_footer(file, uri)
        if isinstance(table, Exception):
            return True
        groups = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        return min(groups, default=0) < 0 or sum(groups) != table.metadata.num_rows


def _image_columns(schema: Any) -> list[str]:
    with data_extra():
        import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def is_image(kind: Any) -> bool:
        if not pa.types.is_struct(kind):
            return is_bytes(kind)
        return any(field.name == "bytes" and is_bytes(field.type) for field in kind)

    return [field.name for field in schema if is_image(field.type)]


def _column(names: list[str], given: str | None, uri: str, *usual: str) -> str | None:
    """The column of that name, or the first of the usual ones that is there."""
    if given is None:
        return next((name for name in usual if name in names), None)
    if given in names:
        return given
    raise SourceError(
        f"{shown(uri)!r} has no column {given!r}",
        "one of its columns",
        ", ".join(map(repr, names)),
        near_matches(given, names),
    )
