"""The index and the sample table, as Parquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from featreg.errors import StoreError
from featreg.extras import data_extra
from featreg.stores.layout import INDEX, SAMPLES, Manifest, read_receipts

with data_extra():
    import pyarrow
    import pyarrow.parquet

pa: Any = pyarrow  # a compiled module without types
pq: Any = pyarrow.parquet

__all__ = ["IndexRow", "index_table", "parquet", "read_samples", "sample_table"]


class IndexRow(Protocol):
    """What the index keeps of a sample."""

    @property
    def key(self) -> str: ...

    @property
    def uri(self) -> str: ...

    @property
    def target(self) -> int | None: ...


def index_table(index: Sequence[IndexRow]) -> Any:
    """Row, key, uri and target of every sample."""
    return pa.table(
        {
            "row": pa.array(range(len(index)), pa.int64()),
            "key": pa.array([sample.key for sample in index], pa.string()),
            "uri": pa.array([sample.uri for sample in index], pa.string()),
            "target": pa.array([sample.target for sample in index], pa.int64()),
        }
    )


def sample_table(root: Path, manifest: Manifest) -> Any:
    """The index with the status and the error of every row, from the receipts; rows without one are pending."""
    status, errors = [], []
    for task, receipt in zip(manifest.iter_tasks(), read_receipts(root, manifest), strict=True):
        for row in range(task.start, task.stop):
            error = None if receipt is None else receipt.errors.get(str(row))
            errors.append(error)
            status.append("pending" if receipt is None else "ok" if error is None else "error")
    table = _read(root / INDEX, manifest.rows)
    return table.append_column("status", pa.array(status, pa.string())).append_column(
        "error", pa.array(errors, pa.string())
    )


def read_samples(root: Path, manifest: Manifest) -> Any:
    """The sample table of a store, from the receipts as long as it is not finalized; raises StoreError."""
    path = root / SAMPLES
    return _read(path, manifest.rows) if path.exists() else sample_table(root, manifest)


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _read(path: Path, rows: int) -> Any:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{str(path)!r} is damaged or missing", got=f"{type(error).__name__}: {error}") from error
    if table.num_rows != rows:
        raise StoreError(f"{str(path)!r} does not fit its manifest", f"{rows} rows", f"{table.num_rows} rows")
    return table
