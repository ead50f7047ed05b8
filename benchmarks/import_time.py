"""How long featreg keeps you waiting: medians over interleaved runs, each in a fresh interpreter.

python benchmarks/import_time.py [RUNS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from featreg.cli.tables import format_table

BASELINE = "import numpy"
PROGRAMS = {
    "python with NumPy": BASELINE,
    "+ import featreg": f"{BASELINE}; import featreg",
    "+ featreg.list_backends()": f"{BASELINE}; import featreg; featreg.list_backends()",
    "+ featreg.create_extractor": f"{BASELINE}; import featreg; featreg.create_extractor",
    "featreg --help": "import sys; sys.argv[1:] = ['--help']; from featreg.cli.main import main; main()",
    "featreg backends": "import sys; sys.argv[1:] = ['backends']; from featreg.cli.main import main; main()",
}
AIMS_MS = {"+ import featreg": "60 over NumPy", "featreg backends": "300"}


def milliseconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - start)


def main(runs: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(runs):
        for name, code in PROGRAMS.items():
            times[name].append(milliseconds(code))
    medians = {name: statistics.median(found) for name, found in times.items()}
    base = medians["python with NumPy"]
    rows = [
        (name, f"{median:.0f}", f"{median - base:.0f}", f"{min(times[name]):.0f}", AIMS_MS.get(name))
        for name, median in medians.items()
    ]
    print(f"milliseconds, {runs} runs each, interleaved")
    print(format_table(("program", "median", "over NumPy", "least", "aim"), rows))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
