"""Making a store: the frame first, then one task at a time, then the sample table."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from featreg.errors import StoreError, StoreExistsError
from featreg.extras import data_extra
from featreg.spec import Layer
from featreg.stores.disk import sha256, sync_file, sync_folder, temporary_name, write_atomically
from featreg.stores.layout import (
    INDEX,
    MANIFEST,
    RECEIPTS,
    SAMPLES,
    ZARR_JSON,
    LayerRecord,
    Manifest,
    Receipt,
    Task,
    chunk_rows,
    document,
    read_manifest,
    store_path,
)
from featreg.stores.tables import IndexRow, index_table, parquet, sample_table

with data_extra():
    import zarr
    from zarr.codecs import Crc32cCodec

__all__ = ["StoreWriter", "check_free", "replacement"]

_AXES = {"map": ("channel", "y", "x"), "tokens": ("token", "channel"), "vector": ("channel",)}


def check_free(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """The resolved path of a store that may be made there.

    With ``overwrite`` an empty folder and a feature store may be in the way, and nothing else. Raises StoreExistsError,
    SpecError for what is no path, and StoreError for a path that cannot be.
    """
    root = store_path(path)
    if not os.path.lexists(root):
        return root
    if not overwrite:
        raise StoreExistsError(
            f"the path of the store is taken: {str(root)!r}",
            "a path where nothing is",
            "a folder" if root.is_dir() else "a file",
            remedy="another path, or overwrite=True (--overwrite)",
        )
    foreign = _foreign(root)
    if foreign:
        raise StoreExistsError(
            f"refused to overwrite {str(root)!r}, which is not a feature store alone",
            "a feature store, an empty folder, or nothing",
            foreign,
            remedy="another path, or delete it yourself",
        )
    return root


@contextmanager
def replacement(root: Path, *, overwrite: bool) -> Iterator[Path]:
    """Where to write the store that shall be at ``root``: there, or aside as long as an old one is in the way.

    The new store takes the place of the old one when the block ends. Whatever stops the block leaves the old store as
    it was, says so in a note, and deletes the new one. Raises StoreError where the finished store cannot move in.
    """
    if not (overwrite and root.is_dir() and any(root.iterdir())):
        yield root
        return
    aside = temporary_name(root)
    try:
        yield aside
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        error.add_note(f"the store {root} is as it was: a new one replaces it only when it is complete")
        raise
    try:
        _move_in(aside, check_free(root, overwrite=True), overwrite=True)
    except (OSError, StoreExistsError) as error:
        raise StoreError(
            f"the finished store cannot take the place of {str(root)!r}",
            got=error.problem if isinstance(error, StoreExistsError) else f"{type(error).__name__}: {error}",
            remedy=f"move it there from {str(aside)!r}",
        ) from error


class StoreWriter:
    """A store that is being written: :meth:`create` it, :meth:`commit` any number of tasks, then :meth:`finalize`."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        with zarr.config.set({"array.write_empty_chunks": True}):  # a row of NaN is written like any other
            group = zarr.open_group(str(root), mode="r+", zarr_format=3, use_consolidated=False)
            self._arrays: dict[Layer, Any] = {layer.key: group[layer.array] for layer in manifest.layers}

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], manifest: Manifest, index: Sequence[IndexRow], *, overwrite: bool = False
    ) -> StoreWriter:
        """A store with its manifest and its index, and every row still pending.

        It is built aside and moved into place whole. Raises StoreExistsError where the path is taken, and StoreError
        where it cannot be written.
        """
        root = check_free(path, overwrite=overwrite)
        with _write_errors(root):
            root.parent.mkdir(parents=True, exist_ok=True)
            aside = temporary_name(root)
            try:
                _build(aside, manifest, index)
                _move_in(aside, root, overwrite=overwrite)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return cls(root, manifest)

    def commit(self, task: Task, features: Mapping[Layer, np.ndarray[Any, Any]], errors: Mapping[int, str]) -> None:
        """Write the rows of a task: its shards first, then the receipt that makes them count.

        ``features`` holds (task.rows, ...) per layer, ``errors`` the message of every row that failed. Raises
        StoreError, also where the task has its receipt already.
        """
        with _write_errors(self.root):
            shards = [self._write_shard(layer, task, features[layer.key]) for layer in self.manifest.layers]
            receipt = Receipt(
                task.number,
                task.start,
                task.stop,
                {str(row): message for row, message in sorted(errors.items())},
                {name: sha256(self.root / name) for name in shards},
            )
            write_atomically(self.root / task.receipt, document(receipt), exclusive=True)

    def finalize(self) -> None:
        """Write ``samples.parquet`` from the index and the receipts; raises StoreError where a task has no receipt."""
        table = sample_table(self.root, self.manifest)
        if "pending" in table["status"].to_pylist():
            raise StoreError(f"the store {str(self.root)!r} is not complete", "a receipt for every task")
        with _write_errors(self.root):
            write_atomically(self.root / SAMPLES, parquet(table))

    def _write_shard(self, layer: LayerRecord, task: Task, rows: np.ndarray[Any, Any]) -> str:
        self._arrays[layer.key][task.start : task.stop] = rows
        name = layer.shard(task)
        sync_file(self.root / name)
        sync_folder((self.root / name).parent)
        return name


def _build(root: Path, manifest: Manifest, index: Sequence[IndexRow]) -> None:
    group = zarr.create_group(str(root), zarr_format=3)
    for layer in manifest.layers:
        row_bytes = int(np.prod(layer.shape)) * np.dtype(layer.dtype).itemsize
        group.create_array(
            layer.array,
            shape=(manifest.rows, *layer.shape),
            dtype=layer.dtype,
            chunks=(chunk_rows(manifest.task_rows, row_bytes), *layer.shape),
            shards=(manifest.task_rows, *layer.shape),
            compressors=[Crc32cCodec()],  # the index of the shard has its own
            fill_value=float("nan"),
            dimension_names=("row", *_AXES[layer.info.kind]),
        )
    with warnings.catch_warnings():  # consolidated, plain Zarr lists the arrays without stumbling over our files
        warnings.filterwarnings("ignore", "Consolidated metadata")
        zarr.consolidate_metadata(str(root), zarr_format=3)
    (root / RECEIPTS).mkdir()
    write_atomically(root / INDEX, parquet(index_table(index)))
    write_atomically(root / MANIFEST, document(manifest))


def _move_in(aside: Path, root: Path, *, overwrite: bool) -> None:
    """Put a finished folder where :func:`check_free` allowed it; what was there comes back unless that succeeds."""
    old = temporary_name(root)
    if overwrite and os.path.lexists(root):
        os.rename(root, old)
    try:
        os.rename(aside, root)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise StoreExistsError(f"the path of the store was taken meanwhile: {str(root)!r}") from error
        raise
    finally:
        if os.path.lexists(old) and not os.path.lexists(root):
            os.rename(old, root)
    sync_folder(root.parent)
    shutil.rmtree(old, ignore_errors=True)


def _foreign(root: Path) -> str:
    """What speaks against deleting a path, empty where it is an empty folder or a store with nothing else in it."""
    if not root.is_dir():
        return "a file"
    found = sorted(entry.name for entry in os.scandir(root))
    if not found:
        return ""
    try:
        manifest = read_manifest(root)
    except StoreError as error:
        return error.problem
    own = (MANIFEST, INDEX, SAMPLES, RECEIPTS, ZARR_JSON, *(layer.array for layer in manifest.layers))
    others = [name for name in found if not any(name == known or name.startswith(f".{known}.") for known in own)]
    return f"a store that also holds {', '.join(map(repr, others[:5]))}" if others else ""


@contextmanager
def _write_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        got = f"{type(error).__name__}: {error}"
        raise StoreError(f"the store {str(root)!r} cannot be written", got=got) from error
