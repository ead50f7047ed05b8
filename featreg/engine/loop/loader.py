"""Samples to what the model takes, in order, by threads that stay a bounded number of samples ahead."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from featreg.engine.loop.budget import Budget
from featreg.engine.monitoring.stages import Stages
from featreg.errors import ImageError, InputError, SourceError
from featreg.images import Pixels, decoded_size, to_pixels
from featreg.preprocess import crop, crop_size
from featreg.sources import Content, Sample, Source
from featreg.sources.uris import shown
from featreg.spec import Preprocess

__all__ = ["AHEAD_BYTES", "DECODING_BYTES", "Loaded", "load_crops", "load_texts"]

Loaded: TypeAlias = Pixels | str | ImageError | InputError | SourceError
"""The crop (h, w, 3) or the text of one sample, or why there is none."""

AHEAD_BYTES = 512 * 2**20
"""What the crops that are held may weigh: large ones are not loaded as far ahead as their number would allow."""

DECODING_BYTES = 1024 * 2**20
"""What the images that are decoded at once may weigh; a larger one is decoded alone."""


def load_crops(
    source: Source,
    samples: Iterable[Sample],
    preprocess: Preprocess,
    *,
    threads: int,
    ahead: int,
    stages: Stages | None = None,
) -> Generator[Loaded, None, None]:
    """The crop of every sample, in the order of ``samples``; at most ``ahead`` of them are held or under way.

    They weigh at most :data:`AHEAD_BYTES` as long as that leaves each thread one, and the images that they are cut from
    at most :data:`DECODING_BYTES` at once. What is wrong with one image is its result. Any other exception of the
    source is raised here, in its turn. ``stages`` counts the time, by what is read and what is decoded.
    """
    height, width = crop_size(preprocess) or (0, 0)
    fitting = AHEAD_BYTES // max(3 * height * width, 1)
    prepare = functools.partial(_crop, preprocess, Budget(DECODING_BYTES))
    ahead = min(ahead, max(fitting, threads))
    return _load_all(source, samples, prepare, threads=threads, ahead=ahead, stages=stages or Stages())


def load_texts(
    source: Source, samples: Iterable[Sample], *, threads: int, ahead: int, stages: Stages | None = None
) -> Generator[Loaded, None, None]:
    """The text of every sample, as :func:`load_crops` gives the crops."""
    return _load_all(source, samples, _text, threads=threads, ahead=ahead, stages=stages or Stages())


def _load_all(
    source: Source,
    samples: Iterable[Sample],
    prepare: Callable[[Content, Stages], Loaded],
    *,
    threads: int,
    ahead: int,
    stages: Stages,
) -> Generator[Loaded, None, None]:
    remaining = iter(samples)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="featreg-load")
    window: deque[Future[Loaded]] = deque()
    try:
        for sample in itertools.islice(remaining, ahead):
            window.append(pool.submit(_load, source, sample, prepare, stages))
        while window:
            yield window.popleft().result()
            for sample in itertools.islice(remaining, 1):
                window.append(pool.submit(_load, source, sample, prepare, stages))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(source: Source, sample: Sample, prepare: Callable[[Content, Stages], Loaded], stages: Stages) -> Loaded:
    try:
        with stages.timed("read"):
            content = source.read(sample)
        return prepare(content, stages)
    except (ImageError, InputError, SourceError) as error:
        error.add_note(f"sample {sample.key!r}, {shown(sample.uri)}")  # for whoever lets it stop the run
        return error


def _crop(preprocess: Preprocess, budget: Budget, content: Content, stages: Stages) -> Loaded:
    with budget.taken(decoded_size(content)), stages.timed("decode"):
        return crop(to_pixels(content), preprocess)


def _text(content: Content, stages: Stages) -> Loaded:
    if isinstance(content, str):
        return content
    if not isinstance(content, bytes):
        return InputError("the sample is no text", "a text, or UTF-8 bytes", type(content).__name__)
    try:
        with stages.timed("decode"):
            return content.decode()
    except UnicodeDecodeError as error:
        return InputError("the text is not UTF-8", got=str(error))
