"""Which tasks are read together: arithmetic only."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from featreg.stores.layout import Pass, Task

__all__ = ["MAX_CHUNKS", "Numbers", "chunks", "task_at"]

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

MAX_CHUNKS = 10_000
"""The most chunks that a run is cut into: the driver holds a description of each."""

CHUNK_TASKS = 16
"""How many tasks a chunk has where there are enough: those of one block of the index, if tasks have 256 rows."""

CHUNKS_PER_SLOT = 8
"""How many chunks each task that decodes has at least, where there are so many tasks: so that all end together."""


def task_at(part: Pass, number: int) -> Task:
    """The task of a pass with a number, which counts from the first row of the store."""
    return part.task(number - part.start // part.task_rows)


def chunks(numbers: Numbers, slots: int) -> list[Numbers]:
    """Cut tasks into stretches that are read one after the other each, for ``slots`` that read at once."""
    size = min(CHUNK_TASKS, max(1, len(numbers) // (CHUNKS_PER_SLOT * slots)))
    size = max(size, -(-len(numbers) // MAX_CHUNKS))
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
