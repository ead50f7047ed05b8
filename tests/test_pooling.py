"""Pooling in NumPy against loops over single numbers, and its descriptions against the arrays."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featreg.errors import CapabilityError, InputError
from featreg.pool import Pool
from featreg.pooling import described, flattened_info, pool_array, pooled_info
from featreg.spec import FeatureInfo, MeasuredGrid, Rounding

Array = np.ndarray[Any, Any]


def array(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def map_info(channels: int = 2, reduction: int = 4, rounding: Rounding = "ceil") -> FeatureInfo:
    return FeatureInfo("x", channels, reduction, "map", level="C2", rounding=rounding)


# --- one image and one channel at a time, in Python's own numbers -----------------------------------------------------


def slow_vector(values: list[float], pool: Pool) -> float:
    if pool.kind == "max":
        return max(values)
    if pool.kind == "avg":
        return math.fsum(values) / len(values)
    assert pool.p is not None
    return float((math.fsum(max(value, 1e-6) ** pool.p for value in values) / len(values)) ** (1 / pool.p))


def slow_grid(image: Array, pool: Pool) -> list[list[float]]:
    """Cells of a map (H, W): the numbers under each window, those of the padding as they count."""
    height, width = image.shape
    if pool.output is not None:
        rows, columns = [bands(side, count) for side, count in zip(image.shape, pool.output, strict=True)]
        return [[slow_mean(image, top, left) for left in columns] for top in rows]
    assert pool.windows is not None
    (kernel_h, stride_h, pad_h), (kernel_w, stride_w, pad_w) = pool.windows
    cells: list[list[float]] = []
    for top in range(-pad_h, height + pad_h - kernel_h + 1, stride_h):
        cells.append([])
        for left in range(-pad_w, width + pad_w - kernel_w + 1, stride_w):
            window = itertools.product(range(top, top + kernel_h), range(left, left + kernel_w))
            inside = [float(image[y, x]) for y, x in window if 0 <= y < height and 0 <= x < width]
            mean = math.fsum(inside) / (kernel_h * kernel_w)
            cells[-1].append(mean if pool.kind == "avgpool" else max(inside))
    return cells


def bands(side: int, count: int) -> list[range]:
    return [range(math.floor(i * side / count), math.ceil((i + 1) * side / count)) for i in range(count)]


def slow_mean(image: Array, rows: range, columns: range) -> float:
    return math.fsum(float(image[y, x]) for y in rows for x in columns) / (len(rows) * len(columns))


vector_pools = st.sampled_from([Pool("avg"), Pool("max"), Pool("gem"), Pool("gem", p=1.5)])
sides = st.tuples(st.integers(1, 8), st.integers(1, 8))


@st.composite
def grid_pools(draw: st.DrawFn) -> Pool:
    kind: Any = draw(st.sampled_from(["avgpool", "maxpool", "adaptive_avgpool"]))
    if kind == "adaptive_avgpool":
        return Pool(kind, output=draw(sides))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return Pool(kind, kernel, stride, tuple(draw(st.integers(0, side // 2)) for side in kernel))


@given(st.integers(1, 2), sides, vector_pools)
def test_vector_of_a_map(batch: int, size: tuple[int, int], pool: Pool) -> None:
    maps = array(batch, 2, *size)
    wanted = [[slow_vector(maps[n, c].ravel().tolist(), pool) for c in range(2)] for n in range(batch)]
    np.testing.assert_allclose(pool_array(maps, map_info(), pool), wanted, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 3), st.integers(1, 6), vector_pools)
def test_vector_of_tokens_leaves_the_prefix_out(prefix: int, positions: int, pool: Pool) -> None:
    info = FeatureInfo("x", 4, 16, "tokens", prefix_tokens=prefix)
    tokens = array(2, prefix + positions, 4)
    tokens[:, :prefix] = 1e9
    wanted = [[slow_vector(tokens[n, prefix:, d].tolist(), pool) for d in range(4)] for n in range(2)]
    np.testing.assert_allclose(pool_array(tokens, info, pool), wanted, rtol=1e-4, atol=1e-6)


@given(st.integers(1, 2), sides, grid_pools())
def test_grid_of_a_map(batch: int, size: tuple[int, int], pool: Pool) -> None:
    maps = array(batch, 2, *size)
    wanted = [[slow_grid(maps[n, c], pool) for c in range(2)] for n in range(batch)]
    if not wanted[0][0] or not wanted[0][0][0]:
        with pytest.raises(InputError, match="too small"):
            pool_array(maps, map_info(), pool)
        return
    np.testing.assert_allclose(pool_array(maps, map_info(), pool), wanted, rtol=1e-5, atol=1e-6)


def test_padding_is_zero_for_averages_and_nothing_for_maxima() -> None:
    maps = np.full((1, 1, 2, 2), -4, np.float32)
    assert pool_array(maps, map_info(1), Pool.parse("avgpool=2,2,1")).tolist() == [[[[-1, -1], [-1, -1]]]]
    assert pool_array(maps, map_info(1), Pool.parse("maxpool=2,2,1")).tolist() == [[[[-4, -4], [-4, -4]]]]


@pytest.mark.parametrize("text", ["avg", "gem", "avgpool=4,4,0", "adaptive_avgpool=1", "max", "maxpool=4,4,0"])
def test_half_precision_is_summed_in_single(text: str) -> None:
    maps = np.full((1, 1, 64, 64), 50, np.float16)  # the sum, and the cube of 50, are beyond 65504
    pooled = pool_array(maps, map_info(1), Pool.parse(text))
    assert pooled.dtype == np.float16
    np.testing.assert_allclose(pooled.astype(float), 50, rtol=2e-3)
    assert pool_array(maps.astype(np.float64), map_info(1), Pool.parse(text)).dtype == np.float64


def test_what_is_not_pooled_is_handed_on() -> None:
    maps, vectors = array(1, 2, 3, 3), array(1, 5)
    assert pool_array(maps, map_info(), Pool("identity")) is maps
    for pool in (Pool("avg"), Pool("cls"), Pool("gem"), Pool("identity")):
        assert pool_array(vectors, FeatureInfo("x", 5, None, "vector"), pool) is vectors


@pytest.mark.parametrize("kind", ["tokens", "vector"])
@pytest.mark.parametrize("text", ["avgpool=2", "maxpool=2", "adaptive_avgpool=2"])
def test_a_grid_needs_a_map(kind: Any, text: str) -> None:
    info = FeatureInfo("x", 4, None if kind == "vector" else 16, kind)
    for use in (lambda: pooled_info(info, Pool.parse(text)), lambda: pool_array(array(1, 4), info, Pool.parse(text))):
        with pytest.raises(CapabilityError, match="no grid") as caught:
            use()
        assert "C5" in caught.value.remedy


def test_a_class_token_is_asked_for_where_there_is_none() -> None:
    for info in (map_info(), FeatureInfo("x", 4, 16, "tokens"), FeatureInfo("x", 4, 16, "tokens", prefix_tokens=4)):
        with pytest.raises(CapabilityError, match="class token"):
            pooled_info(info, Pool("cls"))


def test_a_register_token_is_no_class_token() -> None:
    tokens = array(2, 7, 4)
    registers = FeatureInfo("x", 4, 16, "tokens", prefix_tokens=3)
    with pytest.raises(CapabilityError, match="class token") as caught:
        pool_array(tokens, registers, Pool("cls"))
    assert caught.value.got == "tokens with 3 other prefix tokens"
    pooled = pool_array(tokens, attrs.evolve(registers, class_token=True), Pool("cls"))
    assert np.array_equal(pooled, tokens[:, 0])


# --- descriptions -----------------------------------------------------------------------------------------------------

MEASURED = FeatureInfo(
    "x", 2, 4, "map", rounding="measured", measured=[MeasuredGrid((20, 20), (6, 4)), MeasuredGrid((9, 9), (1, 2))]
)


def real_array(info: FeatureInfo, size: tuple[int, int]) -> Array:
    return np.zeros(info.shape(1, *size), np.float32)


@settings(max_examples=300)
@given(
    grid_pools() | vector_pools,
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([map_info(2, reduction, rounding) for reduction in (1, 2, 3) for rounding in ("ceil", "floor")]),
)
def test_a_predicted_shape_is_the_real_one_or_raises(pool: Pool, size: tuple[int, int], info: Any) -> None:
    try:
        real = pool_array(real_array(info, size), info, pool).shape
    except InputError:
        real = None
    predictions: list[Callable[[], tuple[int, ...]]] = [
        lambda: pooled_info(info, pool).shape(1, *size),
        lambda: pooled_info(info, pool, (40, 40)).shape(1, *size),
        lambda: described(info, pool, False, size).shape(1, *size),
    ]
    for predict in predictions:
        with contextlib.suppress(InputError):
            assert predict() == real
    if real is not None:
        assert described(info, pool, False, size).shape(1, *size) == real
        flat = described(info, pool, True, size)
        assert (flat.kind, flat.shape(1, *size)) == ("vector", (1, math.prod(real)))


@pytest.mark.parametrize(
    ("rounding", "text", "expected"),
    [
        ("ceil", "maxpool=3,2,1", ("ceil", 8)),
        ("ceil", "avgpool=1,3,0", ("ceil", 12)),
        ("floor", "avgpool=2,2,0", ("floor", 8)),
        ("floor", "avgpool=4,2,1", ("floor", 8)),
        ("ceil", "avgpool=3,1,1", ("ceil", 4)),
        ("floor", "avgpool=3,1,1", ("floor", 4)),
        ("ceil", "avgpool=2,2,0", ("measured", 8)),
        ("floor", "maxpool=3,2,1", ("measured", 8)),
        ("floor", "avgpool=10,10,4", ("measured", 40)),
        ("floor", "avgpool=2x4,2x4,0", ("measured", None)),
        ("ceil", "adaptive_avgpool=2", ("measured", None)),
        ("measured", "avgpool=3,1,1", ("measured", 4)),
    ],
)
def test_a_formula_is_given_where_it_holds(rounding: Any, text: str, expected: tuple[str, int | None]) -> None:
    pooled = pooled_info(map_info(rounding=rounding), Pool.parse(text))
    assert (pooled.kind, pooled.level, pooled.channels) == ("map", "C2", 2)
    assert (pooled.rounding, pooled.reduction) == expected


@given(st.integers(1, 3), st.sampled_from(["ceil", "floor"]), grid_pools())
def test_measured_only_where_no_formula_holds(reduction: int, rounding: Any, pool: Pool) -> None:
    """Every formula is tried on every size: where one fits them all, it must have been found."""
    info = map_info(2, reduction, rounding)
    pooled = pooled_info(info, pool)
    if pooled.rounding != "measured" or pool.windows is None or pooled.reduction is None:
        return
    formulas: tuple[Rounding, ...] = ("ceil", "floor")
    for formula in formulas:
        guess = FeatureInfo("x", 2, pooled.reduction, "map", rounding=formula)
        assert any(grid_or_none(guess, size) != pooled_grid(info, pool, size) for size in range(1, 80))


def grid_or_none(info: FeatureInfo, size: int) -> tuple[int, int] | None:
    try:
        return info.grid(size, size)
    except InputError:
        return None


def pooled_grid(info: FeatureInfo, pool: Pool, size: int) -> tuple[int, int] | None:
    base = grid_or_none(info, size)
    try:
        return None if base is None else pool.grid(*base)
    except InputError:
        return None


def test_measured_grids_are_pooled_with_the_rest() -> None:
    pooled = pooled_info(MEASURED, Pool.parse("avgpool=2,2,0"))
    assert pooled.grid(20, 20) == (3, 2)
    with pytest.raises(InputError, match="not measured at 9x9"):  # one row is too small for the kernel
        pooled.grid(9, 9)
    with pytest.raises(InputError, match="1x2 is too small for the pooling avgpool=2,2,0"):
        described(MEASURED, Pool.parse("avgpool=2,2,0"), False, (9, 9))


def test_vectors_say_so() -> None:
    for info in (map_info(), FeatureInfo("x", 2, 16, "tokens", prefix_tokens=1)):
        for text in ("avg", "max", "gem"):
            pooled = pooled_info(info, Pool.parse(text))
            assert (pooled.kind, pooled.reduction, pooled.level) == ("vector", None, info.level)
            assert pooled.shape(3, 999, 1) == (3, 2)


@pytest.mark.parametrize(
    ("info", "width"),
    [
        (map_info(), 2 * 5 * 6),
        (FeatureInfo("x", 2, 4, "tokens", prefix_tokens=3), 2 * (3 + 5 * 6)),
        (FeatureInfo("x", 2, None, "tokens", length=7), 2 * 7),
        (FeatureInfo("x", 2, None, "vector"), 2),
    ],
)
def test_flattened_width(info: FeatureInfo, width: int) -> None:
    flat = described(info, None, True, (20, 22))
    assert (flat.kind, flat.channels, flat.shape(8, 20, 22)) == ("vector", width, (8, width))
    if info.kind == "vector" or info.length is not None:
        assert flat.shape(1, 99, 99) == (1, width)
    else:
        for unknown in (flat, flattened_info(info, width)):
            with pytest.raises(InputError, match="not measured at 24x22"):
                unknown.shape(1, 24, 22)
