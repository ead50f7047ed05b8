"""``featreg conform --across``: the backends against each other, told as it goes."""

from __future__ import annotations

import json

import click

from featreg.cli.tables import format_table
from featreg.conformance.agreement.comparing import across
from featreg.conformance.agreement.matrix import Matrix, Row
from featreg.conformance.agreement.reports import matrix_dict, matrix_page, matrix_rows, problems_of, row_notes

__all__ = ["compare_backends", "matrix_json", "matrix_page"]


def compare_backends(architecture: str | None, seed: int) -> Matrix:
    """Run the comparison; what is not as it should be is told at once, the matrix at the end."""
    matrix = across(architecture, seed=seed, progress=_show)
    headers, rows = matrix_rows(matrix)
    click.echo(format_table(headers, rows))
    click.echo(_summary(matrix))
    return matrix


def matrix_json(matrix: Matrix) -> str:
    """A matrix as the text of a JSON file."""
    return json.dumps(matrix_dict(matrix), indent=2) + "\n"


def _show(row: Row) -> None:
    for text in (*(f"RED  {problem}" for problem in problems_of(row)), *row_notes(row)):
        click.echo(f"{row.way.architecture}, {row.way.label}: {text}")


def _summary(matrix: Matrix) -> str:
    cells = [cell for row in matrix.rows for cell in row.cells]
    counts = {verdict: sum(cell.verdict == verdict for cell in cells) for verdict in ("equal", "deviates", "differs")}
    held = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    lines = [*matrix.faults, f"{len(matrix.rows)} rows, levels held against the first backend's: {held or 'none'}"]
    return "\n".join([*lines, matrix.headline])
