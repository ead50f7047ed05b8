"""Numbers as text: a line for each row, with the digits that give the same number back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from featreg.export.content import Content

__all__ = ["write_csv", "write_txt"]

_DIGITS = {"float16": "%.5g", "float32": "%.9g", "float64": "%.17g", "int64": "%d"}


def write_csv(folder: Path, content: Content) -> dict[str, str]:
    """One file for each array, its columns named f0, f1, and so on."""
    return _write(folder, content, "csv", ",")


def write_txt(folder: Path, content: Content) -> dict[str, str]:
    """One file for each array, as ``numpy.savetxt`` writes it: spaces between the numbers, and no header."""
    return _write(folder, content, "txt", " ")


def _write(folder: Path, content: Content, suffix: str, delimiter: str) -> dict[str, str]:
    files = {entry.name: f"{entry.name}.{suffix}" for entry in content.entries}
    for entry in content.entries:
        columns = math.prod(entry.shape[1:])
        with open(folder / files[entry.name], "x", encoding="ascii", newline="\n") as file:
            if suffix == "csv":
                file.write(",".join(f"f{column}" for column in range(columns)) + "\n")
            for block in entry.blocks():
                np.savetxt(file, block.reshape(len(block), columns), _DIGITS[str(entry.dtype)], delimiter)
    return files
