"""A short look at how fast a run will be: a few samples through the real reading, decoding and model."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Generic, TypeVar

import attrs

from featreg.engine.loop.block import stack_batch
from featreg.engine.loop.loader import Loaded, load_crops, load_texts
from featreg.engine.monitoring.stages import Clock
from featreg.errors import FeatregError
from featreg.extractor import Extractor
from featreg.sources import Sample, Source

__all__ = ["Probe", "Spread", "probe"]

T = TypeVar("T")

WARM_UP = 2
"""How many calls with a single sample come first: the first of all is slow in every framework."""


@attrs.frozen
class Probe:
    """What some samples took, in seconds a sample: to be read and decoded by all threads, and in the model.

    ``model`` is None where no sample could be read, or the model failed.
    """

    samples: int
    load: float
    model: float | None

    def rate(self, *, together: bool) -> float | None:
        """Samples per second to expect; ``together`` where reading and the model share the same cores.

        Else they go on side by side, and the slower one counts. Writing is not in it.
        """
        if self.model is None:
            return None
        seconds = self.load + self.model if together else max(self.load, self.model)
        return 1 / seconds if seconds > 0 else None


class Spread(Generic[T]):
    """Some of the items that go by, evenly spread over all of them, and their number; memory stays bounded."""

    def __init__(self, most: int) -> None:
        self.count = 0
        self.most = most
        self._kept: list[T] = []
        self._step = 1

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """The items as they are, while some are kept: every one at first, then every second, every fourth, …"""
        for item in items:
            if self.count % self._step == 0:
                self._kept.append(item)
                if len(self._kept) == 2 * self.most:
                    self._kept, self._step = self._kept[::2], 2 * self._step
            self.count += 1
            yield item

    def some(self, number: int) -> list[T]:
        """At most ``number`` of them, spread over all, in order."""
        kept, number = self._kept, min(number, len(self._kept))
        return [kept[place * len(kept) // number] for place in range(number)]


def probe(
    source: Source, samples: Sequence[Sample], extractor: Extractor, *, threads: int, seconds: float, clock: Clock
) -> Probe | None:
    """Take samples through the path that a run takes; None where there are none.

    About ``seconds`` are spent on it, by ``clock``: no sample and no batch is begun that would not fit by what those
    before have taken. The batch grows up to all samples, and the last one counts. A sample that cannot be read goes
    along as an empty one, as in a run.
    """
    started = clock()
    loaded: list[Loaded] = []
    with closing(_load(source, samples, extractor, threads)) as loading:
        for one in loading:
            loaded.append(one)
            if clock() - started > seconds / 2:
                break
    if not loaded:
        return None
    load = (clock() - started) / len(loaded)
    whole = [one for one in loaded if not isinstance(one, FeatregError)]
    return Probe(len(loaded), load, _time_model(whole, extractor, started + seconds, clock))


def _time_model(loaded: Sequence[Loaded], extractor: Extractor, until: float, clock: Clock) -> float | None:
    """The seconds a sample takes in the largest batch for which there is time."""
    if not loaded:
        return None
    found: float | None = None
    for size in (*[1] * WARM_UP, max(len(loaded) // 4, 1), len(loaded), len(loaded)):
        before = clock()
        if found is not None and before + found * size > until:
            break
        try:
            extractor(stack_batch(loaded[:size], extractor))
        except FeatregError:  # the run will say it, or go on with smaller batches
            break
        found = (clock() - before) / size
    return found


def _load(
    source: Source, samples: Sequence[Sample], extractor: Extractor, threads: int
) -> Generator[Loaded, None, None]:
    if extractor.takes_text:
        return load_texts(source, samples, threads=threads, ahead=2 * threads)
    return load_crops(source, samples, extractor.preprocess, threads=threads, ahead=2 * threads)
