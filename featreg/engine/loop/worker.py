"""The one loop that reads, crops, extracts and writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing, suppress

from featreg.engine.loop.batching import Batching
from featreg.engine.loop.block import Block
from featreg.engine.loop.committer import Committed, Committer
from featreg.engine.loop.loader import Loaded, load_crops, load_texts
from featreg.engine.loop.options import Options
from featreg.engine.monitoring.monitor import Monitor
from featreg.errors import ImageError, StoreError
from featreg.extractor import Extractor
from featreg.sources import Sample, Source
from featreg.stores.index import Index
from featreg.stores.layout import Task
from featreg.stores.places.place import Place
from featreg.stores.retries import note_retries, retried_rows
from featreg.stores.writer import StoreWriter

__all__ = ["Committed", "Options", "fill_block", "run_tasks", "samples_of"]


def run_tasks(
    tasks: Iterable[Task],
    source: Source,
    extractor: Extractor,
    writer: StoreWriter,
    options: Options,
    *,
    committed: Committed = lambda *_: None,
    monitor: Monitor | None = None,
) -> None:
    """Compute and commit the tasks that have no receipt yet, one after the other.

    While the model computes a task, threads read and decode the samples that come next, and another one writes the task
    before. A batch never crosses a task, and a row that fails keeps its place in its batch as a black image, so that
    the features of the others do not depend on it. Held in memory are the features of two tasks and two batches of
    crops. ``monitor`` counts what is done and the time that it takes.
    """
    monitor = Monitor() if monitor is None else monitor
    model = Batching(extractor, options.batch_size, stages=monitor.stages, computed=monitor.computed)
    monitor.begin()
    begun: deque[Task] = deque()
    index = Index(writer.place, writer.manifest.index)
    rows = samples_of(_unfinished(tasks, writer, begun, monitor), index, retried_rows(writer.place))
    with (
        closing(_load(source, rows, extractor, options, monitor)) as loading,
        Committer(writer, committed, monitor.stages) as committer,
    ):
        loaded = monitor.stages.waited_for("load", loading)
        for first in loaded:
            task = begun.popleft()
            part = writer.manifest.passes[task.pass_number]
            block = Block(part, task, options, writer.fitted(part))
            fill_block(block, first, loaded, model, place=writer.place, task=task)
            monitor.batch_size = model.size
            monitor.finished(task.rows)
            committer.put(task, block.features, block.errors)


def fill_block(
    block: Block, first: Loaded, loaded: Iterator[Loaded], model: Batching, *, place: Place, task: Task
) -> None:
    """Extract all rows of a task; of an image that stops the run it is noted that it may be mended before the next."""
    try:
        block.fill_all(first, loaded, model)
    except ImageError:
        if block.stopped_at is not None:
            with suppress(OSError, StoreError):
                note_retries(place, task, [block.stopped_at])
        raise


def _unfinished(tasks: Iterable[Task], writer: StoreWriter, begun: deque[Task], monitor: Monitor) -> Iterator[Task]:
    """The tasks that still have no receipt when their turn comes, which others may have given them meanwhile."""
    for task in tasks:
        if writer.is_finished(task):
            monitor.found(task.rows)
        else:
            begun.append(task)
            yield task


def samples_of(tasks: Iterable[Task], index: Index, retried: Collection[int] = ()) -> Iterator[Sample]:
    """The samples of some tasks, task by task in the order of their rows; raises StoreDamagedError.

    Those of the rows ``retried`` are of whatever size they are now.
    """
    for task in tasks:
        rows = index.rows(task.start, task.stop)
        columns = (rows[name].to_pylist() for name in ("key", "uri", "target", "size"))
        for row, (key, uri, target, size) in enumerate(zip(*columns, strict=True), task.start):
            yield Sample(key, uri, target, None if row in retried else size)


def _load(
    source: Source, rows: Iterable[Sample], extractor: Extractor, options: Options, monitor: Monitor
) -> Generator[Loaded, None, None]:
    threads, stages = options.threads, monitor.stages
    ahead = 2 * max(options.batch_size, threads)
    if extractor.takes_text:
        return load_texts(source, rows, threads=threads, ahead=ahead, stages=stages)
    return load_crops(source, rows, extractor.preprocess, threads=threads, ahead=ahead, stages=stages)
