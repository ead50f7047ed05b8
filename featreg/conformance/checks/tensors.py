"""The framework's own arrays on their way in, and what they are good for on their way out."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.model import check
from featreg.conformance.subject import Floats, Subject
from featreg.errors import FeatregError

KINDS = ("noise", "uint8")


@functools.lru_cache(maxsize=16)
def _sample(subject: Subject) -> Array:
    """A native array; None where there is none, whatever the reason: other checks tell it."""
    if "native_array" in subject.info.capabilities:
        try:
            return next(iter(subject.run(subject.images(1), subject.layers[:1], array="native").values()))
        except FeatregError:
            return None
    return None


def _as_native(images: Floats, sample: Array) -> Array:
    """Images as an array of the sample's framework, in memory of its own; None where the kit cannot make one."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(sample, torch.Tensor):
        return torch.from_numpy(images.copy())
    make = getattr(type(sample), "from_numpy", None)  # MindSpore's
    return None if make is None else make(images.copy())


def _not_made(subject: Subject) -> str:
    sample = _sample(subject)
    if isinstance(sample, np.ndarray):
        return "native arrays are NumPy's, which other checks try"
    made = sample is not None and _as_native(np.zeros((1, 3, 1, 1), np.float32), sample) is not None
    return "" if made else "the kit cannot make arrays of this framework"


@check("arrays.native_input", needs=["native_array"], when=_not_made)
def native_input(subject: Subject) -> None:
    """The framework's own arrays of images, float32 and uint8, give what the same images in NumPy give, on extractors
    of NumPy arrays and of native ones.

    Why: whoever has tensors hands them over as they are; both ways in must mean one thing.
    Caught: uint8 tensors that pass by the normalisation, which was written for NumPy (values of 0 to 255 reach the
    network); ``is_native`` that is true of arrays which ``forward`` does not convert.
    Mend: bring both kinds to one tensor first, and normalise that.
    """
    for kind in KINDS:
        images = subject.images(2, kind=kind)
        tensor, wanted = _as_native(images, _sample(subject)), subject.run(images)
        for array in ("numpy", "native"):
            with subject.open(array=array) as extractor:
                found = extractor(tensor)
            for layer in subject.layers:
                problem = f"native images ({kind}) give another {layer!r} than NumPy's"
                code = f"{_making(subject)}\nextractor(tensor)[{layer!r}], {subject.opening()}(images)[{layer!r}]"
                subject.close(found[layer], wanted[layer], problem, layer, code)


def _making(subject: Subject) -> str:
    """The code that makes ``tensor`` of ``images``."""
    kind = type(_sample(subject))
    module = kind.__module__.partition(".")[0]
    owner = module if module == "torch" else f"{module}.{kind.__name__}"
    return f"import {module}\ntensor = {owner}.from_numpy(images.copy())"


@check("arrays.native_input_untouched", needs=["native_array"], when=_not_made)
def native_input_untouched(subject: Subject) -> None:
    """The framework's own arrays of images, float32 and uint8, are as they were before the call.

    Why: the caller goes on using them; nothing was copied on the way in.
    Caught: ``sub_(mean).div_(std)`` on the caller's tensor; a first activation in place, in a network that is cut
    before its first convolution.
    Mend: normalise into a new array; ``clone`` what the network may write to.
    """
    with subject.open() as extractor:
        for kind in KINDS:
            images = subject.images(2, kind=kind)
            tensor = _as_native(images, _sample(subject))
            extractor(tensor)
            holds = np.array_equal(to_numpy(tensor), images)
            code = f"{_making(subject)}\nextractor(tensor)\nassert np.array_equal(np.asarray(tensor), images)"
            subject.expect(holds, f"the call changed its input ({kind})", "the same images", "others", code=code)


def no_tensors(subject: Subject) -> str:
    """Why what needs tensors of torch does not apply; empty where native arrays are such."""
    sample, torch = _sample(subject), sys.modules.get("torch")
    return "" if torch is not None and isinstance(sample, torch.Tensor) else "native arrays are none of torch"


@check("arrays.autograd", needs=["native_array"], when=no_tensors)
def autograd(subject: Subject) -> None:
    """Torch's tensors that an extractor gives can be worked on under autograd: a gradient flows through what is
    computed from them to other tensors.

    Why: features without a graph are the input of whatever is trained on top of them.
    Caught: networks that run under ``torch.inference_mode``, whose tensors raise "Inference tensors cannot be saved for
    backward" as soon as a probe is trained on them.
    Mend: ``torch.no_grad()`` in place of ``torch.inference_mode()``.
    """
    torch: Any = sys.modules["torch"]
    for layer, array in subject.run(subject.images(1), array="native").items():
        probe = torch.ones_like(array, requires_grad=True)
        caught = ""
        try:
            (array * probe).sum().backward()
        except RuntimeError as error:
            caught = str(error)
        code = f"assert not extractor(images)[{layer!r}].is_inference()"
        problem = f"no gradient flows past {layer!r}"
        subject.expect(not caught, problem, "a gradient of the probe", caught, layer, code)
        subject.same(probe.grad, array, f"the gradient past {layer!r} is another", layer)
