"""The faults of a Ray cluster: workers, actors, nodes and the process that started the run, lost on the way."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import ray_kills
from faults.processes import Child, run
from faults.scenarios import Scenario
from faults.scene import Scene, Verdict

__all__ = ["RAY_SCENARIOS"]

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
"""Nothing talks to the network, and a node that is lost is missed soon."""

STORE_BYTES = 80 * 2**20
PATIENCE, SHORT_PATIENCE = 300.0, 60.0
"""Seconds after which a run hangs: much more than any step here takes on a busy machine; and where it has to hang."""

LONGEST = 9.0
"""Seconds after which the process that started a run dies at the latest."""


def kill_worker(moment: str) -> Scenario:
    """Workers die in the middle of writing something; the run completes by itself."""

    def scenario(scene: Scene, rng: random.Random) -> Verdict:
        ticket = {"kind": "worker", "moment": moment, "torn": rng.choice([0.0, 0.3, 0.7, 1.0])}
        return _harmed(scene, [{**ticket, "number": rng.randrange(6)} for _ in range(rng.randint(1, 3))])

    return scenario


def kill_actor(scene: Scene, rng: random.Random) -> Verdict:
    """``ray.kill``: actors that Ray does not start again."""
    return _harmed(scene, [{"kind": "actor", "number": rng.randrange(3)} for _ in range(rng.randint(1, 2))])


def kill_reader(scene: Scene, rng: random.Random) -> Verdict:
    """Processes that decode die."""
    return _harmed(scene, [{"kind": "reader", "number": rng.randrange(3)} for _ in range(rng.randint(1, 3))])


def lose_node(scene: Scene, rng: random.Random) -> Verdict:
    """SIGKILL of the raylet of one of two nodes."""
    store, after = scene.fresh(), rng.randrange(4)
    scene.must(lambda: _on_two_nodes(scene, store, after))
    Child.killed += 1
    return scene.judge(store)


def lose_the_only_gpu(scene: Scene, rng: random.Random) -> Verdict:
    """The node with all GPUs is lost: nothing can go on, the run says so, and another engine completes the store."""
    store, after = scene.fresh(), rng.randrange(4)
    code, output = run(lambda: _on_two_nodes(scene, store, after, num_gpus=1), scene.log)
    if not code or "EngineError" not in output or "the run on Ray hangs" not in output:
        raise RuntimeError(f"exit code {code} without any GPU: {output}")
    Child.killed += 1
    scene.must(lambda: scene.extract(store))
    return scene.judge(store)


def kill_driver(scene: Scene, rng: random.Random) -> Verdict:
    """The process that started the run dies, and Ray with it; either engine completes the store."""
    store = scene.fresh()
    child = Child(lambda: _on_one_node(scene, store), scene.log)
    child.kill(rng.uniform(0, LONGEST))
    child.wait()
    scene.must(lambda: _on_one_node(scene, store) if rng.random() < 0.3 else scene.extract(store))
    return scene.judge(store)


def _harmed(scene: Scene, tickets: list[dict[str, Any]]) -> Verdict:
    store, folder = scene.fresh(), scene.folder / "tickets"
    ray_kills.issue(folder, tickets)
    scene.must(lambda: _on_one_node(scene, store, runtime_env={"worker_process_setup_hook": "faults.ray_kills.arm"}))
    Child.killed += ray_kills.casualties(folder)
    return scene.judge(store)


def _on_one_node(scene: Scene, store: Path, **options: Any) -> None:
    os.environ.update(SETTINGS)
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        **options,
    )
    _extract(scene, store, PATIENCE)
    ray.shutdown()


def _on_two_nodes(scene: Scene, store: Path, after: int, num_gpus: int = 0) -> None:
    """A run that loses its second node after so many tasks."""
    os.environ.update(SETTINGS)
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1, num_gpus=num_gpus, object_store_memory=STORE_BYTES)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    raylet = second.all_processes["raylet"][0].process.pid
    _at_outcome(after, lambda: os.kill(raylet, signal.SIGKILL))
    try:
        if num_gpus:
            _extract(scene, store, SHORT_PATIENCE, num_gpus=num_gpus)
        else:
            _extract(scene, store, PATIENCE)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _extract(scene: Scene, store: Path, patience: float, **options: Any) -> None:
    from featreg.engine.ray import running

    setattr(running, "AFTER_LOSS", 10.0)  # noqa: B010
    setattr(running, "PATIENCE", patience)  # noqa: B010  (a child's own)
    scene.extract(store, engine="ray", **options)


def _at_outcome(number: int, harm: Callable[[], None]) -> None:
    """Do harm once the process that started the run was told of so many tasks."""
    from featreg.engine.ray.ledger import Ledger

    settle, count = Ledger.settle, itertools.count()

    def harmful(ledger: Ledger, outcome: Any) -> None:
        settle(ledger, outcome)
        if next(count) == number:
            harm()

    setattr(Ledger, "settle", harmful)  # noqa: B010  (a child's own)


RAY_SCENARIOS: dict[str, tuple[Scenario, int]] = {
    "SIGKILL of workers, mid-shard": (kill_worker("shard"), 5),
    "SIGKILL of workers, mid-receipt": (kill_worker("receipt"), 5),
    "SIGKILL of workers, as shards move to their places": (kill_worker("place"), 4),
    "ray.kill of workers": (kill_actor, 5),
    "SIGKILL of processes that decode": (kill_reader, 4),
    "SIGKILL of a raylet, one of two nodes": (lose_node, 4),
    "SIGKILL of the raylet of the only node with GPUs": (lose_the_only_gpu, 2),
    "SIGKILL of the process that started the run": (kill_driver, 4),
}
"""Each fault, and how many runs of it there are."""
