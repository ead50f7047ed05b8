"""Optional parts of featreg that need more than the core's dependencies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from featreg.errors import MissingDependencyError

__all__ = ["data_extra", "extra"]


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around the imports that come with ``featreg[name]``: without it the user gets the pip line.

    ``what`` is what needs them, in the plural. Raises MissingDependencyError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{what} need {error.name}, which is not installed",
            f"the extra featreg[{name}]",
            remedy=f'pip install "featreg[{name}]"',
        ) from error


def data_extra() -> AbstractContextManager[None]:
    """Around the imports that come with ``featreg[data]``."""
    return extra("data", "data sets and stores")
