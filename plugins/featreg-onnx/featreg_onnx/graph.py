"""What a graph computes from its images: operations in order, each with the module that it came from."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

import attrs
import onnx
from onnx import TensorProto, helper, shape_inference

from featreg.plugin import errors

__all__ = ["Graph", "Op", "cut", "read_graph", "scope_of"]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)

_SCOPES = "pkg.torch.onnx.name_scopes"
"""The metadata in which torch's exporter keeps the modules around an operation, as the text of a Python list."""

_OF_SHAPES = ("Shape", "Size")
_BY_VALUE = ("Compress", "ConstantOfShape", "Loop", "NonMaxSuppression", "NonZero", "Range", "Unique")
"""Operations whose output has another shape for other values of any input."""
_SIZED = ("Expand", "OneHot", "Pad", "Reshape", "Resize", "Slice", "Tile", "TopK", "Upsample")
"""Those whose output has another shape for other values of any input but the first."""

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_PRODUCTS = ("Einsum", "MatMul")
"""What two tensors of the images are multiplied by: the first product compares positions, the second mixes them."""

_LEARNING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


@attrs.frozen
class Op:
    """One operation on the images, named by the first tensor that it gives.

    ``inputs`` and ``outputs`` are those that depend on the images. ``scope`` is the qualified name of the innermost
    module around it, empty where none is known. ``learned``: it multiplies by weights; ``kernel`` and ``channels`` of a
    convolution. ``steady``: the shape of what it gives follows from the size of the images alone. ``compares``: that is
    positions by positions, as attention's weights are, and no map however square.
    """

    name: str
    type: str
    scope: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    floating: bool
    steady: bool
    learned: bool
    compares: bool = False
    kernel: tuple[int, ...] | None = None
    channels: int | None = None


@attrs.frozen(slots=False)
class Graph:
    """The operations between the images and the outputs, in order; ``floating`` outputs only.

    ``dims`` are the sides of the input as the file says them, None for a free one. ``weights`` are the parameters'
    names, ``types`` how many parameters there are of each element type.
    """

    input: str
    type: int
    dims: tuple[int | None, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]
    weights: tuple[str, ...]
    types: Mapping[int, int]

    @cached_property
    def makers(self) -> dict[str, Op]:
        """The operation that gives each tensor."""
        return {name: op for op in self.ops for name in op.outputs}

    @cached_property
    def taps(self) -> dict[str, Op]:
        """The tensors that can be asked for, in the order in which they are computed."""
        return {op.name: op for op in self.ops if op.floating and op.steady}


def read_graph(model: onnx.ModelProto) -> Graph:
    """The graph of a model; raises CapabilityError for one that takes no images, and for one in training mode."""
    _check_mode(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    images = _images(model, weights)
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in images.type.tensor_type.shape.dim
    )
    kinds: dict[int, int] = {}
    for tensor in weights.values():
        kinds[tensor.data_type] = kinds.get(tensor.data_type, 0) + 1
    ops = _needed(list(_ops(model, images.name)), {output.name for output in model.graph.output})
    outputs = tuple(output.name for output in model.graph.output)
    return Graph(images.name, images.type.tensor_type.elem_type, dims, outputs, ops, tuple(weights), kinds)


def cut(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The part of a model that some of its tensors need, with these as its outputs."""
    wanted = set(names)
    kept = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(_reads(node))
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = part.graph
    graph.name = model.graph.name or "part"
    graph.node.extend(reversed(kept))
    graph.input.extend(value for value in model.graph.input if value.name in wanted)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in wanted)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return part


def scope_of(node: onnx.NodeProto) -> str:
    """The qualified name of the module around a node; empty where nothing says it.

    torch writes it down in the node's metadata, or as in ``/layer1/layer1.0/conv1/Conv``, where a part repeats the one
    before it; TensorFlow's names are paths as well.
    """
    for entry in node.metadata_props:
        with contextlib.suppress(ValueError, SyntaxError):  # whoever wrote the file may have written anything
            scopes = ast.literal_eval(entry.value) if entry.key == _SCOPES else None
            if isinstance(scopes, list):
                return str(scopes[-2]) if len(scopes) > 1 else ""
    path = next((name for name in (node.name, *node.output) if "/" in name), "")
    parts: list[str] = []
    for part in path.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(filter(None, parts))


def _check_mode(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        dropping = node.op_type == "Dropout" and any(node.input[2:])
        if training or dropping or node.op_type in _RANDOM:
            raise errors.CapabilityError(
                "the file gives the same images other features each time, or features of their batch",
                "a network in evaluation mode",
                f"{node.op_type} {node.name or node.output[0]!r}",
                remedy="export the network in evaluation mode: module.eval() in torch",
            )


def _images(model: onnx.ModelProto, weights: Collection[str]) -> onnx.ValueInfoProto:
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise errors.CapabilityError("the file takes more than images", "one input", ", ".join(i.name for i in inputs))
    kind = inputs[0].type.tensor_type
    if kind.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        name = TensorProto.DataType.Name(kind.elem_type).lower()
        raise errors.CapabilityError("the file takes no floating-point images", "float or float16", name)
    if len(kind.shape.dim) != 4:
        sides = [dim.dim_value or dim.dim_param or "?" for dim in kind.shape.dim]
        raise errors.CapabilityError("the file takes no images", "(N, 3, H, W) or (N, H, W, 3)", str(tuple(sides)))
    images: onnx.ValueInfoProto = inputs[0]
    return images


def _ops(model: onnx.ModelProto, images: str) -> Iterator[Op]:
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    types = _types(model)
    data, unsteady, comparing = {images}, set[str](), set[str]()
    for node in model.graph.node:
        inputs = tuple(name for name in _reads(node) if name in data)
        if not inputs or node.op_type in _OF_SHAPES:
            continue
        outputs = tuple(filter(None, node.output))
        if unsteady.intersection(inputs) or data.intersection(_deciding(node)):
            unsteady.update(outputs)
        data.update(outputs)
        fixed = [name for name in node.input if name and name not in data]
        learned = node.op_type in _LEARNING and bool(fixed)
        product = node.op_type in _PRODUCTS and len(inputs) > 1
        compares = product != bool(comparing.intersection(inputs)) and not learned
        comparing.update(outputs if compares else ())
        shape = weights.get(node.input[1]) if learned and "Conv" in node.op_type and len(node.input) > 1 else None
        yield Op(
            outputs[0],
            node.op_type,
            scope_of(node),
            inputs,
            outputs,
            types.get(outputs[0], TensorProto.FLOAT) in FLOATS,
            outputs[0] not in unsteady,
            learned,
            compares,
            None if shape is None else shape[2:],
            None if shape is None else shape[0],
        )


def _deciding(node: onnx.NodeProto) -> list[str]:
    """The tensors whose values decide the shape of what a node gives."""
    if node.op_type in _BY_VALUE:
        return list(_reads(node))
    return list(node.input[:1] if node.op_type == "If" else node.input[1:] if node.op_type in _SIZED else ())


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor that ONNX can tell it of; operators of other domains stay unknown."""
    values = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer]
    known = {value.name for value in values}
    inputs = [value for value in model.graph.input if value.name not in known]
    light = helper.make_graph(model.graph.node, "types", [*inputs, *values], model.graph.output)
    inferred = shape_inference.infer_shapes(helper.make_model(light, opset_imports=model.opset_import))
    found = (*inferred.graph.value_info, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in found if value.type.tensor_type.elem_type}


def _needed(ops: list[Op], outputs: Collection[str]) -> tuple[Op, ...]:
    """The operations on the way to the outputs."""
    wanted = set(outputs)
    kept = []
    for op in reversed(ops):
        if wanted.intersection(op.outputs):
            kept.append(op)
            wanted.update(op.inputs)
    return tuple(reversed(kept))


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those of the graphs inside it too."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)
