"""Where features leave the library's networks: the modules that run, and the fields of what a network returns.

Levels follow the one rule (``specs/levels.md``), told from every module's output on the meta device. Hierarchical
transformers keep their maps as tokens, which are told with the stride of their grid. A network of AutoBackbone declares
its maps, and its declaration wins. The heads are the library's own outputs: ``last_hidden_state``, ``pooler_output``,
``logits``, ``image_embeds``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from featreg.plugin import Size, Step, find_final, find_levels, find_transformer, level_of
from featreg_torch.blueprint import Plan
from featreg_torch.declared import has_class_token
from featreg_torch.infer import INPUT, as_step, inputs_of
from featreg_torch.shapes import BATCH, PROBES, Shape, channels_first, glance
from featreg_torch.taps import Glance, HookTaps, Outlet

__all__ = ["Run", "draw_plan", "first_tensor"]

TOKENS, POOLER, LOGITS, EMBEDS, MAPS = (
    "last_hidden_state",
    "pooler_output",
    "logits",
    "image_embeds",
    "feature_maps",
)
_STRIDES = (4, 8, 16, 32, 64)
"""Of the grids that hierarchical transformers keep as tokens."""

_OPEN = ("LevitStage",)
"""Stages that halve the resolution in their last blocks, for the next stage: their own last block lies inside."""


@attrs.frozen
class Run:
    """Runs a network on images (a runner of HookTaps), and yields the fields of what it returns.

    Sides that are no multiples of ``multiple`` are refused, where the network would leave out what remains.
    """

    multiple: int = 1
    interpolate: bool = False

    def __call__(
        self, network: Any, images: torch.Tensor, wanted: frozenset[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        if any(side % self.multiple for side in images.shape[2:]):
            raise ValueError(f"each side must be a multiple of {self.multiple}, got {tuple(images.shape[2:])}")
        options = {"interpolate_pos_encoding": True} if self.interpolate else {}
        with _own_windows(network), inputs_of(network, wanted) as found:
            output = network(pixel_values=images, return_dict=True, **options)
        yield from found.items()
        for name in (TOKENS, POOLER, LOGITS, EMBEDS):
            value = getattr(output, name, None)
            if isinstance(value, torch.Tensor):  # the pooled map of some has one cell
                yield name, value.flatten(1) if name == POOLER and value.shape[2:] == (1, 1) else value
        for index, value in enumerate(getattr(output, MAPS, None) or ()):
            yield f"{MAPS}[{index}]", value


@contextlib.contextmanager
def _own_windows(network: nn.Module) -> Iterator[None]:
    """Give Swin's layers their windows back: they shrink them to a small image, and leave them so for later ones."""
    layers: list[Any] = [part for part in network.modules() if hasattr(part, "set_shift_and_window_size")]
    sizes = [(layer.window_size, layer.shift_size) for layer in layers]
    try:
        yield
    finally:
        for layer, (window, shift) in zip(layers, sizes, strict=True):
            layer.window_size, layer.shift_size = window, shift


def first_tensor(output: Any) -> Any:
    """What a module gives: hidden states, where a block returns attention weights as well, or a model its outputs."""
    values = output.to_tuple() if hasattr(output, "to_tuple") else output
    return values[0] if isinstance(values, tuple) and values else values


@attrs.frozen
class _Seen:
    """What a network gives on the meta device: every source in the order in which they finish, and its shapes."""

    network: Any
    native: Size
    outputs: Mapping[str, torch.Tensor | None]
    shapes: Mapping[str, Mapping[Size, Shape | None]]

    @functools.cached_property
    def steps(self) -> list[Step]:
        modules = dict(self.network.named_modules())
        first = channels_first(self.network, self.outputs)
        steps = [
            as_step(
                name,
                modules[name],
                self.shapes[name],
                self.native,
                id(output),
                stored="nchw" if name in first else None,
            )
            for name, output in self.outputs.items()
            if name in modules
        ]
        return [_with_own_stride(step, modules[step.name]) for step in steps]

    def rank(self, source: str) -> int:
        """How many axes a source has; 0 where it gives no tensor."""
        output = self.outputs.get(source)
        return 0 if output is None else output.ndim

    def grid_stride(self, source: str) -> int | None:
        """The stride of the grid whose cells are the tokens of a source, in pixels; None where they form none."""
        shapes = self.shapes.get(source, {})
        if any(shape is None or len(shape) != 3 or shape[0] != BATCH for shape in shapes.values()):
            return None
        lengths = {size: shape[1] for size, shape in shapes.items() if shape is not None}
        return next((stride for stride in _STRIDES if lengths and _is_grid(lengths, stride)), None)

    @property
    def width(self) -> int | None:
        """How many numbers a classifier takes, be it there or not: the pooler's, of a network without one."""
        if (classifier := self.maker(LOGITS, nn.Linear)) is not None:
            return int(self.network.get_submodule(classifier).in_features)
        pooled = self.outputs.get(POOLER)
        return None if pooled is None else int(pooled.shape[1])

    def maker(self, source: str, kind: type[nn.Module] = nn.Module) -> str | None:
        """The first module to give the very tensor of a source, the one that computed it; None where no module does."""
        modules, output = dict(self.network.named_modules()), self.outputs.get(source)
        same = [name for name, one in self.outputs.items() if output is not None and one is output]
        return next((name for name in same if isinstance(modules.get(name), kind)), None)


def draw_plan(network: nn.Module, native: Size, interpolate: bool) -> Plan:
    """What there is to know of a network on the meta device. Raises whatever it raises at its native size."""
    seen = _watch(network, native, Run(interpolate=interpolate))
    plain = find_transformer(seen.steps, native)
    stride, prefix = (1, 0) if plain is None else (plain.stride, plain.prefix_tokens)
    multiple = stride if not any(side % stride for side in native) else 1  # else it takes its one size alone
    maps = [source for source in seen.outputs if source.startswith(MAPS)]
    if maps:
        outlets = _declared(seen, maps)
    elif plain is not None:
        outlets = _blocks(plain.blocks, _final(seen), stride, prefix)
    else:
        outlets = _levels(seen)
    outlets += _vectors(seen)
    names = [name for name, _ in network.named_modules() if name]
    return Plan(
        outlets,
        list(dict.fromkeys([*names, *seen.outputs, *(outlet.source for outlet in outlets)])),
        functools.partial(HookTaps, run=Run(multiple, interpolate), read=first_tensor),
        prefix,
        class_token=has_class_token(network),
    )


def _watch(network: nn.Module, native: Size, run: Run) -> _Seen:
    order: list[str] = []
    maps = [f"{MAPS}[{index}]" for index in range(len(getattr(network.config, "stage_names", ())))]
    names = [name for name, _ in network.named_modules() if name]
    sources = [*names, TOKENS, POOLER, LOGITS, EMBEDS, *maps]
    glances = [Glance(functools.partial(order.append, name)) for name in sources]
    taps = HookTaps(network, sources, glances, run=run, read=first_tensor)
    runs: dict[Size, Sequence[torch.Tensor | None]] = {native: glance(taps, native)}
    finished = list(dict.fromkeys(reversed(order)))[::-1]  # what runs again counts where it finishes last
    for size in PROBES[:2]:
        try:
            runs[size] = glance(taps, size)
        except Exception:  # noqa: BLE001  (a network may refuse another size with any exception)
            break
    place = {name: position for position, name in enumerate(sources)}
    outputs = {name: runs[native][place[name]] for name in finished}
    shapes = {name: {size: _shape(found[place[name]]) for size, found in runs.items()} for name in finished}
    return _Seen(network, native, outputs, shapes)


def _with_own_stride(step: Step, module: Any) -> Step:
    """A step as the module itself says it: its patches need not fill the image, and a stage may end in the next one."""
    if type(module).__name__ in _OPEN:
        return attrs.evolve(step, stride=None, tokens=None)
    patches = isinstance(module, nn.Conv2d) and module.kernel_size == module.stride and module.in_channels == 3
    return attrs.evolve(step, stride=module.stride[0]) if patches and step.stride is not None else step


def _shape(output: torch.Tensor | None) -> Shape | None:
    return None if output is None else tuple(output.shape)


def _is_grid(lengths: Mapping[Size, int], stride: int) -> bool:
    floor = all((height // stride) * (width // stride) == length for (height, width), length in lengths.items())
    return floor or all(-(-height // stride) * -(-width // stride) == one for (height, width), one in lengths.items())


def _final(seen: _Seen) -> str:
    """The source of the final hidden states, of the network itself or of the base model inside a classifier.

    The module that computes them, where there is one: what follows it (a pooler) need not run then.
    """
    source = TOKENS if seen.rank(TOKENS) else str(getattr(seen.network, "base_model_prefix", ""))
    return seen.maker(source) or source


def _blocks(blocks: Sequence[str], final: str, stride: int, prefix: int) -> list[Outlet]:
    common = Outlet("", kind="map", prefix_tokens=prefix, reduction=stride)
    found = [attrs.evolve(common, source=block, index=index) for index, block in enumerate(blocks)]
    found[-1] = attrs.evolve(found[-1], level=level_of(stride))
    features = attrs.evolve(common, source=final, head="features")
    return [*found, features, attrs.evolve(features, head="tokens", kind="tokens")]


def _levels(seen: _Seen) -> list[Outlet]:
    steps = [
        attrs.evolve(step, stride=seen.grid_stride(step.name)) if step.tokens and step.stride is None else step
        for step in seen.steps
    ]
    levels = find_levels(steps, seen.width)
    found = [
        Outlet(one.name, level=one.level, index=index, kind="map", reduction=seen.grid_stride(one.name))
        for index, one in enumerate(levels)
    ]
    final = _final(seen)
    if seen.rank(final) != 4 and seen.grid_stride(final) is None:
        final = find_final(steps) or ""
    features = Outlet(final, head="features", kind="map", reduction=seen.grid_stride(final))
    return [*found, *([features] if final else [])]


def _declared(seen: _Seen, maps: Sequence[str]) -> list[Outlet]:
    """The maps of AutoBackbone; the last one of a stride is the level."""
    strides = {one: seen.native[0] // shape[2] for one in maps if (shape := seen.shapes[one][seen.native])}
    last = {level_of(stride): source for source, stride in strides.items()}
    names = {source: level for level, source in last.items()}
    found = [Outlet(one, level=names.get(one), index=index, kind="map") for index, one in enumerate(maps)]
    return [*found, Outlet(maps[-1], head="features", kind="map")]


def _vectors(seen: _Seen) -> list[Outlet]:
    """The heads behind the map. A pooler may be missing from a checkpoint, as a classifier may."""
    found = []
    scores = next((name for name in (LOGITS, EMBEDS) if seen.rank(name) == 2), None)
    if scores is not None:
        found.append(Outlet(scores, head="logits" if scores == LOGITS else "embedding", kind="vector"))
        linear = seen.maker(scores, nn.Linear)
        found += [Outlet(linear + INPUT, head="pooled", kind="vector")] if linear else []
    elif seen.rank(POOLER) == 2:
        found.append(Outlet(POOLER, head="pooled", kind="vector", scores=True))
        if "siglip" in seen.network.config.model_type:  # whose texts are compared with what is pooled
            found.append(Outlet(POOLER, head="embedding", kind="vector", scores=True))
    return found
