"""What of a cluster decodes and what extracts: arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

__all__ = ["Shares", "shares"]

ROUNDING = 1e-6


@attrs.frozen
class Shares:
    """How many workers extract, from ``least`` to ``most``, and what each of them and each decoder takes.

    ``decoders`` is how many tasks decode at once, at first: a cluster may grow.
    """

    least: int
    most: int
    worker_cpus: float
    worker_gpus: float
    decoder_cpus: float
    decoders: int


def shares(nodes: Sequence[Mapping[str, float]], num_gpus: float, num_workers: int | None, tasks: int) -> Shares:
    """The shares of nodes with some resources; ``num_gpus`` is what one worker takes, a part of a GPU or several.

    As many workers as there are GPUs for, or three quarters of the CPUs, where ``num_workers`` does not say; Ray starts
    them as there is work. A decoder takes a CPU, and so does a worker without a GPU. Where that leaves none to decode
    on any node, a run could never begin: then both take a half, a quarter and so on. No more workers are begun than
    there are ``tasks``, or CPUs for workers without a GPU.
    """
    cpus = [node.get("CPU", 0.0) for node in nodes]
    if num_gpus:
        unit = _unit(cpus, 1)
        slots = max(1, _slots(cpus, unit))
        room = max(1, _slots([node.get("GPU", 0.0) for node in nodes], num_gpus))
        most = min(num_workers or room, tasks)
        return Shares(min(most, room) if num_workers else 1, most, 0.0, num_gpus, unit, slots)
    asked = num_workers
    if asked is not None:
        asked = min(asked, tasks, max(1, _slots(cpus, 1)) if any(cpus) else asked)
    unit = _unit(cpus, (asked or 1) + 1)
    slots = max(2, _slots(cpus, unit))
    most = asked or min(slots - max(1, slots // 4), tasks)
    return Shares(asked or 1, most, unit, 0.0, unit, max(1, slots - most))


def _unit(cpus: Sequence[float], count: int) -> float:
    """The largest of 1, 1/2, 1/4, … of a CPU of which there are so many; a cluster without CPUs may yet grow."""
    unit = 1.0
    while any(cpus) and _slots(cpus, unit) < count:
        unit /= 2
    return unit


def _slots(amounts: Sequence[float], unit: float) -> int:
    """How many units there are, none of which lies on two nodes."""
    return sum(int(amount / unit + ROUNDING) for amount in amounts)
