"""Which tasks were not done when a store was opened."""

from __future__ import annotations

from featreg.stores.layout import Manifest, Task
from featreg.stores.places.place import Place
from featreg.stores.receipts import finished_tasks
from featreg.stores.staging import StagedShard, is_superseded, is_whole, staged_shards, task_of, whole_receipt

__all__ = ["Pending"]


class Pending:
    """The tasks that were not done when a store was opened; ``task in pending`` asks for one.

    A task is done where it has its receipt and its shards are in their places. Workers may go on meanwhile: whoever
    judges by one of these alone says the same of a row each time.
    """

    def __init__(self, place: Place, manifest: Manifest, *, finished: bool) -> None:
        self._done = None if finished else [finished_tasks(place, part) for part in manifest.passes]
        waiting = () if finished else staged_shards(place)  # listed after the receipts: what is placed by now is done
        self._waiting = {task for shard in waiting for task in self._waiting_for(place, manifest, shard)}

    def __contains__(self, task: object) -> bool:
        if self._done is None or not isinstance(task, Task):
            return False
        return task.number not in self._done[task.pass_number] or task in self._waiting

    def _waiting_for(self, place: Place, manifest: Manifest, shard: StagedShard) -> list[Task]:
        """The task whose receipt names this shard, which is not in its place; none where a later one replaced it."""
        task = task_of(manifest, shard)
        if task is None or self._done is None or task.number not in self._done[task.pass_number]:
            return []
        layer, receipt = manifest.passes[task.pass_number].layers[shard.layer], whole_receipt(place, task)
        target = layer.shard(task)
        if receipt is None or receipt.shards.get(target) != shard.sha256:
            return []
        placed = is_superseded(place, manifest, task, layer.array) or is_whole(place, target, shard.sha256)
        return [] if placed else [task]
