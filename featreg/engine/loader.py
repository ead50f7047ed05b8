"""Samples to crops, in order, by threads that stay a bounded number of images ahead."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from featreg.errors import ImageError, SourceError
from featreg.images import Pixels, decode
from featreg.preprocess import crop
from featreg.sources import Sample, Source
from featreg.spec import Preprocess

__all__ = ["Loaded", "load_crops"]

Loaded: TypeAlias = Pixels | ImageError | SourceError
"""The crop (h, w, 3) of one sample, or why there is none."""


def load_crops(
    source: Source, samples: Iterable[Sample], preprocess: Preprocess, *, threads: int, ahead: int
) -> Generator[Loaded, None, None]:
    """The crop of every sample, in the order of ``samples``; at most ``ahead`` of them are held or under way.

    What is wrong with one image is its result. Any other exception of the source is raised here, in its turn.
    """
    remaining = iter(samples)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="featreg-load")
    window: deque[Future[Loaded]] = deque()
    try:
        for sample in itertools.islice(remaining, ahead):
            window.append(pool.submit(_load, source, sample, preprocess))
        while window:
            yield window.popleft().result()
            for sample in itertools.islice(remaining, 1):
                window.append(pool.submit(_load, source, sample, preprocess))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(source: Source, sample: Sample, preprocess: Preprocess) -> Loaded:
    try:
        return crop(decode(source.read(sample)), preprocess)
    except (ImageError, SourceError) as error:
        return error
