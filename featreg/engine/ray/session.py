"""The connection to a Ray cluster: the one that is there, or one of our own for as long as it is needed."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from featreg.errors import EngineError, SpecError
from featreg.extras import extra

with extra("ray", "runs on Ray"):
    import ray

__all__ = ["NodeLost", "connected", "names", "nodes", "state"]


ANSWER = 5.0
"""Seconds within which a cluster takes a connection: Ray itself would wait for minutes, and say nothing."""


class NodeLost(Exception):
    """A run stands still since a node was lost."""


@contextmanager
def connected(address: str | None, num_gpus: float = 0.0) -> Iterator[None]:
    """A connection to the cluster at ``address``; left as it is where this process is connected already.

    Without an address, it is that in ``RAY_ADDRESS``, else a cluster that runs on this machine, and else one is started
    here; ``"local"`` always does. ``num_gpus`` is what a worker will need. Raises EngineError where there is no
    cluster, or none of a worker's GPUs in one of our own, which does not grow; and SpecError where this process is
    connected to another one.
    """
    if ray.is_initialized():
        _check_same(address)
        yield
        return
    own = _connect(address or os.environ.get("RAY_ADDRESS") or None)
    try:
        _check_gpus(num_gpus, own=own)
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> bool:
    """Connect to a cluster; True where it is one of our own, on this machine alone."""
    try:
        if address is None:
            with suppress(ConnectionError):
                ray.init(address="auto", logging_level="ERROR")
                return False
        if address is None or address == "local":  # its workers write to its log files, not over the bar
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            return True
        _check_answers(address)
        ray.init(address=address, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"there is no Ray cluster at {address!r}" if address else "Ray cannot be started",
            "the address of a running cluster, 'auto', or none for one on this machine",
            f"{type(error).__name__}: {error}",
            remedy="ray start --head, or another address (--address)",
        ) from error
    return False


def _check_answers(address: str) -> None:
    """Raise OSError or ValueError unless somebody listens there; of what names no port, Ray tells."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        if int(port) > 65535:
            raise ValueError(f"there is no port {port}")
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()


def _check_gpus(needed: float, *, own: bool) -> None:
    """Raise EngineError where a worker never finds its GPUs; a cluster that is not our own may grow yet."""
    most = max((node.get("GPU", 0.0) for node in nodes()), default=0.0)
    if needed <= most:
        return
    if own:
        raise EngineError(
            "a worker on Ray needs more GPUs than this machine has",
            f"{needed:g} (num_gpus, or 1 for a model on cuda)",
            f"{most:g}",
            remedy="num_gpus=0 with device='cpu', or the address of a cluster with GPUs (--num-gpus, --address)",
        )
    warnings.warn(
        f"no node of the Ray cluster has {needed:g} GPUs now, but {most:g} at most: the run waits for one to join",
        stacklevel=2,
    )


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
    if address not in (None, "auto", "local", here):
        raise SpecError(
            "this process is connected to another Ray cluster already",
            repr(address),
            repr(here),
            remedy="ray.shutdown() first, or leave the address out",
        )
