"""Expected failures: a TOML file that names each one exactly, says why, and is wrong as soon as it is out of date.

::

    [[failure]]
    check = "values.batch"
    case = "acme-large"
    reason = "the library's attention kernel rounds by batch size"
    url = "https://github.com/acme/acme/issues/12"
    until = "acme>=2.1"

``until`` is a requirement (PEP 508): as soon as what is installed satisfies it, the entry is stale.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection
from typing import Any

import attrs

from featreg.errors import SpecError, near_matches
from featreg.fields import IsText
from featreg.requirements import examine_requirement

__all__ = ["ExpectedFailure", "read_expected", "stale_entries"]


@attrs.frozen
class ExpectedFailure:
    """One check that is known to fail on one case; checks of the whole backend have the case ``backend``."""

    check: str = attrs.field(validator=IsText())
    case: str = attrs.field(validator=IsText())
    reason: str = attrs.field(validator=IsText())
    url: str = attrs.field(validator=IsText())
    until: str = attrs.field(validator=IsText())

    def __attrs_post_init__(self) -> None:
        if not self.url.startswith(("https://", "http://")):
            raise SpecError(
                f"the expected failure of {self.check!r} has no link", "a URL of the upstream report", self.url
            )
        self._status()

    @property
    def key(self) -> tuple[str, str]:
        return self.check, self.case

    @property
    def is_over(self) -> bool:
        """Whether the version that mends it is installed."""
        return self._status()

    def _status(self) -> bool:
        try:
            return examine_requirement(self.until).satisfied
        except ValueError as error:
            raise SpecError(
                f"the expected failure of {self.check!r} has no end", "until, a requirement as in 'acme>=2'", self.until
            ) from error


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
    found = tuple(_entry(entry) for entry in entries)
    keys = [entry.key for entry in found]
    twice = sorted({" on ".join(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise SpecError(f"expected twice: {', '.join(twice)}", "each failure once")
    return found


def _entry(entry: Any) -> ExpectedFailure:
    names = {field.name for field in attrs.fields(ExpectedFailure)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise SpecError("not an expected failure", f"{', '.join(sorted(names))}, and nothing else", repr(entry))
    return ExpectedFailure(**entry)


def stale_entries(entries: Collection[ExpectedFailure], planned: Collection[tuple[str, str]]) -> list[str]:
    """What is wrong with entries that name no planned item, or whose end has come; a line each."""
    lines = []
    for entry in entries:
        if entry.key not in planned:
            near = near_matches(" on ".join(entry.key), [" on ".join(key) for key in planned], limit=2)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            lines.append(f"the expected failure of {entry.check} on {entry.case} is stale: no such item{hint}")
        elif entry.is_over:
            lines.append(f"the expected failure of {entry.check} on {entry.case} is over: {entry.until} is installed")
    return lines
