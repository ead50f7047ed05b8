"""Rows that are tried again since they failed: their files may have been mended, and be of another size now."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from featreg.stores.layout import STAGED, Task
from featreg.stores.places.place import Place

__all__ = ["note_retries", "retried_rows"]

_NAME = re.compile(r"retry-[0-9]{4,}-[0-9]{8,}\.json")


def note_retries(place: Place, task: Task, rows: Collection[int]) -> None:
    """Note more rows of a task whose files are taken as they are by now; the note goes when the store is finished."""
    name = f"retry-{task.pass_number:04d}-{task.number:08d}.json"
    noted = {*_rows(place, name), *rows}
    place.write(f"{STAGED}/{name}", json.dumps(sorted(noted)).encode())


def retried_rows(place: Place) -> frozenset[int]:
    """The rows of all notes."""
    names = filter(_NAME.fullmatch, place.names(STAGED))
    return frozenset(row for name in names for row in _rows(place, name))


def _rows(place: Place, name: str) -> frozenset[int]:
    """The rows of a note; one that is gone or torn has none: it spares a check, and no more."""
    try:
        return frozenset(json.loads(place.read(f"{STAGED}/{name}")))
    except (OSError, ValueError, TypeError):
        return frozenset()
