"""A matrix written out: for the terminal, as JSON, and as one self-contained HTML page."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from featreg.conformance.agreement.matrix import Cell, Matrix, Row
from featreg.conformance.subject import ATOL, RTOL
from featreg.spec import Size

__all__ = ["cell_text", "matrix_dict", "matrix_page", "matrix_rows", "row_notes"]

WORDS = {
    "reference": "what the others are held against",
    "equal": f"within {RTOL:g} of each value and {ATOL:g} of the largest; = where bit for bit",
    "deviates": "differs as the backend declares, by no more than is recorded",
    "differs": "differs, and nothing is declared, or by more than is recorded",
    "alone": "no other backend installed has it",
}

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #212121; }
h1 { font-size: 1.5rem; } h1 span { padding: 0 .5rem; border-radius: .3rem; color: #fff; }
.green { background: #2e7d32; } .red { background: #c62828; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e0e0e0; text-align: left; vertical-align: top; }
thead th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #9e9e9e; }
tbody { border-bottom: 2px solid #9e9e9e; } th.level, td.cell { text-align: right; } td.cell { white-space: nowrap; }
.reference { background: #eceff1; } .equal { background: #e8f5e9; } .deviates { background: #fff3cd; }
.differs { background: #ffcdd2; font-weight: 600; } .alone { color: #757575; }
.note { color: #616161; font-size: .87rem; margin: 0; } .problem { color: #b71c1c; font-size: .87rem; margin: 0; }
.key span { padding: .1rem .5rem; margin-right: .3rem; border: 1px solid #e0e0e0; } .key li { margin: .2rem 0; }
.key ul { list-style: none; padding: 0; } code { font-size: .9em; }
summary { cursor: pointer; color: #455a64; font-size: .87rem; } td.shapes { font-size: .8rem; white-space: nowrap; }
"""


def cell_text(cell: Cell) -> str:
    """A cell in short: the largest relative difference, ``=`` for none at all, ``shape`` where shapes differ too."""
    if cell.verdict in ("reference", "alone"):
        return "ref" if cell.verdict == "reference" else "alone"
    if cell.problems and not cell.differences:
        return "wrong"
    worst = "" if cell.worst is None else _number(cell.worst)
    return f"shape {worst}".rstrip() if cell.has_other_shapes else worst


def row_notes(row: Row) -> list[str]:
    """What else there is to say of a row, without its problems."""
    notes = [f"declares: {sentence}" for sentence in row.deviations]
    if row.is_idle:
        notes.append("declares a deviation that does not show at any size")
    for reason, sizes in itertools.groupby(row.refused.items(), key=lambda item: item[1]):
        notes.append(f"does not take {', '.join(_size(size) for size, _ in sizes)}: {reason}")
    return notes


def problems_of(row: Row) -> list[str]:
    """Every reason for which a row is red."""
    return [*row.problems, *(f"{cell.level}: {problem}" for cell in row.cells for problem in cell.problems)]


def matrix_rows(matrix: Matrix) -> tuple[list[str], list[list[str]]]:
    """The headers and the rows of a plain table."""
    levels = _levels(matrix.rows)
    rows = []
    for row in matrix.rows:
        found = {cell.level: cell_text(cell) for cell in row.cells}
        state = "red" if row.is_red else "deviates" if any(cell.verdict == "deviates" for cell in row.cells) else "ok"
        rows.append([row.way.architecture, row.way.label, *(found.get(level, "-") for level in levels), state])
    return ["architecture", "backend", *levels, ""], rows


def matrix_dict(matrix: Matrix) -> dict[str, Any]:
    """A matrix as plain JSON values; sizes are written as ``"224x224"``."""
    return {
        "green": matrix.is_green,
        "headline": matrix.headline,
        "seed": matrix.seed,
        "sizes": [list(size) for size in matrix.sizes],
        "rtol": RTOL,
        "atol": ATOL,
        "backends": dict(matrix.backends),
        "faults": list(matrix.faults),
        "rows": [_row_dict(row) for row in matrix.rows],
    }


def _row_dict(row: Row) -> dict[str, Any]:
    return {
        "architecture": row.way.architecture,
        "backend": row.way.backend,
        "model": row.way.model,
        "options": dict(row.way.options),
        "red": row.is_red,
        "deviations": list(row.deviations),
        "idle": row.is_idle,
        "refused": _by_size(row.refused),
        "problems": list(row.problems),
        "cells": [
            {
                "level": cell.level,
                "verdict": cell.verdict,
                "shapes": {name: list(shape) for name, shape in _by_size(cell.shapes).items()},
                "differences": _by_size(cell.differences),
                "recorded": _by_size(row.way.deviates.get(cell.level, {})),
                "problems": list(cell.problems),
            }
            for cell in row.cells
        ],
    }


def matrix_page(matrix: Matrix) -> str:
    """A matrix as one page that needs no other file and no script."""
    levels = _levels(matrix.rows)
    title = "featreg: backends against each other"
    colour = "green" if matrix.is_green else "red"
    heads = "<th>architecture<th>backend" + "".join(f"<th class=level>{_escaped(name)}" for name in levels)
    groups = itertools.groupby(matrix.rows, key=lambda row: row.way.architecture)
    bodies = "\n".join(_group(name, list(rows), levels) for name, rows in groups)
    faults = "".join(f"<p class=problem>{_escaped(fault)}</p>" for fault in matrix.faults)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width'><title>{_escaped(title)}</title><style>{STYLE}</style>"
        f"<h1>{_escaped(title)}: <span class={colour}>{_escaped(matrix.headline)}</span></h1>"
        f"{_introduction(matrix)}{faults}"
        f"<table><thead><tr>{heads}</tr></thead>\n{bodies}\n</table></html>\n"
    )


def _introduction(matrix: Matrix) -> str:
    sizes = ", ".join(map(_size, matrix.sizes))
    owners = "".join(f"<li><code>{_escaped(name)}</code>: {_escaped(text)}" for name, text in matrix.backends.items())
    key = "".join(f"<li><span class={verdict}>{verdict}</span> {_escaped(text)}" for verdict, text in WORDS.items())
    return (
        f'<p>Every backend that has an architecture is given the same weights, <code>weights="synthetic:{matrix.seed}"'
        f"</code>, and the same images of {_escaped(sizes)} pixels. A number is the largest difference from the first "
        f"backend, as a part of the level's largest value, over all sizes.</p>"
        f"<div class=key><ul>{key}</ul></div><details><summary>versions</summary><ul>{owners}</ul></details>"
    )


def _group(name: str, rows: Sequence[Row], levels: Sequence[str]) -> str:
    lines = []
    for number, row in enumerate(rows):
        first = f"<th rowspan={len(rows)} scope=rowgroup>{_escaped(name)}" if not number else ""
        found = {cell.level: cell for cell in row.cells}
        cells = "".join(_cell(found.get(level)) for level in levels)
        lines.append(f"<tr>{first}<td>{_backend(row)}{cells}</tr>")
    return f"<tbody>{''.join(lines)}</tbody>"


def _backend(row: Row) -> str:
    notes = "".join(f"<p class=note>{_escaped(note)}</p>" for note in row_notes(row))
    problems = "".join(f"<p class=problem>{_escaped(problem)}</p>" for problem in problems_of(row))
    return f"{_escaped(row.way.label)} <code>{_escaped(row.way.model)}</code>{notes}{problems}{_details(row)}"


def _details(row: Row) -> str:
    """Shapes and differences by size, folded away."""
    sizes = list(dict.fromkeys(size for cell in row.cells for size in cell.shapes))
    if not sizes:
        return ""
    heads = "".join(f"<th>{_escaped(cell.level)}" for cell in row.cells)
    lines = (
        f"<tr><th>{_size(size)}{''.join(f'<td class=shapes>{_detail(cell, size)}' for cell in row.cells)}</tr>"
        for size in sizes
    )
    return f"<details><summary>by size</summary><table><tr><th>{heads}</tr>{''.join(lines)}</table></details>"


def _detail(cell: Cell, size: Size) -> str:
    if size not in cell.shapes:
        return ""
    shape = " x ".join(map(str, cell.shapes[size][1:]))
    if size not in cell.differences:
        return shape
    difference = cell.differences[size]
    return f"{shape}<br>{'other shape' if difference is None else _number(difference)}"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td class=cell>"
    worst = f"{cell.verdict}: {WORDS[cell.verdict]}"
    return f'<td class="cell {cell.verdict}" title="{_escaped(worst)}">{_escaped(cell_text(cell)).replace(" ", "<br>")}'


def _levels(rows: Iterable[Row]) -> list[str]:
    """Every level of any row, heads last."""
    found = dict.fromkeys(cell.level for row in rows for cell in row.cells)
    return sorted(found, key=lambda name: (not name.startswith("C"), name))


def _number(difference: float) -> str:
    return f"{difference:.2g}" if difference else "="


def _by_size(values: Mapping[Size, Any]) -> dict[str, Any]:
    return {_size(size): value for size, value in values.items()}


def _size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _escaped(text: str) -> str:
    return html.escape(text)
