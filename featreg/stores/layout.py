"""What lies where in a store, and the documents in it.

::

    STORE/                            a Zarr v3 group
      manifest.json                   that this is a store, and of which format
      passes/0000.json                a set of layers over a range of rows: the request, the fingerprint, the source
      passes/0000.copy.json           the same once more, since nothing else could bring it back
      index/0000-1f2e3d4c5b6a7988.parquet  row, key, uri, target, size: frozen before the first row is computed
      C5/, pooled/, ...               one array per layer; a shard holds the rows of one task
      receipts/0000/00000000.json     one per finished task: the errors of its rows, the SHA-256 of its shards
      staged/                         what is not in its place yet; gone from a finished store
      workers/                        who is at work: information only; gone from a finished store
      samples.parquet                 row, key, uri, target, status, error: written when every task has its receipt
      finished.json                   the counts, and the SHA-256 of whatever no receipt names

A task's rows count once its receipt is there, whatever its shards look like: Zarr reads a missing chunk as NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from featreg.spec import ExtractionRequest, FeatureInfo, Layer
from featreg.stores.places import STAGED

__all__ = [
    "FINISHED",
    "FORMAT",
    "INDEX",
    "MANIFEST",
    "PASSES",
    "RECEIPTS",
    "SAMPLES",
    "STAGED",
    "WORKERS",
    "ZARR_JSON",
    "Finish",
    "Header",
    "IndexPart",
    "LayerRecord",
    "Manifest",
    "Pass",
    "Receipt",
    "SourceRecord",
    "Task",
    "array_names",
    "chunk_rows",
    "pass_name",
]

FORMAT = 2
"""The version of this layout."""

MANIFEST = "manifest.json"
PASSES = "passes"
INDEX = "index"
RECEIPTS = "receipts"
WORKERS = "workers"
SAMPLES = "samples.parquet"
FINISHED = "finished.json"
ZARR_JSON = "zarr.json"

CHUNK_BYTES = 2**20
"""The size that the chunks inside a shard aim at: what one read of a few rows costs."""


@attrs.frozen
class Header:
    """``manifest.json``: what a reader looks at first, the same as long as the store lives."""

    format: int
    featreg: str


@attrs.frozen
class Task:
    """A fixed range of rows, from ``start`` to before ``stop``: what one pass computes and commits at once.

    ``number`` is that of its shards.
    """

    number: int
    start: int
    stop: int
    pass_number: int = 0

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def receipt(self) -> str:
        """The path of its receipt within the store."""
        return f"{RECEIPTS}/{self.pass_number:04d}/{self.number:08d}.json"


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
    """Where the samples came from; ``skipped`` and ``stray`` are those of :class:`~featreg.sources.Source`.

    ``options`` and ``kind`` are what ``open_source(uri, kind=kind, **options)`` takes, if it is ``reopenable``;
    ``limit`` is the number of samples that was asked for.
    """

    uri: str
    kind: str
    classes: tuple[str, ...] | None
    skipped: int
    stray: int = 0
    options: Mapping[str, Any] = attrs.field(factory=dict)
    reopenable: bool = False
    limit: int | None = None


@attrs.frozen
class IndexPart:
    """The samples of some rows, from ``start`` to before ``stop``, and the SHA-256 of the file that holds them."""

    name: str
    start: int
    stop: int
    sha256: str


@attrs.frozen
class Pass:
    """A set of layers over a range of rows, all of it fixed before the first row is computed.

    ``fingerprint`` holds whatever decides the values (request, preprocessing, decoder, versions, weights); ``created``,
    a UTC time, is not part of it. ``index`` is the part of the index that this pass brought along, None where the
    samples were there before. ``batch_size`` is what workers compute with unless they are told otherwise: it changes
    nothing beyond rounding, and with it a task has the same bytes whoever does it.
    """

    number: int
    start: int
    stop: int
    task_rows: int
    request: ExtractionRequest
    fingerprint: Mapping[str, Any]
    layers: tuple[LayerRecord, ...]
    source: SourceRecord
    index: IndexPart | None
    featreg: str
    created: str
    batch_size: int = 32

    @property
    def group(self) -> tuple[str, ...]:
        """What its layers are called by: the passes of one group extend the same arrays."""
        return tuple(layer.array for layer in self.layers)

    @property
    def count(self) -> int:
        """How many tasks it has."""
        return 0 if self.stop == self.start else (self.stop - 1) // self.task_rows - self.start // self.task_rows + 1

    def task(self, place: int) -> Task:
        """The task at a place in the order of the rows."""
        number = self.start // self.task_rows + place
        start, stop = number * self.task_rows, (number + 1) * self.task_rows
        return Task(number, max(start, self.start), min(stop, self.stop), self.number)

    def iter_tasks(self) -> Iterator[Task]:
        """The tasks one by one; together they cover every row of the pass once."""
        return map(self.task, range(self.count))


@attrs.frozen
class Manifest:
    """A store's passes, seen as one: all that is fixed before the first row is computed."""

    header: Header
    passes: tuple[Pass, ...]

    @property
    def rows(self) -> int:
        return max(part.stop for part in self.passes)

    @property
    def request(self) -> ExtractionRequest:
        """The request of the first pass; layers that were added later have one of their own."""
        return self.passes[0].request

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """That of the first pass."""
        return self.passes[0].fingerprint

    @property
    def task_rows(self) -> int:
        """That of the first pass."""
        return self.passes[0].task_rows

    @property
    def created(self) -> str:
        """When the store was planned, in UTC."""
        return self.passes[0].created

    @property
    def source(self) -> SourceRecord:
        """Where the samples came from, as it was when the last rows were added."""
        return self.passes[-1].source

    @property
    def layers(self) -> tuple[LayerRecord, ...]:
        """The layers of all passes."""
        return tuple({layer.array: layer for part in self.passes for layer in part.layers}.values())

    @property
    def groups(self) -> dict[tuple[str, ...], Pass]:
        """The last pass of each group of layers."""
        return {part.group: part for part in self.passes}

    @property
    def index(self) -> tuple[IndexPart, ...]:
        """The parts of the index, in the order of the rows."""
        return tuple(part.index for part in self.passes if part.index is not None)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Every task, pass by pass, in the order of the rows."""
        return tuple(self.iter_tasks())

    def iter_tasks(self) -> Iterator[Task]:
        """The tasks one by one."""
        for part in self.passes:
            yield from part.iter_tasks()

    def shard_rows(self, layer: LayerRecord) -> int:
        """How many rows a shard of a layer has."""
        return next(part.task_rows for part in self.passes if layer.array in part.group)

    def later(self, task: Task, array: str) -> Iterator[Task]:
        """The tasks of later passes that write into the same shard of an array."""
        for part in self.passes[task.pass_number + 1 :]:
            if array in part.group and part.count and part.task(0).number == task.number:
                yield part.task(0)


@attrs.frozen
class Receipt:
    """The proof that a task is done: which of its rows failed and why, and the SHA-256 of each of its shard files."""

    task: int
    start: int
    stop: int
    errors: Mapping[str, Any]
    shards: Mapping[str, Any]


@attrs.frozen
class Finish:
    """``finished.json``: how many passes the sample table covers, how their rows stand, and what lies around them.

    ``files`` gives the SHA-256 of the sample table and of the Zarr metadata, which no other document names.
    """

    passes: int
    rows: int
    ok: int
    failed: int
    files: Mapping[str, Any]


def pass_name(number: int, *, copy: bool = False) -> str:
    """The path of a pass within the store, or of its copy: the one document that nothing else could bring back."""
    return f"{PASSES}/{number:04d}{'.copy' if copy else ''}.json"


def array_names(layers: Sequence[Layer], taken: Sequence[str] = ()) -> dict[Layer, str]:
    """A folder name for each layer: safe on every file system, readable, and different even where case is ignored.

    ``taken`` are the names of the arrays that are there already.
    """
    names: dict[Layer, str] = {}
    own = (MANIFEST, PASSES, INDEX, SAMPLES, FINISHED, RECEIPTS, STAGED, WORKERS, ZARR_JSON)
    used = {name.casefold() for name in (*own, *taken)}
    for layer in layers:
        text = f"index_{layer}" if isinstance(layer, int) else layer
        base = name = re.sub(r"[^A-Za-z0-9._-]|^[._]+", "-", text)[:100].rstrip(".")
        number = 1
        while name.casefold() in used:
            number += 1
            name = f"{base}-{number}"
        used.add(name.casefold())
        names[layer] = name
    return names


def chunk_rows(task_rows: int, row_bytes: int) -> int:
    """The most rows that divide a shard evenly and stay within :data:`CHUNK_BYTES`; at least one."""
    fitting = (rows for rows in range(1, task_rows + 1) if task_rows % rows == 0 and rows * row_bytes <= CHUNK_BYTES)
    return max(fitting, default=1)
