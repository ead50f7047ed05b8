"""The framework's own arrays: where they lie, in which number format, in whose memory."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from typing import Any

import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.model import check
from featreg.conformance.subject import Subject
from featreg.errors import DeviceError

DLPACK = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}
"""The kinds of device of DLPack (``DLDeviceType``): host memory, also pinned, and CUDA's, also managed."""

HALVES = ("float16", "bfloat16")

CUDA_TOLERANCE = 1e-2
"""TF32, which torch's convolutions use by default, keeps 10 bits of the mantissa."""


def _place(array: Array) -> str:
    """The kind of memory that an array lies in: as DLPack has it, else by the name of its device."""
    if hasattr(array, "__dlpack_device__"):
        kind = int(array.__dlpack_device__()[0])
        return DLPACK.get(kind, f"DLPack's device {kind}")
    return str(getattr(array, "device", "nowhere")).lower().partition(":")[0]


@check("arrays.device", needs=["native_array"])
def device(subject: Subject) -> None:
    """With ``device="cpu"``, which is also the default, native arrays lie in the CPU's memory.

    Why: the device is what the caller plans memory by, and mixes with arrays of his own.
    Caught: CLIP #30: a library that takes the GPU by itself where there is one.
    Mend: move the network and the input to ``request.device``, and never ask the framework for its default.
    """
    for fields in ({}, {"device": "cpu"}):
        for layer, array in subject.run(subject.images(1), array="native", **fields).items():
            place = _place(array)
            shown = f"{subject.opening(array='native', **fields)}(images)[{layer!r}].__dlpack_device__()[0]"
            code = f"assert {shown} in (1, 3)" if hasattr(array, "__dlpack_device__") else ""
            subject.expect(place == "cpu", f"{layer!r} lies elsewhere", "cpu", place, layer, code)


def _torch_has_cuda() -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


def _may_have_cuda() -> bool:
    """Whether this machine shows any sign of NVIDIA's driver."""
    return _torch_has_cuda() or os.path.exists("/proc/driver/nvidia") or shutil.which("nvidia-smi") is not None


@check("capabilities.cuda", needs=["cuda"])
def cuda(subject: Subject) -> None:
    """``device="cuda"`` computes on a CUDA device, with the CPU's values but for rounding (1e-2, for TF32). Where the
    machine has none it raises DeviceError.

    Why: work that moves to the CPU by itself is found out by its bill.
    Caught: gt4py #2801: a silent fallback, by which the tests of one device ran on another and passed.
    Mend: resolve the device when the extractor is opened, and raise DeviceError where the framework has none.
    """
    images = subject.images(2)
    fields = {"array": "native"} if "native_array" in subject.info.capabilities else {}
    try:
        found = subject.run(images, device="cuda", **fields)
    except DeviceError as error:
        subject.expect(not _torch_has_cuda(), "the CUDA device that is there is refused", "a result", error)
        return
    subject.expect(_may_have_cuda(), "a CUDA device that is not there is taken", "DeviceError", "a result")
    wanted = subject.run(images)
    for layer, array in found.items():
        place = _place(array) if fields else "cuda"
        subject.expect(place == "cuda", f"{layer!r} lies elsewhere", "cuda", place, layer)
        problem = f"{layer!r} is another on CUDA"
        subject.close(array, wanted[layer], problem, layer, rtol=CUDA_TOLERANCE, atol=CUDA_TOLERANCE)


def _no_half(subject: Subject) -> str:
    return "" if set(HALVES) & set(subject.info.capabilities) else "float32 is the only number format"


@check("arrays.native_dtype", needs=["native_array"], when=_no_half)
def native_dtype(subject: Subject) -> None:
    """Native arrays are of the number format that ``dtype`` names, for each that is declared.

    Why: what is asked for is half the memory.
    Caught: a head that computes in float32 whatever the network does; bfloat16 that is widened on its way out although
    the framework has it.
    Mend: cast the network, not its outputs, and leave the arrays of ``forward`` as they come.
    """
    for dtype in HALVES:
        if dtype in subject.info.capabilities:
            for layer, array in subject.run(subject.images(1), array="native", dtype=dtype).items():
                name = str(array.dtype).lower().rpartition(".")[2]
                code = f"assert str(extractor(images)[{layer!r}].dtype).lower().endswith({dtype!r})"
                subject.expect(name == dtype, f"{layer!r} is not {dtype}", dtype, name, layer, code)


@check("arrays.bfloat16_values", needs=["bfloat16"])
def bfloat16_values(subject: Subject) -> None:
    """What ``dtype="bfloat16"`` gives as NumPy is float32 of values that bfloat16 holds exactly: the lower half of
    each is zero.

    Why: a type that is quietly ignored is twice the memory and half the speed that the caller counted on.
    Caught: gt4py #2801: an option that fell back to the default without a word; no tolerance can see this one.
    Mend: compute in bfloat16 and widen at the very end, or do not declare it.
    """
    for layer, array in subject.run(subject.images(2), dtype="bfloat16").items():
        exact = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32) & 0xFFFF == 0
        wrong = f"{np.count_nonzero(~exact)} of {exact.size} with more digits"
        code = f"assert not (extractor(images)[{layer!r}].view(np.uint32) & 0xFFFF).any()"
        subject.expect(exact.all(), f"{layer!r} is finer than bfloat16", "values of bfloat16", wrong, layer, code)


SHARING = """\
arrays = [images, *map(np.asarray, [*extractor(images).values(), *extractor(images).values()])]
assert not any(np.may_share_memory(one, two) for number, one in enumerate(arrays) for two in arrays[:number])"""


@check("arrays.native_storage", needs=["native_array"])
def native_storage(subject: Subject) -> None:
    """No two native arrays share memory, of one call or of two, nor does one with the images or with a parameter of
    ``extractor.module``.

    Why: in the framework's own arrays nothing is copied on the way out, so that writing to one writes to whatever it
    shares memory with.
    Caught: in-place activations that overwrite a tap (thingsvision #44); a position embedding that is returned as it
    is.
    Mend: ``clone`` what is handed out twice, and what is a view of the input or of a weight.
    """
    images = subject.images(2)
    with subject.open(array="native") as extractor:
        first, second = extractor(images), extractor(images)
        weights = _weights(extractor.module)
    outputs = [
        (f"{layer!r} of call {number}", to_numpy(array))
        for number, features in ((1, first), (2, second))
        for layer, array in features.items()
    ]
    others = [("the images", images), *weights]
    pairs = [*itertools.combinations(outputs, 2), *itertools.product(outputs, others)]
    for (one, left), (two, right) in pairs:
        shared = np.may_share_memory(left, right)
        code = "" if two.startswith("the weight ") else SHARING
        subject.expect(not shared, f"{one} and {two} share memory", "memory of their own", "shared memory", code=code)


def _weights(module: Any) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """The parameters and buffers of a module of torch or MindSpore, as views where the framework gives them."""
    table = getattr(module, "parameters_dict", None) or getattr(module, "state_dict", None)
    return [] if table is None else [(f"the weight {name}", to_numpy(value)) for name, value in table().items()]
