"""The faults: each is done to a store, mended as a user would mend it, and judged."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from faults.kills import MOMENTS, die_at
from faults.processes import Child, run
from faults.scene import Scene, Verdict

__all__ = ["SCENARIOS", "Scenario", "Skipped"]

Scenario: TypeAlias = Callable[[Scene, random.Random], Verdict]

LONGEST = 1.5
"""Seconds after which a child that is to be killed at a random moment dies at the latest."""


class Skipped(Exception):
    """This machine cannot stage the fault."""


def kill_at(moment: str) -> Scenario:
    """One worker dies in the middle of writing something; the same command goes on."""

    def scenario(scene: Scene, rng: random.Random) -> Verdict:
        store, number, torn = scene.fresh(), rng.randrange(MOMENTS[moment]), rng.choice([0.0, 0.3, 0.7, 1.0])
        for _ in range(rng.randint(1, 3)):
            _killed(scene, _after(lambda: die_at(moment, number, torn), scene, store))
        scene.must(lambda: scene.extract(store))
        return scene.judge(store)

    return scenario


def _after(harm: Callable[[], None], scene: Scene, store: Path) -> Callable[[], None]:
    """A run in a child that some harm is done to first."""

    def call() -> None:
        harm()
        scene.extract(store)

    return call


def kill_any_time(scene: Scene, rng: random.Random) -> Verdict:
    """One worker is killed by the clock, again and again."""
    store = scene.fresh()
    for _ in range(rng.randint(1, 3)):
        child = Child(lambda: scene.extract(store), scene.log)
        child.kill(rng.uniform(0, LONGEST))
        child.wait()
    scene.must(lambda: scene.extract(store))
    return scene.judge(store)


def kill_three(scene: Scene, rng: random.Random) -> Verdict:
    """Three workers at once, each killed at another operation or moment; a fourth one completes the store."""
    store = scene.fresh()
    seeds = [rng.random() for _ in range(3)]
    children = [
        Child(functools.partial(_disturbed, scene, store, part, seed), scene.folder / f"log{part}.txt")
        for part, seed in enumerate(seeds)
    ]
    for child in children:
        if rng.random() < 0.5:
            child.kill(rng.uniform(0, LONGEST / 3))
    for child in children:
        child.wait()
    scene.must(lambda: scene.extract(store))
    return scene.judge(store)


def _disturbed(scene: Scene, store: Path, part: int, seed: float) -> None:
    rng = random.Random(seed)
    if rng.random() < 0.7:
        die_at(rng.choice(list(MOMENTS)), rng.randrange(8), rng.choice([0, 0.5, 1]))
    scene.extract(store, part=(part, 3))


def three_at_once(scene: Scene, rng: random.Random) -> Verdict:
    """Three workers at once that nobody harms."""
    store = scene.fresh()
    children = [
        Child(functools.partial(scene.extract, store, part=(part, 3)), scene.folder / f"log{part}.txt")
        for part in range(3)
    ]
    for child in children:
        if child.wait():
            raise RuntimeError(child.output)
    return scene.judge(store)


def disk_full(scene: Scene, rng: random.Random) -> Verdict:
    """The disk runs full at some row; then it has room again."""
    store = scene.fresh()
    with _Mounted(scene.folder / "small", size=rng.randint(40, 120) * 1024) as small:
        code, output = run(lambda: _without_looking(scene, small / "store"), scene.log)
        if not code or "StoreFullError" not in output:
            raise RuntimeError(f"exit code {code} on a full disk: {output}")
        if (small / "store").exists():
            shutil.copytree(small / "store", store)
    scene.must(lambda: scene.extract(store))
    return scene.judge(store)


def _without_looking(scene: Scene, store: Path) -> None:
    from featreg.stores.places.place import LocalPlace

    # the look before the first row would stop the run at once
    setattr(LocalPlace, "free_bytes", lambda _: None)  # noqa: B010  (a child's own, which mypy need not follow)
    scene.extract(store)


def disk_too_small(scene: Scene, rng: random.Random) -> Verdict:
    """The disk is too small from the beginning: said before a row is read."""
    with _Mounted(scene.folder / "small", size=48 * 1024) as small:
        code, output = run(lambda: scene.extract(small / "store"), scene.log)
        if not code or "has not the room" not in output:
            raise RuntimeError(f"exit code {code} on a small disk: {output}")
    return Verdict(0, 0, 0)


def read_only(scene: Scene, rng: random.Random) -> Verdict:
    """An unfinished store on a file system that becomes read-only, and writable again."""
    return _denied(scene, rng, mounted=True)


def no_permission(scene: Scene, rng: random.Random) -> Verdict:
    """An unfinished store in folders that may not be written to."""
    return _denied(scene, rng, mounted=False)


def _denied(scene: Scene, rng: random.Random, *, mounted: bool) -> Verdict:
    number = rng.randrange(12)
    if mounted:
        with _Mounted(scene.folder / "small", size=4 * 2**20) as small:
            store = small / "store"
            _killed(scene, _after(lambda: die_at("receipt", number % 6, 0.5), scene, store))
            _mount("remount,ro", small)
            _must_be_denied(scene, lambda: scene.extract(store))
            _mount("remount,rw", small)
            scene.must(lambda: scene.extract(store))
            return scene.judge(store)
    store = scene.fresh()
    _killed(scene, _after(lambda: die_at("receipt", number % 6, 0.5), scene, store))
    _set_modes(store, 0o555)
    _must_be_denied(scene, _after(_without_privileges, scene, store))
    _set_modes(store, 0o755)
    scene.must(lambda: scene.extract(store))
    return scene.judge(store)


def _set_modes(store: Path, mode: int) -> None:
    for folder, _, _ in os.walk(store):
        os.chmod(folder, mode)


def _without_privileges() -> None:
    """Give up what lets root write everywhere (capset(2), of no process's capabilities but this one's)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if os.getuid() == 0 and ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError("capset failed")


def _must_be_denied(scene: Scene, call: Callable[[], object]) -> None:
    code, output = run(call, scene.log)
    if not code or "StoreDeniedError" not in output:
        raise RuntimeError(f"exit code {code} without permission: {output}")


def clock_set_back(scene: Scene, rng: random.Random) -> Verdict:
    """The clock jumps back by years between two runs, and while they run."""
    store = scene.fresh()
    _killed(scene, _after(lambda: die_at("any", rng.randrange(30), 0.5), scene, store))
    scene.must(_after(lambda: _set_back(rng.uniform(1, 1e9)), scene, store))
    return scene.judge(store)


def _set_back(seconds: float) -> None:
    import time

    now = time.time
    time.time = lambda: now() - seconds


def flipped_bit(scene: Scene, rng: random.Random) -> Verdict:
    """One bit of one file of a finished store."""
    return _damaged(scene, rng, lambda data: _flip(data, rng))


def truncated(scene: Scene, rng: random.Random) -> Verdict:
    """One file of a finished store loses its end, or all of it."""
    return _damaged(scene, rng, lambda data: data[: rng.randrange(len(data))])


def deleted(scene: Scene, rng: random.Random) -> Verdict:
    """One file of a finished store is gone."""
    return _damaged(scene, rng, lambda data: None)


def _damaged(scene: Scene, rng: random.Random, harm: Callable[[bytes], bytes | None]) -> Verdict:
    store = scene.copy()
    kind = rng.choice(
        ["receipts/*", "C4/c", "pooled/c", "mean/c", "fits", "zarr.json", "index", "passes", ".json", ".parquet"]
    )
    names = [name for name in sorted(scene.expected) if kind.rstrip("*") in name]
    name = rng.choice(names)
    harmed = harm(scene.expected[name])
    (store / name).unlink() if harmed is None else (store / name).write_bytes(harmed)
    code, output = scene.command("verify", store)
    if code != 1 or name not in output:
        raise RuntimeError(f"{name} is damaged, and featreg verify ends with {code}: {output}")
    for command in (("repair", store), ("worker", store), ("verify", store)):
        code, output = scene.command(*command)
        if code:
            raise RuntimeError(f"{name}: featreg {command[0]} ends with {code}: {output}")
    return scene.judge(store)


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _killed(scene: Scene, call: Callable[[], object]) -> None:
    """A run that may die on its way; where its time to die did not come, it completes the store."""
    code, output = run(call, scene.log)
    if code > 0:
        raise RuntimeError(f"exit code {code}: {output}")


class _Mounted:
    """A small file system in memory; raises Skipped where this machine may not mount one."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size

    def __enter__(self) -> Path:
        self._folder.mkdir(exist_ok=True)
        _mount(f"size={self._size}", self._folder, "-t", "tmpfs", "tmpfs")
        return self._folder

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self._folder)], check=True)


def _mount(options: str, folder: Path, *more: str) -> None:
    found = subprocess.run(["mount", "-o", options, *more, str(folder)], capture_output=True, text=True, check=False)
    if found.returncode:
        raise Skipped(found.stderr.strip() or "mount is not permitted")


SCENARIOS: dict[str, tuple[Scenario, int]] = {
    "SIGKILL, one worker, mid-shard": (kill_at("shard"), 40),
    "SIGKILL, one worker, mid-receipt": (kill_at("receipt"), 40),
    "SIGKILL, one worker, as shards move to their places": (kill_at("place"), 30),
    "SIGKILL, one worker, mid-finalize": (kill_at("finalize"), 30),
    "SIGKILL, one worker, any file operation": (kill_at("any"), 30),
    "SIGKILL, one worker, random moments": (kill_any_time, 20),
    "SIGKILL, three workers at once": (kill_three, 40),
    "three workers at once, none killed": (three_at_once, 10),
    "disk full in the middle": (disk_full, 10),
    "disk too small from the beginning": (disk_too_small, 1),
    "read-only store": (read_only, 5),
    "permission denied": (no_permission, 5),
    "clock set back": (clock_set_back, 10),
    "a flipped bit in a file": (flipped_bit, 40),
    "a truncated file": (truncated, 20),
    "a deleted file": (deleted, 15),
}
"""Each fault, and how many runs of it there are."""
