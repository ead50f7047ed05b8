"""The process that runs the pipeline of a pass: an actor, which can be ended from outside whatever it waits for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import attrs

from featreg.engine.ray.chunks import Numbers
from featreg.engine.ray.extracting import Job, TaskExtractor
from featreg.engine.ray.outcomes import Outcome, outcomes
from featreg.engine.ray.reading import Reader
from featreg.engine.ray.shares import Shares
from featreg.extras import extra

with extra("ray", "runs on Ray"):
    import ray.data
    from ray.data.block import BlockMetadata
    from ray.util.annotations import RayDeprecationWarning

__all__ = ["Coordinator", "Pipeline"]


TASK_RETRIES = 3
"""How often a task is handed to its worker anew because that died; then the pipeline fails, and is begun anew.

Ray Data's own default is for ever, which is how long a task waits that was in the hands of an actor that Ray does not
start again.
"""


@attrs.frozen
class Pipeline:
    """What a pass does on a cluster; ``block_bytes`` is what the crops of a task weigh, or a little more."""

    reader: Reader
    job: Job
    shares: Shares
    block_bytes: int


class Coordinator:
    """Runs pipelines one after the other. Ray ends whatever it has started when it is killed."""

    def run(self, pipeline: Pipeline, chunks: Sequence[Numbers]) -> Iterator[list[Outcome]]:
        """The outcomes of all tasks of the chunks, as they come; raises what Ray raises."""
        _configure(pipeline)
        for table in _dataset(pipeline, chunks).iter_batches(batch_size=None, batch_format="pyarrow"):
            yield outcomes(table)


def _configure(pipeline: Pipeline) -> None:
    """The settings of this process, which does nothing else."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # the store's receipts tell, and the driver watches them
    context.target_max_block_size = pipeline.block_bytes  # a block for each task: what is handed out, and lost, at once


def _dataset(pipeline: Pipeline, chunks: Sequence[Numbers]) -> Any:
    """From task numbers to outcomes; what dies is started anew, and its tasks handed out again."""
    shares = pipeline.shares
    decoded = ray.data.read_datasource(
        _Tasks(pipeline, chunks),
        override_num_blocks=len(chunks),
        num_cpus=shares.decoder_cpus,
    )
    with warnings.catch_warnings():  # restarts and retries of workers can be said in no other way yet
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return decoded.map_batches(
            TaskExtractor,
            fn_constructor_args=(pipeline.job,),
            batch_size=1,  # a task: Ray Data asks for a number where a worker has a GPU
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=shares.least, max_size=shares.most),
            num_cpus=shares.worker_cpus,
            num_gpus=shares.worker_gpus,
            ray_remote_args_fn=_worker_arguments,
        )


def _worker_arguments() -> dict[str, Any]:
    """How Ray treats a worker.

    As these come from a function, Ray Data keeps the two steps apart, even where both take one CPU: it would otherwise
    let the workers that extract decode as well.
    """
    return {"max_restarts": -1, "max_task_retries": TASK_RETRIES}


class _Tasks(ray.data.Datasource):  # type: ignore[misc]  # Ray is not typed for mypy
    """The open tasks of a pass as a data set: each chunk is read, and decoded, by a task of Ray's."""

    def __init__(self, pipeline: Pipeline, chunks: Sequence[Numbers]) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._chunks = chunks

    def estimate_inmemory_data_size(self) -> int:
        return self._pipeline.block_bytes * sum(map(len, self._chunks))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[Any]:
        return [self._read_task(chunk) for chunk in self._chunks]

    def _read_task(self, chunk: Numbers) -> Any:
        metadata = BlockMetadata(
            num_rows=len(chunk), size_bytes=self._pipeline.block_bytes * len(chunk), input_files=None, exec_stats=None
        )
        return ray.data.ReadTask(partial(self._pipeline.reader, chunk), metadata)
