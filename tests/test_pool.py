"""The data of a pooling: its text form, its arguments, its arithmetic."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featreg.errors import InputError, SpecError
from featreg.pool import Pool

side = st.integers(1, 9)
pair = st.tuples(side, side)


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    kind: Any = draw(
        st.sampled_from(["avg", "max", "gem", "cls", "avgpool", "maxpool", "adaptive_avgpool", "identity"])
    )
    if kind == "gem":
        return Pool(kind, p=draw(st.floats(1e-9, 1e9)))
    if kind == "adaptive_avgpool":
        return Pool(kind, output=draw(pair))
    if kind in ("avgpool", "maxpool"):
        kernel = draw(pair)
        padding = tuple(draw(st.integers(0, length // 2)) for length in kernel)
        return Pool(kind, kernel, draw(pair), padding)
    return Pool(kind)


@given(pools())
def test_text_there_and_back(pool: Pool) -> None:
    for again in (Pool.parse(str(pool)), pickle.loads(pickle.dumps(pool)), copy.copy(pool)):
        assert again == pool
        assert hash(again) == hash(pool)
    assert re.search(Pool.pattern, str(pool))


@pytest.mark.parametrize(
    ("text", "pool", "written"),
    [
        ("gem", Pool("gem", p=3), "gem"),
        ("gem=4", Pool("gem", p=4), "gem=4"),
        ("gem=2.50", Pool("gem", p=2.5), "gem=2.5"),
        ("avgpool=10,10,4", Pool("avgpool", (10, 10), (10, 10), (4, 4)), "avgpool=10,10,4"),
        ("maxpool=2", Pool("maxpool", 2), "maxpool=2,2,0"),
        ("avgpool=3x2,1", Pool("avgpool", (3, 2), 1), "avgpool=3x2,1,0"),
        ("maxpool=3x2", Pool("maxpool", (3, 2), (3, 2), 0), "maxpool=3x2,3x2,0"),
        ("adaptive_avgpool=2", Pool("adaptive_avgpool", output=2), "adaptive_avgpool=2,2"),
        ("adaptive_avgpool=2,3", Pool("adaptive_avgpool", output=(2, 3)), "adaptive_avgpool=2,3"),
    ],
)
def test_text(text: str, pool: Pool, written: str) -> None:
    assert Pool.parse(text) == pool
    assert str(pool) == written


@pytest.mark.parametrize(
    "text",
    [
        "", "mean", "avg ", "avg\n", "AVG", "avg=", "cls=1", "identity=2", "gem=", "gem=-1", "gem=x", "gem=nan",
        "avgpool", "avgpool=", "avgpool=0", "avgpool=2,0", "avgpool=2,2,-1", "avgpool=2,2,0,1", "avgpool=2,2,2",
        "avgpool=2x2x2", "avgpool=2.5", "maxpool=3x2,1,1x2", "adaptive_avgpool=2,2,2", "adaptive_avgpool=0",
        "gem=0", "gem=1e999", "avgpool=" + "9" * 5000, "avgpool=٣",
    ],
)  # fmt: skip
def test_text_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Pool.parse(text)
    assert caught.value.expected


@pytest.mark.parametrize(
    ("text", "match"), [("avg=10,10,4", "avgpool=10,10,4"), ("avgpol=2", "avgpool"), ("max=2", "maxpool=2")]
)
def test_the_nearest_pooling_is_named(text: str, match: str) -> None:
    with pytest.raises(SpecError) as caught:
        Pool.parse(text)
    assert caught.value.matches[0] == match


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "mean"}, {"kind": "avg", "kernel": 2}, {"kind": "avg", "p": 3}, {"kind": "cls", "output": 1},
        {"kind": "avgpool"}, {"kind": "avgpool", "kernel": 2.0}, {"kind": "avgpool", "kernel": True},
        {"kind": "avgpool", "kernel": (2, 2, 2)}, {"kind": "avgpool", "kernel": 2, "stride": 0},
        {"kind": "avgpool", "kernel": 3, "padding": 2}, {"kind": "avgpool", "kernel": 3, "padding": -1},
        {"kind": "avgpool", "kernel": 3, "padding": "1"}, {"kind": "maxpool", "kernel": 2, "output": 2},
        {"kind": "adaptive_avgpool"}, {"kind": "adaptive_avgpool", "output": (0, 1)}, {"kind": "gem", "p": 0},
        {"kind": "gem", "p": "3"}, {"kind": "gem", "p": float("nan")}, {"kind": "gem", "p": True},
    ],
)  # fmt: skip
def test_arguments_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Pool(**fields)


def windows_by_hand(length: int, kernel: int, stride: int, padding: int) -> int:
    """Window after window, until one sticks out of the padded side."""
    return sum(1 for start in range(0, length + 2 * padding, stride) if start + kernel <= length + 2 * padding)


@given(pools(), st.integers(1, 12), st.integers(1, 12))
def test_grid(pool: Pool, rows: int, columns: int) -> None:
    if pool.windows is None:
        assert pool.grid(rows, columns) == (pool.output or (rows, columns))
        return
    wanted = tuple(
        windows_by_hand(length, *window) for length, window in zip((rows, columns), pool.windows, strict=True)
    )
    if min(wanted) > 0:
        assert pool.grid(rows, columns) == wanted
    else:
        with pytest.raises(InputError, match=f"{rows}x{columns} is too small for the pooling {pool}"):
            pool.grid(rows, columns)
