"""What is asked for is what comes, under its own key; what cannot be had is refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from featreg.conformance.model import check
from featreg.conformance.subject import Subject
from featreg.errors import CapabilityError, DeviceError, InputError, LayerError, UnknownModelError
from featreg.extractor import create_extractor, list_nodes
from featreg.spec import CAPABILITIES, Layer

NONSENSE = "no_such_thing_at_all"


def _open(subject: Subject, layers: Sequence[Layer], **fields: Any) -> None:
    """Open an extractor and close it, for what it raises."""
    create_extractor(subject.model, layers, registry=subject.registry, **fields).close()


@check("order.keys")
def keys(subject: Subject) -> None:
    """Keys, their order and their count are the request's, and each key has its own layer's values, in whichever order
    the layers are asked for.

    Why: a caller zips layers with results.
    Caught: timm's ``out_indices=(-1, 0)`` reports in request order and returns in forward order (timm PR 2239);
    torchvision returns taps in execution order.
    Mend: build the result as ``[found[feature.name] for feature in self.features]``, whatever the order of the taps.
    """
    images = subject.images(1)
    straight = subject.run(images)
    wanted, got = list(subject.layers), list(straight)
    subject.expect(got == wanted, "other keys", wanted, got, code=f"assert list(extractor(images)) == {wanted}")
    turned = [*subject.layers[::-1]]
    middle = [*subject.layers[len(turned) // 2 :], *subject.layers[: len(turned) // 2]]
    for order in (turned, middle):
        features = subject.run(images, order)
        problem, code = "keys in another order than asked for", f"assert list(extractor(images)) == {order}"
        subject.expect(list(features) == order, problem, order, list(features), code=code)
        for layer in order:
            problem = f"{layer!r} is another layer when asked for in another order"
            code = f"extractor(images)[{layer!r}], {subject.opening()}(images)[{layer!r}]"
            subject.close(features[layer], straight[layer], problem, layer, code)


@check("order.refused")
def refused(subject: Subject) -> None:
    """No layer, the same layer twice, and an index beyond the last raise LayerError.

    Why: what is quietly collapsed or dropped leaves the caller with fewer results than he asked for.
    Caught: mindcv drops out-of-range ``out_indices``, and timm's are unchecked (timm #2242).
    Mend: resolve every layer with ``ModelInfo.resolve``, which raises.
    """
    first = subject.layers[0]
    beyond = 1 + max((info.index for info in subject.info.features if info.index is not None), default=0)
    for layers in ([], [first, first], [beyond], [-beyond - 1]):
        code = f"featreg.create_extractor({subject.model!r}, {layers})"
        subject.raises(
            LayerError,
            partial(_open, subject, layers),
            f"asking for {layers}",
            code,
        )


@check("requests.unknown_layer")
def unknown_layer(subject: Subject) -> None:
    """A layer that the model does not have raises LayerError, also beside one that it has, and also where it looks like
    a pattern.

    Why: a misspelt layer must not become another layer, or none.
    Caught: torchvision treats names as regular expressions: ``"l.yer1"`` validates and returns ``{}``.
    Mend: look names up exactly, and raise LayerError with ``near_matches``.
    """
    name = subject.info.features[0].name
    patterns = [f"{name[:1]}.{name[2:]}", f"{name}.*"] if len(name) > 2 else []
    known = {node.name for node in list_nodes(subject.model, registry=subject.registry)}
    for layer in (NONSENSE, *(pattern for pattern in patterns if pattern not in known)):
        for layers in ([layer], [subject.layers[0], layer]):
            code = f"featreg.create_extractor({subject.model!r}, {layers})"
            subject.raises(
                (LayerError, CapabilityError),
                partial(_open, subject, layers),
                f"the unknown layer {layer!r}",
                code,
            )


@check("requests.unknown_model", scope="backend")
def unknown_model(subject: Subject) -> None:
    """A model that the backend does not have raises UnknownModelError; ``has`` says no to it and yes to those listed.

    Why: a misspelt model must not become a default one.
    Caught: open_clip's ``get_tokenizer("nope")`` returns a default tokenizer.
    Mend: let ``has`` be exact; where a library takes names that ``models`` leaves out, ask the library.
    """
    backend = subject.backend
    # a listed name: the model of a case may be an address, and whether something lies there only asking tells
    wrong = f"{next(iter(backend.models()), subject.case.model)}_{NONSENSE}"
    code = f"featreg.describe('{subject.backend_name}:{wrong}')"

    def describe_wrong() -> None:
        subject.registry.resolve(f"{subject.backend_name}:{wrong}")

    subject.raises(UnknownModelError, describe_wrong, f"the unknown model {wrong!r}", code)
    subject.expect(backend.has(subject.case.model), "has() does not know a model of a case", True, False)


@check("requests.unknown_option")
def unknown_option(subject: Subject) -> None:
    """An option that the backend does not have raises CapabilityError.

    Why: an option that is quietly ignored is a setting that the caller believes in.
    Caught: keyword arguments that a library's ``create_model`` swallows in ``**kwargs``.
    Mend: refuse every name of ``request.options`` that is not the backend's own.
    """
    code = f"featreg.create_extractor({subject.model!r}, {subject.layers[:1]}, options={{{NONSENSE!r}: True}})"
    what = "an option that the backend does not have"
    subject.raises(CapabilityError, partial(_open, subject, subject.layers[:1], options={NONSENSE: True}), what, code)


@check("requests.unknown_device")
def unknown_device(subject: Subject) -> None:
    """A device that does not exist raises DeviceError, or CapabilityError where the kind of device is not declared.

    Why: work that silently moves to the CPU is found out by its bill.
    Caught: gt4py #2801, whose "jax" tests ran on NumPy by a silent fallback that passed.
    Mend: resolve the device with the framework when the extractor is opened, and raise DeviceError.
    """
    for device in ("no_such_device", "cuda:4096"):
        code = f"featreg.create_extractor({subject.model!r}, {subject.layers[:1]}, device={device!r})"
        subject.raises(
            (DeviceError, CapabilityError),
            partial(_open, subject, subject.layers[:1], device=device),
            f"the device {device!r}",
            code,
        )


FIELDS: dict[str, dict[str, Any]] = {
    "native_array": {"array": "native"},
    "grad": {"array": "native", "grad": True},
    "output_stride": {"output_stride": 16},
    "weights": {"weights": "default"},
    "synthetic_weights": {"weights": "synthetic:0"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "cuda": {"device": "cuda"},
}
"""What a request says to need a capability."""


def _undeclared(subject: Subject) -> list[tuple[str, list[Layer], dict[str, Any]]]:
    """The capabilities that are not declared, with the layers and fields of a request that needs each."""
    found: list[tuple[str, list[Layer], dict[str, Any]]] = []
    for capability in CAPABILITIES:
        if capability in subject.info.capabilities:
            continue
        if capability in FIELDS:
            found.append((capability, [subject.layers[0]], FIELDS[capability]))
        elif capability == "text":
            found.append((capability, ["text_embedding"], {}))
        elif capability == "native_names":
            found += [(capability, [name], {}) for name in _unlisted(subject)[:1]]
    return found


def _unlisted(subject: Subject) -> list[str]:
    """The native names that are those of no declared feature."""
    listed = {info.name for info in subject.info.features}
    nodes = list_nodes(subject.model, registry=subject.registry)
    return [node.name for node in nodes if node.name not in listed]


@check("capabilities.undeclared", when=lambda subject: "" if _undeclared(subject) else "everything is declared")
def undeclared(subject: Subject) -> None:
    """Whatever is asked for beyond the declared capabilities raises CapabilityError: a number format, gradients, native
    arrays, an output stride, weights, CUDA, text, native names that the model does not list (there LayerError too).

    Why: callers and the kit read capabilities to know what to ask for; a skip rests on the declaration being true.
    Caught: the silent fallback of gt4py #2801; CLIP #30, half precision on the GPU but not on the CPU.
    Mend: declare what works, refuse the rest.
    """
    for capability, layers, fields in _undeclared(subject):
        arguments = "".join(f", {name}={value!r}" for name, value in fields.items())
        subject.raises(
            (CapabilityError, LayerError) if capability == "native_names" else CapabilityError,
            partial(_open, subject, layers, **fields),
            f"{capability}, which is not declared,",
            f"if {capability!r} not in featreg.describe({subject.model!r}).capabilities:\n"
            f"    featreg.create_extractor({subject.model!r}, {layers}{arguments})",
        )


@check("capabilities.consistent")
def consistent(subject: Subject) -> None:
    """A model declares no capability that its backend does not.

    Why: the backend's declaration is read before any framework is imported, and is the most that a model can do.
    Caught: what is said in two places comes apart, as timm's declared channels and those of its outputs (timm #2370).
    Mend: keep one constant, and use it in BackendSpec and in ``info``.
    """
    own, most = set(subject.info.capabilities), set(subject.registry.spec(subject.backend_name).capabilities)
    subject.expect(own <= most, "a model can do what its backend cannot", sorted(most), sorted(own))


@check("capabilities.native_names", needs=["native_names"])
def native_names(subject: Subject) -> None:
    """Every kind of native name that ``list_nodes`` gives can be asked for, and has the shape that it is listed with.

    Why: a name that is listed and cannot be had is no name.
    Caught: torchvision's truncated names, which stand for the last node below them; names that differ between training
    and evaluation mode.
    Mend: let ``nodes`` and ``open`` read the same table.
    """
    nodes = list_nodes(subject.model, subject.case.size, registry=subject.registry)
    shaped = [node for node in nodes if node.shape is not None]
    spread = shaped[:: max(1, len(shaped) // 6)]
    subject.expect(spread, "no native name has a shape", "at least one", [node.name for node in nodes][:5])
    for node, array in zip(spread, _asked(subject, [node.name for node in spread]), strict=True):
        got = tuple(array.shape[1:])
        code = (
            f"nodes = featreg.list_nodes({subject.model!r}, {subject.case.size})\n"
            "listed = {node.name: node.shape for node in nodes}\n"
            f"assert {subject.opening([node.name])}(images)[{node.name!r}].shape[1:] == listed[{node.name!r}]"
        )
        problem = f"{node.name!r} has another shape than listed"
        subject.expect(got == node.shape, problem, node.shape, got, node.name, code)


def _asked(subject: Subject, names: Sequence[str]) -> list[Any]:
    """The arrays of native names; one by one where some may be of a text tower, which takes texts."""
    images = subject.images(1)
    if "text" not in subject.info.capabilities:
        return list(subject.run(images, names).values())
    found = []
    for name in names:
        try:
            found.append(subject.run(images, [name])[name])
        except InputError:
            found.append(subject.run(subject.texts(subject.case.texts[0]), [name])[name])
    return found


@check("capabilities.output_stride", needs=["output_stride"])
def output_stride(subject: Subject) -> None:
    """``output_stride=8`` or 16 gives no layer a greater reduction and keeps the names of the levels, or raises
    CapabilityError for a network that cannot be dilated.

    Why: a level keeps its name when the network is dilated: then C4 and C5 both have reduction 8.
    Caught: timm names levels by reduction, which two dilated levels share.
    Mend: describe the dilated network, not the plain one; keep the levels of the plain one by position.
    """
    layers = [layer for layer, info in subject.features.items() if info.level]
    subject.expect(layers, "no level to dilate", "at least one level in the case", list(subject.layers))
    for stride in (8, 16):
        try:
            with subject.open(layers, output_stride=stride) as extractor:
                shapes = extractor.output_shapes((1, 3, *subject.case.size))
                features = extractor(subject.images(1))
                infos = extractor.feature_info
        except CapabilityError:
            continue
        for layer in layers:
            reduction, got = infos[layer].reduction or 1, tuple(features[layer].shape)
            code = f"assert extractor.feature_info[{layer!r}].reduction <= {stride}"
            subject.expect(
                reduction <= stride, f"{layer!r} is coarser than asked for", f"<= {stride}", reduction, layer, code
            )
            code = f"assert extractor(images)[{layer!r}].shape == extractor.output_shapes(images.shape)[{layer!r}]"
            subject.expect(got == shapes[layer], f"{layer!r} is not as predicted", shapes[layer], got, layer, code)
