"""How many rows a task has, and in which order a worker takes the tasks: arithmetic only."""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Iterator

from featreg.errors import SpecError

__all__ = ["MAX_TASK_ROWS", "TASK_BYTES", "check_part", "task_order", "task_rows"]

TASK_BYTES = 64 * 2**20
"""What the features of one task may weigh over all layers: they are held in memory until they are written."""

MAX_TASK_ROWS = 256
"""The most rows of a task: what an interruption may cost where features are small."""


def task_rows(row_bytes: int) -> int:
    """The rows of one task where the features of one row weigh ``row_bytes`` over all layers.

    A power of two, so that a shard divides into equal chunks; one where even a single row weighs more.
    """
    if row_bytes < 1:
        raise SpecError("a row has no features", "at least one byte a row", str(row_bytes))
    fitting = min(max(TASK_BYTES // row_bytes, 1), MAX_TASK_ROWS)
    return 1 << (fitting.bit_length() - 1)


def task_order(count: int, part: tuple[int, int] | None = None, seed: int | None = None) -> Iterator[int]:
    """The order in which a worker takes ``count`` tasks; each of them once.

    A worker without a part takes them as they come; with a ``seed`` in an order of its own, so that workers that know
    nothing of each other rarely meet. Part i of n takes its own stretch in order, then helps with the others'.
    """
    if part is not None:
        mine = range(count * part[0] // part[1], count * (part[0] + 1) // part[1])
        yield from mine
        others = array("q", itertools.chain(range(mine.start), range(mine.stop, count)))
        random.Random(part[0] if seed is None else seed).shuffle(others)
        yield from others
    elif seed is not None:
        places = array("q", range(count))  # of which there may be millions
        random.Random(seed).shuffle(places)
        yield from places
    else:
        yield from range(count)


def check_part(part: object) -> tuple[int, int] | None:
    """A part (i, n), counted from 0; raises SpecError."""
    if part is None:
        return None
    if (
        isinstance(part, tuple | list)
        and len(part) == 2
        and all(isinstance(number, int) and not isinstance(number, bool) for number in part)
        and 0 <= part[0] < part[1]
    ):
        return part[0], part[1]
    raise SpecError(f"no part {part!r}", "(i, n): part i of n, counted from 0 to n - 1", repr(part))
