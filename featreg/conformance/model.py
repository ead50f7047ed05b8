"""What a check is, what it can come to, and the page that explains it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
from packaging.version import Version

from featreg.errors import RequestError, SpecError, near_matches
from featreg.fields import IsText, OneOf, SomeOf, as_names
from featreg.spec import CAPABILITIES, Layer

if TYPE_CHECKING:
    from featreg.conformance.subject import Subject

__all__ = ["Check", "Outcome", "Page", "Status", "Violation", "all_checks", "check", "find_check"]

Level: TypeAlias = Literal["MUST", "SHOULD"]
Scope: TypeAlias = Literal["case", "backend"]
Status: TypeAlias = Literal["passed", "failed", "expected", "unexpected", "lost"]
"""``expected`` failed as was foretold, ``unexpected`` passed although it was not; ``lost`` ended without a verdict."""


@attrs.frozen
class Page:
    """The explanation of a check: what it asserts, why, which real bug it would have caught, how to mend."""

    asserts: str
    why: str
    caught: str
    mend: str

    @classmethod
    def parse(cls, check_id: str, text: str) -> Page:
        """The page that a docstring holds: a first part, then ``Why:``, ``Caught:`` and ``Mend:``.

        Raises SpecError where one is missing.
        """
        parts = re.split(r"^\s*(Why|Caught|Mend):", text, flags=re.MULTILINE)
        named = dict(zip(parts[1::2], parts[2::2], strict=True))
        if not parts[0].strip() or set(named) != {"Why", "Caught", "Mend"}:
            raise SpecError(f"the check {check_id!r} is not explained", "what it asserts, Why:, Caught:, Mend:", text)
        asserts, why, caught, mend = (
            " ".join(part.split()) for part in (parts[0], named["Why"], named["Caught"], named["Mend"])
        )
        return cls(asserts, why, caught, mend)


def _always(subject: Subject) -> str:
    return ""


def _is_id(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not re.fullmatch(r"[a-z]+(\.[a-z0-9_]+)+", value):
        raise SpecError("no id of a check", "theme.name", repr(value))


@attrs.frozen
class Check:
    """One thing that a backend must do, or should.

    ``id`` is stable: lists of expected failures name it. ``since`` is the version of the specification that it came
    with. Where a capability of ``needs`` is not declared it is skipped. ``when`` says why it does not apply to a case,
    nothing where it does. ``scope`` says whether it runs once for each case or once for the backend.
    """

    id: str = attrs.field(validator=_is_id)
    level: Level = attrs.field(validator=OneOf(("MUST", "SHOULD")))
    since: str = attrs.field(validator=IsText())
    needs: tuple[str, ...] = attrs.field(converter=as_names, validator=SomeOf(CAPABILITIES))
    scope: Scope = attrs.field(validator=OneOf(("case", "backend")))
    page: Page
    run: Callable[[Subject], None] = attrs.field(repr=False, eq=False)
    when: Callable[[Subject], str] = attrs.field(repr=False, eq=False)

    def is_preview(self, written_for: Version) -> bool:
        """Whether a backend written for this version of the specification could not know of the check."""
        return Version(self.since) > written_for


_CHECKS: dict[str, Check] = {}


def check(
    check_id: str,
    *,
    level: Level = "MUST",
    since: str = "1.0",
    needs: Iterable[str] = (),
    scope: Scope = "case",
    when: Callable[[Subject], str] = _always,
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function of a Subject as a check; its docstring is the page, see :meth:`Page.parse`.

    Raises SpecError for an id that is taken and for a page that is not whole.
    """

    def register(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        if check_id in _CHECKS:
            raise SpecError(f"two checks are called {check_id!r}", "an id of its own for each")
        page = Page.parse(check_id, function.__doc__ or "")
        _CHECKS[check_id] = Check(check_id, level, since, tuple(needs), scope, page, function, when)
        return function

    return register


def all_checks() -> tuple[Check, ...]:
    """Every check of the kit, by theme, in the order of the source."""
    import featreg.conformance.checks  # noqa: F401  (registers them)

    return tuple(_CHECKS.values())


def find_check(check_id: str) -> Check:
    """The check of an id; raises RequestError with the nearest ids."""
    known = {found.id: found for found in all_checks()}
    if check_id not in known:
        raise RequestError(
            f"no check {check_id!r}",
            got=repr(check_id),
            matches=near_matches(check_id, known),
            remedy="featreg conform --list lists them all",
        )
    return known[check_id]


class Violation(AssertionError):
    """A backend does not do what a check asserts; ``code`` shows it to whoever pastes it."""

    def __init__(
        self, problem: str, expected: str = "", got: str = "", layer: Layer | None = None, code: str = ""
    ) -> None:
        super().__init__(problem, expected, got, layer, code)
        self.problem, self.expected, self.got, self.layer, self.code = problem, expected, got, layer, code

    def __str__(self) -> str:
        return self.problem


@attrs.frozen
class Outcome:
    """What one check came to on one case; ``message`` is a bug report where it failed, ``seconds`` its time."""

    check: Check
    case: str
    status: Status
    preview: bool = False
    message: str = ""
    seconds: float = attrs.field(default=0.0, eq=False)

    @property
    def counts(self) -> bool:
        """Whether a failure of it is one of the backend: previews and SHOULD are told, and fail nothing."""
        return not self.preview and self.check.level == "MUST"

    @property
    def is_red(self) -> bool:
        """Whether it alone makes the run fail; what is lost or strictly expected does whatever its level."""
        return self.status in ("lost", "unexpected") or (self.status == "failed" and self.counts)
