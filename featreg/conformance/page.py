"""The pages of all checks and the table of all mutants as Markdown.

``python -m featreg.conformance.page docs/`` writes the first, and with a folder that holds a ``BACKEND.json`` of
``featreg conform BACKEND --self-test --json`` for each backend the second as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from featreg.conformance.model import Check, all_checks
from featreg.conformance.mutants.base import Mutant, all_mutants

__all__ = ["CHECKS", "MUTANTS", "living", "render_checks", "render_mutants"]

CHECKS, MUTANTS = "conformance-checks.md", "conformance-mutants.md"

Verdicts: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
"""By backend, what ``featreg conform BACKEND --self-test --json`` writes."""

CHECKS_HEAD = """\
# The checks of the conformance kit

Made from the checks themselves by `python -m featreg.conformance.page docs/`; `featreg conform --explain ID` prints the
same. A failure of a MUST makes a run red, that of a SHOULD is told. What needs a capability is skipped where it is not
declared. [conformance-mutants.md](conformance-mutants.md) lists the breakages that each of them notices.
"""

MUTANTS_HEAD = """\
# The mutants of the conformance kit

Made by `nox -s mutants` from `featreg conform BACKEND --self-test`: every backend, broken on purpose in one way after
the other. A mutant is *killed* when the check that names it fails on it. A dash stands where there is nothing to break:
a capability that the backend does not declare, say. A mutant that is not killed is a gap in the cases of that backend.
"""

FATES = {"killed": "killed", "inapplicable": "-", "survived": "**survived**", "untestable": "**untestable**"}
UNTRIED = "**untried**"


def render_checks() -> str:
    """The page of every check."""
    return "\n".join([CHECKS_HEAD, *map(_section, all_checks())])


def _section(check: Check) -> str:
    needs = f", needs {', '.join(f'`{need}`' for need in check.needs)}" if check.needs else ""
    page = check.page
    return (
        f"## {check.id}\n\n{check.level}, since specification {check.since}{needs}, once for each {check.scope}.\n\n"
        f"{_plain(page.asserts)}\n\n- **Why**: {_plain(page.why)}\n- **Caught**: {_plain(page.caught)}\n"
        f"- **Mend**: {_plain(page.mend)}\n"
    )


def _plain(text: str) -> str:
    return text.replace("``", "`")


def render_mutants(verdicts: Verdicts) -> str:
    """The table of every mutant, with its fate in each backend."""
    fates = {backend: {entry["mutant"]: entry["fate"] for entry in found} for backend, found in verdicts.items()}
    counts = "".join(f"| `{backend}` | {_count(found)} |\n" for backend, found in fates.items())
    head = f"| mutant | what is broken | killed by | {' | '.join(fates)} |\n|{' --- |' * (3 + len(fates))}\n"
    rows = "".join(_row(mutant, [found.get(mutant.name) for found in fates.values()]) for mutant in all_mutants())
    return f"{MUTANTS_HEAD}\n| backend | its mutants |\n| --- | --- |\n{counts}\n{head}{rows}"


def _count(fates: Mapping[str, str]) -> str:
    found = list(fates.values())
    named = [f"{found.count(fate)} {fate}" for fate in FATES if fate in found]
    return f"{len(found)}: {', '.join(named)}"


def _row(mutant: Mutant, fates: Sequence[str | None]) -> str:
    cells = [UNTRIED if fate is None else FATES[fate] for fate in fates]
    return f"| {mutant.name} | {_plain(mutant.summary)} | `{mutant.killed_by}` | {' | '.join(cells)} |\n"


def living(verdicts: Verdicts) -> list[str]:
    """The mutants that are not killed although there is something to break, a line each; and those never tried."""
    return [
        f"{backend}: {mutant.name} is {fate}"
        for backend, found in verdicts.items()
        for mutant in all_mutants()
        for fate in [{entry["mutant"]: entry["fate"] for entry in found}.get(mutant.name, "untried")]
        if fate not in ("killed", "inapplicable")
    ]


def main(docs: Path, results: Path | None = None) -> int:
    """Write the pages; 1 where a mutant lives."""
    (docs / CHECKS).write_text(render_checks(), encoding="utf-8")
    if results is None:
        return 0
    verdicts = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(results.glob("*.json"))}
    (docs / MUTANTS).write_text(render_mutants(verdicts), encoding="utf-8")
    sys.stderr.writelines(f"{line}\n" for line in living(verdicts))
    return int(bool(living(verdicts)))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
