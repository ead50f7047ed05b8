"""Shards on their way: written under a name of their own, and moved to their place once a receipt names them."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Iterator

import attrs

from featreg.errors import StoreDamagedError
from featreg.stores.layout import STAGED, WORKERS, Manifest, Receipt, Task
from featreg.stores.places.place import Place
from featreg.stores.receipts import count_passes, read_manifest, read_receipt

__all__ = [
    "StagedShard",
    "clear_staged",
    "is_superseded",
    "is_whole",
    "move_if_there",
    "place_staged",
    "stage",
    "staged_shards",
    "task_of",
    "whole_receipt",
]

_NAME = re.compile(r"([0-9]{4,})-([0-9]{8,})-([0-9]+)-([0-9a-f]{64})-[0-9a-f]{16}")


@attrs.frozen
class StagedShard:
    """A shard that is not in its place: whose task and layer (by its place in the pass), and what is in it."""

    name: str
    pass_number: int
    task_number: int
    layer: int
    sha256: str


def stage(place: Place, task: Task, layer: int, data: bytes) -> StagedShard:
    """Write a shard aside, under a name that no other worker uses: what one stages, no other takes for its own."""
    digest = hashlib.sha256(data).hexdigest()
    parts = f"{task.pass_number:04d}-{task.number:08d}-{layer}-{digest}-{secrets.token_hex(8)}"
    shard = StagedShard(f"{STAGED}/{parts}", task.pass_number, task.number, layer, digest)
    place.write(shard.name, data)
    return shard


def staged_shards(place: Place) -> Iterator[StagedShard]:
    """What lies staged."""
    for name in place.names(STAGED):
        match = _NAME.fullmatch(name)
        if match:
            yield StagedShard(f"{STAGED}/{name}", int(match[1]), int(match[2]), int(match[3]), match[4])


def place_staged(place: Place, names: Collection[str] | None = None) -> None:
    """Finish for workers that died between their receipt and the last move, or for these files of theirs only.

    What a receipt names is moved to its place, unless it is there or a later pass has written the same shard since.
    What has no receipt is left alone: somebody may be at work. The passes are read anew: whoever comes here late may
    know none but his own.
    """
    staged = list(staged_shards(place))
    manifest = read_manifest(place) if staged else None
    for shard in staged:
        assert manifest is not None
        task = task_of(manifest, shard)
        receipt = None if task is None else whole_receipt(place, task)
        if task is None or receipt is None or not (names is None or shard.name in names):
            continue
        layer = manifest.passes[task.pass_number].layers[shard.layer]
        target = layer.shard(task)
        wanted = receipt.shards.get(target) == shard.sha256 and not is_superseded(place, manifest, task, layer.array)
        if wanted and is_whole(place, shard.name, shard.sha256) and not is_whole(place, target, shard.sha256):
            move_if_there(place, shard.name, target)
        else:
            place.remove(shard.name)


def move_if_there(place: Place, source: str, target: str) -> bool:
    """Move a staged file to its place; False where it is not there: somebody else has moved it, or deleted it."""
    try:
        place.move(source, target)
    except FileNotFoundError:
        if place.exists(source):
            raise
        return False
    return True


def clear_staged(place: Place, passes: int) -> None:
    """Delete whatever killed workers left of a finished store with so many passes.

    A pass that was planned meanwhile may have staged something already: so what there is is listed first, then the
    passes are counted, and nothing that came later is touched.
    """
    names = [f"{folder}/{name}" for folder in (STAGED, WORKERS) for name in place.names(folder)]
    if count_passes(place) != passes:
        return
    for name in names:
        place.remove(name)
    for folder in (STAGED, WORKERS):
        place.remove_folder(folder)


def is_superseded(place: Place, manifest: Manifest, task: Task, array: str) -> bool:
    """Whether a later pass has written the shard of a task anew, with its rows."""
    return any(place.exists(later.receipt) for later in manifest.later(task, array))


def whole_receipt(place: Place, task: Task) -> Receipt | None:
    """The receipt of a task, unless it is torn: where there are no hard links, it may be half written yet."""
    try:
        return read_receipt(place, task)
    except StoreDamagedError:
        return None


def task_of(manifest: Manifest, shard: StagedShard) -> Task | None:
    """The task that a staged shard is of; None where the store has no such task."""
    if shard.pass_number >= len(manifest.passes):
        return None
    part = manifest.passes[shard.pass_number]
    position = shard.task_number - part.start // part.task_rows
    return part.task(position) if 0 <= position < part.count and shard.layer < len(part.layers) else None


def is_whole(place: Place, name: str, sha256: str) -> bool:
    """Whether a file is there and has this content."""
    try:
        return place.sha256(name) == sha256
    except FileNotFoundError:
        return False
