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

__all__ = ["Blueprint", "Plan", "Reading", "Tapper"]


class Tapper(Protocol):
    """Puts taps on a network: the result's forward returns the tensors of ``sources``, each through its take."""

    def __call__(
        self, network: nn.Module, sources: Sequence[str], takes: Sequence[nn.Module], stop_after: int | None = None
    ) -> nn.Module: ...


@attrs.frozen
class Plan:
    """What a library says of a network: its outlets, every native name, and how to tap it.

    ``tap`` works on every network that was built alike; ``prefix_tokens`` stand before the patch tokens.
    """

    outlets: Sequence[Outlet]
    names: Sequence[str]
    tap: Tapper
    prefix_tokens: int = 0


@attrs.frozen
class Reading:
    """One outlet described, and what a :class:`~featreg_torch.taps.Take` must know to arrange its tensor."""

    info: FeatureInfo
    stored: Stored
    prefix_tokens: int


class Blueprint:
    """One network without memory: its declared outlets, its input rule, and exact shapes at any size.

    Outlets that turn out to give no feature (a module that returns a list, or does not run) are left out.
    """

    def __init__(self, network: nn.Module, plan: Plan, native: Size) -> None:
        self.network = network
        self.native = native
        self.tap = plan.tap
        self.names = tuple(plan.names)
        self.prefix_tokens = plan.prefix_tokens
        self._lock = threading.RLock()  # hooks of two probes on one network must not meet
        sources = self._running(list(dict.fromkeys(outlet.source for outlet in plan.outlets)))
        self.rule, seen = find_input_rule(self._taps(sources), native)
        self._sizes = tuple(seen)
        self._shapes = {source: {size: seen[size][k] for size in seen} for k, source in enumerate(sources)}
        described = [outlet for outlet in plan.outlets if outlet.source in self._shapes]
        self.outlets = tuple(outlet for outlet in described if self._is_feature(outlet))
        readings = self.read(self.outlets)
        self._strides = tuple(sorted({reading.info.reduction for reading in readings if reading.info.reduction}))

    def read(self, outlets: Sequence[Outlet], size: Size | None = None, stop_after: int | None = None) -> list[Reading]:
        """Every outlet described, with its grid at ``size`` among those that its rounding was decided from.

        ``stop_after`` ends the run at ``size`` where an extractor of these outlets ends it.

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
                there = self._probe_other(self._taps(sources, stop_after), size)
                for source, shape in zip(sources, there, strict=True):
                    shapes[source][size] = shape
        return [self._describe(outlet, shapes[outlet.source]) for outlet in outlets]

    def events(self, outlets: Sequence[Outlet]) -> int | None:
        """How many wanted tensors a whole run makes (see HookTaps); None for taps that need not know."""
        with self._lock:
            taps = self._taps(list(dict.fromkeys(outlet.source for outlet in outlets)))
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

    def _running(self, sources: Sequence[str]) -> list[str]:
        """The sources that give one tensor when the network runs; raises what the network raises by itself."""
        try:
            probe(self._taps(sources), self.native)
        except errors.CapabilityError:
            return [source for source in sources if self._runs(source)]
        return list(sources)

    def _runs(self, source: str) -> bool:
        try:
            probe(self._taps([source]), self.native)
        except errors.CapabilityError:
            return False
        return True

    def _is_feature(self, outlet: Outlet) -> bool:
        try:
            self._describe(outlet, self._shapes[outlet.source])
        except errors.CapabilityError:
            return False
        return True

    def _taps(self, sources: Sequence[str], stop_after: int | None = None) -> nn.Module:
        return self.tap(self.network, sources, [Copy(source) for source in sources], stop_after)

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

    def outlet(self, layer: str | int, info: ModelInfo) -> Outlet:
        """The outlet that a layer of a request stands for; raises LayerError with the nearest names."""
        if isinstance(layer, int):
            index = info.resolve(layer).index
            return next(outlet for outlet in self.outlets if outlet.index == index)
        for outlet in self.outlets:
            if layer in (outlet.level, outlet.head):
                return outlet
        if layer in self.names:
            return self._native(layer)
        return self._unknown(layer, info)

    def _native(self, name: str) -> Outlet:
        """The outlet of a native name, as the library makes it: declared where that is no rearrangement."""
        native = Outlet(name, prefix_tokens=self.prefix_tokens, strides=self._strides)
        declared = sorted((outlet for outlet in self.outlets if outlet.source == name), key=lambda one: one.head or "")
        if not declared:
            return native
        kind = self.read([native])[0].info.kind
        return next((outlet for outlet in declared if self.read([outlet])[0].info.kind == kind), native)

    def _unknown(self, layer: str, info: ModelInfo) -> Outlet:
        try:
            info.resolve(layer)
        except errors.LayerError as error:
            near = (*error.matches, *errors.near_matches(layer, self.names))
            raise attrs.evolve(error, matches=tuple(dict.fromkeys(near))[:5]) from None
        raise AssertionError(f"{layer!r} is declared by {info.id} and has no outlet")
