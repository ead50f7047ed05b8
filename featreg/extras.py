"""Optional parts of featreg that need more than the core's dependencies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from featreg.errors import MissingDependencyError

__all__ = ["data_extra"]


@contextmanager
def data_extra() -> Iterator[None]:
    """Around the imports that come with ``featreg[data]``: without it the user gets the pip line.

    Raises MissingDependencyError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"data sets and stores need {error.name}, which is not installed",
            "the extra featreg[data]",
            remedy='pip install "featreg[data]"',
        ) from error
