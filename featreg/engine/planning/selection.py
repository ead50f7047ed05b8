"""Which samples of a source are taken: all, a seeded share of them, or the first so many."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from featreg.errors import SpecError
from featreg.fields import AtLeast, as_whole
from featreg.sources import Sample
from featreg.steps import IsSeed
from featreg.stores.layout import SourceRecord

__all__ = ["IsShare", "Selection"]

_HASHES = 2**64


@attrs.frozen
class IsShare:
    """None, or a number from 0 to 1; not 0 itself unless ``zero``."""

    zero: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        return {"minimum" if self.zero else "exclusiveMinimum": 0, "maximum": 1}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None or (type(value) in (int, float) and (0 < value <= 1 or (self.zero and value == 0))):
            return
        expected = "a share from 0 to 1" if self.zero else "a number above 0 and at most 1, as in 0.1"
        raise SpecError(f"{attribute.name} is out of range", expected, repr(value))


@attrs.frozen
class Selection:
    """A part of a data set: of the share ``fraction``, the first ``limit`` samples.

    Each sample is taken or left by a hash of its key that is keyed with ``seed``, whatever lies around it. So the same
    samples are taken on every machine, in one pass that holds nothing in memory, and from what is added later the same
    share; a smaller fraction takes a part of what a larger one takes. The share is met on average: of n samples,
    ``fraction * n`` with a standard deviation of ``sqrt(n * fraction * (1 - fraction))``. Samples that share a key go
    together.

    Raises SpecError for numbers out of range, and for a seed without a fraction.
    """

    limit: int | None = attrs.field(default=None, converter=as_whole, validator=AtLeast(1, optional=True))
    fraction: float | None = attrs.field(default=None, validator=IsShare())
    seed: int = attrs.field(default=0, converter=as_whole, validator=IsSeed())

    def __attrs_post_init__(self) -> None:
        if self.seed and self.fraction is None:
            raise SpecError(
                "a seed without a fraction",
                "a share of the samples to draw, as in fraction=0.1 (--fraction 0.1)",
                f"seed={self.seed}",
            )

    @classmethod
    def recorded(cls, record: SourceRecord) -> Selection:
        """What a store was begun with."""
        return cls(record.limit, record.fraction, record.seed)

    def of(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples that are taken, in their order."""
        return itertools.islice(self.drawn(samples), self.limit)

    def drawn(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples of the share, without a limit."""
        if self.fraction is None:
            return iter(samples)
        below = math.floor(self.fraction * _HASHES)
        keyed = hashlib.blake2b(digest_size=8, key=self.seed.to_bytes(8, "big"))
        return (sample for sample in samples if _number(keyed, sample.key) < below)


def _number(keyed: hashlib.blake2b, name: str) -> int:
    """Eight bytes of BLAKE2b of a sample's key in UTF-8, keyed with the seed, as a big-endian number."""
    found = keyed.copy()
    found.update(name.encode("utf-8", "surrogatepass"))
    return int.from_bytes(found.digest(), "big")
