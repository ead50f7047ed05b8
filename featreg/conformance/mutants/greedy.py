"""The module of the mutants NeedsToDeclare and UndeclaredImport: it imports pytest. No other module imports it."""

import pytest

__all__ = ["pytest"]
