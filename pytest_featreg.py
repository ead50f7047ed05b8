"""The pytest plugin of featreg's conformance kit.

It lies outside the package, so that starting pytest imports neither featreg nor a framework: that happens when a test
of the kit is collected. It adds ``--featreg-backend`` to ``pytest --pyargs featreg.conformance``, and holds the ledger
of every run of the kit: planned = ran + expected failures + declared skips. A shortfall makes the session fail.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

PROPERTY, FIXTURE = "featreg", "featreg_conformance"
VERDICTS = ("passed", "failed", "unexpected")
_sessions: list[pytest.Config] = []
ledgers = pytest.StashKey[dict[str, "Book"]]()


class Book:
    """What was planned for one backend, and what became of it."""

    def __init__(self, planned: int, narrowed: bool) -> None:
        self.planned, self.narrowed = planned, narrowed
        self.statuses: Counter[str] = Counter()
        self.hidden = 0

    @property
    def ran(self) -> int:
        return sum(self.statuses[status] for status in VERDICTS)

    @property
    def shortfall(self) -> int:
        return self.planned - self.ran - self.statuses["expected"] - self.statuses["skipped"]

    def faults(self) -> list[str]:
        """Why the session fails although no test of it did."""
        found = [f"{self.shortfall} of {self.planned} planned checks have no verdict"] if self.shortfall else []
        if not self.ran + self.statuses["expected"]:
            found.append("nothing ran: a backend that skips everything proves nothing")
        if self.hidden:
            found.append(f"{self.hidden} failures do not count as such: a mark xfail hides them from pytest")
        return found

    def line(self, narrowed: bool) -> str:
        """The whole book in a line; what is missing is lost, unless the caller chose among the tests."""
        lost = f" + {self.shortfall} {'not chosen' if narrowed else 'LOST'}" if self.shortfall else ""
        return (
            f"{self.planned} planned = {self.ran} ran + {self.statuses['expected']} expected failures + "
            f"{self.statuses['skipped']} skipped{lost}"
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of ``pytest --pyargs featreg.conformance``."""
    group = parser.getgroup("featreg", "featreg's conformance kit")
    group.addoption("--featreg-backend", metavar="NAME", help="judge this backend")
    group.addoption("--featreg-xfails", metavar="PATH", help="its expected failures")
    group.addoption("--featreg-models", metavar="GLOB", default="*", help="only these models")


def is_active() -> bool:
    """Whether a session of this process has this plugin, and with it the ledger."""
    return bool(_sessions)


def pytest_configure(config: pytest.Config) -> None:
    """An empty ledger."""
    config.stash[ledgers] = {}
    _sessions.append(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The end of the ledger."""
    if config in _sessions:
        _sessions.remove(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the kit's own test the checks and cases of the backend that the command line names."""
    if FIXTURE not in metafunc.fixturenames:
        return
    config = metafunc.config
    if not config.getoption("--featreg-backend"):
        raise pytest.UsageError("pytest --pyargs featreg.conformance needs --featreg-backend NAME")
    from featreg.conformance.parametrize import parameters
    from featreg.conformance.planning import make_plan

    plan = make_plan(
        config.getoption("--featreg-backend"),
        xfails=config.getoption("--featreg-xfails"),
        models=config.getoption("--featreg-models"),
    )
    metafunc.parametrize(FIXTURE, parameters(plan))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Enter a test of the kit that never began, because it was skipped from outside, as one without a verdict."""
    outcome = yield
    report = outcome.get_result()
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    parameter = parameters.get(FIXTURE) or parameters.get("conformance")
    if report.when == "setup" and not report.passed and isinstance(parameter, tuple):
        from featreg.conformance.parametrize import new_record

        report.user_properties = [(PROPERTY, {**new_record(parameter[0]), "status": "lost"})]


class _Recorder:
    """Keeps the books of a session from its reports, which pytest-xdist brings from its workers as well."""

    def __init__(self, config: pytest.Config) -> None:
        self.books = config.stash[ledgers]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Enter one test of the kit."""
        for name, record in report.user_properties if report.when == "call" or not report.passed else ():
            if name == PROPERTY and isinstance(record, dict):
                book = self.books.setdefault(record["backend"], Book(record["planned"], record["narrowed"]))
                book.statuses[record.get("status", "lost")] += 1
                book.hidden += bool(record.get("red")) and report.outcome != "failed"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start to keep the books."""
    session.config.pluginmanager.register(_Recorder(session.config), "featreg-recorder")


def _is_narrowed(config: pytest.Config) -> bool:
    """Whether the caller chose among the tests: then what he left out is no shortfall."""
    option = config.option
    chosen = option.keyword or option.markexpr or getattr(option, "deselect", None) or getattr(option, "lf", False)
    return bool(chosen or option.collectonly or any("::" in argument for argument in config.args))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a session whose books do not add up."""
    config = session.config
    if exitstatus != pytest.ExitCode.OK or hasattr(config, "workerinput") or _is_narrowed(config):
        return
    if any(book.faults() for book in config.stash[ledgers].values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the books."""
    for backend, book in config.stash[ledgers].items():
        terminalreporter.section(f"featreg conformance of {backend}")
        terminalreporter.line(book.line(_is_narrowed(config)))
        if _is_narrowed(config) or book.narrowed:
            terminalreporter.line("narrowed by the command line: no proof of the whole")
        else:
            for fault in book.faults():
                terminalreporter.line(fault, red=True)
