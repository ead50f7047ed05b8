"""A network on torch's meta device, and what running it there says of its layers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import attrs
from torch import nn

from featreg.plugin import FeatureInfo, ModelInfo, Size, errors
from featreg_torch.shapes import Shape, find_input_rule, probe, read_shapes
from featreg_torch.taps import Copy, Outlet, Stored

__all__ = ["Blueprint", "Reading", "Tapper"]


class Tapper(Protocol):
    """Puts taps on a network: the result's forward returns the tensors of ``sources``, each through its take."""

    def __call__(
        self, network: nn.Module, sources: Sequence[str], takes: Sequence[nn.Module], stop_after: int | None = None
    ) -> nn.Module: ...


@attrs.frozen
class Reading:
    """What a blueprint says of some outlets; ``events`` is for :class:`~featreg_torch.taps.HookTaps`."""

    features: tuple[FeatureInfo, ...]
    stored: tuple[Stored, ...]
    prefixes: tuple[int, ...]
    events: int | None


class Blueprint:
    """One network without memory: its declared outlets, its input rule, and exact shapes at any size."""

    def __init__(
        self, network: nn.Module, outlets: Sequence[Outlet], names: Sequence[str], tap: Tapper, native: Size
    ) -> None:
        self.network = network
        self.outlets = tuple(outlets)
        self.names = tuple(names)
        self.native = native
        self._tap = tap
        self._lock = threading.RLock()  # hooks of two probes on one network must not meet
        taps = tap(network, [outlet.source for outlet in outlets], [Copy() for _ in outlets])
        self.rule, seen = find_input_rule(taps, native)
        self._sizes = tuple(seen)

    def read(self, outlets: Sequence[Outlet], size: Size | None = None) -> Reading:
        """Every outlet described, with its grid at ``size`` among those that its rounding was decided from.

        Raises InputError for a size that the network does not take.
        """
        with self._lock:
            taps = self._tap(self.network, [outlet.source for outlet in outlets], [Copy() for _ in outlets])
            seen: dict[Size, list[Shape]] = {known: probe(taps, known) for known in self._sizes}
            if size is not None and size not in seen:
                seen[size] = self._probe_other(taps, size)
        features, stored, prefixes = [], [], []
        for position, outlet in enumerate(outlets):
            shapes = {known: found[position] for known, found in seen.items()}
            for prefix in dict.fromkeys((outlet.prefix_tokens, 0)):
                try:
                    info, layout = read_shapes(attrs.evolve(outlet, prefix_tokens=prefix), self.native, shapes)
                    break
                except errors.CapabilityError:
                    if prefix == 0:
                        raise
            features.append(info)
            stored.append(layout)
            prefixes.append(prefix)
        return Reading(tuple(features), tuple(stored), tuple(prefixes), getattr(taps, "events", None))

    def _probe_other(self, taps: nn.Module, size: Size) -> list[Shape]:
        self.rule.check(*size)
        try:
            return probe(taps, size)
        except Exception as error:
            raise errors.InputError(
                "the model does not take images of this size",
                f"height x width: {self.rule}; larger images, where these are small",
                f"{size[0]}x{size[1]} ({type(error).__name__}: {error})",
            ) from error

    def outlet(self, layer: str | int, info: ModelInfo, prefix_tokens: int) -> Outlet:
        """The outlet that a layer of a request stands for; raises LayerError with the nearest names."""
        if isinstance(layer, int):
            index = info.resolve(layer).index
            return next(outlet for outlet in self.outlets if outlet.index == index)
        for outlet in self.outlets:
            if layer in (outlet.level, outlet.head) or (layer == outlet.source and outlet.kind is None):
                return outlet
        if layer in self.names:
            return Outlet(layer, prefix_tokens=prefix_tokens)
        return self._unknown(layer, info)

    def _unknown(self, layer: str, info: ModelInfo) -> Outlet:
        try:
            info.resolve(layer)
        except errors.LayerError as error:
            near = (*error.matches, *errors.near_matches(layer, self.names))
            raise attrs.evolve(error, matches=tuple(dict.fromkeys(near))[:5]) from None
        raise AssertionError(f"{layer!r} is declared by {info.id} and has no outlet")


