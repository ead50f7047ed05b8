"""A network on torch's meta device, and what running it there says of its layers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
from torch import nn

from featreg.plugin import FeatureInfo, ModelInfo, Size, errors
from featreg_torch.shapes import Shape, find_input_rule, probe, read_shapes
from featreg_torch.taps import Copy, HookTaps, Outlet, Stored

__all__ = ["Blueprint", "Reading", "Tapper"]


class Tapper(Protocol):
    """Puts taps on a network: the result's forward returns the tensors of ``sources``, each through its take."""

    def __call__(
        self, network: nn.Module, sources: Sequence[str], takes: Sequence[nn.Module], stop_after: int | None = None
    ) -> nn.Module: ...


@attrs.frozen
class Reading:
    """One outlet described, and what a :class:`~featreg_torch.taps.Take` must know to arrange its tensor."""

    info: FeatureInfo
    stored: Stored
    prefix_tokens: int


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
        sources = list(dict.fromkeys(outlet.source for outlet in outlets))
        self.rule, seen = find_input_rule(self._taps(sources), native)
        self._sizes = tuple(seen)
        self._shapes = {source: {size: seen[size][k] for size in seen} for k, source in enumerate(sources)}

    def read(self, outlets: Sequence[Outlet], size: Size | None = None) -> list[Reading]:
        """Every outlet described, with its grid at ``size`` among those that its rounding was decided from.

        Raises InputError for a size that the network does not take, CapabilityError for an outlet that is no feature.
        """
        with self._lock:
            sources = list(dict.fromkeys(outlet.source for outlet in outlets))
            new = [source for source in sources if source not in self._shapes]
            if new:
                taps = self._taps(new)
                found = {known: probe(taps, known) for known in self._sizes}
                self._shapes |= {source: {known: found[known][k] for known in found} for k, source in enumerate(new)}
            shapes = {source: dict(self._shapes[source]) for source in sources}
            if size is not None and size not in self._sizes:
                for source, shape in zip(sources, self._probe_other(self._taps(sources), size), strict=True):
                    shapes[source][size] = shape
        return [self._describe(outlet, shapes[outlet.source]) for outlet in outlets]

    def events(self, outlets: Sequence[Outlet]) -> int | None:
        """How many wanted tensors a whole run makes (see HookTaps); None for taps that need not know."""
        with self._lock:
            taps = self._taps([outlet.source for outlet in outlets])
            if not isinstance(taps, HookTaps):
                return None
            probe(taps, self.native)
            return taps.events

    def _describe(self, outlet: Outlet, shapes: Mapping[Size, Shape]) -> Reading:
        """A module before the class token is added has no prefix where the later ones do: the tokens' number tells."""
        for prefix in dict.fromkeys((outlet.prefix_tokens, 0)):
            try:
                return Reading(*read_shapes(attrs.evolve(outlet, prefix_tokens=prefix), self.native, shapes), prefix)
            except errors.CapabilityError as error:
                refusal = error
        raise refusal

    def _taps(self, sources: Sequence[str]) -> nn.Module:
        return self._tap(self.network, sources, [Copy(source) for source in sources])

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
