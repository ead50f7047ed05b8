"""The commands that work on a store that is there: ``worker``, ``status``, ``verify`` and ``repair``."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import click

from featreg.cli.catalogue import json_option
from featreg.cli.options import parse_part
from featreg.cli.tables import format_fields, format_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featreg.stores.check import Finding
    from featreg.stores.layout import Manifest
    from featreg.stores.progress import Progress, Worker

__all__ = ["repair", "status", "verify", "worker"]

SHOWN = 20

SILENT = 60.0
"""Seconds after which a worker that says nothing is not counted on."""


@click.command()
@click.argument("store")
@click.option("--part", metavar="I/N", help="Begin with part I of N, counted from 0; without it, anywhere.")
@click.option("--source", help="The samples, where they cannot be opened from the store's own record.")
@click.option("--device", help="Where the model runs here, of the kind that the store was begun on: cuda:1 for cuda:0.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Samples at a time.  [default: as STORE was begun]")
@click.option("--num-workers", type=click.IntRange(min=1), help="Threads that read and decode.")
def worker(store: str, part: str | None, source: str | None, device: str | None, **fields: Any) -> None:
    """Help to complete STORE with its own model and source.

    Nothing but the store is needed: it knows both.

    Start as many as you like, wherever the store and the source can be reached; the last one finishes the store.
    """
    from featreg.engine import work

    found = work(store, source=source, device=device, part=parse_part(part), progress=True, **fields)
    summary = found.summary
    click.echo(f"rows: {summary.rows}, failed: {summary.failed}, finished: {found.uri}")


@click.command()
@click.argument("store")
@json_option
def status(store: str, as_json: bool) -> None:
    """Show how far STORE is and who works on it.

    These are rows done, failed and left, and the workers that say that they are at work.
    """
    from featreg.stores.places.opening import place_at
    from featreg.stores.progress import progress, seen
    from featreg.stores.receipts import read_manifest

    place = place_at(store)
    manifest = read_manifest(place)
    found, busy = progress(place, manifest), seen(place)
    if as_json:
        plain = {**attrs.asdict(found), "left": found.left, "workers": [attrs.asdict(one) for one in busy]}
        click.echo(json.dumps({"store": place.uri, **plain}, indent=2))
    else:
        click.echo(_status(place.uri, manifest, found, busy))


def _status(uri: str, manifest: Manifest, found: Progress, busy: Sequence[Worker]) -> str:
    rate = sum(one.rate for one in busy if abs(time.time() - one.updated) < SILENT)
    fields = {
        "store": uri,
        "model": manifest.request.model,
        "layers": ", ".join(str(layer.key) for layer in manifest.layers),
        "state": "finished" if found.finished else "unfinished",
        "rows": f"{found.done} of {found.rows} done, {found.failed} failed, {found.left} left",
    }
    if len(manifest.passes) > 1:
        fields["passes"] = f"{len(manifest.passes)}; a row counts once for each"
    if found.damaged:
        fields["damaged"] = f"{found.damaged} receipts; see featreg verify"
    if rate and found.left:
        fields["rate"] = f"{rate:.1f} rows/s, {found.left / rate:,.0f} s to go"
    lines = [format_fields(fields)]
    if busy:
        cells = [(one.host, one.pid, one.part, one.rows, one.failed, f"{one.rate:.1f}", _ago(one)) for one in busy]
        lines += ["", format_table(("host", "process", "part", "rows", "failed", "rows/s", "last heard of"), cells)]
    return "\n".join(lines)


def _ago(one: Worker) -> str:
    return f"{max(time.time() - one.updated, 0):.0f} s ago"


@click.command()
@click.argument("store")
@json_option
@click.pass_context
def verify(ctx: click.Context, store: str, as_json: bool) -> None:
    """Check every checksum, every receipt and every row of STORE.

    The exit code is 0 for a finished store that is whole, 1 where anything is damaged, cannot be read or is left to do.
    Stray files change nothing and are named.
    """
    from featreg.stores.check import examine
    from featreg.stores.places.opening import place_at

    place = place_at(store)
    findings = list(examine(place))
    kinds = Counter(finding.kind for finding in findings)
    if as_json:
        plain = [{"kind": finding.kind, "name": finding.name, "problem": finding.problem} for finding in findings]
        click.echo(json.dumps({"store": place.uri, "whole": not findings, "findings": plain}, indent=2))
    else:
        click.echo(_findings(findings, kinds))
    ctx.exit(int(bool(kinds["damaged"] or kinds["unreadable"] or kinds["pending"])))


def _findings(findings: Sequence[Finding], kinds: Counter[Any]) -> str:
    """Every damage and every stray file, but of what is left to do a few lines."""
    if not findings:
        return "the store is finished and whole"
    told = [finding for finding in findings if finding.kind != "pending"]
    told += [finding for finding in findings if finding.kind == "pending"][:SHOWN]
    rows = [(finding.kind, repr(finding.name), finding.problem) for finding in told]
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    remedy = "try: featreg repair STORE, then featreg worker STORE" if kinds["damaged"] else ""
    remedy = remedy or ("try: featreg worker STORE" if kinds["pending"] else "")
    return "\n".join([format_table(("kind", "file", "what"), rows), "", counts, *([remedy] if remedy else [])])


@click.command()
@click.argument("store")
@click.option("--retry-failed", is_flag=True, help="Plan the tasks with failed rows again, too.")
@click.option("--source", help="The samples, where the index is damaged and the store cannot open its source.")
@click.option("--force", is_flag=True, help="Although workers seem to be at work.")
def repair(store: str, retry_failed: bool, source: str | None, force: bool) -> None:
    """Mend STORE, and plan what is damaged or failed again.

    What can be made anew is; the next run does the rest.
    No run may work on the store meanwhile.
    """
    from featreg.engine import repair as mend

    done = mend(store, retry_failed=retry_failed, source=source, force=force)
    for name in done.restored:
        click.echo(f"made anew: {name!r}")
    for name in done.removed:
        click.echo(f"deleted: {name!r}")
    if done.replanned:
        click.echo(f"{done.rows} rows in {len(done.replanned)} tasks are planned again: featreg worker {store}")
    elif not done.restored and not done.removed:
        click.echo("nothing to mend")
