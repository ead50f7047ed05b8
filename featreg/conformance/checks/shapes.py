"""The exact promise: a predicted shape is the real one, or prediction raises."""

from __future__ import annotations

from functools import partial

from featreg.conformance.cases import outside_sizes
from featreg.conformance.draws import configured
from featreg.conformance.model import check
from featreg.conformance.subject import Subject
from featreg.errors import InputError
from featreg.extractor import Extractor
from featreg.spec import Size

DRAWN = 12
"""How many sizes, batches and layers ``shapes.drawn`` draws."""


def _hold_shapes(subject: Subject, extractor: Extractor, batch: int, size: Size) -> None:
    features = extractor(subject.images(batch, size))
    for layer, shape in extractor.output_shapes((batch, 3, *size)).items():
        got = tuple(features[layer].shape)
        code = f"assert extractor(images)[{layer!r}].shape == extractor.output_shapes(images.shape)[{layer!r}]"
        subject.expect(got == shape, f"{layer!r} has another shape than predicted", shape, got, layer, code)


@check("shapes.predicted")
def predicted(subject: Subject) -> None:
    """At every size of the case (square, tall, wide, odd, minimum) each layer has exactly the shape that
    ``extractor.output_shapes`` predicts, on both axes.

    Why: a caller allocates, batches and stores by the predicted shape. A prediction within one cell is a wrong one.
    Caught: timm's tests accept any grid up to ceil(size / r) + 1. Over its 1,371 models at 225x225, 622 follow ceil,
    108 floor, and 83 neither; vitamin_xlarge_256 at 193x257 returns 1,326 channels where 1,152 are declared. timm #2370
    reports channels that differ from the output.
    Mend: set ``rounding`` to what the padding of the network does; where it does neither, say ``measured`` and infer
    the grid in ``BackendExtractor.measure`` without a forward pass on real data.
    """
    with subject.open() as extractor:
        for size in subject.case.sizes:
            _hold_shapes(subject, extractor, 1, size)


@check("shapes.described")
def described(subject: Subject) -> None:
    """``featreg.describe`` at each size of the case predicts the shapes that an opened extractor gives there.

    Why: describing is how a caller chooses layers and sizes before any weight is loaded.
    Caught: mindcv's ConvNeXt at 225 gives 57, 29, 15, 8 where the same network elsewhere gives 56, 28, 14, 7; a
    description that was copied from another library's table is off by one at odd sizes only.
    Mend: let ``Backend.info`` and ``BackendExtractor.features`` come from one place, and measure at the size asked for.
    """
    with subject.open() as extractor:
        for size in subject.case.sizes:
            features, info = extractor(subject.images(1, size)), subject.describe(size)
            described = f"featreg.describe({subject.model!r}, {size})"
            problem, code = "the model is described at another size", f"assert {described}.input_size == {size}"
            subject.expect(info.input_size == size, problem, size, info.input_size, code=code)
            for layer in subject.features:
                shape, got = info.resolve(layer).shape(1, *size), tuple(features[layer].shape)
                problem = f"{layer!r} has another shape than described at {size[0]}x{size[1]}"
                wanted = f"{described}.resolve({layer!r}).shape(1, *{size})"
                code = f"assert extractor(images)[{layer!r}].shape == {wanted}"
                subject.expect(got == shape, problem, shape, got, layer, code)


@check("shapes.batch")
def batch_axis(subject: Subject) -> None:
    """Batches of 1, 2 and 3 images give arrays of that length, of rank 4 (map), 3 (tokens) or 2 (vector).

    Why: code that works for 32 images must work for the last one of a data set.
    Caught: a ``squeeze()`` after global pooling, which drops the batch axis for one image alone; coat, edgenext and
    repmlp of mindcv silently return logits of shape (1, 1000) in place of maps.
    Mend: name the axes to squeeze or reduce (``mean(axis=(2, 3))``), never squeeze them all.
    """
    ranks = {"map": 4, "tokens": 3, "vector": 2}
    with subject.open() as extractor:
        for batch in (1, 2, 3):
            features = extractor(subject.images(batch))
            for layer, info in features.info.items():
                shape = tuple(features[layer].shape)
                holds = len(shape) == ranks[info.kind] and shape[0] == batch
                wanted = f"{batch} images, rank {ranks[info.kind]} ({info.kind})"
                array = f"array = extractor(images)[{layer!r}]"
                code = f"{array}\nassert (len(array), array.ndim) == {batch, ranks[info.kind]}"
                subject.expect(holds, f"{layer!r} lost an axis", wanted, shape, layer, code)


def _has_outside(subject: Subject) -> str:
    return "" if outside_sizes(subject.info.input_rule, subject.case.size) else "the model takes every size"


@check("shapes.outside", when=_has_outside)
def outside(subject: Subject) -> None:
    """Sizes next to the input rule that break it raise InputError: in a call, in ``output_shapes`` and in ``describe``.

    Why: what is silently resized, padded or cut gives features of another image than the caller's.
    Caught: timm's crossvit resizes its input silently.
    Mend: declare the rule (``InputRule(fixed=..., multiple_of=..., minimum=...)``) and check it in ``info``.
    """
    with subject.open() as extractor:
        for size in outside_sizes(subject.info.input_rule, subject.case.size):
            images, text = subject.images(1, size), f"an image of {size[0]}x{size[1]}"
            shape = (1, 3, *size)
            subject.raises(InputError, partial(extractor, images), text, "extractor(images)")
            code = f"extractor.output_shapes({shape})"
            subject.raises(InputError, partial(extractor.output_shapes, shape), f"the shape of {text}", code)
            code = f"featreg.describe({subject.model!r}, {size})"
            subject.raises(InputError, partial(subject.describe, size), f"describing {text}", code)


@check("shapes.drawn")
def drawn(subject: Subject) -> None:
    """Sizes, batches and subsets of the layers that hypothesis draws keep the promise too: the predicted shape, or
    InputError from the prediction and from the call alike.

    Why: examples that an author chooses are those that he thought of.
    Caught: DenseNet mixes ceil and floor by level, which shows at some sizes alone; a formula fitted at 224 and 225
    fails at 227.
    Mend: as for ``shapes.predicted``; the failing size is in the message, the smallest that hypothesis found.
    """
    from hypothesis import given
    from hypothesis import strategies as st

    rule, (height, width) = subject.info.input_rule, subject.case.size
    units = st.integers(0, 24)
    step = rule.multiple_of

    @configured(DRAWN)
    @given(units, units, st.integers(1, 3), st.lists(st.sampled_from(subject.layers), min_size=1, unique=True))
    def hold(rows: int, columns: int, batch: int, layers: list[str | int]) -> None:
        size = (height, width) if rule.fixed is not None else (height + step * (rows - 8), width + step * (columns - 8))
        if min(size) < 1:
            size = (height, width)
        with subject.open(layers) as extractor:
            try:
                extractor.output_shapes((batch, 3, *size))
            except InputError:
                images = subject.images(batch, size)
                subject.raises(
                    InputError, lambda: extractor(images), f"a size without a shape, {size},", "extractor(images)"
                )
                return
            _hold_shapes(subject, extractor, batch, size)

    hold()


@check("shapes.equals_open")
def equals_open(subject: Subject) -> None:
    """``featreg.describe`` says of each layer what the opened extractor says of it, and of the model the same.

    Why: two descriptions of one thing, one of them wrong, is how plans and results come apart.
    Caught: timm returns the infos of ``out_indices=(-1, 0)`` in request order and the tensors in forward order; and two
    infos with one tensor for ``(1, 1)``.
    Mend: open with the same ``info`` that ``Backend.info`` gives, and resolve every layer on it.
    """
    own = subject.describe()
    with subject.open() as extractor:
        code = f"assert extractor.info == featreg.describe({subject.model!r})"
        subject.expect(extractor.info == own, "the opened model is described otherwise", own, extractor.info, code=code)
        for layer in subject.features:
            one, two = own.resolve(layer), extractor.feature_info[layer]
            fields = ("name", "channels", "reduction", "kind", "prefix_tokens", "rounding", "length")
            wanted = {field: getattr(one, field) for field in fields}
            got = {field: getattr(two, field) for field in fields}
            code = (
                f"one = featreg.describe({subject.model!r}).resolve({layer!r})\n"
                f"two = extractor.feature_info[{layer!r}]\n"
                f"assert all(getattr(one, name) == getattr(two, name) for name in {fields})"
            )
            subject.expect(wanted == got, f"{layer!r} is described otherwise when opened", wanted, got, layer, code)


def _crop(subject: Subject) -> Size | None:
    """The size of every crop, or of that of a square image; None where it depends on the image alone."""
    preprocess = subject.info.preprocess
    resize = preprocess.resize
    known = resize is not None and (preprocess.resize_mode == "exact" or resize[0] == resize[1])
    return preprocess.crop or (resize if known else None)


@check("shapes.crop", when=lambda subject: "" if _crop(subject) else "preprocess sets no size")
def crop(subject: Subject) -> None:
    """What ``featreg.load_images`` makes of a photograph by ``extractor.preprocess`` is of a size that the model takes
    (a square photograph, where the preprocessing does not crop).

    Why: ``extractor(featreg.load_images(paths, extractor.preprocess))`` is the first line that anyone writes.
    Caught: a crop of 30 by 30 for patches of 8, with which every photograph raises InputError.
    Mend: take the crop from the weights' own configuration and the input rule from the network; where they differ, crop
    to a size that the rule takes.
    """
    size = _crop(subject)
    assert size is not None
    with subject.open() as extractor:
        problem, caught = "crops are not taken", ""
        try:
            extractor.output_shapes((1, subject.info.input_rule.channels, *size))
        except InputError as error:
            caught = str(error)
        code = f"assert extractor.output_shapes((1, {subject.info.input_rule.channels}, *{size}))"
        subject.expect(not caught, problem, f"{size[0]}x{size[1]}", caught, code=code)
