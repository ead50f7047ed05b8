"""Writing a store: the plan first, then one task at a time, then the sample table.

The order of the file operations is the commit protocol, see ``specs/store.md``.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import numpy as np

import featreg
from featreg.derived import FittedRecipe
from featreg.errors import CapabilityError, StoreError, StoreExistsError
from featreg.spec import Layer
from featreg.stores.commit import Commit, Makers
from featreg.stores.documents import seal
from featreg.stores.finishing import finish_store, what_is_left
from featreg.stores.fits import fitted_layers
from featreg.stores.frame import refresh_frame
from featreg.stores.index import IndexRow, write_index
from featreg.stores.layout import FORMAT, MANIFEST, STAGED, Finish, Header, Manifest, Pass, Task, pass_name
from featreg.stores.places.disk import parents_made
from featreg.stores.places.place import LocalPlace, Place, write_errors
from featreg.stores.plan import Plan, Planner
from featreg.stores.receipts import read_manifest, read_pass
from featreg.stores.replace import check_free, move_in, temporary_name
from featreg.stores.staging import clear_staged

__all__ = ["Plan", "Planner", "StoreWriter"]


class StoreWriter:
    """A store that is being written, by any number of workers at once.

    :meth:`create` it or open what is there, :meth:`commit` any number of tasks, then :meth:`finalize`. Methods raise
    StoreFullError, StoreDeniedError or StoreError where the store cannot be written.
    """

    def __init__(self, place: Place, manifest: Manifest | None = None) -> None:
        self.place = place
        self.manifest = read_manifest(place) if manifest is None else manifest
        self._makers: Makers = {}
        self._fitted: dict[int, Mapping[str, FittedRecipe]] = {}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | Place,
        plan: Plan | Planner,
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
            aside = temporary_name(place.root)
            with parents_made(place.root):
                try:
                    manifest = _build(LocalPlace(aside), plan, index)
                    move_in(aside, place.root, overwrite=overwrite)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
            return cls(place, manifest)

    def add_pass(
        self,
        plan: Plan,
        start: int,
        stop: int,
        index: Iterable[IndexRow] | None = None,
        check: Callable[[int], object] = lambda rows: None,
    ) -> Pass | None:
        """Plan the layers of ``plan`` over some rows, or over the new rows of ``index`` from ``start`` on.

        None where the index has no sample. ``check`` is told how many rows it has before it is planned: nothing is, if
        it raises. Raises StoreExistsError where somebody else planned something meanwhile.
        """
        number = len(self.manifest.passes)
        with write_errors(self.place):
            part = None if index is None else write_index(self.place, number, start, index)
            end = stop if part is None else part.stop
            try:
                check(end - start)
            except BaseException:
                if part is not None:
                    self.place.remove(part.name)
                raise
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
        """Raise StoreDeniedError or StoreFullError where not even a small file can be written.

        Raises CapabilityError where the same name can be created twice: some object stores take ``If-None-Match`` and
        do not heed it.
        """
        name = f"{STAGED}/.probe-{secrets.token_hex(8)}"
        with write_errors(self.place):
            self.place.create(name, b"x")
            try:
                with suppress(FileExistsError):
                    self.place.create(name, b"x")
                    raise CapabilityError(
                        f"{self.place.uri!r} cannot hold a store that is written to: a file is created there twice",
                        "a place where of several who create a file one wins",
                        remedy="extract to a local folder and copy it there",
                    )
            finally:
                self.place.remove(name)

    def fitted(self, part: Pass) -> Mapping[str, FittedRecipe]:
        """What the derived layers of a pass have learnt, by their keys; raises StoreDamagedError."""
        if part.number not in self._fitted:
            self._fitted[part.number] = fitted_layers(self.place, part)
        return self._fitted[part.number]

    def is_finished(self, task: Task) -> bool:
        """Whether a task has its receipt."""
        return self.place.exists(task.receipt)

    def commit(self, task: Task, features: Mapping[Layer, np.ndarray[Any, Any]], errors: Mapping[int, str]) -> bool:
        """Write the rows of a task: staged shards, then the receipt that makes them count, then each to its place.

        ``features`` holds (task.rows, ...) per layer of the pass, ``errors`` the message of every row that failed.
        False where another worker was faster: then its rows stay, and nothing of these. Raises StoreError where the
        store is another one by now.
        """
        with write_errors(self.place):
            return Commit(self.place, self.manifest, task, features, errors, makers=self._makers).run()

    def finalize(self) -> Finish:
        """Write the sample table and ``finished.json``, once every task has its receipt, and tidy up.

        Raises StoreError where a task has none, and StoreDamagedError where a shard is missing.
        """
        finish = self.finalize_if_complete()
        if finish is None:
            raise StoreError(
                f"the store {self.place.uri!r} is not complete",
                "a receipt for every task",
                what_is_left(self.place, self.manifest),
                remedy="run it again, or wait for its workers",
            )
        return finish

    def finalize_if_complete(self) -> Finish | None:
        """As :meth:`finalize`; None where a task has no receipt, or rows of a layer are not planned."""
        with write_errors(self.place):
            finish = finish_store(self.place)
            self.manifest = read_manifest(self.place)
        return finish


def _build(place: Place, plan: Plan | Planner, index: Iterable[IndexRow]) -> Manifest:
    part = write_index(place, 0, 0, index)
    if part.stop == 0:
        raise StoreError("a store without rows cannot be made", "at least one sample", "an empty index")
    header = Header(FORMAT, featreg.__version__)
    place.write(MANIFEST, seal(header))  # from now on it can be gone on with, wherever it lies
    if not isinstance(plan, Plan):
        plan = plan(place, (part,))
    first = _pass(plan, 0, 0, part.stop, part)
    try:
        place.create(pass_name(0), seal(first))
    except FileExistsError as error:
        raise StoreExistsError(f"the path of the store was taken meanwhile: {place.uri!r}") from error
    manifest = Manifest(header, (read_pass(place, pass_name(0)),))
    refresh_frame(place, manifest)
    if isinstance(place, LocalPlace):
        clear_staged(place, len(manifest.passes))
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
        origin=plan.origin,
        inputs=plan.inputs,
    )


def _now() -> str:
    """The time in UTC, or that of SOURCE_DATE_EPOCH, for stores that shall be equal to the last byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    time = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    return time.isoformat(timespec="seconds")
