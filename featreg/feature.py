"""One layer's output as data: what it is, how large, and for which images."""

from __future__ import annotations

import operator
from typing import Literal, TypeAlias

import attrs

from featreg.errors import InputError, SpecError
from featreg.fields import AtLeast, IsBool, IsSize, IsText, OneOf, as_pair, as_tuple, as_whole

__all__ = ["HEADS", "LEVELS", "FeatureInfo", "InputRule", "Kind", "MeasuredGrid", "Rounding", "Size"]

Kind: TypeAlias = Literal["map", "tokens", "vector"]
Rounding: TypeAlias = Literal["ceil", "floor", "measured"]
Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

LEVELS = tuple(f"C{k}" for k in range(8))
"""The canonical levels: level Ck lies at stride 2**k, as in feature pyramids (Lin et al. 2017, arXiv:1612.03144)."""

HEADS = ("features", "pooled", "logits", "tokens", "embedding", "text_embedding")
"""The final unpooled features, the vector before the classifier, its output, the final tokens, CLIP's two towers."""


@attrs.frozen
class MeasuredGrid:
    """The height and width of a feature map at one input size, measured because no closed form holds for it."""

    input_size: Size = attrs.field(converter=as_pair, validator=IsSize())
    grid: Size = attrs.field(converter=as_pair, validator=IsSize())


@attrs.frozen
class InputRule:
    """The image sizes that a model takes: one ``fixed`` size, or each from ``minimum`` on by ``multiple_of``."""

    fixed: Size | None = attrs.field(default=None, converter=as_pair, validator=IsSize(optional=True))
    multiple_of: int = attrs.field(default=1, converter=as_whole, validator=AtLeast(1))
    minimum: Size = attrs.field(default=(1, 1), converter=as_pair, validator=IsSize())
    channels: int = attrs.field(default=3, converter=as_whole, validator=AtLeast(1))

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"exactly {self.fixed[0]}x{self.fixed[1]}"
        parts = [f"at least {self.minimum[0]}x{self.minimum[1]}"] if self.minimum > (1, 1) else []
        parts += [f"multiples of {self.multiple_of}"] if self.multiple_of > 1 else []
        return ", ".join(parts) or "any size"

    def check(self, height: int, width: int) -> None:
        """Raise InputError unless an image of this size may go in."""
        fits = (
            (height, width) == self.fixed
            if self.fixed is not None
            else height >= self.minimum[0]
            and width >= self.minimum[1]
            and height % self.multiple_of == 0
            and width % self.multiple_of == 0
        )
        if not fits:
            raise InputError(
                "the model does not take images of this size",
                f"height x width: {self}",
                f"{height}x{width}",
                remedy="resize or crop the images (extractor.preprocess says how the weights were trained)",
            )


@attrs.frozen
class FeatureInfo:
    """One layer's output, described exactly.

    ``name`` is the library's own name of the node or module. ``reduction`` is the stride in pixels (None for vectors,
    and for a pooled map whose cells have no one stride). ``rounding`` says how an input side becomes a grid side:
    ``ceil(side / reduction)``, ``floor(side / reduction)``, or ``measured`` at the sizes listed in ``measured``, where
    neither form holds; a vector that is ``measured`` is a flattened layer, ``channels`` wide at the sizes listed.
    ``prefix_tokens`` counts the class, distillation and register tokens at the front of ``tokens``; maps never contain
    them. ``class_token`` says that the first of them is a class token. ``length`` is the number of tokens where they
    are no patches of the image (those of a text, the queries of an attention pool): it is the same for every size, and
    there is no reduction. ``input_rule`` is the model's: a shape is predicted for no size that the model does not take.
    """

    name: str = attrs.field(validator=IsText(empty=True))
    channels: int = attrs.field(converter=as_whole, validator=AtLeast(1))
    reduction: int | None = attrs.field(converter=as_whole, validator=AtLeast(1, optional=True))
    kind: Kind = attrs.field(validator=OneOf(("map", "tokens", "vector")))
    level: str | None = attrs.field(default=None, validator=OneOf((None, *LEVELS)))
    index: int | None = attrs.field(default=None, converter=as_whole, validator=AtLeast(0, optional=True))
    head: str | None = attrs.field(default=None, validator=OneOf((None, *HEADS)))
    prefix_tokens: int = attrs.field(default=0, converter=as_whole, validator=AtLeast(0))
    rounding: Rounding = attrs.field(default="ceil", validator=OneOf(("ceil", "floor", "measured")))
    measured: tuple[MeasuredGrid, ...] = attrs.field(default=(), converter=as_tuple)
    input_rule: InputRule = attrs.field(factory=InputRule, repr=False)
    length: int | None = attrs.field(default=None, converter=as_whole, validator=AtLeast(1, optional=True))
    class_token: bool = attrs.field(default=False, validator=IsBool())

    def __attrs_post_init__(self) -> None:
        if self.length is not None and self.kind != "tokens":
            raise SpecError(f"feature {self.name!r} of kind {self.kind!r} has a length", "a length for tokens alone")
        strided, uneven = self._has_grid, self.kind == "map" and self.rounding == "measured"
        if (self.reduction is not None and not strided) or (self.reduction is None and strided and not uneven):
            raise SpecError(
                f"feature {self.name!r} of kind {self.kind!r} has reduction {self.reduction}",
                "a reduction for maps (but where measured) and for tokens without a length, none for vectors",
            )
        sizes = [entry.input_size for entry in self.measured]
        if (sizes and self.rounding != "measured") or len(sizes) != len(set(sizes)):
            raise SpecError(
                f"the measured grids of {self.name!r} contradict", "rounding 'measured', each size once", str(sizes)
            )
        if self.prefix_tokens and self.kind != "tokens":
            raise SpecError(f"feature {self.name!r} of kind {self.kind!r} cannot hold prefix tokens")
        if self.class_token and not self.prefix_tokens:
            raise SpecError(f"feature {self.name!r} has a class token", "at least one prefix token", "none")

    @property
    def _has_grid(self) -> bool:
        return self.kind != "vector" and self.length is None

    def grid(self, height: int, width: int) -> Size:
        """The height and width of the feature map (for tokens: of the patch grid) for one input size.

        Raises InputError where the map would be empty, or where the grid is ``measured`` and not at this size.
        """
        if not self._has_grid:
            raise SpecError(f"feature {self.name!r} is no grid of the image", "a map, or tokens of patches", self.kind)
        height, width = operator.index(height), operator.index(width)
        if self.reduction is None or self.rounding == "measured":
            return self._measured_grid(height, width)
        if self.rounding == "ceil":
            grid = (-(-height // self.reduction), -(-width // self.reduction))
        else:
            grid = (height // self.reduction, width // self.reduction)
        if min(grid) < 1:
            raise InputError(
                f"{self.name!r} is empty for an image of {height}x{width}",
                f"at least {self.reduction} pixels a side",
                f"{height}x{width}",
            )
        return grid

    def _measured_grid(self, height: int, width: int) -> Size:
        for entry in self.measured:
            if entry.input_size == (height, width):
                return entry.grid
        raise InputError(
            f"the grid of {self.name!r} follows no formula and was not measured at {height}x{width}",
            f"one of {[entry.input_size for entry in self.measured]}",
            f"{height}x{width}",
            remedy="describe the model at this input size, or ask an extractor's output_shapes",
        )

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """The exact output shape for ``batch`` images: (N, C, H, W), (N, L, D) or (N, D).

        The shape of a vector needs no size unless it is ``measured``, nor does that of tokens with a length. Raises
        InputError for a size that the model does not take, and as :meth:`grid`.
        """
        for number in (batch, height, width):
            if isinstance(number, bool) or not hasattr(number, "__index__") or number < 0:
                raise InputError("a shape is asked for by whole numbers", got=f"{batch!r}, {height!r}, {width!r}")
        if self.kind == "vector" and self.rounding != "measured":
            return (batch, self.channels)
        if self.length is not None:
            return (batch, self.prefix_tokens + self.length, self.channels)
        self.input_rule.check(height, width)
        if self.kind == "vector":
            self._measured_grid(height, width)
            return (batch, self.channels)
        rows, columns = self.grid(height, width)
        if self.kind == "tokens":
            return (batch, self.prefix_tokens + rows * columns, self.channels)
        return (batch, self.channels, rows, columns)
