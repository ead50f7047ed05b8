"""What a data set is: an ordered index first, bytes later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import attrs

from featreg.errors import SourceError
from featreg.images import Pixels

__all__ = ["Content", "Sample", "Source"]

Content: TypeAlias = bytes | Pixels | str
"""What a sample holds: an encoded image, decoded RGB of (height, width, 3) in uint8, or a text."""

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@attrs.frozen
class Sample:
    """One entry of the index.

    ``key`` names it within its source, ``uri`` says where its bytes are, ``target`` is its class as a row of
    :attr:`Source.classes` (or a number that the source itself gives), None where the source has none. ``size`` is
    what reading it takes in bytes, None where only reading tells.
    """

    key: str
    uri: str
    target: int | None = None
    size: int | None = None


class Source(ABC):
    """An ordered index of samples, whose contents are read one by one.

    A source is a cheap description: making one checks that the thing is there and no more. ``index()`` gives the
    samples in the order of the rows of a store, the same at every call as long as nothing changes, and holds only a
    small part of them at once; ``samples`` is all of them as a tuple, for small sources. A subclass gives one of the
    two.

    ``kind``, ``uri`` and ``options`` describe the source as plain data: ``open_source(uri, kind=kind, **options)``
    makes an equal one in another process, which reads any sample without an index, since a sample's ``uri`` holds all
    that it takes. That goes for the kinds of :data:`featreg.sources.KINDS`; a source of your own is read in the process
    that made it.

    ``skipped`` counts what lay there and was left out of the index, ``stray`` the images outside of any sub-folder
    where others lie in sub-folders: these are why such a source has no classes. The two counts are those of the last
    index that was read to its end; where none was, asking for them reads one. A subclass may set these and ``classes``
    as plain attributes.
    """

    kind: str
    uri: str
    options: Mapping[str, Any] = _NO_OPTIONS

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the targets, None where there are none; raises SourceError where they cannot be read."""
        return None

    @cached_property
    def skipped(self) -> int:
        """How much lay there and was left out of the index; raises as :meth:`index`."""
        return 0

    @cached_property
    def stray(self) -> int:
        """How many images lie outside of the sub-folders; raises as :meth:`index`."""
        return 0

    def index(self) -> Iterator[Sample]:
        """The samples, one after the other; raises SourceError where the index cannot be read."""
        return iter(self.samples)

    @cached_property
    def samples(self) -> Sequence[Sample]:
        """The whole index in memory; raises as :meth:`index`."""
        if type(self).index is Source.index:
            raise SourceError(f"{type(self).__name__} has no samples", "a method index(), or a sequence samples")
        return tuple(self.index())

    @abstractmethod
    def read(self, sample: Sample) -> Content:
        """What a sample holds; called from several threads at once, and without an index before.

        Raises SourceError where it cannot be read, which costs that row only.
        """

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if type(self).index is not Source.index:
            state.pop("samples", None)  # another process reads by URI
        return state

    def __len__(self) -> int:
        return len(self.samples)

    def __bool__(self) -> bool:
        return True  # without it, bool() would read the whole index

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}({self.uri!r}{options})"
