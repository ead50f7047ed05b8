"""What lies where in a store, and the documents in it.

::

    STORE/                            a Zarr v3 group
      manifest.json                   that this is a store, and of which format
      passes/0000.json                a set of layers over a range of rows: the request, the fingerprint, the source
      passes/0000.copy.json           the same once more, since nothing else could bring it back
      index/0000-1f2e3d4c5b6a7988.parquet  row, key, uri, target, size: frozen before the first row is computed
      C5/, pooled/, ...               one array per layer; a shard holds the rows of one task
      fits/5f70….npz                  what the steps of a derived layer have learnt; named by its SHA-256
      fits/5f70….copy.npz             the same once more
      receipts/0000/00000000.json     one per finished task: the errors of its rows, the SHA-256 of its shards
      staged/                         what is not in its place yet; gone from a finished store
      workers/                        who is at work: information only; gone from a finished store
      samples.parquet                 row, key, uri, target, status, error: written when every task has its receipt
      finished.json                   the counts, and the SHA-256 of whatever no receipt names

A task's rows count once its receipt is there, whatever its shards look like: Zarr reads a missing chunk as NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import attrs

from featreg.spec import ExtractionRequest, Layer
from featreg.stores.documents import digest
from featreg.stores.names import (
    FINISHED,
    FITS,
    FORMAT,
    INDEX,
    MANIFEST,
    PASSES,
    RECEIPTS,
    SAMPLES,
    STAGED,
    WORKERS,
    ZARR_JSON,
    array_names,
    chunk_rows,
    pass_name,
)
from featreg.stores.parts import FitRecord, IndexPart, InputRecord, LayerRecord, SourceRecord, Task

__all__ = [
    "FINISHED",
    "FITS",
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
    "FitRecord",
    "Header",
    "IndexPart",
    "InputRecord",
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


@attrs.frozen
class Header:
    """``manifest.json``: what a reader looks at first, the same as long as the store lives."""

    format: int
    featreg: str


@attrs.frozen
class Pass:
    """A set of layers over a range of rows, all of it fixed before the first row is computed.

    ``fingerprint`` holds whatever decides the values (request, preprocessing, decoder, versions, weights); ``created``,
    a UTC time, is not part of it. ``index`` is the part of the index that this pass brought along, None where the
    samples were there before. ``batch_size`` is what workers compute with unless they are told otherwise: it changes
    nothing beyond rounding, and with it a task has the same bytes whoever does it.

    ``request`` is what the model is asked for: the layers that are kept, then those that only recipes take; ``inputs``
    are all that recipes take. Where ``origin`` is ``"store"``, no model is asked: the layers are derived from those of
    earlier passes, and the request is that of the first.
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
    origin: Literal["model", "store"] = "model"
    inputs: tuple[InputRecord, ...] = ()

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of its document, which every receipt names."""
        return digest(self)

    @property
    def group(self) -> tuple[str, ...]:
        """What its layers are called by: the passes of one group extend the same arrays."""
        return tuple(layer.array for layer in self.layers)

    @property
    def kept(self) -> tuple[Layer, ...]:
        """The layers that are stored as the model gives them."""
        return tuple(layer.key for layer in self.layers if layer.recipe is None)

    def tasks_of(self, start: int, stop: int) -> Iterator[Task]:
        """The tasks with some rows from ``start`` to before ``stop``."""
        first, last = max(start, self.start), min(stop, self.stop)
        if first < last:
            base = self.start // self.task_rows
            for number in range(first // self.task_rows, (last - 1) // self.task_rows + 1):
                yield self.task(number - base)

    @property
    def count(self) -> int:
        """How many tasks it has."""
        return 0 if self.stop == self.start else (self.stop - 1) // self.task_rows - self.start // self.task_rows + 1

    def task(self, position: int) -> Task:
        """The task at a position in the order of the rows."""
        number = self.start // self.task_rows + position
        start, stop = number * self.task_rows, (number + 1) * self.task_rows
        return Task(number, max(start, self.start), min(stop, self.stop), self.number, self.sha256)

    def written_rows(self, done: Collection[int]) -> int:
        """How many rows are still to be written where the tasks with these numbers are done.

        The first task of an appended pass writes its shards anew, with the rows that earlier passes have in them.
        """
        again = 0 if not self.count or self.task(0).number in done else self.start % self.task_rows
        return again + sum(task.rows for task in self.iter_tasks() if task.number not in done)

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

    def begun(self, task: Task, array: str) -> Task | None:
        """The task of the latest earlier pass that wrote into the same shard of an array."""
        for part in reversed(self.passes[: task.pass_number]):
            if array in part.group and part.count and part.task(part.count - 1).number == task.number:
                return part.task(part.count - 1)
        return None

    @property
    def groups(self) -> dict[tuple[str, ...], Pass]:
        """The last pass of each group of layers."""
        return {part.group: part for part in self.passes}

    @property
    def fits(self) -> tuple[FitRecord, ...]:
        """What the derived layers have learnt, each once."""
        return tuple(dict.fromkeys(layer.fit for layer in self.layers if layer.fit is not None))

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
    """The proof that a task is done: which of its rows failed and why, and the SHA-256 of each of its shard files.

    ``plan`` is the SHA-256 of the pass that it belongs to. ``begun`` gives the SHA-256 of shards that earlier passes
    had begun, as this task found them and went on with them.
    """

    plan: str
    task: int
    start: int
    stop: int
    errors: Mapping[str, str]
    shards: Mapping[str, str]
    begun: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Finish:
    """``finished.json``: how many passes the sample table covers, how their rows stand, and what lies around them.

    ``files`` gives the SHA-256 of the sample table and of the Zarr metadata, which no other document names.
    """

    passes: int
    rows: int
    ok: int
    failed: int
    files: Mapping[str, str]
