"""The Zarr side of a store: the metadata of its arrays, and the bytes of a shard, made in memory."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from typing import Any

import numpy as np

from featreg.extras import data_extra
from featreg.stores.documents import damaged, seal
from featreg.stores.layout import LayerRecord, Manifest, Task, chunk_rows, pass_name
from featreg.stores.places.place import Place

with data_extra():
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

__all__ = ["ShardMaker", "frame", "refresh_frame", "says_the_same"]

_AXES = {"map": ("channel", "y", "x"), "tokens": ("token", "channel"), "vector": ("channel",)}


def frame(manifest: Manifest) -> dict[str, bytes]:
    """The metadata of the group and of every array, by file name, for the rows of all passes."""
    files: dict[str, Any] = {}
    store = MemoryStore(files)
    zarr.create_group(store, zarr_format=3)
    for layer in manifest.layers:
        _create(store, layer, manifest.rows, manifest.shard_rows(layer), layer.array)
    with warnings.catch_warnings():  # consolidated, plain Zarr lists the arrays without stumbling over our files
        warnings.filterwarnings("ignore", "Consolidated metadata")
        zarr.consolidate_metadata(store, zarr_format=3)
    return {name: bytes(files[name].to_bytes()) for name in sorted(files)}


def refresh_frame(place: Place, manifest: Manifest) -> dict[str, str]:
    """Bring the metadata up to the rows of all passes, and the copies of these; what says the same stays as it is.

    Returns the SHA-256 of each file of the metadata.
    """
    for part in manifest.passes:
        if not place.exists(pass_name(part.number, copy=True)):
            place.write(pass_name(part.number, copy=True), seal(part))
    found = {name: _refreshed(place, name, data) for name, data in frame(manifest).items()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def _refreshed(place: Place, name: str, expected: bytes) -> bytes:
    """The content of a file that says what is expected, which is written where it does not."""
    try:
        found = place.read(name)
    except FileNotFoundError:
        found = b""
    if says_the_same(found, expected):
        return found
    place.write(name, expected)
    return expected


def says_the_same(found: bytes, expected: bytes) -> bool:
    """Whether two metadata files mean the same: another version of Zarr may write it in other words."""
    try:
        return found == expected or bool(json.loads(found) == json.loads(expected))
    except ValueError:
        return False


class ShardMaker:
    """Makes the shards of one layer: the bytes that Zarr would write, without a file."""

    def __init__(self, layer: LayerRecord, shard_rows: int) -> None:
        self._files: dict[str, Any] = {}
        self._rows = shard_rows
        self._array = _create(MemoryStore(self._files), layer, shard_rows, shard_rows, "")
        self._key = "/".join(("c", "0", *("0" for _ in layer.shape)))

    def make(self, task: Task, rows: np.ndarray[Any, Any], before: bytes | None = None) -> bytes:
        """The shard with the rows of a task; ``before`` is the shard as it is where an earlier pass began it."""
        first = task.start - task.number * self._rows
        self._files.pop(self._key, None)
        if before is not None:
            self._files[self._key] = default_buffer_prototype().buffer.from_bytes(before)
        self._array[first : first + task.rows] = rows
        return bytes(self._files.pop(self._key).to_bytes())

    def read(self, task: Task, shard: bytes) -> np.ndarray[Any, Any]:
        """The rows of a task from the bytes of a shard; raises StoreDamagedError."""
        first = task.start - task.number * self._rows
        self._files[self._key] = default_buffer_prototype().buffer.from_bytes(shard)
        try:
            return np.asarray(self._array[first : first + task.rows])
        except Exception as error:  # Zarr raises whatever its codecs do
            raise damaged(f"shard {task.number}", f"{type(error).__name__}: {error}") from error
        finally:
            self._files.pop(self._key, None)


def _create(store: Any, layer: LayerRecord, rows: int, shard_rows: int, name: str) -> Any:
    row_bytes = math.prod(layer.shape) * np.dtype(layer.dtype).itemsize
    with zarr.config.set({"array.write_empty_chunks": True}):  # a row of NaN is written like any other
        return zarr.create_array(
            store,
            name=name or None,
            shape=(rows, *layer.shape),
            dtype=layer.dtype,
            chunks=(chunk_rows(shard_rows, row_bytes), *layer.shape),
            shards=(shard_rows, *layer.shape),
            compressors=[Crc32cCodec()],  # the index of the shard has its own
            fill_value=float("nan"),
            dimension_names=("row", *(f"{layer.array}_{axis}" for axis in _AXES[layer.info.kind])),
            zarr_format=3,
        )
