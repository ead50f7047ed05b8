"""What Zarr reads a store through, which knows from the manifest what must be there."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from featreg.errors import StoreDamagedError
from featreg.extras import data_extra
from featreg.stores.frame import frame
from featreg.stores.layout import ZARR_JSON, Manifest, Task
from featreg.stores.places.place import Place, read_errors

with data_extra():
    from zarr.storage import LocalStore, WrapperStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = ["GuardedStore"]


class GuardedStore(WrapperStore[Any]):
    """The Zarr store at a place, for reading, in which a shard of rows that are done may not be missing.

    Zarr takes a missing shard for one of nothing but NaN: here that is so for the rows of ``pending`` tasks only. The
    arrays have the rows of the manifest, whatever their metadata say: whoever planned the last pass may not have come
    to write them, or another pass was planned since.
    """

    def __init__(self, place: Place, manifest: Manifest, pending: Container[Task], *, finished: bool) -> None:
        store = place.zarr_store()
        super().__init__(LocalStore(store, read_only=True) if isinstance(store, str) else store)
        self._uri = place.uri
        self._manifest = manifest
        self._pending = pending
        self._metadata = _metadata(place, manifest, finished=finished)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """A file or some of its bytes; raises StoreDamagedError for a shard that is missing or empty."""
        if key in self._metadata:
            return prototype.buffer.from_bytes(self._metadata[key])
        found = await self._store.get(key, prototype, byte_range)
        if found is None or not len(found):
            self._check_missing(key)
        return found  # type: ignore[no-any-return]  # the wrapped store is one of several types

    def _check_missing(self, key: str) -> None:
        array, _, rest = key.partition("/c/")
        if not rest:
            return
        number = int(rest.partition("/")[0])
        for part in self._manifest.passes:
            layer = next((layer for layer in part.layers if layer.array == array), None)
            at = number - part.start // part.task_rows
            if layer is not None and 0 <= at < part.count and part.task(at) not in self._pending:
                task = part.task(at)
                raise StoreDamagedError(
                    f"a shard of the store {self._uri!r} is missing or empty",
                    f"{key!r}, rows {task.start} to {task.stop - 1} of {layer.key!r}",
                    "nothing there",
                    remedy="featreg repair STORE, then featreg worker STORE",
                )


def _metadata(place: Place, manifest: Manifest, *, finished: bool) -> dict[str, bytes]:
    """The metadata of the arrays, by the names of their files.

    Left out are those that are damaged, and those that a finished store has not: what to say of them, Zarr knows.
    """
    found: dict[str, bytes] = {}
    for layer in manifest.layers:
        name = f"{layer.array}/{ZARR_JSON}"
        try:
            with read_errors(place, name):
                plain = json.loads(place.read(name))
            plain["shape"][0] = manifest.rows
            found[name] = json.dumps(plain).encode()
        except FileNotFoundError:
            if not finished:
                found[name] = frame(manifest)[name]
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return found
