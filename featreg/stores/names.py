"""What the files of a store are called."""

from __future__ import annotations

import re
from collections.abc import Sequence

from featreg.spec import Layer
from featreg.stores.places.place import STAGED

__all__ = [
    "FINISHED",
    "FITS",
    "FORMAT",
    "INDEX",
    "MANIFEST",
    "OWN_NAMES",
    "PASSES",
    "RECEIPTS",
    "SAMPLES",
    "STAGED",
    "WORKERS",
    "ZARR_JSON",
    "array_names",
    "chunk_rows",
    "pass_name",
]

FORMAT = 2
"""The version of this layout."""

MANIFEST = "manifest.json"
PASSES = "passes"
INDEX = "index"
FITS = "fits"
RECEIPTS = "receipts"
WORKERS = "workers"
SAMPLES = "samples.parquet"
FINISHED = "finished.json"
ZARR_JSON = "zarr.json"

_COLUMNS = ("row", "key", "target", "status", "samples")
"""The axis and the coordinates of xarray, and the table beside an export."""

OWN_NAMES = (MANIFEST, PASSES, INDEX, FITS, SAMPLES, FINISHED, RECEIPTS, STAGED, WORKERS, ZARR_JSON)
"""Whatever lies directly in a store besides its arrays."""

CHUNK_BYTES = 2**20
"""The size that the chunks inside a shard aim at: what one read of a few rows costs."""


def pass_name(number: int, *, copy: bool = False) -> str:
    """The path of a pass within the store, or of its copy: the one document that nothing else could bring back."""
    return f"{PASSES}/{number:04d}{'.copy' if copy else ''}.json"


def array_names(layers: Sequence[Layer], taken: Sequence[str] = ()) -> dict[Layer, str]:
    """A folder name for each layer: safe on every file system, readable, and different even where case is ignored.

    Not one of ours either, nor one that xarray or an export needs. ``taken`` are the arrays that are there already.
    """
    names: dict[Layer, str] = {}
    used = {name.casefold() for name in (*OWN_NAMES, *_COLUMNS, *taken)}
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
