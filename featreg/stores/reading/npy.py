"""NumPy's own file format, written by streaming."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from featreg.errors import StoreError, StoreExistsError
from featreg.spec import Layer
from featreg.stores.places.disk import aside_name, sync_file, sync_folder
from featreg.stores.places.place import LocalPlace
from featreg.stores.reading.batches import block_rows
from featreg.stores.reading.records import has_status
from featreg.stores.receipts import read_receipts

if TYPE_CHECKING:
    from featreg.stores.reading.rows import Rows

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


def check_finished(rows: Rows, layers: Layer | Sequence[Layer] | None = None) -> None:
    """Raise StoreError where rows of some layers, or of any, are pending: they would pass for failed ones."""
    pending = 0 if rows.complete else int(has_status(rows, "pending", layers).sum())
    if pending:
        asked = "" if layers is None else f" in {layers!r}"
        raise StoreError(
            f"{pending} of the {len(rows)} rows of {rows.uri!r} are pending{asked}",
            "finished layers",
            remedy="finish them with featreg worker STORE, or take those layers that are finished (--layer), or the "
            "finished rows: where(status='ok', layers=...) (--where ok)",
        )


def memory_map(rows: Rows, layer: Layer, path: str | os.PathLike[str] | None) -> Values:
    """The memory map behind :meth:`featreg.stores.reading.rows.Rows.memmap`."""
    array = rows[layer]
    check_finished(rows, layer)
    if path is None:
        target = _beside(rows, layer)
    elif os.path.lexists(path):
        raise StoreExistsError(
            f"the path of the array is taken: {str(path)!r}",
            "a path where nothing is",
            remedy=f"numpy.load({os.fspath(path)!r}, mmap_mode='r') opens an array that is there already",
        )
    else:
        target = Path(path)
    if not target.exists():
        _write(target, rows, layer)
    return np.asanyarray(np.load(target, mmap_mode="r" if math.prod(array.shape) else None))


def _write(target: Path, rows: Rows, layer: Layer) -> None:
    array, aside = rows[layer], target.with_name(aside_name(target.name))
    try:
        with open(aside, "xb") as file:
            write_npy(file, array.shape, array.dtype, layer_blocks(rows, layer))
        sync_file(aside)
        os.replace(aside, target)
        sync_folder(target.parent)
    except OSError as error:
        got = f"{type(error).__name__}: {error}"
        raise StoreError(f"the array {str(target)!r} cannot be written", got=got) from error
    finally:
        aside.unlink(missing_ok=True)


def _beside(rows: Rows, layer: Layer) -> Path:
    """A name beside the store that other rows, or the same rows with other features, would not have."""
    rows.identity.check()
    name = array_name(rows, layer)
    digest = hashlib.sha256()
    for shard in _shards(rows, name):
        digest.update(shard.encode())
    digest.update(rows.row_numbers(np.arange(len(rows))).tobytes())
    return rows.path.with_name(f"{rows.path.name}.{name}.{digest.hexdigest()[:16]}.npy")


def _shards(rows: Rows, array: str) -> Iterator[str]:
    """The names and the SHA-256 of the shards that hold the rows, pass by pass, as their receipts give them."""
    numbers, place = rows.row_numbers(np.arange(len(rows))), LocalPlace(rows.path)
    for part in rows.manifest.passes:
        for layer in (layer for layer in part.layers if layer.array == array):
            tasks = [task for task in part.iter_tasks() if np.diff(np.searchsorted(numbers, [task.start, task.stop]))]
            for task, receipt in zip(tasks, read_receipts(place, tasks), strict=True):
                if receipt is not None:
                    yield f"{layer.shard(task)} {receipt.shards[layer.shard(task)]}\n"
