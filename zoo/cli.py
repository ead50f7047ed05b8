"""The command ``python -m zoo``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from zoo.ledger import Ledger, versions
from zoo.oracles import ORACLES
from zoo.page import write
from zoo.pool import Limits
from zoo.refusals import refusals
from zoo.selection import Selection, select
from zoo.sweep import Sweep, catalogue, sweep, totals
from zoo.verdict import complaints, missing

__all__ = ["main"]

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # a worker per core
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # else MindSpore's convolutions run on a reference kernel on AVX-512 machines
    "GLOG_v": "3",
}
_DOCS = Path(__file__).parent.parent / "docs"


@click.command()
@click.option(
    "--backend", "backends", multiple=True, type=click.Choice(sorted(ORACLES)), help="Of these backends only."
)
@click.option("--model", "patterns", multiple=True, metavar="GLOB", help="Models, as in 'resnet*' or 'timm:vit_*'.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="N models drawn by the seed.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of --sample, --slice and the values compared.")
@click.option("--slice", "sliced", is_flag=True, help="What CI judges: a few dozen models, nothing kept.")
@click.option("--fresh", is_flag=True, help="Forget earlier sweeps.")
@click.option("--limit-minutes", type=float, metavar="M", help="Start no model after M minutes.")
@click.option("--timeout", type=float, default=300.0, show_default=True, help="CPU seconds for one model.")
@click.option("--memory", type=float, default=5.5, show_default=True, help="GiB for one worker.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@click.option("--ledger", type=click.Path(path_type=Path), default=Path("build/zoo.jsonl"), show_default=True)
@click.option("--docs", type=click.Path(path_type=Path), default=_DOCS, help="Where a whole sweep is written.")
def main(
    *,
    backends: tuple[str, ...],
    patterns: tuple[str, ...],
    sample: int | None,
    seed: int,
    sliced: bool,
    fresh: bool,
    limit_minutes: float | None,
    timeout: float,
    memory: float,
    workers: int,
    ledger: Path,
    docs: Path,
) -> None:
    """Hold what featreg says of every model against the library's own forward pass.

    Ends with 0 where all are exact, or refused by the list and within its quota. A whole sweep writes docs/zoo.md and
    docs/zoo.json; one of some models only prints what is amiss.
    """
    os.environ.update(_ENVIRONMENT)  # before any worker starts
    selection = Selection(patterns, sample, sliced, seed)
    names = sorted(set(backends)) or sorted(ORACLES)
    try:
        listings = catalogue(names)
    except LookupError as error:
        raise click.ClickException(str(error)) from error
    models = {name: listing.models for name, listing in listings.items()}
    tasks = select(models, selection)
    if not tasks:
        raise click.UsageError("no model is meant by these options")
    kept = None if sliced else Ledger(ledger, fresh=fresh)
    done = sweep(tasks, kept, Limits(workers, timeout, memory), minutes=limit_minutes)
    if selection.whole and not backends and not done.left:
        write(docs, done.records, models, {name: versions(name) for name in names})
    library = {name: listing.library for name, listing in listings.items()}
    found = [*missing(models, library), *complaints(done.records, models, {name: refusals(name) for name in names})]
    for line in found:
        click.echo(line)
    click.echo(_summary(done), err=True)
    sys.exit(1 if found or done.left else 0)


def _summary(done: Sweep) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in totals(done.records).items())
    seconds = sum(record.seconds for record in done.records)
    left = f", {done.left} not reached" if done.left else ""
    return f"{counts}{left}; {seconds / 60:.1f} CPU minutes, {done.peak / 2**30:.1f} GiB at most in one worker"
