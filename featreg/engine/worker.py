"""The one loop that reads, crops, extracts and writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np

from featreg.engine.block import Block
from featreg.engine.loader import load_crops, load_texts
from featreg.engine.options import Options
from featreg.extractor import Extractor
from featreg.sources import Sample, Source
from featreg.stores.index import Index
from featreg.stores.layout import Task
from featreg.stores.writer import StoreWriter

__all__ = ["Committed", "Options", "run_tasks"]

Floats: TypeAlias = np.ndarray[Any, Any]
Committed: TypeAlias = Callable[[Task, int, bool], object]
"""Told of each task that has its receipt: how many of its rows failed, and whether it is this worker's."""


def run_tasks(
    tasks: Iterable[Task],
    source: Source,
    extractor: Extractor,
    writer: StoreWriter,
    options: Options,
    *,
    committed: Committed = lambda *_: None,
) -> None:
    """Compute and commit the tasks that have no receipt yet, one after the other.

    A batch never crosses a task, and a row that fails keeps its place in its batch as a black image, so that the
    features of the others do not depend on it. Held in memory are one task's features and two batches of crops.
    """
    begun: deque[Task] = deque()
    rows = _samples(_unfinished(tasks, writer, begun), Index(writer.place, writer.manifest.index))
    ahead = 2 * max(options.batch_size, options.threads)
    with closing(_load(source, rows, extractor, options.threads, ahead)) as loaded:
        for first in loaded:
            task = begun.popleft()
            block = Block(writer.manifest.passes[task.pass_number].layers, task, options)
            block.fill_all(first, loaded, extractor)
            own = writer.commit(task, block.features, block.errors)
            committed(task, len(block.errors), own)


def _unfinished(tasks: Iterable[Task], writer: StoreWriter, begun: deque[Task]) -> Iterator[Task]:
    """The tasks that still have no receipt when their turn comes, which others may have given them meanwhile."""
    for task in tasks:
        if not writer.is_finished(task):
            begun.append(task)
            yield task


def _samples(tasks: Iterable[Task], index: Index) -> Iterator[Sample]:
    for task in tasks:
        rows = index.rows(task.start, task.stop)
        columns = (rows[name].to_pylist() for name in ("key", "uri", "target", "size"))
        yield from (Sample(*values) for values in zip(*columns, strict=True))


def _load(source: Source, rows: Iterable[Sample], extractor: Extractor, threads: int, ahead: int) -> Any:
    if extractor.takes_text:
        return load_texts(source, rows, threads=threads, ahead=ahead)
    return load_crops(source, rows, extractor.preprocess, threads=threads, ahead=ahead)
