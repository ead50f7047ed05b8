"""What comparing came to: architecture x backend x level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs

from featreg.conformance.agreement.architectures import Deviations
from featreg.spec import Size

__all__ = ["Cell", "Matrix", "Row", "Verdict", "Way"]

Verdict: TypeAlias = Literal["reference", "equal", "deviates", "differs", "alone"]
"""``deviates`` differs as is declared and by no more than is recorded; ``differs`` otherwise, or by more; ``alone`` had
nothing to be held against."""


@attrs.frozen
class Way:
    """A backend as it is run: its model, the options where it computes as another does, and how far it may be off.

    ``deviates`` is what the table has recorded; with the options there is nothing left to excuse.
    """

    architecture: str
    backend: str
    model: str
    options: Mapping[str, Any] = attrs.field(factory=dict)
    deviates: Deviations = attrs.field(factory=dict, repr=False)

    @property
    def label(self) -> str:
        """The backend, with its options, as in ``mindspore (padding=torch)``."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.backend} ({options})" if options else self.backend


@attrs.frozen
class Cell:
    """One level of one backend against that of the first one.

    ``shapes`` are its own by input size; ``differences``, by input size too, are the largest absolute ones as parts of
    the largest value, None where the shapes differ. ``problems`` are what no deviation excuses.
    """

    level: str
    verdict: Verdict
    shapes: Mapping[Size, tuple[int, ...]] = attrs.field(factory=dict)
    differences: Mapping[Size, float | None] = attrs.field(factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def worst(self) -> float | None:
        """The largest of the differences where the shapes are the same; None where they nowhere are."""
        return max((value for value in self.differences.values() if value is not None), default=None)

    @property
    def has_other_shapes(self) -> bool:
        """Whether the shapes differ at any size."""
        return None in self.differences.values()


@attrs.frozen
class Row:
    """One backend on one architecture.

    ``deviations`` are declared. ``refused`` says why which sizes are not taken, ``problems`` what is wrong with the
    backend as a whole.
    """

    way: Way
    cells: tuple[Cell, ...] = ()
    deviations: tuple[str, ...] = ()
    refused: Mapping[Size, str] = attrs.field(factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def is_red(self) -> bool:
        return bool(self.problems) or any(cell.verdict == "differs" for cell in self.cells)

    @property
    def is_compared(self) -> bool:
        return any(cell.verdict in ("equal", "deviates", "differs") for cell in self.cells)

    @property
    def is_idle(self) -> bool:
        """Whether deviations are declared of which none shows at any size."""
        return bool(self.deviations) and self.is_compared and all(cell.verdict == "equal" for cell in self.cells)


@attrs.frozen
class Matrix:
    """Every row, and how they were made: the seed, the input sizes (height, width), the versions of the backends."""

    seed: int
    sizes: tuple[Size, ...]
    backends: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the whole is red although no row is."""
        if any(row.is_compared for row in self.rows):
            return ()
        return ("nothing was compared: no two installed backends have an architecture in common",)

    @property
    def deviating(self) -> tuple[Cell, ...]:
        """The levels that differ as is declared and recorded."""
        return tuple(cell for row in self.rows for cell in row.cells if cell.verdict == "deviates")

    @property
    def headline(self) -> str:
        """What it all comes to: agreement is never claimed without its exceptions."""
        if not self.is_green:
            red = sum(row.is_red for row in self.rows)
            return f"the backends do not agree ({red} red row{'' if red == 1 else 's'})"
        if not self.deviating:
            return "the backends agree"
        count, shapes = len(self.deviating), sum(cell.has_other_shapes for cell in self.deviating)
        worst = max((cell.worst for cell in self.deviating if cell.worst is not None), default=0.0)
        deviate = "1 level deviates" if count == 1 else f"{count} levels deviate"
        others = f", {shapes} of them in shape" if shapes else ""
        return f"the backends agree, {deviate} as declared, by at most {worst:.2g} of the largest value{others}"

    @property
    def is_green(self) -> bool:
        return not self.faults and not any(row.is_red for row in self.rows)
