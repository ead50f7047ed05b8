"""The sample table: which sample each row is and how it went, from the index and the receipts, a block at a time."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Sequence
from typing import Any

import numpy as np

from featreg.errors import StoreError
from featreg.extras import data_extra
from featreg.spec import Layer
from featreg.stores.documents import damaged
from featreg.stores.index import WRITING, Index
from featreg.stores.layout import SAMPLES, Manifest, Pass, Task
from featreg.stores.places.place import Place
from featreg.stores.receipts import Ledger

with data_extra():
    import pyarrow
    import pyarrow.parquet

pa: Any = pyarrow  # a compiled module without types
pq: Any = pyarrow.parquet

__all__ = ["Counts", "iter_samples", "made_samples", "table_samples", "write_samples"]

_STATUS = pa.array(["ok", "error", "pending"])
_PASSES = b"featreg.passes"
_COLUMNS = [("row", "int64"), ("key", "string"), ("uri", "string"), ("target", "int64"), ("status", "string")]
_SCHEMA = pa.schema([*((name, pa.type_for_alias(kind)) for name, kind in _COLUMNS), ("error", pa.string())])


class Counts:
    """How many rows are finished, failed and pending, counted as the sample table passes by."""

    def __init__(self) -> None:
        self.ok = self.failed = self.pending = 0

    def add(self, block: Any) -> None:
        """Count the rows of a block."""
        found = {entry["values"]: entry["counts"] for entry in block["status"].value_counts().to_pylist()}
        self.ok += found.get("ok", 0)
        self.failed += found.get("error", 0)
        self.pending += found.get("pending", 0)


def iter_samples(place: Place, manifest: Manifest) -> Iterator[Any]:
    """The sample table of a store in blocks: the file where it covers all passes, else made from the receipts.

    Raises StoreDamagedError.
    """
    found = table_samples(place, manifest)
    yield from made_samples(place, manifest) if found is None else found


def table_samples(place: Place, manifest: Manifest) -> Iterator[Any] | None:
    """What is in ``samples.parquet`` in blocks, None where it is not there or of other passes.

    Raises StoreDamagedError.
    """
    if not place.exists(SAMPLES):
        return None
    file = _open(place)
    return _groups(file) if _covers(file, manifest) else None


def _groups(file: Any) -> Iterator[Any]:
    try:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)
    except (OSError, pa.ArrowException) as error:
        raise _damaged_table(error) from error


def made_samples(
    place: Place, manifest: Manifest, pending: Container[Task] = (), layers: Collection[Layer] | None = None
) -> Iterator[Any]:
    """The sample table from the index and the receipts; rows without a receipt of every pass are pending.

    The rows of ``pending`` tasks are pending as well. The error of a row is that of its first pass with one. Of some
    ``layers``, by their keys, only the passes count that have one of them.
    """
    ledger = Ledger(place)
    passes = [part for part in manifest.passes if layers is None or any(layer.key in layers for layer in part.layers)]
    for block in Index(place, manifest.index).blocks():
        yield _judged(block, ledger, passes, pending)


def write_samples(place: Place, manifest: Manifest) -> tuple[Counts, str]:
    """Write ``samples.parquet``, with its counts and its SHA-256.

    Raises StoreError where a row is pending, and nothing is written then.
    """
    counts = Counts()
    schema = _SCHEMA.with_metadata({_PASSES: str(len(manifest.passes))})
    with place.incoming() as incoming:
        with pq.ParquetWriter(incoming.file, schema, **WRITING) as writer:
            for block in made_samples(place, manifest):
                counts.add(block)
                writer.write_table(block.replace_schema_metadata(schema.metadata), row_group_size=block.num_rows)
        if counts.pending:
            raise StoreError(
                f"the store {place.uri!r} is not complete", "a receipt for every task", f"{counts.pending} rows pending"
            )
        content = incoming.sha256()
        incoming.publish(SAMPLES)
    return counts, content


def _judged(block: Any, ledger: Ledger, passes: Sequence[Pass], pending: Container[Task]) -> Any:
    """A block of the index with the status and the error of its rows."""
    first, count = block["row"][0].as_py(), block.num_rows
    status, covered = np.zeros(count, np.int64), np.zeros(count, np.int64)
    errors: list[str | None] = [None] * count
    for part in passes:
        for task, receipt in ledger.over(part, first, first + count):
            rows = slice(max(task.start - first, 0), task.stop - first)
            covered[rows] += 1
            if receipt is None or task in pending:
                status[rows] = 2
                continue
            for row, message in receipt.errors.items():
                position = int(row) - first
                if 0 <= position < count:
                    status[position] = max(status[position], 1)
                    errors[position] = errors[position] or message
    status[covered < len({part.group for part in passes})] = 2
    columns = [block[name] for name in ("row", "key", "uri", "target")]
    return pa.table([*columns, _STATUS.take(pa.array(status)), pa.array(errors, pa.string())], schema=_SCHEMA)


def _covers(file: Any, manifest: Manifest) -> bool:
    metadata = file.schema_arrow.metadata or {}
    if metadata.get(_PASSES) != str(len(manifest.passes)).encode():
        return False
    if file.metadata.num_rows != manifest.rows or file.schema_arrow != _SCHEMA:
        raise damaged(SAMPLES, f"{file.metadata.num_rows} rows", f"{manifest.rows} rows")
    return True


def _open(place: Place) -> Any:
    try:
        return pq.ParquetFile(place.open(SAMPLES), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _damaged_table(error) from error


def _damaged_table(error: Exception) -> StoreError:
    return damaged(SAMPLES, f"{type(error).__name__}: {error}", "a table as featreg writes it")
