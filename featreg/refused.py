"""Models that a plugin cannot support, each with the reason: the file ``refused.toml`` in its package.

Its one table ``[models]`` maps a model's name to why it is refused.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

from featreg.errors import CapabilityError, SpecError

__all__ = ["check_refused", "read_refused"]


@functools.cache
def read_refused(package: str) -> Mapping[str, str]:
    """The reason for each model that the plugin of this package refuses; SpecError for a file of another form."""
    models = tomllib.loads((files(package) / "refused.toml").read_text("utf-8")).get("models", {})
    if not isinstance(models, dict) or not all(isinstance(why, str) and why.strip() for why in models.values()):
        raise SpecError(f"refused.toml of {package} is of another form", '[models], name = "reason"')
    return MappingProxyType(models)


def check_refused(package: str, model: str) -> None:
    """Raise CapabilityError with the reason where the plugin of this package refuses a model."""
    why = read_refused(package).get(model)
    if why is not None:
        raise CapabilityError(
            f"{model} is not supported: {why}", remedy=f"refused.toml in {package} lists all that is refused"
        )
