"""One task on its way into a store: the order of the file operations is the commit protocol, see ``specs/store.md``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.errors import StoreDamagedError, StoreError
from featreg.spec import Layer
from featreg.stores.documents import damaged, seal
from featreg.stores.frame import ShardMaker
from featreg.stores.layout import LayerRecord, Manifest, Receipt, Task, pass_name
from featreg.stores.places.place import Place
from featreg.stores.receipts import read_manifest, read_pass, read_receipt
from featreg.stores.staging import (
    StagedShard,
    is_superseded,
    is_whole,
    move_if_there,
    place_staged,
    stage,
)

__all__ = ["Commit", "Makers"]

Makers: TypeAlias = dict[str, ShardMaker]
"""What makes the shards of the arrays, by their names; kept from one task to the next."""


@attrs.frozen
class _Shard:
    """A shard of a task: where it is staged, where it belongs, and the SHA-256 of what earlier passes made of it."""

    layer: LayerRecord
    staged: StagedShard
    target: str
    begun: str | None


class Commit:
    """Writes the rows of one task: staged shards, then the receipt that makes them count, then each to its place.

    ``features`` holds (task.rows, ...) per layer of the pass, ``errors`` the message of every row that failed.
    """

    def __init__(
        self,
        place: Place,
        manifest: Manifest,
        task: Task,
        features: Mapping[Layer, np.ndarray[Any, Any]],
        errors: Mapping[int, str],
        *,
        makers: Makers,
    ) -> None:
        self._place = place
        self._manifest = manifest
        self._task = task
        self._features = features
        self._errors = errors
        self._makers = makers
        self._shards: list[_Shard] = []

    def run(self) -> bool:
        """False where another worker was faster: then its rows stay, and nothing of these.

        Raises StoreError where the store is another one by now, or was repaired under a worker's hands.
        """
        try:
            self._stage()
            self._check_plan()
            self._check_begun()
            self._withdraw_later()
            self._place.create(self._task.receipt, seal(self._receipt()))
        except (OSError, StoreError) as error:
            lost = self._concede() and isinstance(error, FileExistsError | StoreDamagedError)
            if not lost:
                raise
            return False
        for shard in self._shards:
            if not move_if_there(self._place, shard.staged.name, shard.target):
                self._restore(shard)
        return True

    def _stage(self) -> None:
        task = self._task
        for number, layer in enumerate(self._manifest.passes[task.pass_number].layers):
            data, begun = self._bytes(layer)
            self._shards.append(_Shard(layer, stage(self._place, task, number, data), layer.shard(task), begun))

    def _bytes(self, layer: LayerRecord) -> tuple[bytes, str | None]:
        """The shard of a layer, and the SHA-256 of the one that earlier passes began, if they did."""
        shard_rows = self._manifest.passes[self._task.pass_number].task_rows
        maker = self._makers.setdefault(layer.array, ShardMaker(layer, shard_rows))
        before = None if self._task.start % shard_rows == 0 else self._begun(layer)
        data = maker.make(self._task, self._features[layer.key], before)
        return data, None if before is None else hashlib.sha256(before).hexdigest()

    def _begun(self, layer: LayerRecord) -> bytes:
        """The shard that earlier passes began, as the last of them left it; it may be on the way to its place still."""
        name = layer.shard(self._task)
        expected = self._expected(layer)
        for placed in (False, True):
            if placed:
                place_staged(self._place)
            try:
                data = self._place.read(name)
            except FileNotFoundError:
                continue
            if hashlib.sha256(data).hexdigest() == expected:
                return data
        raise damaged(name, "another checksum, or nothing", "the content that its receipt names")

    def _expected(self, layer: LayerRecord) -> str:
        """The SHA-256 that the receipt of the task which began the shard names."""
        name, earlier = layer.shard(self._task), self._manifest.begun(self._task, layer.array)
        if earlier is None:
            raise StoreDamagedError(f"no pass has begun {name!r}", "an earlier pass with this layer", "none")
        receipt = read_receipt(self._place, earlier)
        if receipt is None:
            raise StoreDamagedError(f"pass {earlier.pass_number} is not complete", "a receipt for every task", "none")
        return receipt.shards.get(name, "")

    def _check_plan(self) -> None:
        """Raise StoreError where another store was put in the place of this one while the task was computed."""
        name = pass_name(self._task.pass_number)
        try:
            there = read_pass(self._place, name).sha256
        except StoreDamagedError:
            there = "nothing that can be read"
        if there != self._task.plan:
            raise StoreError(
                f"the store {self._place.uri!r} was replaced or deleted while a worker was at work on it",
                f"{name!r} with the SHA-256 {self._task.plan}",
                there,
                remedy="start the worker again",
            )

    def _check_begun(self) -> None:
        """Raise StoreError where the rows before ours in a shard were done again while ours were computed."""
        for shard in self._shards:
            if shard.begun is not None and self._expected(shard.layer) != shard.begun:
                raise StoreError(
                    f"the rows before those of {self._task.receipt!r} in a shard were done again meanwhile",
                    f"{shard.target!r} as it was",
                    remedy="run it again",
                )

    def _withdraw_later(self) -> None:
        """Take the receipts from the tasks that went on with our shards, where repair plans ours again.

        They hold our rows as they were: their shards must not stand for ours.
        """
        if self._task.stop % self._manifest.passes[self._task.pass_number].task_rows:
            manifest = read_manifest(self._place)
            later = {one for shard in self._shards for one in manifest.later(self._task, shard.layer.array)}
            if later and not self._place.exists(self._task.receipt):
                for one in later:
                    self._place.remove(one.receipt)

    def _receipt(self) -> Receipt:
        task = self._task
        return Receipt(
            plan=task.plan,
            task=task.number,
            start=task.start,
            stop=task.stop,
            errors=dict(_messages(self._errors)),
            shards={shard.target: shard.staged.sha256 for shard in self._shards},
            begun={shard.target: shard.begun for shard in self._shards if shard.begun is not None},
        )

    def _concede(self) -> bool:
        """Clear away what was staged, but what the receipt of the task names, which goes to its place.

        A file system that lost its answer says of our own receipt too that it exists. Returns whether there is one.
        """
        names = {shard.staged.name for shard in self._shards}
        finished = self._place.exists(self._task.receipt)
        if finished:
            place_staged(self._place, names)
        for name in names:
            self._place.remove(name)
        return finished

    def _restore(self, shard: _Shard) -> None:
        """Write a shard anew that was staged and is gone: moved for us, or taken for what a killed worker left."""
        if is_whole(self._place, shard.target, shard.staged.sha256):
            return
        if is_superseded(self._place, read_manifest(self._place), self._task, shard.layer.array):
            return
        data, _ = self._bytes(shard.layer)
        if hashlib.sha256(data).hexdigest() != shard.staged.sha256:
            raise damaged(shard.target, "another checksum", "the content that its receipt names")
        self._place.write(shard.target, data)


def _messages(errors: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """The messages as text that every file can hold: a path that is no Unicode has lone surrogates."""
    for row, message in sorted(errors.items()):
        yield str(row), message.encode("utf-8", "backslashreplace").decode()
