"""How a layer's output is pooled: :class:`Pool`, and its text form."""

from __future__ import annotations

import math
import numbers
import re
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from featreg.errors import InputError, SpecError, near_matches
from featreg.fields import IsSize, OneOf, as_pair, as_whole

__all__ = ["FORMS", "Pool", "Window"]

PoolKind: TypeAlias = Literal["avg", "max", "gem", "cls", "avgpool", "maxpool", "adaptive_avgpool", "identity"]
Window: TypeAlias = tuple[int, int, int]
"""Kernel, stride and padding of a fixed grid along one side."""

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "avg": (),
    "max": (),
    "gem": ("p",),
    "cls": (),
    "avgpool": ("kernel", "stride", "padding"),
    "maxpool": ("kernel", "stride", "padding"),
    "adaptive_avgpool": ("output",),
    "identity": (),
}
FORMS = "avg, max, gem, gem=P, cls, avgpool=K,S,P, maxpool=K,S,P, adaptive_avgpool=H,W or identity"
"""The text forms, for help and errors."""

_WHOLE = "[1-9][0-9]{0,5}"
_SIDE = f"{_WHOLE}(x{_WHOLE})?"
_PATTERN = (
    r"(avg|max|cls|identity|gem(=[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?)?"
    rf"|(avgpool|maxpool)={_SIDE}(,{_SIDE}(,[0-9]{{1,6}}(x[0-9]{{1,6}})?)?)?"
    rf"|adaptive_avgpool={_WHOLE}(,{_WHOLE})?)"
)


def _sides(value: Any) -> Any:
    """(rows, columns); one whole number stands for both."""
    value = as_whole(value)
    return (value, value) if type(value) is int else as_pair(value)


def _number(value: Any) -> Any:
    return float(value) if not isinstance(value, bool) and isinstance(value, numbers.Real) else value


@attrs.frozen
class Pool:
    """What is done to the positions of a layer's output.

    ``avg``, ``max`` and ``gem`` (the generalised mean of Radenović et al. 2018, arXiv:1711.02512, with exponent ``p``)
    make one vector per image of a map or of the tokens behind the prefix; ``cls`` takes the class token. All
    four leave vectors as they are. The fixed grids ``avgpool``, ``maxpool`` (``kernel``, ``stride`` and ``padding`` as
    in torch's ``AvgPool2d`` and ``MaxPool2d``, the stride by default the kernel's size) and ``adaptive_avgpool``
    (``output`` as in ``AdaptiveAvgPool2d``) turn a map into a smaller one. ``identity`` changes nothing.

    ``str(pool)`` is its text, as in ``"gem=4.5"`` or ``"avgpool=10,10,4"``, and :meth:`parse` reads it. Arguments that
    the kind does not take raise SpecError.
    """

    kind: PoolKind = attrs.field(validator=OneOf(tuple(_ARGUMENTS)))
    kernel: tuple[int, int] | None = attrs.field(default=None, converter=_sides, validator=IsSize(optional=True))
    stride: tuple[int, int] | None = attrs.field(default=None, converter=_sides, validator=IsSize(optional=True))
    padding: tuple[int, int] | None = attrs.field(default=None, converter=_sides)
    output: tuple[int, int] | None = attrs.field(default=None, converter=_sides, validator=IsSize(optional=True))
    p: float | None = attrs.field(default=None, converter=_number)

    pattern: ClassVar[str] = f"^{_PATTERN}$"
    """The text form as a regular expression, for JSON Schema."""

    def __attrs_post_init__(self) -> None:
        taken = _ARGUMENTS[self.kind]
        for name in ("kernel", "stride", "padding", "output", "p"):
            if name not in taken and getattr(self, name) is not None:
                raise SpecError(f"the pooling {self.kind!r} takes no {name}", FORMS, f"{name}={getattr(self, name)!r}")
        if "kernel" in taken:
            self._complete_windows()
        if "output" in taken and self.output is None:
            raise SpecError(f"the pooling {self.kind!r} needs its output size", "as in adaptive_avgpool=2,2")
        if "p" in taken:
            object.__setattr__(self, "p", 3.0 if self.p is None else self.p)
            if not isinstance(self.p, float) or not math.isfinite(self.p) or self.p <= 0:
                raise SpecError("the exponent p is out of range", "a number above 0", repr(self.p))

    def _complete_windows(self) -> None:
        kernel, padding = self.kernel, (0, 0) if self.padding is None else self.padding
        if kernel is None:
            raise SpecError(f"the pooling {self.kind!r} needs a kernel", f"as in {self.kind}=2,2,0")
        if not isinstance(padding, tuple) or len(padding) != 2 or not all(map(_fits, padding, kernel)):
            raise SpecError(
                "the padding is out of range", f"whole numbers of at most half the kernel {kernel}", repr(padding)
            )
        object.__setattr__(self, "stride", self.stride or kernel)
        object.__setattr__(self, "padding", padding)

    @classmethod
    def parse(cls, text: str) -> Pool:
        """The pooling that a text stands for; raises SpecError with the forms there are."""
        kind: Any
        kind, equals, arguments = text.partition("=")
        if re.fullmatch(_PATTERN, text) is None:
            grid = f"{kind}pool={arguments}"  # a global pooling with the arguments of a grid
            found = (grid,) if re.fullmatch(_PATTERN, grid) else near_matches(kind, _ARGUMENTS, limit=3)
            raise SpecError(f"no pooling {text!r}", FORMS, repr(text), found)
        if kind == "gem":
            return cls("gem", p=float(arguments) if equals else None)
        sides = [tuple(map(int, side.split("x"))) for side in arguments.split(",")] if equals else []
        if kind == "adaptive_avgpool":
            return cls("adaptive_avgpool", output=(sides[0][0], sides[-1][0]))
        return cls(kind, *((side[0], side[-1]) for side in sides))

    def __str__(self) -> str:
        if self.output is not None:
            return f"{self.kind}={self.output[0]},{self.output[1]}"
        if self.p is not None:
            return self.kind if self.p == 3 else f"{self.kind}={repr(self.p).removesuffix('.0')}"
        sides = [side for side in (self.kernel, self.stride, self.padding) if side is not None]
        return f"{self.kind}={','.join(map(_side_text, sides))}" if sides else self.kind

    @property
    def windows(self) -> tuple[Window, Window] | None:
        """Kernel, stride and padding of the rows and of the columns; None but for ``avgpool`` and ``maxpool``."""
        if self.kernel is None or self.stride is None or self.padding is None:
            return None
        rows, columns = zip(self.kernel, self.stride, self.padding, strict=True)
        return rows, columns

    @property
    def is_grid(self) -> bool:
        """Whether a map stays a map, of another height and width."""
        return self.kernel is not None or self.output is not None

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """The height and width that a map of (rows, columns) gets; raises InputError where no window fits into it."""
        if self.windows is None:
            return self.output or (rows, columns)
        height, width = (_side(side, *window) for side, window in zip((rows, columns), self.windows, strict=True))
        if min(height, width) < 1:
            least = "x".join(str(kernel - 2 * padding) for kernel, _, padding in self.windows)
            raise InputError(
                f"a map of {rows}x{columns} is too small for the pooling {self}",
                f"at least {least}",
                f"{rows}x{columns}",
                remedy="larger images, or a smaller kernel",
            )
        return height, width


def _side(side: int, kernel: int, stride: int, padding: int) -> int:
    """How many windows lie along a side, as torch counts them with ``ceil_mode=False``."""
    return (side + 2 * padding - kernel) // stride + 1


def _fits(padding: Any, kernel: int) -> bool:
    """Whether a side is padded as torch allows: beyond half the kernel, a window could lie in the padding alone."""
    return type(padding) is int and 0 <= 2 * padding <= kernel


def _side_text(side: tuple[int, int]) -> str:
    return str(side[0]) if side[0] == side[1] else f"{side[0]}x{side[1]}"
