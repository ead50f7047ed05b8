"""Completing a store on a Ray cluster, as seen from the process that starts it."""

from __future__ import annotations

import math
import secrets
import time
import warnings
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, contextmanager

import attrs

from featreg import serialize
from featreg.engine import run as engine_run
from featreg.engine.loop.worker import Committed
from featreg.engine.monitoring.monitor import Monitor
from featreg.engine.ray import session
from featreg.engine.ray.chunks import Numbers, chunks
from featreg.engine.ray.coordinator import Coordinator, Pipeline
from featreg.engine.ray.extracting import Job
from featreg.engine.ray.ledger import Ledger
from featreg.engine.ray.outcomes import Outcome
from featreg.engine.ray.reading import Reader, reads_text
from featreg.engine.ray.shares import shares
from featreg.engine.ray.watchdog import Watchdog
from featreg.engine.run import Run, Work
from featreg.errors import CapabilityError, EngineError
from featreg.extras import extra
from featreg.preprocess import crop_size
from featreg.registry import default_registry
from featreg.sources import Source
from featreg.sources.opening import is_reopenable
from featreg.spec import Preprocess
from featreg.stores import FeatureStore
from featreg.stores.layout import FINISHED, Pass
from featreg.stores.places.place import Place
from featreg.stores.writer import StoreWriter

with extra("ray", "runs on Ray"):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["PATIENCE", "complete", "ready"]

PATIENCE = 1800.0
"""Seconds without a receipt after which a run hangs: more than a task and the opening of a model ever take."""

ATTEMPTS = 3
"""How often the pipeline is begun anew without a single task that gets its receipt in between."""

AFTER_LOSS = 60.0
"""Seconds without a receipt, once a node is lost, after which the pipeline is begun anew on what is left.

Ray Data cuts its pools to no smaller cluster: workers that start again may take what decoding needs, or find no room.
"""

TEXT_BYTES = 2**20
"""What a block of texts weighs: many tasks."""


def complete(
    writer: StoreWriter,
    work: Work,
    run: Run,
    *,
    num_gpus: float | None = None,
    num_workers: int | None = None,
    address: str | None = None,
    patience: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FeatureStore:
    """Do every task that has no receipt on a Ray cluster, then finalize the store.

    ``num_gpus`` is what each worker that extracts takes, one for a model on CUDA where None; ``num_workers`` is how
    many of them there are, where None as many as the cluster has room for. The rest of the CPUs decode. ``address`` is
    that of the cluster, as ``ray.init`` takes it. Source, model and store must be reachable on every node, under the
    names that the store has for them. ``run.part``, ``run.seed`` and ``run.num_workers`` have no meaning here.

    A worker or a node that is lost costs the tasks that it had in hand, which others do again. Where no task gets its
    receipt for ``patience`` seconds by the ``clock``, :data:`PATIENCE` where None, the run ends.

    Raises CapabilityError for what other processes cannot open: a source of your own, an extractor in place of a
    request, plugins that are no entry points; EngineError where the cluster hangs or cannot be used; and as
    :func:`featreg.engine.run.complete`.
    """
    source = writer.manifest.source
    _check_portable(writer.place, work, source.kind, source.uri, reopenable=source.reopenable)
    on_ray = _OnRay(num_gpus, num_workers, address, PATIENCE if patience is None else patience, clock)
    return engine_run.complete(writer, work, run, on_ray.do_tasks)


@contextmanager
def ready(
    place: Place,
    work: Work,
    device: str,
    *,
    num_gpus: float | None = None,
    num_workers: int | None = None,
    address: str | None = None,
) -> Iterator[None]:
    """A connection to the cluster, before anything of a store at ``place`` is planned for a model on ``device``.

    A finished store needs none. Raises what :func:`complete` raises before it begins.
    """
    source: Source = work.source
    _check_portable(place, work, source.kind, source.uri, reopenable=is_reopenable(source))
    if place.exists(FINISHED):
        yield
        return
    with session.connected(address, _worker_gpus(num_gpus, device)):
        yield


def _worker_gpus(num_gpus: float | None, device: str) -> float:
    return num_gpus if num_gpus is not None else float(device.partition(":")[0] == "cuda")


def _check_portable(place: Place, work: Work, kind: str, uri: str, *, reopenable: bool) -> None:
    """Raise CapabilityError for what only this process has."""
    if place.is_private:
        raise _only_here(
            f"the store {place.uri!r} cannot be opened in other processes",
            "a folder or a URL that all reach",
            place.uri,
        )
    if not reopenable or uri.startswith("memory://"):
        raise _only_here(
            f"the source {uri!r} cannot be opened in other processes",
            "a source of featreg.sources.KINDS, at a path or a URL that all reach",
            repr(kind),
        )
    if work.extractor is not None:
        raise _only_here(
            "an open extractor cannot go to other processes",
            "the model by its name",
            repr(work.extractor.request.model),
        )
    if work.registry is not default_registry():
        raise _only_here(
            "a registry of your own cannot go to other processes", "plugins that are installed on every node", "another"
        )


def _only_here(problem: str, expected: str, got: str) -> CapabilityError:
    return CapabilityError(problem, expected, got, remedy="engine='local', which runs in this process")


@attrs.frozen
class _OnRay:
    """A way of doing the tasks of a pass: see :func:`complete`."""

    num_gpus: float | None
    num_workers: int | None
    address: str | None
    patience: float
    clock: Callable[[], float]

    def do_tasks(
        self,
        writer: StoreWriter,
        part: Pass,
        work: Work,
        run: Run,
        *,
        done: Collection[int],
        committed: Committed,
        monitor: Monitor,
    ) -> None:
        """Do the tasks of a pass that are not among ``done``; begin anew where the cluster loses too much at once."""
        gpus = _worker_gpus(self.num_gpus, work.device or part.request.device)
        with session.connected(self.address, gpus):
            ledger = Ledger(writer, part, done, committed, monitor.stages)
            self._tell_surplus(gpus, len(ledger.open()))
            monitor.begin()
            fruitless = 0
            while len(numbers := ledger.open()):
                lost = self._attempt(self._pipeline(writer, part, work, run, len(numbers)), numbers, ledger)
                fruitless = 0 if len(ledger.open()) < len(numbers) else fruitless + 1
                if fruitless == ATTEMPTS:
                    raise _given_up(ledger, lost) from lost

    def _tell_surplus(self, gpus: float, tasks: int) -> None:
        """Say so where fewer workers extract than were asked for."""
        most = shares(session.nodes(), gpus, self.num_workers, tasks).most
        if self.num_workers is not None and most < self.num_workers:
            warnings.warn(
                f"going on with {most} of num_workers={self.num_workers}: tasks to do: {tasks}; {session.state()}",
                stacklevel=2,
            )

    def _attempt(self, pipeline: Pipeline, numbers: Numbers, ledger: Ledger) -> Exception | None:
        """Run the pipeline over some tasks to its end, or until Ray gives up, or is stuck without a node: then why."""
        try:
            with closing(self._outcomes(pipeline, numbers, ledger)) as outcomes:  # an error of a row ends it, too
                for outcome in outcomes:
                    ledger.settle(outcome)
        except (ray.exceptions.RayError, session.NodeLost) as error:
            ledger.recount()
            lost: Exception = error
            return lost
        return None

    def _outcomes(self, pipeline: Pipeline, numbers: Numbers, ledger: Ledger) -> Generator[Outcome, None, None]:
        """The outcomes of tasks as they come; raises EngineError where there are none for too long."""
        watchdog = Watchdog(self.patience, ledger.receipts, self.clock)
        nodes = session.names()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        coordinator = ray.remote(num_cpus=0, scheduling_strategy=here)(Coordinator).remote()
        cut = chunks(numbers, pipeline.shares.decoders)
        answers = coordinator.run.options(num_returns="streaming").remote(pipeline, cut)
        try:
            while True:
                ready, _ = ray.wait([answers], timeout=watchdog.wait)
                if ready:
                    try:
                        found = ray.get(next(answers))
                    except StopIteration:
                        return
                    for outcome in found:
                        watchdog.fed(outcome.worker)
                        yield outcome
                elif watchdog.is_hungry(AFTER_LOSS) and not nodes <= session.names():
                    raise session.NodeLost(session.state())
                elif watchdog.is_hungry():
                    raise watchdog.error(ledger.open().tolist(), session.state())
        finally:
            ray.kill(coordinator)

    def _pipeline(self, writer: StoreWriter, part: Pass, work: Work, run: Run, tasks: int) -> Pipeline:
        device = work.device or part.request.device
        kind = device.partition(":")[0]
        gpus = _worker_gpus(self.num_gpus, device)
        uri = writer.place.uri
        return Pipeline(
            reader=Reader(uri, part.number, secrets.token_hex(8)),
            job=Job(uri, part.number, run.options(part), kind if gpus else device),  # Ray numbers the devices anew
            shares=shares(session.nodes(), gpus, self.num_workers, tasks),
            block_bytes=_block_bytes(part),
        )


def _given_up(ledger: Ledger, error: Exception | None) -> EngineError:
    left = ledger.open().tolist()
    return EngineError(
        f"the run on Ray failed {ATTEMPTS} times in a row before any task was finished",
        "workers that live as long as a task takes",
        f"{len(left)} tasks left, from {left[0]} on; {type(error).__name__}: {str(error).strip()[-500:]}",
        remedy="look at the memory of the nodes; fewer workers or a smaller batch_size take less, and what is finished "
        "is kept",
    )


def _block_bytes(part: Pass) -> int:
    if reads_text(part):
        return TEXT_BYTES
    preprocess = serialize.from_dict(Preprocess, part.fingerprint["preprocess"])
    return part.task_rows * 3 * math.prod(crop_size(preprocess) or (1, 1))
