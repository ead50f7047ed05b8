"""``featreg doctor``: what is installed, what works, and how to mend what does not."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import textwrap
from typing import Any

import attrs
import click

import featreg
from featreg.cli.catalogue import BackendReport, examine, json_option, print_json
from featreg.cli.tables import format_fields, format_table
from featreg.errors import FeatregError
from featreg.registry import Registry
from featreg.requirements import RequirementStatus, examine_requirement, extras
from featreg.spec import SPEC_VERSION

__all__ = ["doctor"]


@click.command()
@click.option("--quick", is_flag=True, help="Read metadata only; do not import the frameworks.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, quick: bool, as_json: bool) -> None:
    """Examine this installation and say how to mend it.

    Every backend is loaded with its framework, which takes a while. The exit code is 1 where an installed backend does
    not work; extras that are not installed are no fault.
    """
    # Strictness would stop at the first fault; a doctor names them all.
    registry = Registry({name: value for name, value in os.environ.items() if name != "FEATREG_STRICT"})
    reports = [report if quick else _load(registry, report) for report in examine(registry)]
    if as_json:
        print_json(_to_dict(reports))
    else:
        click.echo(_to_text(reports))
    ctx.exit(int(any(report.failure is not None for report in reports)))


def _load(registry: Registry, report: BackendReport) -> BackendReport:
    """The same report after importing the framework, whose chatter goes to standard error."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            registry.backend(report.plugin.name)
    except FeatregError as failure:
        return attrs.evolve(report, failure=failure)
    return report


def _environment() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("FEATREG_")}


def _requirements(report: BackendReport) -> list[RequirementStatus]:
    try:
        return [examine_requirement(text) for text in report.spec.requirements] if report.spec is not None else []
    except ValueError:  # no requirement at all: the failure says so
        return []


def _extras() -> dict[str, list[RequirementStatus]]:
    return {name: [examine_requirement(text) for text in wanted] for name, wanted in extras().items()}


def _to_dict(reports: list[BackendReport]) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "featreg": featreg.__version__,
        "specification": SPEC_VERSION,
        "environment": _environment(),
        "backends": [
            {**report.to_dict(), "requirements": list(map(attrs.asdict, _requirements(report)))} for report in reports
        ],
        "extras": {name: list(map(attrs.asdict, statuses)) for name, statuses in _extras().items()},
        "healthy": all(report.failure is None for report in reports),
    }


def _to_text(reports: list[BackendReport]) -> str:
    parts = [
        _facts(),
        format_table(
            ("backend", "status", "distribution", "requirements"),
            [(report.plugin.name, report.status, report.plugin.owner, _versions(report)) for report in reports],
        ),
        format_table(("extra", "status", "install"), [_extra_row(*item) for item in _extras().items()]),
        *(_trouble(report) for report in reports if report.failure is not None),
    ]
    return "\n\n".join(parts)


def _facts() -> str:
    environment = [f"{name}={value}" for name, value in _environment().items()]
    facts = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "featreg": f"{featreg.__version__} (specification {SPEC_VERSION})",
        "environment": " ".join(environment) or "no FEATREG_ variable is set",
    }
    return format_fields(facts)


def _versions(report: BackendReport) -> str:
    return ", ".join(f"{status.requirement} ({status.installed or 'absent'})" for status in _requirements(report))


def _extra_row(name: str, statuses: list[RequirementStatus]) -> tuple[str, str, str]:
    absent = [status.requirement for status in statuses if not status.satisfied]
    if not absent:
        return name, "installed", ""
    return name, "absent", f'pip install "featreg[{name}]" (for {", ".join(absent)})'


def _trouble(report: BackendReport) -> str:
    message = textwrap.indent(str(report.failure), "  ")
    return f"{report.plugin.name} is {report.status}:\n{message}"
