"""True values of the kit's cases: mindcv's own networks, read with plain forward hooks.

Nothing here imports this plugin's own modules, and mindcv is imported when the oracle is called. Which cell is which
layer was written down by hand, from mindcv's sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["CELLS", "oracle"]


LAYERS = ("layer1", "layer2", "layer3", "layer4")


def _levels(*cells: str) -> dict[str | int, str]:
    """The levels up to C5 at cells, the last of which is C5."""
    return {f"C{number}": cell for number, cell in enumerate(cells, start=6 - len(cells))}


CELLS: Mapping[str, Mapping[str | int, str]] = {
    "squeezenet1_1": {
        **{f"C{number}": f"features.{cell}" for number, cell in enumerate((1, 4, 7, 12), start=1)},
        -1: "features.12",
        "features": "features",
        "logits": "classifier",
    },
    "mobilenet_v2_035_96": {
        **_levels(*(f"features.{number}" for number in (3, 5, 8, 15, 19))),
        5: "features.7",
        6: "features.8",
        -1: "features.22",
        "features": "features",
        "pooled": "pool",
        "logits": "classifier",
    },
    "resnet18": {**_levels("relu", *LAYERS), "features": "layer4", "pooled": "pool", "logits": "classifier"},
    "convnextv2_atto": {
        **_levels("feature.1", "feature.3", "feature.5", "feature.7"),
        "pooled": "norm",
        "logits": "classifier",
    },
    "densenet121": {
        **_levels("features.relu0", *(f"features.denseblock{number}" for number in (1, 2, 3)), "features.relu5"),
        "pooled": "pool",
        "logits": "classifier",
    },
    "convit_tiny": {"C4": "blocks.11", "features": "norm", "tokens": "norm", "logits": "classifier"},
}
"""The cell of each layer of each case."""


def oracle(model: str, module: Any) -> Callable[[np.ndarray[Any, Any]], dict[str | int, np.ndarray[Any, Any]]]:
    """The layers of one of mindcv's models, with the weights of an extractor's module, as a function of images."""
    network, cells = _network(model, module), CELLS[model]

    def features(images: np.ndarray[Any, Any]) -> dict[str | int, np.ndarray[Any, Any]]:
        outputs = _run(network, set(cells.values()), images)
        return {layer: _feature(layer, outputs[cell]) for layer, cell in cells.items()}

    return features


def _network(model: str, module: Any) -> Any:
    """The network of mindcv's own with the module's weights; what the module does not have is NaN, lest it be read."""
    import mindcv
    import mindspore

    network, weights = mindcv.create_model(model), dict(module.parameters_and_names())
    own = dict(network.parameters_and_names())
    assert weights.keys() <= own.keys(), "the module has weights that mindcv's network does not have"
    for name, parameter in own.items():
        value = weights[name].asnumpy() if name in weights else np.full(parameter.shape, np.nan, np.float32)
        parameter.set_data(mindspore.Tensor(value))
    return network.set_train(False)


def _run(network: Any, cells: Iterable[str], images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Copies of what some cells return, made before anything can write into them."""
    import mindspore

    outputs: dict[str, np.ndarray[Any, Any]] = {}
    named = dict(network.cells_and_names())
    handles = []
    for name in cells:

        def keep(_: Any, __: Any, output: Any, name: str = name) -> None:
            outputs[name] = output.asnumpy().copy()

        handles.append(named[name].register_forward_hook(keep))
    try:
        network(mindspore.Tensor(images)).asnumpy()
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _feature(layer: str | int, output: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An output as the specification has it: tokens behind one class token are a map wherever a level is."""
    if output.ndim != 3 or layer == "tokens":
        return output
    patches = output[:, 1:]
    side = math.isqrt(patches.shape[1])
    return patches.transpose(0, 2, 1).reshape(len(patches), -1, side, side)
