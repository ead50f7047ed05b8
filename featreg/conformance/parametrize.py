"""The kit as pytest tests: each check on each case is one test, and the ledger is a test of the whole."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

from featreg.conformance.planning import Left, Plan, make_plan
from featreg.conformance.running import run_item
from featreg.errors import MissingDependencyError, RequestError

try:
    import pytest

    import pytest_featreg
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        "the conformance suite runs under pytest, which is not installed",
        "the extra featreg[conformance]",
        remedy='pip install "featreg[conformance]", or use featreg conform',
    ) from error

__all__ = ["PROPERTY", "ConformanceWarning", "parameters", "suite"]

PROPERTY = "featreg"
"""The name under which a test's report carries what became of it, also across the processes of pytest-xdist."""

Parameter: TypeAlias = tuple[Plan, Any]


class ConformanceWarning(UserWarning):
    """A check failed that fails nothing: a SHOULD, or a preview of a later specification."""


def suite(backend: str, *, xfails: str | os.PathLike[str] | None = None, models: str = "*") -> Callable[..., None]:
    """The tests of a backend, for a module of its plugin, under a name that pytest collects.

    Each check on each case is a test of its own. ``xfails`` is the path of the expected failures, ``models`` a
    shell-style pattern. Raises as :func:`featreg.conformance.make_plan` does, when the tests are collected, and
    RequestError where the pytest plugin is not there to hold the ledger.
    """
    _hold_ledger(pytest_featreg.is_active())
    plan = make_plan(backend, xfails=xfails, models=models)

    @pytest.mark.parametrize("conformance", parameters(plan))
    def test_conformance(conformance: Parameter, request: pytest.FixtureRequest) -> None:
        run_parameter(conformance, request)

    return test_conformance


def _hold_ledger(kept: bool) -> None:
    """Raise RequestError for a session in which nobody would miss a test that is skipped or dropped."""
    if not kept:
        raise RequestError(
            "the ledger of the conformance suite is not kept",
            "a pytest session with featreg's plugin",
            remedy="leave -p no:featreg out; with PYTEST_DISABLE_PLUGIN_AUTOLOAD add -p pytest_featreg",
        )


def parameters(plan: Plan) -> list[Any]:
    """The plan as parameters of a test: its items, then what is left out, then the faults of the plan itself."""
    found = [pytest.param((plan, item), id=item.id) for item in plan.items]
    found += [pytest.param((plan, left), id=f"{left.check.id}-{left.case}") for left in plan.left if left.skipped]
    return [*found, pytest.param((plan, None), id="plan")]


def new_record(plan: Plan) -> dict[str, Any]:
    """What the pytest plugin enters in its books for one test, but for the status."""
    return {"backend": plan.backend, "planned": len(parameters(plan)) - 1, "narrowed": plan.narrowed}


def run_parameter(parameter: Parameter, request: pytest.FixtureRequest) -> None:
    """One parameter of :func:`parameters` as a test."""
    plan, item = parameter
    record = new_record(plan)
    request.node.user_properties.append((PROPERTY, record))
    if item is None:
        record |= {"status": "faults", "red": bool(plan.faults)}
        if plan.faults:
            pytest.fail("\n".join(plan.faults), pytrace=False)
        return
    if isinstance(item, Left):
        record["status"] = "skipped"
        pytest.skip(item.reason)
    outcome = run_item(plan, item)
    record |= {"status": outcome.status, "red": outcome.is_red}
    if outcome.is_red:
        pytest.fail(outcome.message, pytrace=False)
    if outcome.status == "expected":
        pytest.xfail(outcome.message)
    if outcome.status == "failed":
        kind = "a preview" if outcome.preview else outcome.check.level
        warnings.warn(f"fails nothing, being {kind}\n{outcome.message}", ConformanceWarning, stacklevel=1)
