"""Numbers of tasks, of which a store may have millions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

__all__ = ["TaskNumbers"]


class TaskNumbers(Set[int]):
    """Some of ``count`` numbers from ``first`` on: a byte for each of these, where a set takes sixty for each it holds.

    Others are left out.
    """

    def __init__(self, first: int, count: int, numbers: Iterable[int] = ()) -> None:
        self._first = first
        self._found = bytearray(count)
        for number in numbers:
            if first <= number < first + count:
                self._found[number - first] = 1

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number - self._first < len(self._found) and self._has(number)

    def _has(self, number: int) -> bool:
        return self._found[number - self._first] == 1

    def __iter__(self) -> Iterator[int]:
        return (self._first + place for place, found in enumerate(self._found) if found)

    def __len__(self) -> int:
        return self._found.count(1)

    @classmethod
    def _from_iterable(cls, it: Iterable[int]) -> Set[int]:  # type: ignore[override]  # of the union of two, say
        return frozenset(it)
