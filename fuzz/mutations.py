"""Ways to damage an image; each takes its bytes, those of another one, and a generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import attrs
import numpy as np

from fuzz.seeds import FORMATS, seeds

__all__ = ["MUTATIONS", "Case", "make_case"]

Mutation: TypeAlias = Callable[[bytes, bytes, np.random.Generator], bytes]

HEADER_BYTES = 64
"""Where sizes, counts and offsets stand in every one of the formats."""


@attrs.frozen
class Case:
    """One damaged image, and how it came about."""

    number: int
    kind: str
    seed: str
    mutation: str
    data: bytes = attrs.field(repr=lambda data: f"{len(data)} bytes")


def make_case(number: int, seed: int) -> Case:
    """The case of that number, by itself: formats take turns, and the rest is drawn from the two numbers."""
    generator = np.random.default_rng([seed, number])
    kind = FORMATS[number % len(FORMATS)]
    sound, every = seeds(kind), [data for format_ in FORMATS for data in seeds(format_).values()]
    name = str(generator.choice(list(sound)))
    mutation = str(generator.choice(list(MUTATIONS)))
    other = every[generator.integers(len(every))]
    return Case(number, kind, name, mutation, MUTATIONS[mutation](sound[name], other, generator))


def flip_bits(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Flip 1 to 32 bits anywhere."""
    changed = bytearray(data)
    for place in generator.integers(0, len(data), generator.integers(1, 33)):
        changed[place] ^= 1 << generator.integers(8)
    return bytes(changed)


def truncate(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Keep the beginning only."""
    return data[: generator.integers(len(data))]


def splice(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """The beginning of this image, and the end of another one of any format."""
    return data[: generator.integers(1, len(data))] + other[generator.integers(len(other)) :]


def edit_header(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Other bytes near the beginning."""
    changed = bytearray(data)
    for place in generator.integers(0, min(HEADER_BYTES, len(data)), generator.integers(1, 9)):
        changed[place] = generator.integers(256)
    return bytes(changed)


def set_extreme(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Numbers of 2 or 4 bytes that are as large, as small or as negative as can be."""
    changed = bytearray(data)
    for place in generator.integers(0, len(data), generator.integers(1, 5)):
        width = int(generator.choice([2, 4]))
        number = int(generator.choice([0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1]))
        changed[place : place + width] = number.to_bytes(width, str(generator.choice(["little", "big"])))  # type: ignore[arg-type]
    return bytes(changed)


def _stretch(data: bytes, generator: np.random.Generator) -> tuple[int, int]:
    start, stop = sorted(map(int, generator.integers(0, len(data), 2)))
    return start, stop


def cut_out(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Leave out a stretch."""
    start, stop = _stretch(data, generator)
    return data[:start] + data[stop:]


def repeat(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """A stretch several times over."""
    start, stop = _stretch(data, generator)
    return data[:stop] + data[start:stop] * int(generator.integers(1, 20)) + data[stop:]


def blank(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Zeros, or 0xFF, over a stretch, as where a disk failed."""
    start, stop = _stretch(data, generator)
    return data[:start] + bytes([int(generator.choice([0, 255]))]) * (stop - start) + data[stop:]


def swap(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Two stretches in each other's place."""
    first, second, third = sorted(map(int, generator.integers(0, len(data), 3)))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


MUTATIONS: Mapping[str, Mutation] = MappingProxyType(
    {
        "flip bits": flip_bits,
        "truncate": truncate,
        "splice": splice,
        "edit header": edit_header,
        "extreme numbers": set_extreme,
        "cut out": cut_out,
        "repeat": repeat,
        "blank": blank,
        "swap": swap,
    }
)
