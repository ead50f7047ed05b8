"""Expected failures: a TOML file that names each one exactly, says why, and is wrong as soon as it is out of date.

::

    [[failure]]
    check = "values.batch"
    case = "acme-large"
    reason = "the library's attention kernel rounds by batch size"
    url = "https://github.com/acme/acme/issues/12"
    until = "acme>=2.1"

``until`` says when the entry is out of date: as soon as a requirement is installed (PEP 508, of a distribution that is
there, with versions), or after a day (an ISO date, as text or as TOML's own).
"""

from __future__ import annotations

import datetime
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import attrs
from packaging.requirements import InvalidRequirement, Requirement

from featreg.errors import SpecError, near_matches
from featreg.requirements import examine_requirement

__all__ = ["ExpectedFailure", "read_expected", "stale_entries", "today"]


def today() -> datetime.date:
    """The day that dates are compared with."""
    return datetime.date.today()


def _as_text(value: Any) -> Any:
    """A TOML date as text; a date with a time stays, and is refused."""
    return value.isoformat() if type(value) is datetime.date else value


def _is_said(entry: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        what = "is empty" if isinstance(value, str) else "is no text"
        raise SpecError(f"{attribute.name} of an expected failure {what}", MEANING[attribute.name], repr(value))


MEANING = {
    "check": "the id of a check",
    "case": "the name of a case, or 'backend'",
    "reason": "why it fails",
    "url": "a URL of the upstream report",
    "until": "a requirement with versions as in 'acme>=2', or a date as in 2030-01-31",
}


@attrs.frozen
class ExpectedFailure:
    """One check that is known to fail on one case; checks of the whole backend have the case ``backend``.

    Raises SpecError for what says nothing, and for an end that never comes.
    """

    check: str = attrs.field(validator=_is_said)
    case: str = attrs.field(validator=_is_said)
    reason: str = attrs.field(validator=_is_said)
    url: str = attrs.field(validator=_is_said)
    until: str = attrs.field(converter=_as_text, validator=_is_said)

    def __attrs_post_init__(self) -> None:
        if not self.url.startswith(("https://", "http://")):
            raise SpecError(f"the expected failure of {self.check!r} has no link", MEANING["url"], repr(self.url))
        if isinstance(self._end, str):
            self._hold_requirement(self._end)

    def _hold_requirement(self, until: str) -> None:
        """Raise SpecError for a requirement that is none, or that nothing ever fulfils."""
        fault = ""
        try:
            requirement = Requirement(until)
        except InvalidRequirement:
            fault = "has no end"
        else:
            if not requirement.specifier or requirement.marker or requirement.url:
                fault = "ends with no version"
            elif examine_requirement(until).installed is None:
                fault = f"ends with {requirement.name}, which is not installed"
        if fault:
            raise SpecError(f"the expected failure of {self.check!r} {fault}", f"until: {MEANING['until']}", self.until)

    @property
    def key(self) -> tuple[str, str]:
        return self.check, self.case

    @property
    def over(self) -> str:
        """Why the entry is out of date; empty where it is not."""
        end = self._end
        if isinstance(end, datetime.date):
            return f"{end} has passed" if today() > end else ""
        return f"{end} is installed" if examine_requirement(end).satisfied else ""

    @property
    def _end(self) -> datetime.date | str:
        try:
            return datetime.date.fromisoformat(self.until)
        except ValueError:
            return self.until


def read_expected(path: str | os.PathLike[str]) -> tuple[ExpectedFailure, ...]:
    """The expected failures of a file; raises SpecError for a file that cannot be read and a bad entry."""
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{os.fspath(path)!r} holds no expected failures", "TOML", str(error)) from error
    entries = document.pop("failure", [])
    if document or not isinstance(entries, list):
        raise SpecError(
            f"{os.fspath(path)!r} holds something else", "[[failure]] alone", ", ".join(document) or "failure"
        )
    found = tuple(_entry(number, entry) for number, entry in enumerate(entries, start=1))
    keys = [entry.key for entry in found]
    twice = sorted({" on ".join(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise SpecError(f"expected twice: {', '.join(twice)}", "each failure once")
    return found


def _entry(number: int, entry: Any) -> ExpectedFailure:
    if not isinstance(entry, dict):
        raise SpecError(f"the expected failure number {number} is no table", f"[[failure]] with {_and(MEANING)}")
    missing = [name for name in MEANING if name not in entry]
    unknown = [name for name in entry if name not in MEANING]
    if missing or unknown:
        faults = [f"lacks {_and(missing)}"] if missing else []
        faults += [f"does not know {_and(map(repr, unknown))}"] if unknown else []
        raise SpecError(
            f"the expected failure number {number}{_called(entry)} {' and '.join(faults)}",
            f"{_and(MEANING)}, and nothing else",
            matches=near_matches(unknown[0], missing) if unknown else (),
        )
    return ExpectedFailure(**entry)


def _called(entry: Mapping[str, Any]) -> str:
    named = [str(entry[name]) for name in ("check", "case") if name in entry]
    return f" ({' on '.join(named)})" if named else ""


def _and(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def stale_entries(
    entries: Collection[ExpectedFailure],
    planned: Collection[tuple[str, str]],
    left: Mapping[tuple[str, str], str],
) -> list[str]:
    """What is wrong with entries that name no planned item, or whose end has come; a line each.

    ``left`` says of the checks that are not run, by id and case, why not.
    """
    lines = []
    for entry in entries:
        named = f"the expected failure of {entry.check} on {entry.case}"
        if entry.key in left:
            lines.append(f"{named} is stale: {left[entry.key]}")
        elif entry.key not in planned:
            near = near_matches(" on ".join(entry.key), [" on ".join(key) for key in planned], limit=2)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            lines.append(f"{named} is stale: no such item{hint}")
        elif entry.over:
            lines.append(f"{named} is over: {entry.over}")
    return lines
