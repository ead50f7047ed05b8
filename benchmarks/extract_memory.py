"""What extraction takes in memory: the peak of a process that extracts 1,000 and 20,000 images.

Samples, crops and features stream, so that both take the same. Linux only.
``python benchmarks/extract_memory.py [images ...]``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNTS = (1_000, 20_000)
LAYERS = ("C1", "C3", "pooled")
DISTINCT = 50


def make_images(folder: Path, count: int) -> None:
    """JPEGs of 256 to 512 pixels a side, in one folder: fifty different ones under ever new names."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < DISTINCT:
            height, width = generator.integers(256, 513, 2)
            small = generator.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
            Image.fromarray(small).resize((int(width), int(height))).save(path, quality=90)
        else:
            os.link(folder / f"{number % DISTINCT:06}.jpg", path)


def extract(images: str, store: str) -> None:
    """Extract a folder; print the rows, the peak of resident memory in MiB, and the seconds."""
    import featreg

    started = time.perf_counter()
    rows = len(featreg.extract(images, store, "numpy:tinynet", list(LAYERS)))
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent took as well
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(f"{rows:,} | {peak:,.1f} | {time.perf_counter() - started:.1f}")


def main() -> None:
    """Print a table; every extraction is a process of its own."""
    counts = [int(text) for text in sys.argv[1:]] or list(COUNTS)
    print("| images | peak MiB | seconds |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for number, count in enumerate(counts):
            images, store = Path(folder) / f"images-{number}", Path(folder) / f"store-{number}"
            make_images(images, count)
            found = subprocess.run(
                [sys.executable, __file__, "--extract", str(images), str(store)],
                check=True,
                capture_output=True,
                text=True,
            )
            print(f"| {found.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--extract"]:
        extract(*sys.argv[2:])
    else:
        main()
