"""Samples to what the model takes, in order, by threads that stay a bounded number of samples ahead."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from featreg.errors import ImageError, InputError, SourceError
from featreg.images import Pixels, to_pixels
from featreg.preprocess import crop
from featreg.sources import Content, Sample, Source
from featreg.spec import Preprocess

__all__ = ["Loaded", "load_crops", "load_texts"]

Loaded: TypeAlias = Pixels | str | ImageError | InputError | SourceError
"""The crop (h, w, 3) or the text of one sample, or why there is none."""


def load_crops(
    source: Source, samples: Iterable[Sample], preprocess: Preprocess, *, threads: int, ahead: int
) -> Generator[Loaded, None, None]:
    """The crop of every sample, in the order of ``samples``; at most ``ahead`` of them are held or under way.

    What is wrong with one image is its result. Any other exception of the source is raised here, in its turn.
    """
    return _load_all(source, samples, functools.partial(_crop, preprocess), threads, ahead)


def load_texts(source: Source, samples: Iterable[Sample], *, threads: int, ahead: int) -> Generator[Loaded, None, None]:
    """The text of every sample, as :func:`load_crops` gives the crops."""
    return _load_all(source, samples, _text, threads, ahead)


def _load_all(
    source: Source, samples: Iterable[Sample], prepare: Callable[[Content], Loaded], threads: int, ahead: int
) -> Generator[Loaded, None, None]:
    remaining = iter(samples)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="featreg-load")
    window: deque[Future[Loaded]] = deque()
    try:
        for sample in itertools.islice(remaining, ahead):
            window.append(pool.submit(_load, source, sample, prepare))
        while window:
            yield window.popleft().result()
            for sample in itertools.islice(remaining, 1):
                window.append(pool.submit(_load, source, sample, prepare))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(source: Source, sample: Sample, prepare: Callable[[Content], Loaded]) -> Loaded:
    try:
        return prepare(source.read(sample))
    except (ImageError, InputError, SourceError) as error:
        return error


def _crop(preprocess: Preprocess, content: Content) -> Loaded:
    return crop(to_pixels(content), preprocess)


def _text(content: Content) -> Loaded:
    if isinstance(content, str):
        return content
    if not isinstance(content, bytes):
        return InputError("the sample is no text", "a text, or UTF-8 bytes", type(content).__name__)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        return InputError("the text is not UTF-8", got=str(error))
