"""What a store costs on an object store: requests and bytes for each task, counted on a file system that counts.

The file system is fsspec's in memory, which has the methods of any other; what a driver makes of a method is its own
affair (``mv`` is a copy and a deletion on S3, ``info`` is a HEAD). ``python benchmarks/store_requests.py``.
"""

from __future__ import annotations

import functools
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem

import featreg

TASK_ROWS = 256
TASKS = (4, 12)
LAYERS = (["pooled"], ["C4", "pooled"])
COUNTED = ("cat_file", "pipe_file", "info", "ls", "find", "cp_file", "rm_file", "open")

counts: Counter[str] = Counter()
moved: Counter[str] = Counter()


class CountingFileSystem(MemoryFileSystem):
    """Counts the calls of its methods that come from outside of it, and the bytes that go in and out."""

    protocol = "counting"


inside = threading.local()


def _counted(name: str) -> Any:
    original = getattr(MemoryFileSystem, name)

    @functools.wraps(original)
    def method(self: CountingFileSystem, *arguments: Any, **options: Any) -> Any:
        depth = getattr(inside, "depth", 0)  # of this thread: another one commits meanwhile
        counts[name] += depth == 0
        inside.depth = depth + 1
        try:
            result = original(self, *arguments, **options)
        finally:
            inside.depth = depth
        if name == "cat_file":
            moved["read"] += len(result)
        elif name == "pipe_file":
            moved["written"] += len(arguments[1])
        return result

    return method


for _name in COUNTED:
    setattr(CountingFileSystem, _name, _counted(_name))
fsspec.register_implementation("counting", CountingFileSystem, clobber=True)


def run(images: np.ndarray[Any, Any], layers: list[str], folder: Path) -> tuple[Counter[str], Counter[str]]:
    """The requests and the bytes of one run by one worker, from the plan to the end."""
    path = folder / "images.npy"
    np.save(path, images)
    counts.clear()
    moved.clear()
    featreg.extract(path, f"counting://{len(images)}-{len(layers)}", "numpy:tinynet", layers, num_workers=1)
    return counts.copy(), moved.copy()


def main() -> None:
    """Print a table: by task, the difference between a long and a short run, and what a run costs besides."""
    names = [*COUNTED, "bytes written", "bytes read"]
    print(f"| layers | | {' | '.join(names)} |\n|{' --- |' * (len(names) + 2)}")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            found = []
            for tasks in TASKS:
                images = rng.integers(0, 256, (tasks * TASK_ROWS, 64, 64, 3), np.uint8)
                requests, size = run(images, layers, Path(folder))
                found.append([*(requests[name] for name in COUNTED), size["written"], size["read"]])
            short, long = (np.array(row) for row in found)
            each = (long - short) / (TASKS[1] - TASKS[0])
            label = ", ".join(layers)
            print(f"| {label} | each task | {' | '.join(f'{value:,.1f}' for value in each)} |")
            print(f"| {label} | besides | {' | '.join(f'{value:,.0f}' for value in short - TASKS[0] * each)} |")


if __name__ == "__main__":
    main()
