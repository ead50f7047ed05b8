"""``python -m faults``: run the faults and print the table."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import click

from faults.additions import ADDITIONS
from faults.page import write_section
from faults.processes import Child
from faults.ray_scenarios import RAY_SCENARIOS
from faults.scenarios import SCENARIOS, Scenario, Skipped
from faults.scene import Scene, Verdict
from featreg.cli.tables import format_table

__all__ = ["main"]

HEADERS = ("fault", "runs", "processes killed", "lost rows", "duplicated rows", "files that differ")


@click.command()
@click.option("--seed", default=0, show_default=True, help="Of the moments, the files and the bits.")
@click.option("--slice", "sliced", is_flag=True, help="One run of each fault.")
@click.option("--only", multiple=True, metavar="TEXT", help="The faults with this in their names; repeatable.")
@click.option("--ray", is_flag=True, help="The faults of a Ray cluster, in place of those of other runs and stores.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table to its section of this Markdown file.")
def main(seed: int, sliced: bool, only: tuple[str, ...], ray: bool, page: Path | None) -> None:
    """Do harm to runs and stores, mend them, and compare each store byte for byte with an undisturbed one.

    The exit code is 1 where a row was lost or duplicated, or a file differs.
    """
    rows, clean = [], True
    for name, (scenario, count) in (RAY_SCENARIOS if ray else {**SCENARIOS, **ADDITIONS}).items():
        if only and not any(text in name for text in only):
            continue
        row, fine = _play(name, scenario, 1 if sliced else count, seed)
        rows.append(row)
        clean &= fine
        if page is not None:  # as it goes on: all of it takes long
            write_section(page, "ray" if ray else "local", [HEADERS, *rows], seed)
    click.echo(format_table(HEADERS, rows))
    sys.exit(not clean)


def _play(name: str, scenario: Scenario, count: int, seed: int) -> tuple[list[object], bool]:
    verdicts, killed = [], Child.killed
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder) / "scene")
        for run in range(count):
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
