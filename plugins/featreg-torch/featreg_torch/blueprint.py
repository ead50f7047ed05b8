"""A network on torch's meta device, and what running it there says of its layers."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
from torch import nn

from featreg.plugin import FeatureInfo, ModelInfo, NodeInfo, Size, errors
from featreg_torch.cut import Watch
from featreg_torch.rules import find_input_rule
from featreg_torch.shapes import BATCH, Shape, channels_first, check_batch, glance, probe, read_shapes
from featreg_torch.taps import Glance, HookTaps, Outlet, Stored

__all__ = ["Blueprint", "Cut", "Plan", "Reading", "Tapper"]

_CUTS = 64
"""For how many sets of layers a network remembers where a run may end: finding out takes longer than opening it."""


class Tapper(Protocol):
    """Puts taps on a network: the result's forward returns the tensors of ``sources``, each through its take."""

    def __call__(
        self, network: nn.Module, sources: Sequence[str], takes: Sequence[nn.Module], stop_after: int | None = None
    ) -> nn.Module: ...


@attrs.frozen
class Plan:
    """What a library says of a network: its outlets, every native name, and how to tap it.

    ``tap`` works on every network that was built alike; ``prefix_tokens`` stand before the patch tokens, the first of
    them a class token where ``class_token``; ``sequences`` are the names whose tokens are no patches, ``stored`` is how
    the network lays out its maps where that is known (see :class:`~featreg_torch.taps.Outlet`). Its images have
    ``channels``.
    """

    outlets: Sequence[Outlet]
    names: Sequence[str]
    tap: Tapper
    prefix_tokens: int = 0
    sequences: frozenset[str] = frozenset()
    stored: Stored | None = None
    class_token: bool = False
    channels: int = 3


@attrs.frozen
class Reading:
    """One outlet described, and what a :class:`~featreg_torch.taps.Take` must know to arrange its tensor."""

    info: FeatureInfo
    stored: Stored
    prefix_tokens: int


@attrs.frozen
class Cut:
    """How many wanted tensors end a run (None: it ends by itself), and the parameters and buffers read until then."""

    stop_after: int | None
    used: frozenset[str]


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
        self.class_token = plan.class_token
        self.sequences = plan.sequences
        self.channels = plan.channels
        self._stored = plan.stored
        self._lock = threading.RLock()  # hooks of two probes on one network must not meet
        self._cut = functools.lru_cache(maxsize=_CUTS)(self._find_cut)
        sources = list(dict.fromkeys(outlet.source for outlet in plan.outlets))
        self.rule, seen = find_input_rule(self._taps(sources), native, plan.channels)
        self._sizes = tuple(seen)
        self._shapes = {source: {size: seen[size][k] for size in seen} for k, source in enumerate(sources)}
        self._more: dict[str, Shape | None] = {}  # of undeclared sources, for one more image of the native size
        self.outlets = tuple(outlet for outlet in plan.outlets if self._is_feature(outlet))
        readings = self.read(self.outlets)
        maps = {reading.info.reduction: reading.info for reading in readings if reading.info.reduction}
        self._strides = tuple(sorted(maps))
        self._grids = tuple((stride, maps[stride].grid(*native)) for stride in self._strides)

    def read(self, outlets: Sequence[Outlet], size: Size | None = None, stop_after: int | None = None) -> list[Reading]:
        """Every outlet described, with its grid at ``size`` among those that its rounding was decided from.

        ``stop_after`` ends the run at ``size`` where an extractor of these outlets ends it.

        Raises InputError for a size that the network does not take, CapabilityError for an outlet that is no feature.
        """
        with self._lock:
            sources = _sources(outlets)
            new = [source for source in sources if source not in self._shapes]
            if new:
                taps = self._taps(new)
                found = {known: probe(taps, known, self.channels) for known in self._sizes}
                self._more |= self._probe_more(new)
                self._shapes |= {source: {known: found[known][k] for known in found} for k, source in enumerate(new)}
            shapes = {source: dict(self._shapes[source]) for source in sources}
            if size is not None and size not in self._sizes:
                there = self._probe_other(self._taps(sources, stop_after), size)
                for source, shape in zip(sources, there, strict=True):
                    shapes[source][size] = shape
        return [self._describe(outlet, shapes[outlet.source]) for outlet in outlets]

    def measure(self, outlets: Sequence[Outlet], size: Size, stop_after: int | None = None) -> tuple[FeatureInfo, ...]:
        """Every outlet described at ``size``; raises as :meth:`read` does."""
        return tuple(reading.info for reading in self.read(outlets, size, stop_after))

    def natives(self, size: Size) -> tuple[FeatureInfo, ...]:
        """What declared sources give by their native names, where that is not what is first declared there."""
        first: dict[str, Outlet] = {}
        for outlet in self.outlets:
            first.setdefault(outlet.source, outlet)
        asked = [(outlet, self._native(source)) for source, outlet in first.items() if source in self.names]
        return self.measure([native for outlet, native in asked if native != outlet], size)

    def cut(self, outlets: Sequence[Outlet]) -> Cut:
        """Where an extractor of these outlets may end a run, and what it reads until then.

        It ends early only where the number of wanted tensors is the same at every size probed, and in training.
        """
        return self._cut(frozenset(_sources(outlets)))

    def _find_cut(self, sources: frozenset[str]) -> Cut:
        with self._lock:
            self.network.train().eval()  # some keep tensors made of parameters for evaluation, until they train again
            runs = [self._watch(sources, size) for size in self._sizes]
            counts = {count for count, _, _ in runs}
            with contextlib.suppress(Exception):  # training may need more than a forward pass without data
                counts.add(self._watch(sources, self.native, train=True)[0])
        stops = None not in counts and len(counts) == 1
        used = [read if stops else whole for _, read, whole in runs]
        return Cut(counts.pop() if stops else None, frozenset[str]().union(*used))

    def _watch(
        self, sources: frozenset[str], size: Size, train: bool = False
    ) -> tuple[int | None, frozenset[str], frozenset[str]]:
        """How many wanted tensors a run makes, what it reads until the last of them, and what it reads in all.

        The number is None for taps that hold no more than what is needed.
        """
        watch, read = Watch(self.network), frozenset[str]()

        def mark(*_: object) -> None:
            nonlocal read
            read = watch.seen

        taps = self.tap(self.network, sorted(sources), [Glance(mark) for _ in sources])
        self.network.train(train)
        try:
            with watch:
                probe(taps, size, self.channels)
        finally:
            self.network.eval()
        return (taps.events if isinstance(taps, HookTaps) else None), read, watch.seen

    def nodes(self, size: Size | None = None) -> tuple[NodeInfo, ...]:
        """Every native name, with the shape that asking for it gives for one image (of the native size where None)."""
        size = size or self.native
        self.rule.check(*size)
        with self._lock:
            taps = self._taps(self.names)
            self._more |= self._probe_more([name for name in self.names if name not in self._shapes])
            seen = {known: self._probe_other(taps, known) for known in dict.fromkeys((self.native, size))}
            for known in self._sizes:
                with contextlib.suppress(errors.InputError):  # an auxiliary head may refuse what the layers take
                    seen[known] = self._probe_other(taps, known)
        modules = dict(self.network.named_modules())
        return tuple(
            NodeInfo(
                name,
                type(modules[name]).__name__ if name in modules else "",
                self._node_shape(name, {known: seen[known][k] for known in seen}, size),
            )
            for k, name in enumerate(self.names)
        )

    def _node_shape(self, name: str, shapes: Mapping[Size, Shape | None], size: Size) -> Shape | None:
        for outlet in (self._bare(name), *(outlet for outlet in self.outlets if outlet.source == name)):
            with contextlib.suppress(errors.CapabilityError):
                return self._describe(outlet, shapes).info.shape(1, *size)[1:]
        return None

    def _describe(self, outlet: Outlet, shapes: Mapping[Size, Shape | None]) -> Reading:
        """A module before the class token is added has no prefix where the later ones do: the tokens' number tells."""
        if outlet.stored is None and len(shapes) == 1 and len(shapes[self.native] or ()) == 4:
            outlet = attrs.evolve(outlet, stored="nchw" if outlet.source in self._channels_first else None)
        for prefix in dict.fromkeys((outlet.prefix_tokens, 0)):
            try:
                info, stored = read_shapes(attrs.evolve(outlet, prefix_tokens=prefix), self.native, shapes)
                if outlet.source in self._more:
                    check_batch(outlet, stored, shapes[self.native], self._more[outlet.source])
            except errors.CapabilityError as error:
                refusal = error
            else:
                info = attrs.evolve(info, class_token=self.class_token and info.prefix_tokens > 0)
                return Reading(info, stored, prefix)
        raise refusal

    @functools.cached_property
    def _channels_first(self) -> frozenset[str]:
        """The names whose maps are (N, C, H, W) for certain, which at one size alone the shapes may not tell."""
        with self._lock:
            outputs = glance(self._taps(self.names), self.native, self.channels)
        return channels_first(self.network, dict(zip(self.names, outputs, strict=True)))

    def _is_feature(self, outlet: Outlet) -> bool:
        try:
            self._describe(outlet, self._shapes[outlet.source])
        except errors.CapabilityError:
            return False
        return True

    def _probe_more(self, sources: Sequence[str]) -> dict[str, Shape | None]:
        """The shapes for one more image than in other probes, None where the network does not take as many."""
        shapes: Sequence[Shape | None] = [None] * len(sources)
        with contextlib.suppress(Exception):  # whatever it raises
            shapes = probe(self._taps(sources), self.native, self.channels, BATCH + 1)
        return dict(zip(sources, shapes, strict=True))

    def _taps(self, sources: Sequence[str], stop_after: int | None = None) -> nn.Module:
        return self.tap(self.network, sources, [Glance() for _ in sources], stop_after)

    def _probe_other(self, taps: nn.Module, size: Size) -> list[Shape | None]:
        self.rule.check(*size)
        try:
            return probe(taps, size, self.channels)
        except Exception as error:
            raise errors.InputError(
                "the model does not take images of this size",
                f"height x width: {self.rule}; larger images, where these are small",
                f"{size[0]}x{size[1]} ({type(error).__name__}: {error})",
            ) from error

    def outlet(self, layer: str | int, info: ModelInfo) -> Outlet:
        """The outlet that a layer of a request stands for; raises LayerError with the nearest names."""
        if isinstance(layer, int) or info.is_block(layer):
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
        native = self._bare(name)
        declared = sorted((outlet for outlet in self.outlets if outlet.source == name), key=lambda one: one.head or "")
        if not declared:
            return native
        try:
            kind = self.read([native])[0].info.kind
        except errors.CapabilityError:  # the shapes alone do not tell the layout, the declaration does
            return declared[0]
        return next((outlet for outlet in declared if self.read([outlet])[0].info.kind == kind), native)

    def _bare(self, name: str) -> Outlet:
        return Outlet(
            name,
            prefix_tokens=self.prefix_tokens,
            strides=self._strides,
            grids=self._grids,
            stored=self._stored,
            sequence=name in self.sequences,
        )

    def _unknown(self, layer: str, info: ModelInfo) -> Outlet:
        try:
            info.resolve(layer)
        except errors.LayerError as error:
            near = (*error.matches, *errors.near_matches(layer, self.names))
            raise attrs.evolve(error, matches=tuple(dict.fromkeys(near))[:5]) from None
        raise AssertionError(f"{layer!r} is declared by {info.id} and has no outlet")


def _sources(outlets: Sequence[Outlet]) -> list[str]:
    return list(dict.fromkeys(outlet.source for outlet in outlets))
