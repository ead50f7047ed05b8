"""What comparing came to: architecture x backend x level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs

from featreg.spec import Size

__all__ = ["Cell", "Matrix", "Row", "Verdict", "Way"]

Verdict: TypeAlias = Literal["reference", "equal", "deviates", "differs", "alone"]
"""``deviates`` differs as it is declared, ``differs`` although nothing is; ``alone`` had nothing to be held against."""


@attrs.frozen
class Way:
    """A backend as it is run: its model, and the options where it computes as another does."""

    architecture: str
    backend: str
    model: str
    options: Mapping[str, Any] = attrs.field(factory=dict)

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
    def is_green(self) -> bool:
        return not self.faults and not any(row.is_red for row in self.rows)
