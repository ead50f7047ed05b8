"""What a data set is: an ordered index first, bytes later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import attrs

__all__ = ["Sample", "Source"]


@attrs.frozen
class Sample:
    """One entry of the index.

    ``key`` names it within its source, ``uri`` says where its bytes are, ``target`` is its class as a row of
    :attr:`Source.classes`, None where the source has no classes.
    """

    key: str
    uri: str
    target: int | None = None


class Source(ABC):
    """An ordered index of samples, fixed when the source is made, whose images are read one by one.

    ``samples`` is the index; its order is the order of the rows in a store. ``kind`` and ``uri`` say what and where the
    source is, ``classes`` are the names of the targets (None where there are none), ``skipped`` counts what lay there
    and was left out of the index, ``stray`` the images outside of any sub-folder where others lie in sub-folders:
    these are why such a source has no classes.
    """

    samples: Sequence[Sample]
    kind: str
    uri: str
    classes: tuple[str, ...] | None = None
    skipped: int = 0
    stray: int = 0

    @abstractmethod
    def read(self, sample: Sample) -> bytes:
        """The encoded image of a sample; called from several threads at once.

        Raises SourceError where it cannot be read, which costs that row only.
        """

    def __len__(self) -> int:
        return len(self.samples)
