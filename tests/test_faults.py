"""A seeded slice of the fault harness; ``nox -s faults`` runs all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CODE = f"import sys; sys.path.append({str(ROOT)!r}); from faults.cli import main; main()"
"""The harness is no part of the distribution; at the end of the path, so that wheels win."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    "fault", ["mid-receipt", "mid-finalize", "SIGKILL, three", "flipped", "permission", "new rows, any", "stalls while"]
)
def test_one_run_of_each_kind_of_fault_leaves_the_same_bytes(fault, tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", CODE, "--slice", "--only", fault],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    [row] = found.stdout.splitlines()[2:]
    assert row.split()[-3:] == ["0", "0", "0"]
