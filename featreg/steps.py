"""The steps of a recipe, which turn rows into rows, and their text forms."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from featreg.errors import SpecError, near_matches
from featreg.fields import AtLeast, IsBool, OneOf, as_whole

__all__ = ["COUNT", "FORMS", "PCA", "SEED", "Centering", "IsSeed", "L2Norm", "RandomProjection", "Step", "parse_step"]

FORMS = "l2, center, pca=COUNT or pca=SHARE with ,whiten, or project=COUNT with ,sparse or ,sparse=DENSITY and ,seed=S"
"""The text forms of the steps, for help and errors."""

COUNT = "[1-9][0-9]{0,8}"
SEED = "(?:,seed=(?P<seed>[0-9]{1,20}))?"
"""A number, and an optional seed, as regular expressions."""

SEEDS = 2**64


@attrs.frozen
class IsSeed:
    """A whole number from 0 to 2**64 - 1, the key of a counter-based generator."""

    schema: ClassVar[dict[str, Any]] = {"minimum": 0}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if type(value) is not int or not 0 <= value < SEEDS:
            raise SpecError(f"{attribute.name} is no seed", "a whole number from 0 to 2**64 - 1", repr(value))


@attrs.frozen
class L2Norm:
    """Each row divided by its Euclidean norm; a row of zeros stays zeros, as with scikit-learn's ``normalize``.

    thingsvision's ``normalize_features`` (2.7) differs in that: there a row of zeros becomes NaN, which here says that
    an image failed. It also works along the second axis, the channels of a map; here a row is first flattened.
    """

    fitted: ClassVar[bool] = False

    def __str__(self) -> str:
        return "l2"


@attrs.frozen
class Centering:
    """The mean of the fitted rows subtracted from every row.

    thingsvision's ``center_features`` (2.7) takes the mean in the type of the array, float16 too; here it is taken in
    float64, failed rows are left out, and the mean is kept for other stores.
    """

    fitted: ClassVar[bool] = True

    def __str__(self) -> str:
        return "center"


def _number(value: Any) -> Any:
    return float(value) if not isinstance(value, bool) and isinstance(value, numbers.Real) else value


@attrs.frozen
class _IsShare:
    """None, or a number above 0 and below 1; 1 too with ``whole``."""

    whole: bool = False

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None or (isinstance(value, float) and (0 < value < 1 or (self.whole and value == 1))):
            return
        limit = "a number above 0, at most 1" if self.whole else "a number above 0 and below 1"
        raise SpecError(f"{attribute.name} is out of range", limit, repr(value))


@attrs.frozen
class PCA:
    """The coordinates along the principal components of the fitted rows, the largest variance first.

    Either ``components`` says how many, or ``variance`` which share of the variance they hold at least: the fewest
    whose share is above it, as scikit-learn's ``PCA(n_components=0.9)`` counts them. ``whiten`` scales each coordinate
    to unit variance; coordinates without variance become 0, where scikit-learn blows up their rounding. Signs are
    those of scikit-learn's: the entry of a component that is largest in absolute value is positive.

    thingsvision's ``compress_features`` (in its module ``vision``, which 2.7.3 carries but no longer documents) is
    ``pca=0.9`` of the whole matrix in memory and in its own type, and keeps no components.
    """

    components: int | None = attrs.field(default=None, converter=as_whole, validator=AtLeast(1, optional=True))
    variance: float | None = attrs.field(default=None, converter=_number, validator=_IsShare())
    whiten: bool = attrs.field(default=False, validator=IsBool())

    fitted: ClassVar[bool] = True

    def __attrs_post_init__(self) -> None:
        if (self.components is None) == (self.variance is None):
            raise SpecError(
                "PCA takes either a number of components or a share of the variance",
                "one of them",
                str(attrs.asdict(self)),
            )

    def __str__(self) -> str:
        amount = str(self.components) if self.variance is None else repr(self.variance)
        return f"pca={amount}{',whiten' if self.whiten else ''}"


@attrs.frozen
class RandomProjection:
    """Random projection to ``components`` columns, which keeps distances (Johnson and Lindenstrauss 1984).

    ``gaussian``: entries of mean 0 and variance 1 / components. ``sparse``: entries are 0 but for a share ``density``,
    by default 1 / sqrt(columns) (Li et al. 2006, doi:10.1145/1150402.1150436); 1/3 is that of Achlioptas (2003,
    doi:10.1016/S0022-0000(03)00025-4). The matrix follows from the seed, the same on every machine.
    """

    components: int = attrs.field(converter=as_whole, validator=AtLeast(1))
    distribution: Literal["gaussian", "sparse"] = attrs.field(
        default="gaussian", validator=OneOf(("gaussian", "sparse"))
    )
    density: float | None = attrs.field(default=None, converter=_number, validator=_IsShare(whole=True))
    seed: int = attrs.field(default=0, converter=as_whole, validator=IsSeed())

    fitted: ClassVar[bool] = False

    def __attrs_post_init__(self) -> None:
        if self.density is not None and self.distribution != "sparse":
            raise SpecError("only a sparse projection has a density", "distribution='sparse'", self.distribution)

    def __str__(self) -> str:
        sparse = f",sparse{'' if self.density is None else f'={self.density!r}'}"
        kind = sparse if self.distribution == "sparse" else ""
        return f"project={self.components}{kind}{f',seed={self.seed}' if self.seed else ''}"


Step: TypeAlias = L2Norm | Centering | PCA | RandomProjection
"""One step of a recipe; it turns rows into rows."""


_DECIMAL = r"(?:0?\.[0-9]+|[0-9](?:\.[0-9]+)?e-[0-9]+)"
_STEPS: tuple[tuple[str, Callable[[dict[str, Any]], Step]], ...] = (
    ("l2|normalize", lambda _: L2Norm()),
    ("center", lambda _: Centering()),
    (
        rf"(?:pca|compress)=(?:(?P<count>{COUNT})|(?P<share>{_DECIMAL}))(?P<whiten>,whiten)?",
        lambda found: PCA(_whole(found["count"]), _optional_float(found["share"]), bool(found["whiten"])),
    ),
    ("compress", lambda _: PCA(variance=0.9)),
    (
        rf"project=(?P<count>{COUNT})(?:,gaussian|(?P<sparse>,sparse(?:=(?P<density>{_DECIMAL}|1(?:\.0)?|1/[1-9][0-9]*))?))?{SEED}",
        lambda found: RandomProjection(
            int(found["count"]),
            "sparse" if found["sparse"] else "gaussian",
            _optional_float(found["density"]),
            int(found["seed"] or 0),
        ),
    ),
)
_KINDS = ("l2", "normalize", "center", "pca", "compress", "project", "fit")


def _whole(text: str | None) -> int | None:
    return None if text is None else int(text)


def _optional_float(text: str | None) -> float | None:
    return None if text is None else float(Fraction(text))


def parse_step(text: str) -> Step:
    """The step that a text stands for, ``normalize`` and ``compress`` among them; raises SpecError with the forms."""
    for pattern, build in _STEPS:
        found = re.fullmatch(pattern, text)
        if found is not None:
            return build({"density": None, **found.groupdict()})
    kind = text.partition("=")[0]
    raise SpecError(f"no step {text!r}", FORMS, repr(text), near_matches(kind, _KINDS, limit=3))
