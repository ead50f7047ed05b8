"""Which checks run on which cases: decided before anything runs, so that nothing can drop out unseen."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from functools import cached_property

import attrs
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from featreg.case import Case
from featreg.conformance.cases import cases_of
from featreg.conformance.expected import ExpectedFailure, read_expected, stale_entries
from featreg.conformance.model import Check, all_checks, find_check
from featreg.conformance.subject import Subject
from featreg.errors import PluginHookError, SpecError
from featreg.registry import Registry, default_registry
from featreg.spec import SPEC_VERSION, SPEC_VERSIONS

__all__ = ["BACKEND", "Item", "Left", "Plan", "lower_end", "make_plan", "range_faults", "written_for"]

BACKEND = "backend"
"""The case of the checks that run once for a backend."""


@attrs.frozen
class Item:
    """A check that is to run on a case."""

    check: Check
    case: str
    subject_case: Case = attrs.field(repr=False)

    @property
    def id(self) -> str:
        """The id of the test, as in ``values.oracle-tinynet``."""
        return f"{self.check.id}-{self.case}"

    @property
    def key(self) -> tuple[str, str]:
        return self.check.id, self.case


@attrs.frozen
class Left:
    """A check that is not to run on a case, and why: ``skipped`` for a capability that is not declared."""

    check: Check
    case: str
    reason: str
    skipped: bool


@attrs.frozen(slots=False)
class Plan:
    """The items of a run, what is left out with the reasons, and what is wrong with the expected failures.

    ``narrowed`` says that the caller chose among the items: such a run is no proof of the whole.
    """

    backend: str
    registry: Registry = attrs.field(repr=False)
    written_for: Version
    items: tuple[Item, ...]
    left: tuple[Left, ...]
    expected: tuple[ExpectedFailure, ...] = ()
    faults: tuple[str, ...] = ()
    narrowed: bool = False

    @cached_property
    def reasons(self) -> dict[tuple[str, str], ExpectedFailure]:
        """The expected failures by check and case."""
        return {entry.key: entry for entry in self.expected}


def make_plan(
    backend: str,
    *,
    registry: Registry | None = None,
    xfails: str | os.PathLike[str] | None = None,
    models: str = "*",
    checks: Sequence[str] = (),
) -> Plan:
    """Every check on every case of a backend, or those of some models (a shell-style pattern) and some checks by id.

    Raises PluginError or UnknownBackendError for a backend that cannot be used, SpecError for a file of expected
    failures that is none, RequestError for an unknown check and UnknownModelError where no case matches.
    """
    registry = registry or default_registry()
    chosen = tuple(map(find_check, dict.fromkeys(checks))) or all_checks()
    entries = () if xfails is None else read_expected(xfails)
    cases = cases_of(backend, registry, "*" if entries else models)
    if models == "*" and all(case.checks for case in cases):
        raise SpecError(f"every case of {backend!r} is for some checks alone", "one at least that is for all of them")
    items, left = _sorted_out(backend, cases, registry, all_checks() if entries else chosen)
    declared = registry.spec(backend).spec
    faults = [*range_faults(declared), *stale_entries(entries, {item.key for item in items}, _whys(left))]
    if entries:
        wanted = {case.name for case in cases_of(backend, registry, models)} | {BACKEND}
        items = [item for item in items if item.check in chosen and item.case in wanted]
        left = [part for part in left if part.check in chosen and part.case in wanted]
    return Plan(
        backend,
        registry,
        written_for(declared),
        tuple(items),
        tuple(left),
        entries,
        tuple(faults),
        narrowed=bool(checks) or models != "*",
    )


def _sorted_out(
    backend: str, cases: Sequence[Case], registry: Registry, checks: Sequence[Check]
) -> tuple[list[Item], list[Left]]:
    items: list[Item] = []
    left: list[Left] = []
    subjects = {case.name: Subject(backend, case, registry) for case in cases}
    kept_out = {case.name: _kept_out(case) for case in cases}
    for check in checks:
        for name, subject in [(BACKEND, subjects[cases[0].name])] if check.scope == BACKEND else list(subjects.items()):
            if check.scope != BACKEND and check.id in kept_out[name]:
                left.append(Left(check, name, "the case is for other checks", skipped=False))
                continue
            missing = [need for need in check.needs if need not in subject.info.capabilities]
            reason = "" if missing else check.when(subject)
            if missing:
                left.append(Left(check, name, f"not declared: {', '.join(missing)}", skipped=True))
            elif reason:
                left.append(Left(check, name, reason, skipped=False))
            else:
                items.append(Item(check, name, subject.case))
    return items, left


def _whys(left: Sequence[Left]) -> dict[tuple[str, str], str]:
    """Why the checks that are left out are, by id and case."""
    return {
        (part.check.id, part.case): f"{'skipped' if part.skipped else 'does not apply'}: {part.reason}" for part in left
    }


def _kept_out(case: Case) -> frozenset[str]:
    """The ids of the checks that a case is not for; raises SpecError for a pattern that no check has."""
    ids = [check.id for check in all_checks()]
    matched = {pattern: fnmatch.filter(ids, pattern) for pattern in case.checks}
    idle = [pattern for pattern, found in matched.items() if not found]
    if idle:
        raise SpecError(f"the case {case.name!r} is for checks that do not exist", "ids of checks", ", ".join(idle))
    return frozenset(ids).difference(*matched.values()) if matched else frozenset()


VERSIONS = tuple(map(Version, SPEC_VERSIONS))


def lower_end(declared: str) -> Version | None:
    """What a declared range of versions begins with, None for an open beginning; raises PluginHookError for no range.

    A range that begins with no existing version of the specification is a fault of every plan.
    """
    try:
        bounds = [
            Version(part.version.removesuffix(".*"))
            for part in SpecifierSet(declared)
            if part.operator in (">=", "==", "~=", "===")
        ]
    except (InvalidSpecifier, InvalidVersion) as error:
        raise PluginHookError("the declared versions of the specification are no range", "PEP 440", declared) from error
    return max(bounds, default=None)


def written_for(declared: str) -> Version:
    """The version that a backend is judged by: the latest that exists of those up to the lower end of its range.

    It is the first where there is none, so that no check of the first version is ever a preview. Raises PluginHookError
    for no range.
    """
    lower = lower_end(declared)
    return max((version for version in VERSIONS if lower is not None and version <= lower), default=VERSIONS[0])


def range_faults(declared: str) -> list[str]:
    """What is wrong with a declared range of versions, which decides by what everything else is judged."""
    lower = lower_end(declared)
    if lower in VERSIONS:
        return []
    begins = "has no beginning" if lower is None else f"begins with {lower}, which does not exist"
    wanted = f">={SPEC_VERSION},<{int(SPEC_VERSION.partition('.')[0]) + 1}"
    return [f"the declared range of specification versions, {declared!r}, {begins}: declare {wanted!r}"]
