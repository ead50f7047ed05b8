"""What a derived layer is made of: :class:`Recipe`, and its text form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from featreg.errors import SpecError
from featreg.fields import AtLeast, IsText, as_tuple, as_whole
from featreg.pool import Pool
from featreg.request import AreLayers, Layer, LayerPools, as_layers, as_pools
from featreg.steps import COUNT, FORMS, PCA, SEED, Centering, IsSeed, Step, parse_step

__all__ = ["RECIPE_FORM", "Recipe"]

RECIPE_FORM = "[NAME=]LAYER[,LAYER...][:POOL][:STEP...][:fit=ROWS[,seed=S]]"
"""The text form, for help and errors."""

_FIT = re.compile(f"fit=(?P<rows>{COUNT}|all){SEED}")
_INPUT = re.compile(r"(?P<layer>[^\[\],]+)(?:\[(?P<pool>[^\]]*)\])?(?:,(?=.)|$)")
_INTEGER = re.compile("-?[0-9]+")


@attrs.frozen
class Recipe:
    """How a derived layer is made: ``inputs`` are pooled, flattened and concatenated, then taken through ``steps``.

    ``inputs`` are layers as the request (or the finished store) gives them; ``pool``, one for all or one by layer,
    comes on top. The result is always (rows, columns), row-major. What the steps learn, they learn from ``sample``
    rows, drawn with ``seed``, or from all. ``name`` is the key of the derived layer, by default the text of the rest.

    ``str(recipe)`` is its text, as in ``name=C3,C4[avg],pooled:l2:pca=256:fit=10000``, and :meth:`parse` reads it. The
    text of layers whose names hold brackets, commas or colons cannot be read back; JSON can.

    Raises SpecError for a recipe that changes nothing and for one whose parts contradict each other, LayerError for
    inputs that are no layers.
    """

    inputs: tuple[Layer, ...] = attrs.field(converter=as_layers, validator=AreLayers())
    steps: tuple[Step, ...] = attrs.field(default=(), converter=as_tuple)
    pool: Pool | LayerPools | None = attrs.field(default=None)
    sample: int | None = attrs.field(default=None, converter=as_whole, validator=AtLeast(1, optional=True))
    seed: int = attrs.field(default=0, converter=as_whole, validator=IsSeed())
    name: str = attrs.field(default="", validator=IsText(empty=True))

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "pool", _common(self.pool, self.inputs))
        if not isinstance(self.steps, tuple) or not all(isinstance(step, Step) for step in self.steps):
            raise SpecError("steps are no steps", FORMS, repr(self.steps))
        if not self.steps and len(self.inputs) == 1 and self.pool is None:
            raise SpecError(f"the recipe of {self.inputs[0]!r} changes nothing", "a step, a pooling or several layers")
        if self.sample is not None and not self.passes:
            raise SpecError("nothing in this recipe is fitted", "no sample", f"fit={self.sample}")
        if self.seed and self.sample is None:
            raise SpecError("a seed without a sample", "a number of rows to draw", f"seed={self.seed}")
        object.__setattr__(self, "name", self.name or self._content)

    @property
    def pools(self) -> dict[Layer, Pool]:
        """The pooling of every input that has one."""
        return {} if self.pool is None else as_pools(self.pool, self.inputs)

    @property
    def stages(self) -> tuple[tuple[Step, ...], ...]:
        """The steps as they are fitted: one by one, but a centring with the PCA behind it, which centres anyway."""
        stages: list[tuple[Step, ...]] = []
        for step in self.steps:
            joins = isinstance(step, PCA) and stages and stages[-1] == (Centering(),)
            stages.append((*stages.pop(), step) if joins else (step,))
        return tuple(stages)

    @property
    def passes(self) -> int:
        """How often the rows are gone through to fit it: once for each stage that learns."""
        return sum(stage[-1].fitted for stage in self.stages)

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """The recipe that a text stands for; raises SpecError with the form and the nearest steps."""
        head, *parts = text.split(":")
        name, equals, inputs = head.partition("=") if "=" in head.partition("[")[0] else ("", "", head)
        layers, own = _parse_inputs(inputs, text)
        if equals and not name:
            raise SpecError(f"the recipe {text!r} has an empty name", RECIPE_FORM, repr(text))
        pool: Any = own or None
        if parts and _is_pool(parts[0]):
            if own:
                raise SpecError(f"two poolings in {text!r}", "one for all layers, or one behind each", repr(text))
            pool = Pool.parse(parts.pop(0))
        sample, seed = _parse_fit(parts.pop()) if parts and parts[-1].startswith("fit") else (None, 0)
        return cls(layers, tuple(map(parse_step, parts)), pool, sample, seed, name)

    @property
    def _content(self) -> str:
        pools = self.pools if isinstance(self.pool, tuple) else {}
        inputs = ",".join(f"{layer}[{pools[layer]}]" if layer in pools else str(layer) for layer in self.inputs)
        seed = f",seed={self.seed}" if self.seed else ""
        fit = [] if self.sample is None else [f"fit={self.sample}{seed}"]
        return ":".join(
            [inputs, *map(str, [self.pool] if isinstance(self.pool, Pool) else []), *map(str, self.steps), *fit]
        )

    def __str__(self) -> str:
        return self._content if self.name == self._content else f"{self.name}={self._content}"


def _common(pool: Any, inputs: tuple[Layer, ...]) -> Pool | LayerPools | None:
    """The poolings by layer in the order of the inputs; one where it is that of all."""
    if pool is None or isinstance(pool, Pool | str):
        return Pool.parse(pool) if isinstance(pool, str) else pool
    pools = as_pools(pool, inputs)
    alike = len(pools) == len(inputs) and len(set(pools.values())) == 1
    return next(iter(pools.values())) if alike else tuple(pools.items()) or None


def _is_pool(text: str) -> bool:
    return re.fullmatch(Pool.pattern, text) is not None


def _parse_inputs(text: str, whole: str) -> tuple[tuple[Layer, ...], Mapping[Layer, Pool]]:
    layers: list[Layer] = []
    pools: dict[Layer, Pool] = {}
    end = 0
    while (found := _INPUT.match(text, end)) is not None:
        name, pool = found["layer"], found["pool"]
        layer: Layer = int(name) if _INTEGER.fullmatch(name) else name
        layers.append(layer)
        if pool is not None:
            pools[layer] = Pool.parse(pool)
        end = found.end()
    if end != len(text) or not layers:
        raise SpecError(f"no layers in {text!r}", RECIPE_FORM, repr(whole))
    return tuple(layers), pools


def _parse_fit(text: str) -> tuple[int | None, int]:
    found = _FIT.fullmatch(text)
    if found is None:
        raise SpecError(f"no way to fit {text!r}", "fit=ROWS, fit=ROWS,seed=S or fit=all", repr(text))
    return None if found["rows"] == "all" else int(found["rows"]), int(found["seed"] or 0)
