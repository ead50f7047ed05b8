"""The CPU part of a run on Ray: rows of the store's index in, crops or texts out, task by task."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from typing import Any

import attrs

from featreg import serialize
from featreg.checks import takes_text
from featreg.engine.loop.loader import Loaded, load_crops, load_texts
from featreg.engine.loop.worker import samples_of
from featreg.engine.monitoring.stages import Stages
from featreg.engine.opening import source_of
from featreg.engine.ray.chunks import Numbers, task_at
from featreg.engine.ray.crops import Decoded, pack
from featreg.engine.ray.outcomes import Raised
from featreg.sources import Source
from featreg.spec import Preprocess
from featreg.stores.index import Index
from featreg.stores.layout import Pass
from featreg.stores.places.opening import place_at
from featreg.stores.receipts import read_manifest
from featreg.stores.retries import retried_rows

__all__ = ["Reader", "reads_text"]

AHEAD = 2
"""The samples that are held besides the one that is decoded: a task decodes on one CPU."""


@attrs.frozen
class Reader:
    """Decodes tasks of a pass in whatever process it is called; all that it carries there are names and numbers.

    ``run`` is different for each run: what a process keeps open is used within one run only, since the store at a URI
    may be another one by the next.
    """

    uri: str
    pass_number: int
    run: str

    def __call__(self, numbers: Numbers) -> Iterator[Any]:
        """A table of one row for each task, as :mod:`~featreg.engine.ray.crops` packs them.

        The number of tables never depends on what is in the store: Ray may ask once more for one that was lost.
        """
        for number in numbers.tolist():
            stages = Stages()
            samples = self._samples(number, stages)
            yield pack(Decoded(number, samples, stages.seconds))

    def _samples(self, number: int, stages: Stages) -> list[Loaded] | Raised:
        try:
            return _open(self).samples(number, stages)
        except Exception as error:  # noqa: BLE001  (it is raised where the run was started)
            return Raised.of(error)


class _Opened:
    """A store and its source, as one process sees them."""

    def __init__(self, part: Pass, source: Source, index: Index, retried: Collection[int]) -> None:
        self._part = part
        self._source = source
        self._index = index
        self._retried = retried
        self._preprocess = serialize.from_dict(Preprocess, part.fingerprint["preprocess"])

    def samples(self, number: int, stages: Stages) -> list[Loaded]:
        """The crops or the texts of a task, or why there is none, in the order of its rows."""
        rows = samples_of([task_at(self._part, number)], self._index, self._retried)
        if reads_text(self._part):
            return list(load_texts(self._source, rows, threads=1, ahead=AHEAD, stages=stages))
        return list(load_crops(self._source, rows, self._preprocess, threads=1, ahead=AHEAD, stages=stages))


@functools.lru_cache(maxsize=1)
def _open(reader: Reader) -> _Opened:
    place = place_at(reader.uri)
    manifest = read_manifest(place)
    source = source_of(manifest, place.uri)
    index = Index(place, manifest.index)
    return _Opened(manifest.passes[reader.pass_number], source, index, retried_rows(place))


def reads_text(part: Pass) -> bool:
    """Whether the model of a pass takes texts."""
    return "text_embedding" in part.request.layers or takes_text([layer.info for layer in part.layers])
