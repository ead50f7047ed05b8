"""How hypothesis draws for the kit: the same examples every time, unless the caller chooses otherwise.

Under pytest a profile that is loaded (``--hypothesis-profile``, ``settings.load_profile``) and ``--hypothesis-seed``
count as ever; ``featreg conform`` has ``--max-examples`` and ``--hypothesis-seed``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import attrs

__all__ = ["choosing", "configured"]

Test = TypeVar("Test", bound=Callable[..., None])

BUILT_IN = ("default", "ci")
"""Profiles that hypothesis loads by itself: nobody has chosen them."""


@attrs.frozen
class _Choice:
    max_examples: int | None = None
    seed: int | None = None


_chosen: ContextVar[_Choice | None] = ContextVar("_chosen", default=None)


@contextlib.contextmanager
def choosing(max_examples: int | None, seed: int | None) -> Iterator[None]:
    """Within, draw so many examples, and from this seed; None leaves each as it is."""
    token = _chosen.set(_Choice(max_examples, seed))
    try:
        yield
    finally:
        _chosen.reset(token)


def configured(usual: int) -> Callable[[Test], Test]:
    """A decorator over ``given`` of hypothesis; ``usual`` is how many examples there are where nobody says.

    Nothing is kept between runs, and no example is too slow or too large.
    """
    from hypothesis import HealthCheck, Phase, core, seed, settings

    choice, profile = _chosen.get() or _Choice(), settings()
    forced = choice.seed if choice.seed is not None else core.global_force_seed
    own = getattr(settings, "get_current_profile_name", lambda: BUILT_IN[0])() not in BUILT_IN  # old ones do not say
    silent = profile.max_examples == settings.get_profile(BUILT_IN[0]).max_examples
    count = choice.max_examples or (usual if silent else profile.max_examples)

    def configure(test: Test) -> Test:
        options: dict[str, Any] = {
            "max_examples": count,
            "derandomize": forced is None and (profile.derandomize or not own),
            "deadline": None,
            "database": None,
            "phases": (Phase.explicit, Phase.generate, Phase.shrink),
            "suppress_health_check": list(HealthCheck),
        }
        found = settings(**options)(test)
        return found if forced is None else seed(forced)(found)

    return configure
