"""NumPy's own file format, written by streaming."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from featreg import serialize
from featreg.errors import StoreError, StoreExistsError
from featreg.spec import Layer
from featreg.stores.batches import block_rows
from featreg.stores.disk import aside_name, sync_file, sync_folder
from featreg.stores.records import has_status

if TYPE_CHECKING:
    from featreg.stores.rows import Rows

__all__ = ["array_name", "check_finished", "layer_blocks", "memory_map", "write_npy"]

Values: TypeAlias = np.ndarray[Any, Any]


def write_npy(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[Values]) -> None:
    """An array as the ``.npy`` file that ``numpy.save`` writes, from blocks of its rows in order."""
    form: Any = np.lib.format  # functions without types
    form.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype).data)


def layer_blocks(rows: Rows, layer: Layer) -> Iterator[Values]:
    """The features of a layer in order, a shard's worth of rows at a time."""
    array, step = rows[layer], block_rows(rows, [layer])
    for start in range(0, len(rows), step):
        yield array[start : start + step]


def array_name(rows: Rows, layer: Layer) -> str:
    """The name of a layer's array in the store: safe as that of a file."""
    key = rows[layer].key
    return next(record.array for record in rows.manifest.layers if record.key == key)


def check_finished(rows: Rows) -> None:
    """Raise StoreError where rows are pending: without their status they would pass for failed ones."""
    if not rows.complete:
        pending = int(has_status(rows, "pending").sum())
        raise StoreError(
            f"{pending} of the {len(rows)} rows of {rows.uri!r} are pending",
            "a finished store",
            remedy="finish it with featreg extract, or take the finished rows: where(status='ok') (--where ok)",
        )


def memory_map(rows: Rows, layer: Layer, path: str | os.PathLike[str] | None) -> Values:
    """The memory map behind :meth:`featreg.stores.rows.Rows.memmap`."""
    array = rows[layer]
    check_finished(rows)
    if path is None:
        place = _beside(rows, layer)
    elif os.path.lexists(path):
        raise StoreExistsError(
            f"the path of the array is taken: {str(path)!r}",
            "a path where nothing is",
            remedy=f"numpy.load({os.fspath(path)!r}, mmap_mode='r') opens an array that is there already",
        )
    else:
        place = Path(path)
    if not place.exists():
        _write(place, rows, layer)
    return np.asanyarray(np.load(place, mmap_mode="r" if math.prod(array.shape) else None))


def _write(place: Path, rows: Rows, layer: Layer) -> None:
    array, aside = rows[layer], place.with_name(aside_name(place.name))
    try:
        with open(aside, "xb") as file:
            write_npy(file, array.shape, array.dtype, layer_blocks(rows, layer))
        sync_file(aside)
        os.replace(aside, place)
        sync_folder(place.parent)
    except OSError as error:
        got = f"{type(error).__name__}: {error}"
        raise StoreError(f"the array {str(place)!r} cannot be written", got=got) from error
    finally:
        aside.unlink(missing_ok=True)


def _beside(rows: Rows, layer: Layer) -> Path:
    """A name beside the store that other rows, or the same rows done again, would not have."""
    digest = hashlib.sha256(json.dumps(serialize.to_dict(rows.manifest)).encode())
    digest.update(has_status(rows, "ok").tobytes() + rows.row_numbers(np.arange(len(rows))).tobytes())
    name = array_name(rows, layer)
    return rows.path.with_name(f"{rows.path.name}.{name}.{digest.hexdigest()[:16]}.npy")
