"""What ``pytest --pyargs featreg.conformance --featreg-backend acme`` collects."""

from __future__ import annotations

import pytest

from featreg.conformance.parametrize import Parameter, run_parameter


def test_conformance(featreg_conformance: Parameter, request: pytest.FixtureRequest) -> None:
    """One check on one case of the backend that the command line names."""
    run_parameter(featreg_conformance, request)
