"""Finishing a store: its sample table, and the document that says that nothing is left to do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from featreg.errors import StoreDamagedError, StoreError
from featreg.stores.documents import damaged, seal
from featreg.stores.frame import refresh_frame
from featreg.stores.layout import FINISHED, MANIFEST, SAMPLES, Finish, Manifest
from featreg.stores.places.place import Place
from featreg.stores.receipts import finished_tasks, read_finish, read_manifest, read_receipt
from featreg.stores.staging import clear_staged, is_whole, place_staged
from featreg.stores.tables import write_samples

__all__ = ["check_shared_shards", "finish_store", "what_is_left"]

_ATTEMPTS = 10
"""How often a finish is written anew because somebody else has finished, or added to the store, at the same time."""


def finish_store(place: Place) -> Finish | None:
    """Write the sample table and ``finished.json``, unless they are there, and tidy up; None where anything is left.

    Several may finish at once, and one who was slow may write what is true no more. So whoever leaves has read what is
    there, found that it is of all passes and that the files are those it names, or has written it anew.

    Raises StoreDamagedError where a shard is missing.
    """
    vanished: FileNotFoundError | None = None
    for _ in range(_ATTEMPTS):
        manifest = read_manifest(place)
        if what_is_left(place, manifest):
            return None
        finish = _whole_finish(place, manifest)
        if finish is not None:
            clear_staged(place, len(manifest.passes))
            return finish
        try:
            _write_finish(place, manifest)
        except FileNotFoundError as error:  # another worker has finished and tidied up in the meantime
            vanished = error
    raise StoreError(
        f"the store {place.uri!r} cannot be finished: others change it all the time",
        got="" if vanished is None else str(vanished),
        remedy="run it again once they are done",
    ) from vanished


def what_is_left(place: Place, manifest: Manifest) -> str:
    """What has to be done before a store can be finished, empty where nothing is."""
    for part in manifest.groups.values():
        if part.stop < manifest.rows:
            return f"no pass with {', '.join(part.group)} over the rows from {part.stop} on"
    for part in manifest.passes:
        missing = part.count - len(finished_tasks(place, part))
        if missing > 0:
            return f"{missing} tasks of pass {part.number} have none"
    return ""


def check_shared_shards(place: Place, manifest: Manifest) -> None:
    """Raise StoreDamagedError unless each shard that several passes wrote holds what all of them say.

    It is there whatever the last of them did: that it is missing cannot tell of a worker that died before the last
    move. And a worker that slept while the rows before its own were done again must not have taken them back.
    """
    for part in manifest.passes[1:]:
        task = part.task(0)
        for layer in part.layers:
            before = manifest.begun(task, layer.array)
            if before is None:
                continue
            name, ours, theirs = layer.shard(task), read_receipt(place, task), read_receipt(place, before)
            if ours is None or theirs is None or ours.begun.get(name) != theirs.shards.get(name):
                raise damaged(task.receipt, "one that goes on with another shard", f"that of pass {before.pass_number}")
            last = not any(manifest.later(task, layer.array))
            if last and not is_whole(place, name, ours.shards.get(name, "")):
                raise damaged(name, "another checksum", f"the content that {task.receipt!r} names")


def _whole_finish(place: Place, manifest: Manifest) -> Finish | None:
    """``finished.json``, where it covers all passes and the files around it are those that it names."""
    try:
        finish = read_finish(place, manifest)
    except StoreDamagedError:
        return None
    if finish is None or not all(is_whole(place, name, sha256) for name, sha256 in finish.files.items()):
        return None
    return finish


def _write_finish(place: Place, manifest: Manifest) -> None:
    place_staged(place)
    files = refresh_frame(place, manifest)
    lost = next(place.lost(_shards(manifest)), None)
    if lost is not None:
        raise StoreDamagedError(
            f"the store {place.uri!r} is damaged", repr(lost), "nothing there", remedy="featreg repair STORE"
        )
    check_shared_shards(place, manifest)
    counts, samples = write_samples(place, manifest)
    header = hashlib.sha256(seal(manifest.header)).hexdigest()
    files = {SAMPLES: samples, MANIFEST: header, **files}
    finish = Finish(len(manifest.passes), manifest.rows, counts.ok, counts.failed, files)
    place.write(FINISHED, seal(finish))


def _shards(manifest: Manifest) -> Iterable[str]:
    for part in manifest.passes:
        for task in part.iter_tasks():
            for layer in part.layers:
                yield layer.shard(task)
