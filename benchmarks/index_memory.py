"""What an index takes in memory: the peak of a process that reads lists of 500,000 and of 5,000,000 rows.

An index streams, so that both take the same. Linux only. ``python benchmarks/index_memory.py [rows ...]``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = (500_000, 5_000_000)
BLOCK = 100_000


def write_parquet(path: Path, rows: int) -> None:
    """A list of URIs of some 60 letters, with targets and sizes."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("uri", pa.string()), ("target", pa.string()), ("size", pa.int64())])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, BLOCK):
            block = range(start, min(start + BLOCK, rows))
            uris = [f"s3://bucket/some/folder/of/photographs/{row // 1000:06d}/{row:012d}.jpg" for row in block]
            targets = [f"class {row % 1000}" for row in block]
            writer.write_table(pa.table([uris, targets, list(block)], schema=schema))


def write_csv(path: Path, rows: int) -> None:
    """The same as text."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("uri,target,size\n")
        for row in range(rows):
            uri = f"s3://bucket/some/folder/of/photographs/{row // 1000:06d}/{row:012d}.jpg"
            file.write(f"{uri},class {row % 1000},{row}\n")


def read(path: str) -> None:
    """Read an index to its end; print the rows, the peak of resident memory in MiB, and the seconds."""
    from featreg.sources import open_source

    started, count = time.perf_counter(), 0
    source = open_source(path, kind="list", target="target", size="size")
    for _ in source.index():
        count += 1
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent took as well
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(f"{count:,} | {peak:,.0f} | {time.perf_counter() - started:.1f}")


def main() -> None:
    """Print a table; every index is read in a process of its own."""
    counts = [int(text) for text in sys.argv[1:]] or list(ROWS)
    print("| list | rows | peak MiB | seconds |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("parquet", write_parquet), ("csv", write_csv)):
            for rows in counts:
                path = Path(folder) / f"list.{name}"
                write(path, rows)
                found = subprocess.run(
                    [sys.executable, __file__, "--read", str(path)], check=True, capture_output=True, text=True
                )
                print(f"| {name} | {found.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read(sys.argv[2])
    else:
        main()
