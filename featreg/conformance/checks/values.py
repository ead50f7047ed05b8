"""The right numbers, whatever was asked for before, beside or after them."""

from __future__ import annotations

from typing import Any

import numpy as np

from featreg.arrays import to_numpy
from featreg.conformance.model import check
from featreg.conformance.oracles import ask_oracle, oracle_code
from featreg.conformance.subject import Subject
from featreg.spec import Layer

ROUNDING: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}
"""How far kernels that differ by batch size may come apart in float32."""


def _no_oracle(subject: Subject) -> str:
    return "" if subject.case.oracle is not None else "the case has no oracle"


@check("values.oracle", when=_no_oracle)
def oracle(subject: Subject) -> None:
    """At every size of the case each layer equals what the author's oracle computes without the code under test, within
    rtol 1e-4 and atol 1e-5 of the layer's largest value, in float32.

    Why: this is the one check that knows the truth. All others compare a backend with itself.
    Caught: in-place ReLUs that overwrite the layer before them (thingsvision #44; torchvision's resnet ``bn1``, vgg,
    densenet ``norm0``); two levels of one shape that are swapped (402 models of timm have such a pair); open_clip's
    RN50, whose ``stop_early`` is inverted; CoCa, which normalises by default (open_clip #68).
    Mend: compare with the library's own forward pass, layer by layer, from the first that differs; copy what a tap sees
    before the next operation runs.
    """
    assert subject.case.oracle is not None
    with subject.open() as extractor:
        truth = ask_oracle(subject, subject.case.oracle, extractor.module)
        for size in subject.case.sizes:
            images = subject.images(2, size)
            features, wanted = extractor(images), truth(images.copy())
            for layer in wanted:
                problem = f"{layer!r} has other values than its oracle"
                subject.close(features[layer], wanted[layer], problem, layer, oracle_code(subject, layer))


@check("values.has_oracle", level="SHOULD", when=lambda subject: "")
def has_oracle(subject: Subject) -> None:
    """The case carries an oracle, which gives the true values of at least one layer.

    Why: without one no check knows what the numbers should be, and a backend that is wrong throughout passes.
    Caught: on a toy backend with 29 planted bugs, most of them from real reports, comparing shapes caught none.
    Mend: yield ``Case(..., oracle=...)`` from ``featreg_conformance_cases``: a function of (model, module) that builds
    the library's own network, takes the weights of ``module``, and reads the layers with plain hooks.
    """
    subject.expect(subject.case.oracle is not None, "the case has no oracle", "Case(..., oracle=...)", "None")


@check("values.repeat")
def repeat(subject: Subject) -> None:
    """The same images give the same bits, also after other images, and on an extractor that has just been opened.

    Why: features that drift cannot be cached, resumed or compared.
    Caught: models of timm open in training mode, as those of open_clip's ``create_model_and_transforms`` do: dropout
    draws, and batch normalisation moves its averages with each call.
    Mend: set evaluation mode in ``open``, keep no state between calls.
    """
    images, others = subject.images(2), subject.images(2, seed=1, name="others")
    with subject.open() as extractor:
        first = extractor(images).map(lambda array: np.array(to_numpy(array)))
        extractor(others)
        second = extractor(images)
    for layer in subject.layers:
        code = f"first = extractor(images)[{layer!r}].copy()\nextractor(others)\nextractor(images)[{layer!r}], first"
        subject.same(second[layer], first[layer], f"the same images give another {layer!r}", layer, code)


@check("values.reopen")
def reopen(subject: Subject) -> None:
    """Two extractors of one request, opened one after the other, give the same bits with ``weights=None``.

    Why: random weights come from a fixed seed, so that a result can be had again.
    Caught: torch initialises from the global generator, so that whatever ran before changes the weights; a seed that is
    set once for the process and not for each model.
    Mend: draw weights from a generator of a fixed seed, inside a scope that restores the caller's.
    """
    images = subject.images(2)
    first, second = (subject.run(images) for _ in range(2))
    for layer in subject.layers:
        code = f"{subject.opening()}(images)[{layer!r}], {subject.opening()}(images)[{layer!r}]"
        subject.same(second[layer], first[layer], f"two extractors of one request differ in {layer!r}", layer, code)


@check("values.batch")
def batch(subject: Subject) -> None:
    """An image gives the same features alone and among others, beyond rounding.

    Why: rows of a data set must not depend on their neighbours or on the size of the last batch.
    Caught: CLIP #429, values that depend on the batch; batch normalisation left in training mode; a normalisation over
    the wrong axis.
    Mend: evaluation mode; reduce over named axes, never over the batch.
    """
    images = subject.images(3)
    with subject.open() as extractor:
        together = extractor(images)
        for row in range(3):
            alone = extractor(images[row : row + 1])
            for layer in subject.layers:
                code = f"extractor(images)[{layer!r}][{row}], extractor(images[{row}:{row + 1}])[{layer!r}][0]"
                problem = f"{layer!r} depends on the other images of the batch"
                subject.close(together[layer][row], alone[layer][0], problem, layer, code, **ROUNDING)


@check("values.permuted")
def permuted(subject: Subject) -> None:
    """The images in another order give the features in that order.

    Why: row i of the result is image i; everything that is stored beside it relies on that.
    Caught: thingsvision #3: 26,111 images, 26,109 names, 26,107 rows; a backend that sorts or groups images by size.
    Mend: keep the batch axis in order, and gather by index after any grouping.
    """
    images, order = subject.images(3), [2, 0, 1]
    with subject.open() as extractor:
        straight, turned = extractor(images), extractor(images[order])
    for layer in subject.layers:
        code = f"extractor(images[{order}])[{layer!r}], extractor(images)[{layer!r}][{order}]"
        problem = f"the rows of {layer!r} are not the images in order"
        subject.close(turned[layer], straight[layer][order], problem, layer, code, **ROUNDING)


@check("values.alone")
def alone(subject: Subject) -> None:
    """A layer asked for alone equals itself among all the others.

    Why: an extractor may stop early and drop what it does not need; that must not show in the values.
    Caught: torchvision's ``create_feature_extractor``, where an in-place activation overwrites a tap only if the next
    node is not cut off; open_clip's RN50, where ``image_indices=[1]`` runs into the attention pool.
    Mend: cut after the last layer that is needed, and copy a tap that a later operation writes to.
    """
    images = subject.images(1)
    together = subject.run(images)
    for layer in subject.layers:
        single = subject.run(images, [layer])[layer]
        problem = f"{layer!r} alone differs from itself among others"
        code = f"{subject.opening([layer])}(images)[{layer!r}], {subject.opening()}(images)[{layer!r}]"
        subject.close(single, together[layer], problem, layer, code)


@check("values.distinct")
def distinct(subject: Subject) -> None:
    """Different images give different features, in every layer and in every row.

    Why: a constant has the right shape, the right type, and repeats bit for bit.
    Caught: a cache keyed by shape or by ``id``; a tap on a node that the input does not reach (a position embedding, a
    class token before the first block).
    Mend: key a cache by content or have none; tap after the layer has seen the image.
    """
    images = subject.images(2)
    with subject.open() as extractor:
        one, two = extractor(images), extractor(subject.images(2, seed=1, name="others"))
    for layer in subject.layers:
        apart = f"extractor(images)[{layer!r}], extractor(others)[{layer!r}]"
        for problem, first, second, pair in (
            (f"other images give the same {layer!r}", one[layer], two[layer], apart),
            (f"two images of a batch give the same {layer!r}", *one[layer][:2], f"*extractor(images)[{layer!r}]"),
        ):
            code = f"assert not np.array_equal({pair})"
            subject.expect(not np.array_equal(first, second), problem, "other values", "the same values", layer, code)


@check("values.rewritten")
def rewritten(subject: Subject) -> None:
    """Images written into the same buffer give their own features.

    Why: loaders reuse buffers.
    Caught: a cache that knows its input by identity: the second batch gets the features of the first.
    Mend: keep nothing of the input beyond the call.
    """
    buffer, others = subject.images(1), subject.images(1, seed=1, name="others")
    with subject.open() as extractor:
        wanted = extractor(others.copy()).map(lambda array: np.array(to_numpy(array)))
        extractor(buffer)
        buffer[...] = others
        got = extractor(buffer)
    rewrite = "extractor(images)\nimages[...] = others"
    for layer in subject.layers:
        code = f"wanted = extractor(others.copy())[{layer!r}].copy()\n{rewrite}\nextractor(images)[{layer!r}], wanted"
        subject.same(got[layer], wanted[layer], f"a rewritten buffer gives an old {layer!r}", layer, code)


@check("values.finite")
def finite(subject: Subject) -> None:
    """Images of zeros, of ones and of noise give finite values in every layer.

    Why: one NaN in a store spoils every mean that is taken over it.
    Caught: a division by a norm or a deviation without epsilon, which a black image makes zero; half precision inside,
    which overflows to infinity in late layers.
    Mend: add the epsilon that the paper or the library has; compute in float32 unless ``dtype`` says otherwise.
    """
    with subject.open() as extractor:
        for kind in ("zeros", "ones", "noise"):
            for layer, array in extractor(subject.images(1, kind=kind)).items():
                bad = int(array.size - np.isfinite(array).sum())
                problem = f"{layer!r} is not finite on {kind}"
                code = f"assert np.isfinite(extractor(images)[{layer!r}]).all()"
                subject.expect(not bad, problem, "finite values", f"{bad} of {array.size} are not", layer, code)


@check("values.precision")
def precision(subject: Subject) -> None:
    """With ``dtype="float32"`` the values have float32's resolution: some of every large layer fit no half precision.

    Why: half precision inside costs three digits, and no shape or type shows it.
    Caught: CLIP #30: half precision on the GPU but not on the CPU, from one call.
    Mend: cast the network to ``request.dtype``, and use no autocast of your own.
    """
    images = subject.images(2)
    for layer, array in subject.run(images).items():
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        halves = np.isin(bits & np.uint32(0x1FFF), 0).mean()  # as many zeros at the end as float16 leaves
        brains = np.isin(bits & np.uint32(0xFFFF), 0).mean()
        zeros = float((array == 0).mean())
        share = max(float(halves), float(brains)) - zeros
        coarse = share > 0.9 * (1 - zeros) and zeros < 1
        code = (
            f"values = extractor(images)[{layer!r}]\n"
            "assert (values[values != 0].view(np.uint32) & 0x1FFF == 0).mean() < 0.9  # as many zeros as float16 leaves"
        )
        problem = f"{layer!r} has half precision inside"
        subject.expect(not coarse, problem, "float32", f"{share:.0%} are halves", layer, code)


_NORMALISED = {
    color: "own = extractor.preprocess\nmean, std = (np.reshape(part, (3, 1, 1)) for part in (own.mean, own.std))\n"
    f"floats = (({images} / 255 - mean) / std).astype(np.float32)"
    for color, images in {"RGB": "images", "BGR": "images[:, ::-1]"}.items()
}
"""The code that normalises uint8 by ``extractor.preprocess``, by its color."""


@check("values.uint8")
def uint8(subject: Subject) -> None:
    """uint8 RGB gives what the same images give when the caller normalises them by ``extractor.preprocess``.

    Why: the two ways in must mean one thing; callers mix them.
    Caught: open_clip #204, wrong preprocessing: mean and std of ImageNet for a model of CLIP's; BGR fed as RGB; values
    of 0 to 255 that were never scaled.
    Mend: use ``featreg.plugin.normalize``, or the same arithmetic on the device, from the same Preprocess.
    """
    images = subject.images(2, kind="uint8")
    preprocess = subject.info.preprocess
    ordered = images if preprocess.color == "RGB" else images[:, ::-1]
    mean, std = (np.reshape(np.asarray(value, np.float64), (3, 1, 1)) for value in (preprocess.mean, preprocess.std))
    floats = ((ordered / 255.0 - mean) / std).astype(np.float32)
    with subject.open() as extractor:
        got, wanted = extractor(images), extractor(floats)
    for layer in subject.layers:
        problem = f"uint8 gives another {layer!r} than the normalised images"
        code = f"{_NORMALISED[preprocess.color]}\nextractor(images)[{layer!r}], extractor(floats)[{layer!r}]"
        subject.close(got[layer], wanted[layer], problem, layer, code, **ROUNDING)


@check("values.aliases")
def aliases(subject: Subject) -> None:
    """A level, its index, its negative index and a head of the same name in the library are the same bits, asked for
    together.

    Why: several names of one layer are several keys with equal values; none may be lost, none may mean another layer.
    Caught: torchvision collapses duplicate taps; timm gives two infos and one tensor for ``(1, 1)``; index skew between
    families (timm #471); mindcv drops negative and out-of-range indices silently.
    Mend: resolve each key on ModelInfo, run each node once, and hand out a copy for every key.
    """
    images = subject.images(1)
    indexed = sorted(info.index for info in subject.info.features if info.index is not None)
    groups: dict[object, dict[Layer, None]] = {}
    for layer, info in subject.features.items():
        names = groups.setdefault((info.name, info.kind, info.channels), {})
        last = None if info.index is None else indexed.index(info.index) - len(indexed)
        names.update(dict.fromkeys(key for key in (layer, info.level, info.head, info.index, last) if key is not None))
    every = [key for names in groups.values() for key in names]
    features = subject.run(images, every)
    code = f"assert list(extractor(images)) == {every}"
    subject.expect(list(features) == every, "names of one layer are lost", every, list(features), code=code)
    for first, *others in groups.values():
        for key in others:
            code = f"features = extractor(images)\nfeatures[{key!r}], features[{first!r}]"
            subject.same(features[key], features[first], f"{key!r} is not {first!r}", key, code)
