"""A report written out: JSON, JUnit XML, one self-contained HTML page, a badge."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import metadata
from typing import Any
from xml.etree import ElementTree

import attrs

from featreg.conformance.model import Check, Outcome
from featreg.conformance.planning import Left
from featreg.conformance.running import Report
from featreg.conformance.trial import Verdict
from featreg.hookspecs import PROJECT

__all__ = ["badge_svg", "html_page", "junit_xml", "report_dict", "verdict_dict", "verdict_lines"]

GREEN, RED, GREY = "#2e7d32", "#c62828", "#616161"


def report_dict(report: Report) -> dict[str, Any]:
    """A report as plain JSON values."""
    return {
        "backend": report.backend,
        "distribution": report.owner,
        "specification": report.written_for,
        "featreg": metadata.version(PROJECT),
        "green": report.is_green,
        "narrowed": report.narrowed,
        "ledger": {**attrs.asdict(report.ledger), "shortfall": report.ledger.shortfall},
        "faults": list(report.faults),
        "outcomes": [_outcome_dict(outcome) for outcome in report.outcomes],
        "left": [
            {"check": left.check.id, "case": left.case, "skipped": left.skipped, "reason": left.reason}
            for left in report.left
        ],
    }


def _outcome_dict(outcome: Outcome) -> dict[str, Any]:
    return {
        "check": outcome.check.id,
        "level": outcome.check.level,
        "since": outcome.check.since,
        "case": outcome.case,
        "status": outcome.status,
        "preview": outcome.preview,
        "seconds": round(outcome.seconds, 3),
        "message": outcome.message,
    }


def verdict_dict(verdict: Verdict) -> dict[str, Any]:
    """A mutant's fate as plain JSON values."""
    mutant = verdict.mutant
    named = {"mutant": mutant.name, "summary": mutant.summary, "killed_by": mutant.killed_by}
    return {**named, "fate": verdict.fate, "case": verdict.case}


def junit_xml(report: Report) -> str:
    """A report as JUnit XML: a test case for each item and each declared skip, one more for every other fault."""
    skipped = [left for left in report.left if left.skipped]
    suite = ElementTree.Element(
        "testsuite",
        name=f"featreg conformance of {report.backend}",
        tests=str(len(report.outcomes) + len(skipped) + len(report.faults)),
        failures=str(len(report.failures) + len(report.faults)),
        skipped=str(len(skipped) + report.ledger.expected),
    )
    for outcome in report.outcomes:
        case = _junit_case(suite, outcome.check, outcome.case, outcome.seconds)
        if outcome.is_red:
            _junit_part(case, "failure", outcome.message)
        elif outcome.status == "expected":
            _junit_part(case, "skipped", outcome.message)
        elif outcome.message:
            ElementTree.SubElement(case, "system-out").text = outcome.message
    for left in skipped:
        _junit_part(_junit_case(suite, left.check, left.case, 0.0), "skipped", left.reason)
    for fault in report.faults:
        _junit_part(ElementTree.SubElement(suite, "testcase", classname="featreg", name="ledger"), "failure", fault)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _junit_case(suite: ElementTree.Element, check: Check, case: str, seconds: float) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=check.id, name=case, time=f"{seconds:.3f}")


def _junit_part(case: ElementTree.Element, kind: str, text: str) -> None:
    ElementTree.SubElement(case, kind, message=text.splitlines()[0]).text = text


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; }
td, th { border-bottom: 1px solid #ddd; padding: .3rem .6rem; vertical-align: top; } summary { cursor: pointer; }
pre { background: #f6f6f6; margin: .3rem 0; overflow-wrap: anywhere; padding: .6rem; white-space: pre-wrap; }
.green { color: #2e7d32; } .red { color: #c62828; } .grey { color: #616161; } .id { width: 16rem; }
"""

PARTS = {"asserts": "", "why": "Why: ", "caught": "Caught: ", "mend": "Mend: "}


def html_page(report: Report) -> str:
    """A report as one page that needs no other file, what is red first; each check's page unfolds."""
    colour, word = ("green", "conforms") if report.is_green else ("red", "does not conform")
    title = f"featreg conformance of {report.backend}"
    judged = f"{report.owner}, by specification {report.written_for}, with featreg {metadata.version(PROJECT)}"
    lines = [judged, str(report.ledger), *(["narrowed: no proof of the whole"] if report.narrowed else [])]
    told = "".join(f"<p>{_text(line)}" for line in lines) + "".join(f"<p class=red>{_text(f)}" for f in report.faults)
    rows = [*map(_html_row, sorted(report.outcomes, key=_rank)), *map(_html_left, report.left)]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}</title><style>{STYLE}</style>"
        f"<h1>{_text(title)}: <span class={colour}>{word}</span></h1>{told}"
        "<table><tr><th class=id>check<th>level<th>case<th>result\n" + "\n".join(rows) + "\n</table></html>\n"
    )


def _rank(outcome: Outcome) -> int:
    return 0 if outcome.is_red else ("failed", "expected", "passed").index(outcome.status) + 1


def _html_row(outcome: Outcome) -> str:
    colour = "red" if outcome.is_red else "green" if outcome.status == "passed" else "grey"
    parts = attrs.asdict(outcome.check.page)
    page = "".join(f"<p>{label}{_text(parts[name])}" for name, label in PARTS.items())
    message = f"<pre>{_text(outcome.message)}</pre>" if outcome.message else ""
    level = f"{outcome.check.level}{', preview' if outcome.preview else ''}"
    return (
        f"<tr><td><details><summary>{_text(outcome.check.id)}</summary>{page}</details><td>{level}"
        f"<td>{_text(outcome.case)}<td><span class={colour}>{outcome.status}</span>{message}"
    )


def _html_left(left: Left) -> str:
    why = f"{'skipped' if left.skipped else 'does not apply'}: {left.reason}"
    return f"<tr><td>{_text(left.check.id)}<td>{left.check.level}<td>{_text(left.case)}<td class=grey>{_text(why)}"


def _text(text: str) -> str:
    return html.escape(text)


def badge_svg(report: Report) -> str:
    """A badge of a report; grey for a run that was narrowed, which proves nothing of the whole."""
    passed = sum(outcome.status == "passed" for outcome in report.outcomes)
    if report.narrowed:
        colour, value = GREY, "narrowed"
    else:
        colour = GREEN if report.is_green else RED
        value = f"{passed}/{report.ledger.planned - report.ledger.skipped}"
    label = "featreg"
    left, right = _width(label), _width(value)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{label}: {value}"><title>{label}: {value}</title>'
        f'<rect width="{left}" height="20" fill="#444"/><rect x="{left}" width="{right}" height="20" fill="{colour}"/>'
        f'<g fill="#fff" font-family="Verdana,sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{left / 2}" y="14">{label}</text><text x="{left + right / 2}" y="14">{value}</text></g></svg>\n'
    )


def _width(text: str) -> int:
    return 7 * len(text) + 12


def verdict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """How the mutants fared, in numbers, and each one that was not killed although it should have been."""
    fates = [verdict.fate for verdict in verdicts]
    lines = [f"{len(fates)} mutants: " + ", ".join(f"{fates.count(fate)} {fate}" for fate in dict.fromkeys(fates))]
    for verdict in verdicts:
        if verdict.fate in ("survived", "untestable"):
            mutant = verdict.mutant
            lines.append(f"{verdict.fate}: {mutant.name} ({mutant.summary}) was for {mutant.killed_by} to kill")
    return lines
