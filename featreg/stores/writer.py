"""Writing a store: the plan first, then one task at a time, then the sample table.

The order of the file operations is the commit protocol, see ``specs/store.md``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import numpy as np

import featreg
from featreg.errors import StoreDamagedError, StoreError, StoreExistsError
from featreg.spec import ExtractionRequest, Layer
from featreg.stores.documents import seal
from featreg.stores.frame import ShardMaker, refresh_frame
from featreg.stores.index import IndexRow, write_index
from featreg.stores.layout import (
    FINISHED,
    FORMAT,
    MANIFEST,
    SAMPLES,
    ZARR_JSON,
    Finish,
    Header,
    LayerRecord,
    Manifest,
    Pass,
    Receipt,
    SourceRecord,
    Task,
    pass_name,
)
from featreg.stores.places import LocalPlace, Place, write_errors
from featreg.stores.receipts import finished_tasks, read_finish, read_manifest, read_receipt
from featreg.stores.replace import check_free, move_in, temporary_name
from featreg.stores.staging import StagedShard, check_shard, clear_staged, move_if_there, place_staged, stage
from featreg.stores.tables import write_samples

__all__ = ["Plan", "StoreWriter"]


@attrs.frozen
class Plan:
    """What is known of a pass before its samples are counted; of the source some things are known after only."""

    request: ExtractionRequest
    fingerprint: Mapping[str, Any]
    layers: tuple[LayerRecord, ...]
    source: SourceRecord | Callable[[], SourceRecord]
    task_rows: int
    batch_size: int = 32


class StoreWriter:
    """A store that is being written, by any number of workers at once.

    :meth:`create` it or open what is there, :meth:`commit` any number of tasks, then :meth:`finalize`. Methods raise
    StoreFullError, StoreDeniedError or StoreError where the store cannot be written.
    """

    def __init__(self, place: Place, manifest: Manifest | None = None) -> None:
        self.place = place
        self.manifest = read_manifest(place) if manifest is None else manifest
        self._makers: dict[str, ShardMaker] = {}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | Place,
        plan: Plan,
        index: Iterable[IndexRow],
        *,
        overwrite: bool = False,
    ) -> StoreWriter:
        """A store with its plan and its index, and every row still pending.

        On a local path it is built aside and moved into place whole; elsewhere the document of its first pass is what
        makes it one. Raises StoreExistsError where the path is taken, and StoreError for an empty index.
        """
        place = check_free(path, overwrite=overwrite) if not isinstance(path, Place) else path
        with write_errors(place):
            if not isinstance(place, LocalPlace):
                return cls(place, _build(place, plan, index))
            place.root.parent.mkdir(parents=True, exist_ok=True)
            aside = temporary_name(place.root)
            try:
                manifest = _build(LocalPlace(aside), plan, index)
                move_in(aside, place.root, overwrite=overwrite)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return cls(place, manifest)

    def add_pass(self, plan: Plan, start: int, stop: int, index: Iterable[IndexRow] | None = None) -> Pass | None:
        """Plan the layers of ``plan`` over some rows, or over the new rows of ``index`` from ``start`` on.

        None where the index has no sample. Raises StoreExistsError where somebody else planned something meanwhile.
        """
        number = len(self.manifest.passes)
        with write_errors(self.place):
            part = None if index is None else write_index(self.place, number, start, index)
            end = stop if part is None else part.stop
            added = None if end == start else _pass(plan, number, start, end, part)
            taken = added is not None and not self._create_pass(added)
            self.manifest = read_manifest(self.place)
            if part is not None and part not in self.manifest.index:
                self.place.remove(part.name)
            if taken:
                raise StoreExistsError(
                    f"somebody else has added to the store {self.place.uri!r} meanwhile",
                    f"no {pass_name(number)!r}",
                    "it is there",
                    remedy="run it again",
                )
            refresh_frame(self.place, self.manifest)
        return added

    def _create_pass(self, added: Pass) -> bool:
        try:
            self.place.create(pass_name(added.number), seal(added))
        except FileExistsError:
            return False
        return True

    def check_writable(self) -> None:
        """Raise StoreDeniedError or StoreFullError where not even a small file can be written."""
        with write_errors(self.place):
            name = f"staged/.probe-{os.getpid()}"
            self.place.write(name, b"x")
            self.place.remove(name)

    def is_finished(self, task: Task) -> bool:
        """Whether a task has its receipt."""
        return self.place.exists(task.receipt)

    def commit(self, task: Task, features: Mapping[Layer, np.ndarray[Any, Any]], errors: Mapping[int, str]) -> bool:
        """Write the rows of a task: staged shards, then the receipt that makes them count, then each to its place.

        ``features`` holds (task.rows, ...) per layer of the pass, ``errors`` the message of every row that failed.
        False where another worker was faster: then its rows stay, and nothing of these.
        """
        part = self.manifest.passes[task.pass_number]
        staged: list[tuple[StagedShard, str]] = []
        with write_errors(self.place):
            try:
                for number, layer in enumerate(part.layers):
                    data = self._shard(layer, task, features[layer.key])
                    staged.append((stage(self.place, task, number, data), layer.shard(task)))
                self.place.create(task.receipt, seal(_receipt(task, errors, staged)))
            except (OSError, StoreError) as error:
                self._yield(task, staged, error)
                return False
            for shard, target in staged:
                move_if_there(self.place, shard.name, target)
        return True

    def finalize(self) -> Finish:
        """Write the sample table and ``finished.json``, once every task has its receipt, and tidy up.

        Raises StoreError where a task has none, and StoreDamagedError where a shard is missing.
        """
        with write_errors(self.place):
            self.manifest = read_manifest(self.place)
            finish = read_finish(self.place, self.manifest)
            if finish is None:
                finish = self._finish()
            clear_staged(self.place)
        return finish

    def _finish(self) -> Finish:
        self._check_receipts()
        place_staged(self.place)
        refresh_frame(self.place, self.manifest)
        lost = next(self.place.lost(_shards(self.manifest)), None)
        if lost is not None:
            raise StoreDamagedError(
                f"the store {self.place.uri!r} is damaged", repr(lost), "nothing there", remedy="featreg repair STORE"
            )
        try:
            counts, content = write_samples(self.place, self.manifest)
        except FileNotFoundError:  # another worker finished and tidied up in the meantime
            finish = read_finish(self.place, self.manifest)
            if finish is None:
                raise
            return finish
        files = {SAMPLES: content, MANIFEST: self.place.sha256(MANIFEST)}
        for name in (ZARR_JSON, *(f"{layer.array}/{ZARR_JSON}" for layer in self.manifest.layers)):
            files[name] = self.place.sha256(name)
        finish = Finish(len(self.manifest.passes), self.manifest.rows, counts.ok, counts.failed, files)
        self.place.write(FINISHED, seal(finish))
        return finish

    def _check_receipts(self) -> None:
        for part in self.manifest.passes:
            missing = part.count - len(finished_tasks(self.place, part))
            if missing > 0:
                raise StoreError(
                    f"the store {self.place.uri!r} is not complete",
                    "a receipt for every task",
                    f"{missing} tasks of pass {part.number} have none",
                    remedy="run it again, or wait for its workers",
                )

    def _shard(self, layer: LayerRecord, task: Task, rows: np.ndarray[Any, Any]) -> bytes:
        shard_rows = self.manifest.passes[task.pass_number].task_rows
        maker = self._makers.setdefault(layer.array, ShardMaker(layer, shard_rows))
        if task.start % shard_rows == 0:
            return maker.make(task, rows)
        return maker.make(task, rows, self._begun(layer, task))

    def _begun(self, layer: LayerRecord, task: Task) -> bytes:
        """The shard that earlier passes began, as the last of them left it."""
        name = layer.shard(task)
        before = self.place.read(name)
        for part in reversed(self.manifest.passes[: task.pass_number]):
            if layer.array in part.group:
                receipt = read_receipt(self.place, part.task(part.count - 1))
                if receipt is None:
                    raise StoreDamagedError(f"pass {part.number} is not complete", "a receipt for every task", "none")
                check_shard(self.place, name, before, str(receipt.shards.get(name)))
                return before
        raise StoreDamagedError(f"no pass has begun {name!r}", "an earlier pass with this layer", "none")

    def _yield(self, task: Task, staged: Sequence[tuple[StagedShard, str]], error: Exception) -> None:
        """Leave a task to the worker that was faster, or raise what went wrong; nothing staged stays behind.

        A file system that lost its answer says of our own receipt too that it exists, so that its shards are placed.
        """
        names = {shard.name for shard, _ in staged}
        if self.is_finished(task):
            place_staged(self.place, names)
        for name in names:
            self.place.remove(name)
        if not isinstance(error, FileExistsError | StoreDamagedError) or not self.is_finished(task):
            raise error


def _build(place: Place, plan: Plan, index: Iterable[IndexRow]) -> Manifest:
    part = write_index(place, 0, 0, index)
    if part.stop == 0:
        raise StoreError("a store without rows cannot be made", "at least one sample", "an empty index")
    header = Header(FORMAT, featreg.__version__)
    place.write(MANIFEST, seal(header))
    first = _pass(plan, 0, 0, part.stop, part)
    manifest = Manifest(header, (first,))
    try:
        place.create(pass_name(0), seal(first))
    except FileExistsError as error:
        raise StoreExistsError(f"the path of the store was taken meanwhile: {place.uri!r}") from error
    refresh_frame(place, manifest)
    if isinstance(place, LocalPlace):
        clear_staged(place)
    return manifest


def _pass(plan: Plan, number: int, start: int, stop: int, part: Any) -> Pass:
    return Pass(
        number=number,
        start=start,
        stop=stop,
        task_rows=plan.task_rows,
        request=plan.request,
        fingerprint=plan.fingerprint,
        layers=plan.layers,
        source=plan.source() if callable(plan.source) else plan.source,
        index=part,
        featreg=featreg.__version__,
        created=_now(),
        batch_size=plan.batch_size,
    )


def _now() -> str:
    """The time in UTC, or that of SOURCE_DATE_EPOCH, for stores that shall be equal to the last byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    time = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    return time.isoformat(timespec="seconds")


def _receipt(task: Task, errors: Mapping[int, str], staged: Sequence[tuple[StagedShard, str]]) -> Receipt:
    messages = {str(row): message for row, message in sorted(errors.items())}
    return Receipt(task.number, task.start, task.stop, messages, {target: shard.sha256 for shard, target in staged})


def _shards(manifest: Manifest) -> Iterable[str]:
    for part in manifest.passes:
        for task in part.iter_tasks():
            for layer in part.layers:
                yield layer.shard(task)
