"""``python -m faults``: run the faults and print the table."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import click

from faults.processes import Child
from faults.scenarios import SCENARIOS, Skipped
from faults.scene import Scene, Verdict
from featreg.cli.tables import format_table

__all__ = ["main"]

HEADERS = ("fault", "runs", "processes killed", "lost rows", "duplicated rows", "files that differ")


@click.command()
@click.option("--seed", default=0, show_default=True, help="Of the moments, the files and the bits.")
@click.option("--slice", "sliced", is_flag=True, help="One run of each fault.")
@click.option("--only", multiple=True, metavar="TEXT", help="The faults with this in their names; repeatable.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table to this Markdown file.")
def main(seed: int, sliced: bool, only: tuple[str, ...], page: Path | None) -> None:
    """Do harm to runs and stores, mend them, and compare each store byte for byte with an undisturbed one.

    The exit code is 1 where a row was lost or duplicated, or a file differs.
    """
    rows, clean = [], True
    for name in (name for name in SCENARIOS if not only or any(text in name for text in only)):
        row, fine = _play(name, seed, sliced)
        rows.append(row)
        clean &= fine
    click.echo(format_table(HEADERS, rows))
    if page is not None:
        page.write_text(_markdown(rows, seed))
    sys.exit(not clean)


def _play(name: str, seed: int, sliced: bool) -> tuple[list[object], bool]:
    scenario, count = SCENARIOS[name]
    verdicts, killed = [], Child.killed
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder) / "scene")
        for run in range(1 if sliced else count):
            rng = random.Random(f"{seed} {name} {run}")
            try:
                verdict = scenario(scene, rng)
            except Skipped as reason:
                click.echo(f"{name}: not run, {reason}", err=True)
                return [name, "not run here", "-", "-", "-", "-"], True
            except RuntimeError as error:
                click.echo(f"{name}, run {run}: {error}", err=True)
                verdict = Verdict(0, 0, 1)
            if not verdict.is_clean:
                click.echo(f"{name}, run {run}: {verdict}", err=True)
            verdicts.append(verdict)
    sums = [sum(getattr(verdict, field) for verdict in verdicts) for field in ("lost", "duplicated", "torn")]
    click.echo(f"{name}: {len(verdicts)} runs", err=True)
    return [name, len(verdicts), Child.killed - killed, *sums], not any(sums)


def _markdown(rows: list[list[object]], seed: int) -> str:
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in [HEADERS, ["---"] * len(HEADERS), *rows])
    return f"""# Faults

What `nox -s faults` did to runs and stores (seed {seed}), how it was mended, and what was left of it. A run of 24
images, three of them bad, in tasks of four rows is killed, starved or damaged; then the same command is run again, or
`featreg repair` and `featreg worker`. The store is then compared byte for byte with that of an undisturbed run.

{table}

A kill is a SIGKILL before, in the middle of or after one file operation, or at a random moment. A damage must also be
named by `featreg verify`, with the file, before it is mended. The interleavings of workers that crash between any two
file operations are searched by `tests/test_store_protocol.py`.
"""
