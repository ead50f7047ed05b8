"""Arrays of the type that was asked for, which belong to the caller, made from arrays that stay his."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np

from featreg.arrays import to_numpy
from featreg.conformance.model import check
from featreg.conformance.subject import Floats, Subject


@check("arrays.numpy")
def numpy_arrays(subject: Subject) -> None:
    """By default every feature is a ``numpy.ndarray`` of float32 that can be written to.

    Why: callers index, write and save them with NumPy alone.
    Caught: float64 that slips in through a Python scalar and doubles a store; a read-only view of a framework's buffer.
    Mend: cast at the end of ``forward``; give ``to_numpy`` where the framework's arrays need their own way.
    """
    for layer, array in subject.run(subject.images(2)).items():
        for holds, problem, expected, got, code in (
            (type(array) is np.ndarray, "is no NumPy array", "numpy.ndarray", type(array), "type({}) is np.ndarray"),
            (array.dtype == np.float32, "is not float32", "float32", array.dtype, "{}.dtype == np.float32"),
            (array.flags.writeable, "is read-only", "a writable array", "a read-only one", "{}.flags.writeable"),
        ):
            shown = f"assert {code.format(f'extractor(images)[{layer!r}]')}"
            subject.expect(holds, f"{layer!r} {problem}", expected, got, layer, shown)


@check("arrays.native", needs=["native_array"])
def native_arrays(subject: Subject) -> None:
    """``array="native"`` gives the framework's own arrays of one class, float32, with the same values as NumPy's.

    Why: native arrays save the way through the CPU, and must mean the same.
    Caught: gt4py #2801: what was called "jax" was NumPy; a native path of its own that skips the pooling.
    Mend: return the framework's arrays from ``forward`` as they are; the core converts.
    """
    images = subject.images(2)
    native, plain = subject.run(images, array="native"), subject.run(images)
    classes = {type(array).__qualname__ for array in native.values()}
    subject.expect(len(classes) == 1, "native arrays of several classes", "one class", ", ".join(sorted(classes)))
    for layer, array in native.items():
        kind = str(array.dtype).lower()
        subject.expect(kind.endswith("float32"), f"{layer!r} is not float32", "float32", kind, layer)
        code = (
            f"np.asarray({subject.opening(array='native')}(images)[{layer!r}]), {subject.opening()}(images)[{layer!r}]"
        )
        subject.same(to_numpy(array), plain[layer], f"native {layer!r} differs from NumPy's", layer, code)


def _hold_dtype(subject: Subject, dtype: str, precise: str, tolerance: float) -> None:
    images = subject.images(2)
    exact, coarse = subject.run(images), subject.run(images, dtype=dtype)
    for layer, array in coarse.items():
        problem = f"{layer!r} is not {precise} for dtype={dtype!r}"
        code = f"assert extractor(images)[{layer!r}].dtype == {precise!r}"
        subject.expect(str(array.dtype) == precise, problem, precise, array.dtype, layer, code)
        scale = max(float(np.abs(exact[layer]).max()), float(np.finfo(precise).tiny))  # below, digits are lost anyway
        worst = float(np.abs(array.astype(np.float64) - exact[layer]).max()) / scale
        problem = f"{layer!r} is far from float32 in {dtype}"
        code = (
            f"exact, coarse = {subject.opening()}(images)[{layer!r}], extractor(images)[{layer!r}]\n"
            f"assert abs(coarse.astype(np.float64) - exact).max() < {tolerance} * abs(exact).max()"
        )
        subject.expect(
            worst < tolerance, problem, f"below {tolerance} of the largest value", f"{worst:.3g}", layer, code
        )


@check("arrays.float16", needs=["float16"])
def float16(subject: Subject) -> None:
    """``dtype="float16"`` gives float16, near the values of float32.

    Why: the type is what the caller plans memory and stores by.
    Caught: CLIP #30: half precision where there is a GPU, single where there is none.
    Mend: cast the network and the input to the type that the request names.
    """
    _hold_dtype(subject, "float16", "float16", 0.05)


@check("arrays.bfloat16", needs=["bfloat16"])
def bfloat16(subject: Subject) -> None:
    """``dtype="bfloat16"`` computes in bfloat16, which NumPy lacks: its arrays are float32 of the same values.

    Why: the way out must not fail, nor quietly be float16, which overflows.
    Caught: Zarr v3 rejects bfloat16; ``tensor.numpy()`` of torch raises for it.
    Mend: widen in ``to_numpy``, as ``BackendExtractor.to_numpy`` does.
    """
    _hold_dtype(subject, "bfloat16", "float32", 0.3)


SHARING = """\
arrays = [images, *extractor(images).values(), *extractor(images).values()]
assert not any(np.shares_memory(one, two) for number, one in enumerate(arrays) for two in arrays[:number])"""


@check("arrays.storage")
def storage(subject: Subject) -> None:
    """No two outputs of a call share memory with each other, with the input, or with those of another call.

    Why: a caller writes to what he got: centring one layer must not change another.
    Caught: in-place activations that overwrite a tap (thingsvision #44): the tap and the next layer are one buffer;
    a head that is the last level under another name.
    Mend: copy what is handed out twice, and what is a view of the input or of a weight.
    """
    images = subject.images(2)
    with subject.open() as extractor:
        first, second = extractor(images), extractor(images)
    named = [("the input", images)]
    named += [
        (f"{layer!r} of call {number}", to_numpy(array))
        for number, features in ((1, first), (2, second))
        for layer, array in features.items()
    ]
    for (one, left), (two, right) in itertools.combinations(named, 2):
        shared = np.shares_memory(left, right)
        subject.expect(
            not shared, f"{one} and {two} share memory", "memory of their own", "shared memory", code=SHARING
        )


@check("arrays.yours")
def yours(subject: Subject) -> None:
    """Writing to an output changes no later result.

    Why: an output that is a view of a weight or of a cache is a way to break the model.
    Caught: a position embedding or a class token that is returned as it is; a memoised result handed out twice.
    Mend: return copies of what the extractor keeps.
    """
    images = subject.images(2)
    with subject.open() as extractor:
        first = extractor(images)
        kept = {layer: np.array(array) for layer, array in first.items()}
        for array in first.values():
            if array.flags.writeable:
                array[...] = 7
        second = extractor(images)
    for layer, array in kept.items():
        code = (
            f"features = extractor(images)\nbefore = features[{layer!r}].copy()\n"
            f"for array in features.values():\n    array[...] = 7\nextractor(images)[{layer!r}], before"
        )
        subject.same(second[layer], array, f"writing to an output changed a later {layer!r}", layer, code)


@check("arrays.later_calls")
def later_calls(subject: Subject) -> None:
    """A later call never changes what an earlier one gave, nor does closing the extractor; native arrays, where they
    are declared, as little as NumPy's.

    Why: loops collect features before they store them.
    Caught: one output buffer for all calls; a NumPy view of a tensor that the framework frees or reuses.
    Mend: allocate outputs for every call; copy in ``to_numpy`` where the memory is not the array's own.
    """
    for kind in ("numpy", "native") if "native_array" in subject.info.capabilities else ("numpy",):
        with subject.open(array=kind) as extractor:
            first = extractor(subject.images(2))
            kept = {layer: np.array(to_numpy(array)) for layer, array in first.items()}
            for seed in (1, 2):
                extractor(subject.images(2, seed=seed, name="others"))
        for layer, array in kept.items():
            code = (
                f"first = extractor(images)[{layer!r}]\nbefore = np.array(first)\nextractor(others)\n"
                "np.array(first), before"
            )
            subject.same(first[layer], array, f"a later call changed an earlier {layer!r} ({kind})", layer, code)


@check("arrays.input_untouched")
def input_untouched(subject: Subject) -> None:
    """The images are as they were before the call, floats and uint8 alike.

    Why: the caller goes on using them.
    Caught: an in-place ``sub_(mean).div_(std)`` on a tensor that shares the caller's memory; an in-place first ReLU.
    Mend: normalise into a new array; let in-place operations start from one.
    """
    with subject.open() as extractor:
        for kind in ("noise", "uint8"):
            images = subject.images(2, kind=kind)
            before = images.copy()
            extractor(images)
            code = "before = images.copy()\nextractor(images)\nassert np.array_equal(images, before)"
            holds = images.tobytes() == before.tobytes()
            subject.expect(holds, f"the call changed its input ({kind})", "the same images", "others", code=code)


def _hold_form(subject: Subject, forms: Mapping[str, tuple[Callable[[Floats], Floats], str]]) -> None:
    """Images in another form give the features of the same images in the usual one.

    To each form the code for it, whose last line is the expression of the images.
    """
    with subject.open() as extractor:
        for kind in ("noise", "uint8"):
            images = subject.images(2, kind=kind)
            wanted = extractor(images)
            for name, (form, code) in forms.items():
                *before, formed = code.splitlines()
                subject.scene.doing = "\n".join([*before, f"extractor({formed})"])
                got = extractor(form(images))
                for layer in subject.layers:
                    problem = f"{name} images give another {layer!r} ({kind})"
                    pair = f"extractor({formed})[{layer!r}], extractor(images)[{layer!r}]"
                    subject.close(got[layer], wanted[layer], problem, layer, "\n".join([*before, pair]))


@check("arrays.readonly")
def readonly(subject: Subject) -> None:
    """Read-only images are taken, and give the same features.

    Why: arrays that are mapped from a file or that come through shared memory are read-only.
    Caught: torch, which cannot express read-only memory and warns; a normalisation in place, which then raises.
    Mend: copy what the framework cannot share.
    """

    def form(images: Floats) -> Floats:
        frozen = images.copy()
        frozen.setflags(write=False)
        return frozen

    _hold_form(subject, {"read-only": (form, "frozen = images.copy()\nfrozen.setflags(write=False)\nfrozen")})


@check("arrays.strided")
def strided(subject: Subject) -> None:
    """Images that are not contiguous are taken, and give the same features: a view of NHWC, and one with negative
    strides.

    Why: a transposed decode and a mirrored crop are such views.
    Caught: ``torch.from_numpy``, which refuses negative strides; code that reads the buffer instead of the array.
    Mend: make the array contiguous where the framework needs it.
    """
    forms: dict[str, tuple[Callable[[Floats], Floats], str]] = {
        "channels-last": (
            lambda images: np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
            "np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)",
        ),
        "mirrored": (
            lambda images: np.ascontiguousarray(images[:, :, ::-1, ::-1])[:, :, ::-1, ::-1],
            "np.ascontiguousarray(images[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]",
        ),
    }
    _hold_form(subject, forms)


@check("arrays.float64")
def float64(subject: Subject) -> None:
    """Images of float64 and of float16 are taken, and the features are float32 all the same.

    Why: NumPy makes float64 unless told otherwise; the type asked for is that of the computation.
    Caught: "expected scalar type Float but found Double", from deep inside the first convolution.
    Mend: cast the input to the network's number format.
    """
    images = subject.images(2)
    with subject.open() as extractor:
        wanted = extractor(images)
        found = {dtype: extractor(images.astype(dtype)) for dtype in (np.float64, np.float16)}
    for dtype, rtol in ((np.float64, 1e-4), (np.float16, 5e-2)):
        got = found[dtype]
        call = f"extractor(images.astype(np.{np.dtype(dtype).name}))"
        for layer in subject.layers:
            name, shown = got[layer].dtype, f"{call}[{layer!r}]"
            problem = f"{layer!r} takes its type from the images"
            subject.expect(name == np.float32, problem, "float32", name, layer, f"assert {shown}.dtype == np.float32")
            problem = f"{layer!r} of {np.dtype(dtype).name} images is another"
            code = f"{shown}, extractor(images)[{layer!r}]"
            subject.close(got[layer], wanted[layer], problem, layer, code, rtol=rtol, atol=rtol)
