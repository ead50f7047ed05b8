"""Every error that featreg raises.

::

    FeatregError
    ├── RequestError              the caller asked for something that cannot be
    │   ├── UnknownBackendError   no plugin of that name is installed
    │   ├── UnknownModelError     the backend has no model of that name
    │   ├── AmbiguousModelError   a bare model name that several backends have
    │   ├── LayerError            an empty, repeated or unknown layer
    │   ├── CapabilityError       the backend or the model does not support what was asked
    │   └── SpecError             a value or a document that breaks the specification
    ├── InputError                images or texts that the model does not take
    ├── DeviceError               a device that is not there
    ├── WeightsError              weights that cannot be found, read or matched
    ├── PluginError               an installed plugin that cannot be used
    │   ├── PluginImportError     it fails while it is imported
    │   ├── PluginHookError       its hooks are missing, misspelt or return something else
    │   ├── DuplicateBackendError two distributions claim one name
    │   ├── SpecVersionError      it was written for another version of the specification
    │   └── MissingDependencyError  a distribution that it needs is absent or of the wrong version
    ├── BackendError              a backend failed, or broke the contract, while it worked
    │   └── OutOfMemoryError      memory does not suffice for a batch, on the device or beside it
    ├── ImageError                bytes that cannot be made into an RGB image
    ├── SourceError               a data set that cannot be read
    ├── ErrorRateError            more samples failed than a run puts up with
    ├── EngineError               a cluster that lost a run's workers, or that hangs
    └── StoreError                a feature store that cannot be read or written
        ├── StoreExistsError      the path is taken
        ├── StoreMismatchError    another run is to go on in it
        ├── StoreDamagedError     a file of it is not as it was written
        ├── StoreFullError        there is no room left
        └── StoreDeniedError      it may not be written to

All of them carry the same five fields, in this order, as positional arguments, so that they survive pickling into
another process: ``problem``, ``expected``, ``got``, ``matches`` and ``remedy``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import attrs

__all__ = [
    "AmbiguousModelError",
    "BackendError",
    "CapabilityError",
    "DeviceError",
    "DuplicateBackendError",
    "EngineError",
    "ErrorRateError",
    "FeatregError",
    "ImageError",
    "InputError",
    "LayerError",
    "MissingDependencyError",
    "OutOfMemoryError",
    "PluginError",
    "PluginHookError",
    "PluginImportError",
    "RequestError",
    "SourceError",
    "SpecError",
    "SpecVersionError",
    "StoreDamagedError",
    "StoreDeniedError",
    "StoreError",
    "StoreExistsError",
    "StoreFullError",
    "StoreMismatchError",
    "UnknownBackendError",
    "UnknownModelError",
    "WeightsError",
    "near_matches",
]


@attrs.define(slots=False, eq=False, repr=False)
class FeatregError(Exception):
    """The root of the tree.

    ``problem`` says what is wrong and names the thing; ``expected`` and ``got`` are set where there is a pair to
    compare; ``matches`` are the nearest valid names; ``remedy`` is the next step (a command, an argument, a pip line).
    """

    problem: str
    expected: str = ""
    got: str = ""
    matches: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    remedy: str = ""

    def __str__(self) -> str:
        lines = [self.problem]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.got:
            lines.append(f"  got: {self.got}")
        if self.matches:
            lines.append(f"  did you mean: {', '.join(self.matches)}")
        if self.remedy:
            lines.append(f"  try: {self.remedy}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.problem!r})"


class RequestError(FeatregError):
    """The caller asked for something that cannot be."""


class UnknownBackendError(RequestError):
    """No plugin of that name is installed."""


class UnknownModelError(RequestError):
    """The backend has no model of that name."""


class AmbiguousModelError(RequestError):
    """A bare model name that more than one backend has; ``matches`` holds the full model ids."""


class LayerError(RequestError):
    """An empty, repeated or unknown layer."""


class CapabilityError(RequestError):
    """The backend or the model does not support what was asked."""


class SpecError(RequestError):
    """A value or a document that breaks the specification."""


class InputError(FeatregError):
    """Images or texts that the model does not take."""


class DeviceError(FeatregError):
    """A device that does not exist or that the framework cannot use."""


class WeightsError(FeatregError):
    """Weights that cannot be found, read or matched to the model."""


class PluginError(FeatregError):
    """An installed plugin that cannot be used."""


class PluginImportError(PluginError):
    """A plugin that fails while it is imported."""


class PluginHookError(PluginError):
    """A plugin whose hooks are missing, misspelt or return something else than the specification says."""


class DuplicateBackendError(PluginError):
    """Two distributions claim one backend name; neither is loaded."""


class SpecVersionError(PluginError):
    """A plugin that was written for another version of the specification."""


class MissingDependencyError(PluginError):
    """A distribution that a plugin needs is absent or of the wrong version."""


class BackendError(FeatregError):
    """A backend failed, or broke the contract, while it worked; the cause is chained."""


class OutOfMemoryError(BackendError):
    """Memory does not suffice for a batch, on the device or beside it; a smaller one may fit."""


class ImageError(FeatregError):
    """Bytes that cannot be made into an RGB image."""


class SourceError(FeatregError):
    """A data set that cannot be read, or that holds no sample."""


class ErrorRateError(FeatregError):
    """More samples failed than the run puts up with; what is finished is kept."""


class EngineError(FeatregError):
    """A cluster that lost the workers of a run, or that hangs; what is finished is kept."""


class StoreError(FeatregError):
    """A feature store that cannot be read or written."""


class StoreExistsError(StoreError):
    """The path for a new store is taken."""


class StoreMismatchError(StoreError):
    """Another request, other weights or other versions than those that a store was begun with."""


class StoreDamagedError(StoreError):
    """A file of a store is missing, torn or changed."""


class StoreFullError(StoreError):
    """The disk, or the quota, has no room for the features."""


class StoreDeniedError(StoreError):
    """The store may not be written to: read-only, or no permission."""


def near_matches(word: str, candidates: Iterable[str], limit: int = 5) -> tuple[str, ...]:
    """The candidates that look most like ``word``, whatever the case.

    Those that begin with it come first, the shortest before the others; then close spellings; then what contains it.
    """
    pool: dict[str, list[str]] = {}
    for name in dict.fromkeys(candidates):
        pool.setdefault(name.casefold(), []).append(name)
    folded = word.casefold()
    containing = sorted((name for name in pool if folded and folded in name), key=len)
    beginning = [name for name in containing if name.startswith(folded)]
    close = sorted(
        difflib.get_close_matches(folded, pool, n=len(pool) or 1), key=lambda name: (-_ratio(folded, name), name)
    )
    ranked = dict.fromkeys([*beginning, *close, *containing])
    return tuple(name for key in ranked for name in pool[key])[:limit]


def _ratio(word: str, name: str) -> float:
    return difflib.SequenceMatcher(a=name, b=word).ratio()
