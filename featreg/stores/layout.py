"""What lies where in a store, and the documents in it.

::

    STORE/                  a Zarr v3 group
      manifest.json         the request, the fingerprint, the layers, the source
      index.parquet         row, key, uri, target: the order of the rows, frozen before the first of them is computed
      C5/, pooled/, ...     one array per layer; a shard holds the rows of one task
      receipts/00000000.json  one per finished task: the errors of its rows, the SHA-256 of its shards
      samples.parquet       row, key, uri, target, status, error: written when every task has its receipt

A task's rows count once its receipt is there, whatever its shards look like: Zarr reads a missing chunk as NaN.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from featreg import serialize
from featreg.errors import SpecError, StoreError
from featreg.spec import ExtractionRequest, FeatureInfo, Layer

__all__ = [
    "FORMAT",
    "INDEX",
    "MANIFEST",
    "RECEIPTS",
    "SAMPLES",
    "LayerRecord",
    "Manifest",
    "Receipt",
    "SourceRecord",
    "Task",
    "array_names",
    "chunk_rows",
    "document",
    "read_manifest",
    "read_receipts",
    "store_path",
]

T = TypeVar("T")

FORMAT = 1
"""The version of this layout."""

MANIFEST = "manifest.json"
INDEX = "index.parquet"
SAMPLES = "samples.parquet"
RECEIPTS = "receipts"
ZARR_JSON = "zarr.json"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one letter is a drive; pathlib makes one slash of two

CHUNK_BYTES = 2**20
"""The size that the chunks inside a shard aim at: what one read of a few rows costs."""


@attrs.frozen
class Task:
    """A fixed range of rows, from ``start`` to before ``stop``: what is computed and committed at once."""

    number: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def receipt(self) -> str:
        """The path of its receipt within the store."""
        return f"{RECEIPTS}/{self.number:08d}.json"


@attrs.frozen
class LayerRecord:
    """One layer: the key that was asked for, its array, and what is in it. ``shape`` is that of one row."""

    key: Layer
    array: str
    info: FeatureInfo
    shape: tuple[int, ...]
    dtype: str

    def shard(self, task: Task) -> str:
        """The path of the shard with the rows of a task, within the store."""
        return "/".join((self.array, "c", str(task.number), *("0" for _ in self.shape)))


@attrs.frozen
class SourceRecord:
    """Where the images came from; ``skipped`` and ``stray`` are those of :class:`~featreg.sources.Source`."""

    uri: str
    kind: str
    classes: tuple[str, ...] | None
    skipped: int
    stray: int = 0


@attrs.frozen
class Manifest:
    """All that is fixed before the first row is computed.

    ``fingerprint`` holds whatever decides the values (request, preprocessing, decoder, versions, weights); ``created``,
    a UTC time, is not part of it.
    """

    format: int
    featreg: str
    created: str
    rows: int
    task_rows: int
    request: ExtractionRequest
    fingerprint: Mapping[str, Any]
    layers: tuple[LayerRecord, ...]
    source: SourceRecord

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Every task, in the order of the rows."""
        return tuple(self.iter_tasks())

    def iter_tasks(self) -> Iterator[Task]:
        """The tasks one by one; together they cover every row once."""
        for number, start in enumerate(range(0, self.rows, self.task_rows)):
            yield Task(number, start, min(start + self.task_rows, self.rows))


@attrs.frozen
class Receipt:
    """The proof that a task is done: which of its rows failed and why, and the SHA-256 of each of its shard files."""

    task: int
    start: int
    stop: int
    errors: Mapping[str, Any]
    shards: Mapping[str, Any]


def store_path(path: str | os.PathLike[str]) -> Path:
    """The resolved path of a store; raises SpecError for what is no path, and StoreError for one that cannot be."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise SpecError("the path of a store is not a path", "a string or a pathlib.Path", repr(path)[:80])
    if not text or "\0" in text:
        raise StoreError("the path of a store is empty or holds a NUL", "the path of a folder", repr(text))
    if _URL.match(text):
        raise StoreError(
            f"a store cannot be at {text!r}", "a local path: no other is supported in this version", "a URL"
        )
    return Path(os.path.realpath(text))


def array_names(layers: Sequence[Layer]) -> dict[Layer, str]:
    """A folder name for each layer: safe on every file system, readable, and different even where case is ignored."""
    names: dict[Layer, str] = {}
    taken = {MANIFEST, INDEX, SAMPLES, RECEIPTS, ZARR_JSON}
    for layer in layers:
        text = f"index_{layer}" if isinstance(layer, int) else layer
        base = name = re.sub(r"[^A-Za-z0-9._-]|^[._]+", "-", text)[:100].rstrip(".")
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.casefold())
        names[layer] = name
    return names


def chunk_rows(task_rows: int, row_bytes: int) -> int:
    """The most rows that divide a shard evenly and stay within :data:`CHUNK_BYTES`; at least one."""
    fitting = (rows for rows in range(1, task_rows + 1) if task_rows % rows == 0 and rows * row_bytes <= CHUNK_BYTES)
    return max(fitting, default=1)


def document(value: Any) -> bytes:
    """A manifest or a receipt as the bytes of its file."""
    return json.dumps(serialize.to_dict(value), indent=2).encode() + b"\n"


def read_manifest(root: Path) -> Manifest:
    """The manifest of the store at ``root``.

    Raises StoreError where there is none, where it is damaged, and for another version of the layout.
    """
    if not os.path.lexists(root):
        raise StoreError(f"there is no store at {str(root)!r}", "a folder that featreg extract wrote", "nothing")
    if not (root / MANIFEST).is_file():
        got = f"a folder without {MANIFEST}" if root.is_dir() else "a file"
        raise StoreError(f"{str(root)!r} is not a feature store", "a folder that featreg extract wrote", got)
    plain = _read_json(root / MANIFEST)
    if plain.get("format") != FORMAT:
        raise StoreError(
            f"the store {str(root)!r} has another layout",
            f"format {FORMAT}",
            f"format {plain.get('format')!r}, written by featreg {plain.get('featreg')}",
            remedy="open it with the version of featreg that wrote it",
        )
    return _structure(Manifest, plain, root / MANIFEST)


def read_receipts(root: Path, manifest: Manifest) -> Iterator[Receipt | None]:
    """The receipt of every task in order, None where it is not finished; raises StoreError for a damaged one."""
    for task in manifest.iter_tasks():
        path = root / task.receipt
        if not path.exists():
            yield None
            continue
        receipt = _structure(Receipt, _read_json(path), path)
        if (receipt.task, receipt.start, receipt.stop) != (task.number, task.start, task.stop):
            raise _damaged(path, f"rows {receipt.start} to {receipt.stop}", f"rows {task.start} to {task.stop}")
        yield receipt


def _read_json(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(plain, dict):
        raise _damaged(path, type(plain).__name__)
    return plain


def _structure(kind: type[T], plain: dict[str, Any], path: Path) -> T:
    try:
        return serialize.from_dict(kind, plain)
    except SpecError as error:
        raise _damaged(path, error.problem) from error


def _damaged(path: Path, got: str, expected: str = "a document as featreg writes it") -> StoreError:
    return StoreError(f"{str(path)!r} is damaged", expected, got, remedy="extract again into a new folder")
