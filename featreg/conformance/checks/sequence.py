"""What an extractor is asked for does not depend on what it was asked for before, nor on how much at once."""

from __future__ import annotations

import functools

import numpy as np

from featreg.arrays import to_numpy
from featreg.conformance.checks.values import ROUNDING
from featreg.conformance.draws import configured
from featreg.conformance.model import check
from featreg.conformance.subject import Subject
from featreg.featureset import FeatureSet
from featreg.spec import Size

BATCHES = (17, 7)
"""Neither is a multiple of what is likely to be taken at once: of 4, 8 or 16."""

WALKS, STEPS = 4, 5
"""How many walks hypothesis draws, and how many calls each has at most."""


@check("values.large_batch")
def large_batch(subject: Subject) -> None:
    """Batches of 17 and of 7 images give, row by row, what each image gives alone, beyond rounding.

    Why: batches in the tests of a backend are of two or three images, those of its users are not.
    Caught: batches that are cut into pieces of 4 or of 16, and whose last piece, which is not whole, is lost.
    Mend: let ``forward`` run the batch that it is given; whoever needs pieces goes by ``range(0, n, step)``, which has
    the last one.
    """
    images = subject.images(max(BATCHES))
    with subject.open() as extractor:
        alone = [_kept(extractor(images[row : row + 1])) for row in range(max(BATCHES))]
        for count in BATCHES:
            together = extractor(images[:count])
            for layer in subject.layers:
                wanted = np.concatenate([features[layer] for features in alone[:count]])
                ones = f"extractor(images[row : row + 1])[{layer!r}] for row in range({count})"
                code = f"extractor(images[:{count}])[{layer!r}], np.concatenate([{ones}])"
                problem = f"{layer!r} of {count} images is not that of each alone"
                subject.close(together[layer], wanted, problem, layer, code, **ROUNDING)


def _kept(features: FeatureSet) -> FeatureSet:
    return features.map(lambda array: np.array(to_numpy(array)))


@check("values.sequence")
def sequence(subject: Subject) -> None:
    """Whatever images an extractor has seen before, of other sizes and in other batches, it gives the bits that a new
    extractor gives: over the walks of up to five calls that hypothesis draws, and over sizes A, B, A in batches of 1, 3
    and 1.

    Why: photographs come in every size, and the last batch of a data set is shorter than the others.
    Caught: position embeddings that are kept for the last grid, and keyed by its number of cells, which 4x6 and 6x4
    share; buffers that are made for the first batch and not for the next.
    Mend: key what is kept by all that it depends on, or keep nothing between calls.
    """
    from hypothesis import example, given
    from hypothesis import strategies as st

    sizes, channels = subject.case.sizes[:3], subject.info.input_rule.channels
    calls = [(size, batch) for size in sizes for batch in (1, 3)]
    there_and_back = [calls[0], calls[-1], calls[0]]

    @functools.cache
    def fresh(size: Size, batch: int) -> FeatureSet:
        return _kept(subject.run(subject.images(batch, size)))

    @configured(WALKS)
    @example(there_and_back)
    @given(st.lists(st.sampled_from(calls), min_size=2, max_size=STEPS))
    def hold(walk: list[tuple[Size, int]]) -> None:
        with subject.open() as extractor:
            for done, (size, batch) in enumerate(walk, start=1):
                features, wanted = extractor(subject.images(batch, size)), fresh(size, batch)
                before = [(count, channels, *other) for other, count in walk[: done - 1]]
                earlier = f"for shape in {before}:\n    extractor(np.ones(shape, np.float32))"
                for layer in subject.layers:
                    code = f"{earlier}\nextractor(images)[{layer!r}], {subject.opening()}(images)[{layer!r}]"
                    problem = f"{layer!r} depends on earlier calls"
                    subject.same(features[layer], wanted[layer], problem, layer, code)

    hold()
