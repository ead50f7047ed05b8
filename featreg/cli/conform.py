"""``featreg conform``: whether a backend keeps the specification."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import click
from click.core import ParameterSource

from featreg.cli.across import compare_backends, matrix_json, matrix_page
from featreg.cli.tables import format_table
from featreg.conformance.draws import choosing
from featreg.conformance.model import Check, Outcome, all_checks, find_check
from featreg.conformance.planning import Plan, make_plan
from featreg.conformance.reports import badge_svg, html_page, junit_xml, report_dict, verdict_dict, verdict_lines
from featreg.conformance.running import Report, run_plan
from featreg.conformance.trial import self_test
from featreg.errors import StoreError

__all__ = ["conform"]

WIDTH = 88

Command: TypeAlias = Callable[..., Any]


def _path_option(name: str, metavar: str, text: str) -> Callable[[Command], Command]:
    return click.option(name, f"{name[2:]}_path", metavar=metavar, type=click.Path(path_type=Path), help=text)


@click.command()
@click.argument("backend", required=False)
@click.option("--model", "models", default="*", metavar="GLOB", help="Only the cases of the models that match.")
@click.option("--check", "checks", multiple=True, metavar="ID", help="Only this check; may be given again.")
@click.option("--xfails", type=click.Path(path_type=Path), metavar="PATH", help="The TOML file of expected failures.")
@click.option("--list", "as_list", is_flag=True, help="List the checks and stop.")
@click.option("--explain", metavar="ID", help="Explain a check and stop.")
@_path_option("--json", "R.json", "Write the report as JSON.")
@_path_option("--junit", "R.xml", "Write the report as JUnit XML.")
@_path_option("--html", "R.html", "Write the report as one page.")
@_path_option("--badge", "B.svg", "Write a badge.")
@click.option("--self-test", "test_kit", is_flag=True, help="Break the backend on purpose: do the cases notice?")
@click.option("--across", is_flag=True, help="Hold the backends against each other instead, on the same weights.")
@click.option("--architecture", metavar="NAME", help="With --across: only this architecture.")
@click.option("--max-examples", type=click.IntRange(min=1), metavar="N", help="Draw so many sizes and batches a check.")
@click.option("--hypothesis-seed", type=int, metavar="N", help="Draw others than the usual ones, from this seed.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="With --across: the weights' seed.  [default: 0]")
@click.pass_context
def conform(  # noqa: PLR0917  (click passes them by name)
    ctx: click.Context,
    /,
    backend: str | None,
    models: str,
    checks: tuple[str, ...],
    xfails: Path | None,
    as_list: bool,
    explain: str | None,
    test_kit: bool,
    across: bool,
    architecture: str | None,
    max_examples: int | None,
    hypothesis_seed: int | None,
    seed: int | None,
    **paths: Path | None,
) -> None:
    """Hold a backend against the specification.

    Every check runs on every case of its plugin, or on cases drawn from its models where it gives none. The exit code
    is 1 where a check fails or the ledger does not add up.

    With --across no backend is named: every installed one that has an architecture of the tables is given the same
    weights, and the exit code is 1 where two of them differ and do not say so.
    """
    _hold_writable(*(path for path in paths.values() if path is not None))
    if across:
        ctx.exit(int(not _compare(ctx, architecture, seed or 0, paths)))
    if architecture is not None or seed is not None:
        raise click.UsageError("--architecture and --seed go with --across.")
    if as_list or explain is not None:
        click.echo(_listing() if explain is None else explain_check(find_check(explain)))
        return
    if backend is None:
        raise click.UsageError("Missing argument 'BACKEND'.")
    if test_kit and any(path is not None for name, path in paths.items() if name != "json_path"):
        raise click.UsageError("--self-test takes --json, not --html, --junit or --badge.")
    plan = make_plan(backend, xfails=xfails, models=models, checks=checks)
    with choosing(max_examples, hypothesis_seed):
        green = _try_mutants(plan, paths["json_path"]) if test_kit else _judge(plan, paths)
    ctx.exit(int(not green))


def _compare(ctx: click.Context, architecture: str | None, seed: int, paths: dict[str, Path | None]) -> bool:
    allowed = {"across", "architecture", "seed", "json_path", "html_path"}
    given = [
        name
        for name in ctx.params
        if name not in allowed and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if given:
        raise click.UsageError(f"--across takes --architecture, --seed, --json and --html, not {', '.join(given)}.")
    matrix = compare_backends(architecture, seed)
    writers = {"json_path": matrix_json, "html_path": matrix_page}
    _write({path: writer(matrix) for name, writer in writers.items() if (path := paths[name]) is not None})
    return matrix.is_green


def _listing() -> str:
    rows = [
        (check.id, check.level, check.since, ", ".join(check.needs), textwrap.shorten(check.page.asserts, WIDTH))
        for check in all_checks()
    ]
    return format_table(("check", "level", "since", "needs", "asserts"), rows)


def explain_check(check: Check) -> str:
    """The page of a check."""
    needs = f", needs {', '.join(check.needs)}" if check.needs else ""
    parts = {
        "asserts": check.page.asserts,
        "why": check.page.why,
        "caught": check.page.caught,
        "mend": check.page.mend,
    }
    body = "\n\n".join(
        textwrap.fill(text, WIDTH, initial_indent=f"{name}: ", subsequent_indent="  ") for name, text in parts.items()
    )
    return f"{check.id} ({check.level}, since specification {check.since}{needs})\n\n{body}"


def _judge(plan: Plan, paths: dict[str, Path | None]) -> bool:
    report = run_plan(plan, _show)
    writers = {"json_path": _json_text, "junit_path": junit_xml, "html_path": html_page, "badge_path": badge_svg}
    click.echo(_summary(report))
    _write({path: writer(report) for name, writer in writers.items() if (path := paths[name]) is not None})
    return report.is_green


def _show(outcome: Outcome) -> None:
    """Tell what is not as it should be at once; the rest is in the ledger."""
    if outcome.status != "passed":
        click.echo(f"{outcome.status.upper()}{' (preview)' if outcome.preview else ''}  {outcome.message}\n")


def _summary(report: Report) -> str:
    lines = [*report.faults, str(report.ledger)]
    if report.narrowed:
        lines.append("narrowed by --model or --check: no proof of the whole")
    lines.append(f"{report.backend} {'conforms' if report.is_green else 'does not conform'}")
    return "\n".join(lines)


def _try_mutants(plan: Plan, path: Path | None) -> bool:
    verdicts = self_test(plan)
    click.echo("\n".join(verdict_lines(verdicts)))
    if path is not None:
        _write({path: _dumps([verdict_dict(verdict) for verdict in verdicts])})
    return all(verdict.fate in ("killed", "inapplicable") for verdict in verdicts)


def _json_text(report: Report) -> str:
    return _dumps(report_dict(report))


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _hold_writable(*paths: Path) -> None:
    """Raise StoreError for reports that could not be written, before the run that they would be of."""
    faults = [f"{str(path)!r}: {fault}" for path in paths if (fault := _fault(path))]
    if faults:
        raise StoreError("a report cannot be written", "a file in a folder that exists", ", ".join(faults))


def _fault(path: Path) -> str:
    folder = path.parent
    if path.is_dir():
        return "a folder"
    if not folder.is_dir():
        return f"no folder {str(folder)!r}"
    return "" if os.access(path if path.exists() else folder, os.W_OK) else "no right to write"


def _write(texts: Mapping[Path, str]) -> None:
    """Write every file that can be; raises StoreError for the others."""
    faults = []
    for path, text in texts.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            faults.append(f"{str(path)!r}: {error.strerror or error}")
    if faults:
        raise StoreError("a report cannot be written", got=", ".join(faults))
