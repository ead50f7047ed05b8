"""Shards on their way: written under a name of their own, and moved to their place once a receipt names them."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Iterator

import attrs

from featreg.stores.documents import damaged
from featreg.stores.layout import STAGED, WORKERS, Manifest, Task
from featreg.stores.places import Place
from featreg.stores.receipts import read_manifest, read_receipt

__all__ = [
    "StagedShard",
    "check_shard",
    "clear_staged",
    "is_whole",
    "move_if_there",
    "place_staged",
    "stage",
    "staged_shards",
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
        task = _task(manifest, shard)
        receipt = None if task is None else read_receipt(place, task)
        if task is None or receipt is None or not (names is None or shard.name in names):
            continue
        layer = manifest.passes[task.pass_number].layers[shard.layer]
        target = layer.shard(task)
        superseded = any(read_receipt(place, later) for later in manifest.later(task, layer.array))
        wanted = not superseded and receipt.shards.get(target) == shard.sha256
        if wanted and is_whole(place, shard.name, shard.sha256) and not is_whole(place, target, shard.sha256):
            move_if_there(place, shard.name, target)
        else:
            place.remove(shard.name)


def move_if_there(place: Place, source: str, target: str) -> None:
    """Move a staged file to its place; somebody who finished for us may have done it."""
    try:
        place.move(source, target)
    except FileNotFoundError:
        if place.exists(source):
            raise


def clear_staged(place: Place) -> None:
    """Delete whatever killed workers left; only where every task has its receipt and nothing waits to be moved."""
    for folder in (STAGED, WORKERS):
        place.remove_folder(folder)


def _task(manifest: Manifest, shard: StagedShard) -> Task | None:
    if shard.pass_number >= len(manifest.passes):
        return None
    part = manifest.passes[shard.pass_number]
    place = shard.task_number - part.start // part.task_rows
    return part.task(place) if 0 <= place < part.count and shard.layer < len(part.layers) else None


def is_whole(place: Place, name: str, sha256: str) -> bool:
    """Whether a file is there and has this content."""
    try:
        return place.sha256(name) == sha256
    except FileNotFoundError:
        return False


def check_shard(place: Place, name: str, data: bytes, expected: str) -> None:
    """Raise StoreDamagedError unless the bytes of a shard are those that its receipt names."""
    if hashlib.sha256(data).hexdigest() != expected:
        raise damaged(name, "another checksum", "the content that its receipt names")
