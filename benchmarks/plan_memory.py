"""What planning takes in memory: the peak of a process that plans a store of so many made-up samples.

The index streams into the store: what grows is the directory of its Parquet file. Linux only.
``python benchmarks/plan_memory.py [rows ...]``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featreg.sources import Sample

ROWS = (1_000_000, 10_000_000)


def samples(rows: int) -> Iterator[Sample]:
    """Samples with keys of some 40 letters and URIs of some 60, targets and sizes."""
    from featreg.sources import Sample

    for row in range(rows):
        key = f"photographs/{row // 1000:06d}/{row:012d}.jpg"
        yield Sample(key, f"s3://bucket/some/folder/of/{key}", row % 1000, row)


def plan(rows: int, path: Path) -> None:
    """Plan a store; print the rows, the peak of resident memory and the index on disk in MiB, and the seconds."""
    from featreg.spec import ExtractionRequest, FeatureInfo
    from featreg.stores.layout import LayerRecord, SourceRecord
    from featreg.stores.writer import Plan, StoreWriter

    started = time.perf_counter()
    layer = LayerRecord("pooled", "pooled", FeatureInfo("pool", 2048, None, "vector"), (2048,), "float32")
    source = SourceRecord("s3://bucket/some/folder", "folder", None, 0)
    made = Plan(ExtractionRequest("numpy:tinynet", ("pooled",)), {}, (layer,), source, 256)
    StoreWriter.create(path, made, samples(rows))
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent took as well
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    size = sum(file.stat().st_size for file in (path / "index").iterdir()) / 2**20
    print(f"{rows:,} | {peak:,.0f} | {size:,.0f} | {time.perf_counter() - started:.1f}")


def main() -> None:
    """Print a table; every store is planned in a process of its own."""
    print("| rows | peak MiB | index on disk, MiB | seconds |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for rows in [int(text) for text in sys.argv[1:]] or ROWS:
            command = [sys.executable, __file__, "--plan", str(rows), f"{folder}/{rows}"]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"| {found.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plan"]:
        plan(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
