"""The connection to a Ray cluster: the one that is there, or one of our own for as long as it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from featreg.errors import EngineError, SpecError
from featreg.extras import extra

with extra("ray", "runs on Ray"):
    import ray

__all__ = ["NodeLost", "connected", "names", "nodes", "state"]


class NodeLost(Exception):
    """A run stands still since a node was lost."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster at ``address``; left as it is where this process is connected already.

    Without an address, Ray takes that in ``RAY_ADDRESS``, else a cluster that runs on this machine, and else starts one
    here; ``"local"`` always does. Raises EngineError where there is no cluster, and SpecError where this process is
    connected to another one.
    """
    if ray.is_initialized():
        _check_same(address)
        yield
        return
    try:
        if address is None:  # workers of a cluster of our own write to its log files, not over the bar
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(address=address, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"there is no Ray cluster at {address!r}" if address else "Ray cannot be started",
            "the address of a running cluster, 'auto', or none for one on this machine",
            f"{type(error).__name__}: {error}",
            remedy="ray start --head",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[Mapping[str, float]]:
    """What each node that is alive has, by Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def names() -> set[str]:
    """The nodes that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def state() -> str:
    """What is left of the cluster, for messages."""
    known = ray.nodes()
    dead = sorted(node["NodeManagerAddress"] for node in known if not node["Alive"])
    lost = f", dead: {', '.join(dead)}" if dead else ""
    return (
        f"{len(known) - len(dead)} of {len(known)} nodes are alive{lost}; of {_amounts(ray.cluster_resources())}, "
        f"{_amounts(ray.available_resources())} is free"
    )


def _amounts(found: Mapping[str, float]) -> str:
    named = [f"{found[name]:g} {name}" for name in ("CPU", "GPU") if name in found]
    return " and ".join(named) or "nothing"


def _check_same(address: str | None) -> None:
    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", here):
        raise SpecError(
            "this process is connected to another Ray cluster already",
            repr(address),
            repr(here),
            remedy="ray.shutdown() first, or leave the address out",
        )
