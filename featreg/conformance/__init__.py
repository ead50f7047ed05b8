"""The conformance kit: whether a backend keeps the specification, in one line of its plugin's tests.

::

    from featreg.conformance import suite
    test_conformance = suite("acme", xfails="featreg-xfails.toml")

Importing it imports neither a framework nor pytest. ``featreg conform acme`` runs the same without pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featreg.case import Case as Case
    from featreg.conformance.agreement.comparing import across as across
    from featreg.conformance.model import Check as Check
    from featreg.conformance.model import all_checks as all_checks
    from featreg.conformance.parametrize import suite as suite
    from featreg.conformance.planning import make_plan as make_plan
    from featreg.conformance.running import run_plan as run_plan
    from featreg.conformance.trial import self_test as self_test

_HOMES = {
    "Case": "featreg.case",
    "Check": "featreg.conformance.model",
    "across": "featreg.conformance.agreement.comparing",
    "all_checks": "featreg.conformance.model",
    "make_plan": "featreg.conformance.planning",
    "run_plan": "featreg.conformance.running",
    "self_test": "featreg.conformance.trial",
    "suite": "featreg.conformance.parametrize",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605  (names of _HOMES, loaded on first use)


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
