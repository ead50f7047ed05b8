"""``docs/faults.md``: a section for each set of faults, written apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["write_section"]

HEAD = """# Faults

What `nox -s faults` and `nox -s faults_ray` did to runs and stores, how it was mended, and what was left of it. A run
of 24 images, three of them bad, in tasks of four rows is killed, starved or damaged. Once the store is complete, it is
compared byte for byte with that of an undisturbed run.

"""

SECTIONS = {
    "local": (
        "Runs and stores",
        """After the harm the same command is run again, or `featreg repair` and `featreg worker`.

A kill is a SIGKILL before, in the middle of or after one file operation, or at a random moment. A damage must also be
named by `featreg verify`, with the file, before it is mended. What adds to a store begins with a finished one of 22
images, and ends with four images or a layer more; a worker stalls by SIGSTOP. The interleavings of workers that crash
between any two file operations are searched by `tests/test_store_protocol.py`.
""",
    ),
    "ray": (
        "A Ray cluster",
        """The run itself completes the store, with the workers that are left or new ones. Two kinds of runs end before:
those that lose all GPUs, by the watchdog, with an error that names what hangs, and those whose first process dies. The
local engine completes their stores, or a new run on Ray. Workers are killed before, in the middle of or after a file
operation, processes that decode as they read a task, a node once so many tasks are done. Each run has a cluster of its
own on one machine, with two workers; nodes are the raylets of `ray.cluster_utils.Cluster`.
""",
    ),
}
"""The title and the text of each section."""


def write_section(page: Path, name: str, rows: Sequence[Sequence[object]], seed: int) -> None:
    """Write the table of one section, the headers first, and leave the other one as it is."""
    title, text = SECTIONS[name]
    lines = [" | ".join(map(str, row)) for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    table = "\n".join(f"| {line} |" for line in lines)
    written = {name: f"## {title}\n\nSeed {seed}.\n\n{table}\n\n{text}"}
    there = page.read_text() if page.exists() else ""
    for other, (heading, _) in SECTIONS.items():
        found = re.search(rf"(?ms)^## {re.escape(heading)}\n.*?(?=^## |\Z)", there)
        if other not in written and found:
            written[other] = found[0].rstrip() + "\n"
    page.write_text(HEAD + "\n".join(written[other] for other in SECTIONS if other in written))
