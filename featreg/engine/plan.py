"""How many rows a task has: arithmetic only."""

from __future__ import annotations

from featreg.errors import SpecError

__all__ = ["MAX_TASK_ROWS", "TASK_BYTES", "task_rows"]

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
