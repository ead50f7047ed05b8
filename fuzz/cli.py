"""``python -m fuzz``: throw damaged images at the decoder and print what came of them."""

from __future__ import annotations

import itertools
import resource
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click

from fuzz.bombs import bombs
from fuzz.judge import FAILURES, Verdict, judge
from fuzz.mutations import make_case

__all__ = ["main", "table"]

OUTCOMES = ("pixels", "error", *FAILURES)


@click.command()
@click.option("--count", default=2500, show_default=True, help="Mutated images; bombs come on top.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other damage.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds after which an image hangs.")
@click.option("--case", "number", type=int, help="Write the image of this number to --out, and do nothing else.")
@click.option("--out", type=click.Path(path_type=Path), help="A folder for the images that failed.")
def main(count: int, seed: int, timeout: float, number: int | None, out: Path | None) -> None:
    """Judge mutated images and decompression bombs; exit with 1 where one became neither pixels nor a typed error."""
    out = out or Path()
    if number is not None:
        _save(out, Verdict(make_case(number, seed), "asked", ""))
        return
    cases = itertools.chain((make_case(place, seed) for place in range(count)), bombs())
    verdicts = []
    for verdict in judge(cases, timeout=timeout):
        verdicts.append(verdict)
        if verdict.outcome in FAILURES:
            click.echo(f"{verdict.outcome}: {verdict.case!r}: {verdict.said}", err=True)
            _save(out, verdict)
    click.echo(table(verdicts))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    click.echo(f"\nThe process that decoded took at most {peak:.2f} GiB.")
    raise SystemExit(any(verdict.outcome in FAILURES for verdict in verdicts))


def table(verdicts: Iterable[Verdict]) -> str:
    """What came of every format, as Markdown."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for verdict in verdicts:
        group = (verdict.case.kind, "bombs" if verdict.case.mutation == "bomb" else "mutated")
        counts.setdefault(group, Counter())[verdict.outcome] += 1
    rows = [["format", "", "images", *OUTCOMES], ["---"] * (3 + len(OUTCOMES))]
    for (kind, what), found in sorted(counts.items(), key=lambda item: (item[0][1] == "bombs", item[0])):
        rows.append([kind, what, str(found.total()), *(str(found[outcome]) for outcome in OUTCOMES)])
    total = sum(counts.values(), Counter())
    rows.append(["all", "", str(total.total()), *(str(total[outcome]) for outcome in OUTCOMES)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _save(folder: Path, verdict: Verdict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    case = verdict.case
    name = f"{case.kind}-{case.mutation.replace(' ', '-')}-{case.number}.{case.kind.lower()}"
    (folder / name).write_bytes(case.data)
