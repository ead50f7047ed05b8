"""Tables: Parquet with the features in a column, and the samples as CSV."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from featreg.export.content import Content, Entry
from featreg.extras import data_extra
from featreg.spec import Layer
from featreg.stores.reading.batches import block_rows
from featreg.stores.reading.records import evenly

with data_extra():
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

pa: Any = pyarrow  # a compiled module without types

__all__ = ["SAMPLES", "write_parquet", "write_samples"]

SAMPLES = "samples.csv"

_PLAIN: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": ["row", "target", "status"],
}
"""How Parquet is written: features are noise to a compressor, and looking for order in them takes most of the time."""


def write_parquet(folder: Path, content: Content) -> dict[str, str]:
    """One file for each layer: the sample table with the features in the column ``features``.

    A row of it is a list of fixed size, or Arrow's fixed-shape tensor where it has several axes.
    """
    homes: dict[str, str] = {}
    for entry in content.entries:
        if entry.layer is not None:
            homes[entry.name] = f"{entry.name}.parquet"
            _write_layer(folder / homes[entry.name], content, entry, entry.layer)
    return homes


def write_samples(folder: Path, content: Content) -> None:
    """``samples.csv``: row, key, uri, target, status and error of every row; nothing where there is no value."""
    writer = None
    with open(folder / SAMPLES, "xb") as file:
        for table in content.rows.iter_samples(content.layers):
            writer = writer or pa.csv.CSVWriter(file, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _write_layer(path: Path, content: Content, entry: Entry, layer: Layer) -> None:
    rows = content.rows
    tables, writer = evenly(rows.iter_samples(content.layers), block_rows(rows, [layer])), None
    try:
        for table, block in zip(tables, entry.blocks(), strict=True):
            whole = table.append_column("features", _column(block.reshape(-1), entry))
            writer = writer or pa.parquet.ParquetWriter(path, whole.schema, **_PLAIN)
            writer.write_table(whole)
    finally:
        if writer is not None:
            writer.close()


def _column(values: Any, entry: Entry) -> Any:
    shape = entry.shape[1:]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values), math.prod(shape))
    if len(shape) == 1:
        return lists
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(lists.type.value_type, shape), lists)
