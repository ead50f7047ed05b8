"""What a request's options may say of how timm builds a network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from featreg.plugin import errors

__all__ = ["OPTIONS", "Build", "check_build", "check_values", "read_build"]

OPTIONS = ("dynamic_img_size", "img_size", "in_chans", "num_classes")
"""Arguments of ``timm.create_model``, under timm's own names."""

Build = tuple[tuple[str, Any], ...]
"""Those of a request, in the order of their names."""


def check_values(options: Mapping[str, Any]) -> None:
    """Raise SpecError for a value of another type than its option takes."""
    if not isinstance(options.get("dynamic_img_size", True), bool):
        raise errors.SpecError(
            "the option 'dynamic_img_size' is a switch", "true or false", repr(options["dynamic_img_size"])
        )
    for name, what in (("num_classes", "classes"), ("in_chans", "channels of the images")):
        if not _is_count(options.get(name, 1)):
            raise errors.SpecError(
                f"the option {name!r} is a number of {what}", "a positive integer", repr(options[name])
            )
    size = options.get("img_size", 1)
    if not _is_count(size) and not (isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_count, size))):
        raise errors.SpecError(
            "the option 'img_size' is the size of images", "a positive integer, or two: [height, width]", repr(size)
        )


def read_build(options: Mapping[str, Any]) -> Build:
    """The options that timm builds a network with; an ``img_size`` as (height, width)."""
    build = {name: options[name] for name in OPTIONS if name in options}
    if "img_size" in build:
        size = build["img_size"]
        build["img_size"] = (size, size) if isinstance(size, int) else tuple(size)
    return tuple(build.items())


def check_build(network: nn.Module, model: str, build: Build) -> None:
    """Raise CapabilityError for an option that the network's class does not name: some take any and drop it."""
    for name, value in build:
        kept = name != "num_classes" or getattr(network, name, None) == value
        if not kept or not any(name in inspect.signature(kind.__init__).parameters for kind in _classes(network)):
            raise errors.CapabilityError(
                f"timm:{model} has no option {name!r}", f"a model whose class takes {name}", type(network).__name__
            )


def _classes(network: nn.Module) -> list[type[Any]]:
    return [kind for kind in type(network).__mro__ if "__init__" in vars(kind)]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
