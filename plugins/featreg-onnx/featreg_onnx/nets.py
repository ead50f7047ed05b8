"""Two small networks as ONNX files are: a residual one and a vision transformer, with the names of torch's exporter.

Weights are drawn from a seeded generator, scaled as in He et al. 2015 (arXiv:1502.01852).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["make_resnet", "make_vit"]

Side = str | int


class Builder:
    """A graph that grows by one node at a time; nodes are named by the module that they belong to."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, scope: str, *inputs: str, **attributes: Any) -> str:
        """A node, and the name of what it gives; inputs are tensors."""
        name = f"/{scope}/{kind}" if scope else f"/{kind}"
        count = sum(node.name.startswith(name) for node in self.nodes)
        name = f"{name}_{count}" if count else name
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_output_0"], name, **attributes))
        return f"{name}_output_0"

    def weight(self, name: str, *shape: int, fan: int = 1) -> str:
        """A parameter that is drawn, for a layer that sums over ``fan`` values."""
        return self.keep(name, self._random.standard_normal(shape) * (2 / fan) ** 0.5)

    def keep(self, name: str, values: Any, kind: type = np.float32) -> str:
        """A parameter of these values."""
        self.weights.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def linear(self, scope: str, x: str, before: int, after: int) -> str:
        """A linear layer over the last axis."""
        name = scope.replace("/", ".")
        product = self.add("MatMul", scope, x, self.weight(f"{name}.weight", before, after, fan=before))
        return self.add("Add", scope, product, self.weight(f"{name}.bias", after))

    def classifier(self, scope: str, x: str, before: int, after: int) -> str:
        weight = self.weight(f"{scope}.weight", after, before, fan=before)
        return self.add("Gemm", scope, x, weight, self.weight(f"{scope}.bias", after), transB=1)

    def model(self, output: str, sides: tuple[Side, Side], classes: int) -> onnx.ModelProto:
        """The whole, from ``images`` (N, 3, H, W) to one output (N, classes)."""
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ("n", 3, *sides))
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ("n", classes))
        graph = helper.make_graph(self.nodes, "net", [images], [result], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_resnet(channels: tuple[int, ...] = (8, 8, 12, 16, 24), classes: int = 10) -> onnx.ModelProto:
    """A 3x3 convolution of stride 2 and four residual blocks that halve the resolution, for images of any size."""
    net = Builder()

    def convolve(scope: str, x: str, before: int, after: int, *, kernel: int, stride: int = 1) -> str:
        name = scope.replace("/", ".")
        weight = net.weight(f"{name}.weight", after, before, kernel, kernel, fan=before * kernel * kernel)
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return net.add("Conv", scope, x, weight, net.weight(f"{name}.bias", after, fan=8), **window)

    x = net.add("Relu", "relu", convolve("conv1", "images", 3, channels[0], kernel=3, stride=2))
    for number in range(1, 5):
        before, after = channels[number - 1 : number + 1]
        scope = f"layer{number}/layer{number}.0"
        inner = net.add("Relu", f"{scope}/relu", convolve(f"{scope}/conv1", x, before, after, kernel=3, stride=2))
        inner = convolve(f"{scope}/conv2", inner, after, after, kernel=3)
        skip = convolve(f"{scope}/downsample", x, before, after, kernel=1, stride=2)
        x = net.add("Relu", f"{scope}/relu_1", net.add("Add", scope, inner, skip))
    pooled = net.add("Flatten", "", net.add("GlobalAveragePool", "avgpool", x), axis=1)
    return net.model(net.classifier("fc", pooled, channels[-1], classes), ("height", "width"), classes)


def make_vit(side: int = 32, patch: int = 8, width: int = 24, depth: int = 3) -> onnx.ModelProto:
    """A plain transformer with a class token and one attention head, for images of one size."""
    net = Builder(1)
    window = {"kernel_shape": [patch] * 2, "strides": [patch] * 2}
    weight = net.weight("conv_proj.weight", width, 3, patch, patch, fan=3 * patch * patch)
    cells = net.add("Conv", "conv_proj", "images", weight, **window)
    length = (side // patch) ** 2
    flat = net.add("Reshape", "", cells, net.keep("sequence", [0, width, length], np.int64))
    patches = net.add("Transpose", "", flat, perm=[0, 2, 1])
    count = net.add("Gather", "", net.add("Shape", "", "images"), net.keep("first axis", [0], np.int64), axis=0)
    shape = net.add("Concat", "", count, net.keep("one token", [1, width], np.int64), axis=0)
    first = net.add("Expand", "", net.weight("class_token", 1, 1, width, fan=4), shape)
    joined = net.add("Concat", "", first, patches, axis=1)
    x = net.add("Add", "encoder", joined, net.weight("encoder.pos_embedding", 1, length + 1, width, fan=4))

    def normalise(scope: str, x: str) -> str:
        scale, bias = net.keep(f"{scope}.weight", np.ones(width)), net.keep(f"{scope}.bias", np.zeros(width))
        return net.add("LayerNormalization", scope, x, scale, bias, axis=-1, epsilon=1e-6)

    def attend(scope: str, x: str) -> str:
        query, key, value = (net.linear(f"{scope}/{part}", x, width, width) for part in ("query", "key", "value"))
        scores = net.add("MatMul", scope, query, net.add("Transpose", scope, key, perm=[0, 2, 1]))
        scaled = net.add("Mul", scope, scores, net.keep(f"{scope}.scale", width**-0.5))
        mixed = net.add("MatMul", scope, net.add("Softmax", scope, scaled, axis=-1), value)
        return net.linear(f"{scope}/out_proj", mixed, width, width)

    for number in range(depth):
        scope = f"encoder/layers/layers.{number}"
        x = net.add("Add", scope, x, attend(f"{scope}/attention", normalise(f"{scope}/ln_1", x)))
        hidden = net.linear(f"{scope}/mlp/mlp.0", normalise(f"{scope}/ln_2", x), width, 2 * width)
        hidden = net.add("Mul", f"{scope}/mlp/mlp.1", hidden, net.add("Sigmoid", f"{scope}/mlp/mlp.1", hidden))
        x = net.add("Add", scope, x, net.linear(f"{scope}/mlp/mlp.2", hidden, 2 * width, width))
    token = net.add("Gather", "", normalise("encoder/ln", x), net.keep("class token", 0, np.int64), axis=1)
    return net.model(net.classifier("head", token, width, 10), (side, side), 10)
