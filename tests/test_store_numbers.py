"""Numbers of tasks in a byte each: a set, but for the room that it takes."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from featreg.stores.numbers import TaskNumbers


@given(st.integers(0, 50), st.integers(0, 40), st.lists(st.integers(-5, 100)))
def test_they_are_the_numbers_in_range(first: int, count: int, numbers: list[int]) -> None:
    expected = {number for number in numbers if first <= number < first + count}
    found = TaskNumbers(first, count, iter(numbers))
    assert list(found) == sorted(expected)
    assert len(found) == len(expected)
    assert found == expected
    assert {number for number in range(-10, 120) if number in found} == expected
    assert found | {1000} == expected | {1000}


def test_what_is_no_number_is_not_among_them() -> None:
    assert "3" not in TaskNumbers(0, 5, [3])
    assert None not in TaskNumbers(0, 5, [3])


def test_a_million_take_a_megabyte() -> None:
    tracemalloc.start()
    try:
        found = TaskNumbers(7, 1_000_000, range(7, 1_000_007))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 1_000_000
    assert taken < 2**21
