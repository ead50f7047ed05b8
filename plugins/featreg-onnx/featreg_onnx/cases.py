"""The cases of the conformance kit: small networks in files, and what ONNX's reference evaluator makes of them."""

from __future__ import annotations

import getpass
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from featreg.plugin import Case, Layer
from featreg_onnx.nets import make_resnet, make_vit
from featreg_onnx.reading import PREPROCESS

__all__ = ["cases", "evaluate", "write"]

Arrays = Mapping[Layer, np.ndarray[Any, Any]]

_BLOCK = "/layer{0}/layer{0}.0/relu_1/Relu_output_0"
_RESNET: dict[Layer, str] = {
    "C1": "/relu/Relu_output_0",
    **{f"C{number + 1}": _BLOCK.format(number) for number in range(1, 5)},
    "features": _BLOCK.format(4),
    "pooled": "/Flatten_output_0",
    "logits": "/fc/Gemm_output_0",
    "/layer2/layer2.0/conv1/Conv_output_0": "/layer2/layer2.0/conv1/Conv_output_0",
}
_VIT: dict[Layer, str] = {
    **{number: f"/encoder/layers/layers.{number}/Add_1_output_0" for number in range(3)},
    "C3": "/encoder/layers/layers.2/Add_1_output_0",
    "features": "/encoder/ln/LayerNormalization_output_0",
    "tokens": "/encoder/ln/LayerNormalization_output_0",
    "pooled": "/Gather_1_output_0",
    "logits": "/head/Gemm_output_0",
    "/encoder/layers/layers.1/Add_output_0": "/encoder/layers/layers.1/Add_output_0",
}
_PREPROCESS = {"resize": [72, 72], "crop": [64, 64], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_TOKENS = ("tokens", "/encoder/layers/layers.1/Add_output_0")


def cases() -> list[Case]:
    """A network for every size and one for a single size, each with its true values."""
    folder = Path(tempfile.gettempdir()) / f"featreg-onnx-{getpass.getuser()}"
    resnet, vit = make_resnet(), make_vit()
    entry = resnet.metadata_props.add()
    entry.key, entry.value = PREPROCESS, json.dumps(_PREPROCESS)
    sizes = [(96, 64), (64, 96), (65, 67), (1, 1)]
    return [
        Case(
            write(resnet, folder / "resnet.onnx"),
            list(_RESNET),
            (64, 64),
            sizes,
            oracle=lambda model, module: lambda images: evaluate(resnet, _RESNET, images),
            name="resnet",
        ),
        Case(
            write(vit, folder / "vit.onnx"),
            list(_VIT),
            (32, 32),
            oracle=lambda model, module: lambda images: _with_maps(evaluate(vit, _VIT, images)),
            name="vit",
        ),
    ]


def write(model: onnx.ModelProto, path: Path) -> str:
    """Write a model unless the file holds it already, and give the file's name."""
    content = model.SerializeToString(deterministic=True)
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_bytes(content)
        aside.replace(path)
    return str(path)


def evaluate(model: onnx.ModelProto, layers: Mapping[Layer, str], images: np.ndarray[Any, Any]) -> dict[Layer, Any]:
    """Tensors of a model by the key of their layer, computed by ONNX's own reference and without onnxruntime."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    names = list(dict.fromkeys(layers.values()))
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found = dict(zip(names, ReferenceEvaluator(whole).run(None, {"images": images}), strict=True))
    return {layer: found[name] for layer, name in layers.items()}


def _with_maps(found: Arrays) -> Arrays:
    """Tokens as the maps that they are, without the class token, but for those that are asked for as tokens."""
    return {
        layer: array
        if array.ndim == 2 or layer in _TOKENS
        else np.einsum("nlc->ncl", array[:, 1:]).reshape(-1, 24, 4, 4)
        for layer, array in found.items()
    }
