"""Faults of runs that add rows or layers to a finished store, alone or while others are at work."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

import featreg
import featreg.engine
from faults.kills import die_at, stall_at
from faults.processes import Child, run
from faults.scene import Scene, Verdict, compare, content
from featreg.stores.layout import FINISHED, SAMPLES

__all__ = ["ADDITIONS"]

Add: TypeAlias = Callable[[Path], object]

IMAGES, MORE, BAD = 22, 4, (5, 6, 20)
"""The last task of the first images ends in the middle of a shard, and one of its rows fails."""


class Growth:
    """A store, the images that it does not know yet, and what it holds once they, or a layer, were added."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        folder = scene.folder / "growing"
        self.images, self.store = folder / "images", folder / "store"
        if not self.images.exists():
            self._make(0, IMAGES)
            scene.must(lambda: featreg.extract(self.images, self.store, "numpy:tinynet", ["C4"], batch_size=2))
            self._make(IMAGES, IMAGES + MORE)

    def _make(self, start: int, stop: int) -> None:
        self.images.mkdir(parents=True, exist_ok=True)
        for number in range(start, stop):
            path = self.images / f"{stop - number}-{number}.png"  # the new ones lie between the others
            if number in BAD:
                path.write_bytes(b"no image")
            else:
                pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
                Image.fromarray(pixels).save(path)

    def expected(self, add: Add) -> dict[str, bytes]:
        """What a store holds that was added to undisturbed."""
        store = self.copy()
        self.scene.must(lambda: add(store))
        return content(store)

    def copy(self) -> Path:
        """The store before anything was added."""
        return Path(shutil.copytree(self.store, self.scene.fresh()))


def append(store: Path) -> object:
    """What a user runs for new rows."""
    return featreg.engine.append(store, num_workers=2)


def add_layer(store: Path) -> object:
    """What a user runs for one more layer."""
    return featreg.engine.add_layers(store, "C2", num_workers=2)


def killed(add: Add, scene: Scene, rng: random.Random) -> Verdict:
    """It dies at a file operation, up to three times; the same command goes on."""
    growth = Growth(scene)
    expected, store = growth.expected(add), growth.copy()
    for _ in range(rng.randint(1, 3)):
        code, output = run(functools.partial(_disturbed, add, store, rng.random()), scene.log)
        if code > 0:
            raise RuntimeError(f"exit code {code}: {output}")
    scene.must(lambda: add(store))
    return compare(content(store), expected)


def two_at_once(add: Add, scene: Scene, rng: random.Random) -> Verdict:
    """Two do the same at once, one of which dies; what it leaves if it dies last, the next run tidies up."""
    growth = Growth(scene)
    expected, store = growth.expected(add), growth.copy()
    calls = [functools.partial(_disturbed, add, store, rng.random()), functools.partial(add, store)]
    children = [Child(call, scene.folder / f"log{number}.txt") for number, call in enumerate(calls)]
    for child in children:
        code = child.wait()
        if code is not None and code > 0:
            raise RuntimeError(f"exit code {code}: {child.output}")
    scene.must(lambda: add(store))
    return compare(content(store), expected)


def _disturbed(add: Add, store: Path, seed: float) -> object:
    rng = random.Random(seed)
    die_at("any", rng.randrange(30), rng.choice([0.0, 0.5, 1.0]))
    return add(store)


def late_worker(scene: Scene, rng: random.Random) -> Verdict:
    """A worker stalls with new rows, while what failed before them in the same shard is planned and done again."""
    growth = Growth(scene)
    expected, store = growth.expected(append), growth.copy()
    worker = Child(lambda: _stalled("receipt", 0, lambda: append(store)), scene.folder / "late.txt")
    if not worker.wait_stopped():
        raise RuntimeError(f"the worker did not come so far: {worker.output}")
    code, output = scene.command("repair", store)
    if code == 0 or "are at work" not in output:
        raise RuntimeError(f"featreg repair ends with {code} while a worker is at work: {output}")
    code, output = scene.command("repair", store, "--retry-failed", "--force")
    if code:
        raise RuntimeError(f"featreg repair --force ends with {code}: {output}")
    if rng.random() < 0.5:
        scene.must(lambda: append(store))
    worker.go_on()
    worker.wait()
    scene.must(lambda: append(store))
    return compare(content(store), expected)


def late_finalizer(scene: Scene, rng: random.Random) -> Verdict:
    """A worker stalls as it finishes a store, while rows and a layer are added to it."""
    growth = Growth(scene)
    add = rng.choice([append, add_layer])
    expected, store = growth.expected(add), growth.copy()
    for name in (FINISHED, SAMPLES):
        (store / name).unlink()
    number = rng.randrange(4)
    worker = Child(lambda: _stalled("finalize", number, lambda: featreg.engine.work(store)), scene.folder / "late.txt")
    stopped = worker.wait_stopped()
    scene.must(lambda: add(store))
    if stopped:
        worker.go_on()
    if worker.wait():
        raise RuntimeError(f"the late worker: {worker.output}")
    return compare(content(store), expected)


def _stalled(moment: str, number: int, call: Callable[[], object]) -> object:
    stall_at(moment, number)
    return call()


ADDITIONS: dict[str, tuple[Callable[[Scene, random.Random], Verdict], int]] = {
    "SIGKILL, new rows, any file operation": (functools.partial(killed, append), 30),
    "SIGKILL, a new layer, any file operation": (functools.partial(killed, add_layer), 20),
    "the same new rows twice at once, one killed": (functools.partial(two_at_once, append), 20),
    "the same new layer twice at once, one killed": (functools.partial(two_at_once, add_layer), 10),
    "a worker that stalls while the store is repaired": (late_worker, 10),
    "a worker that stalls as it finishes, while others add": (late_finalizer, 20),
}
"""Each fault, and how many runs of it there are."""
