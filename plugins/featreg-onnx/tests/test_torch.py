"""Files as torch exports them: the levels of the table, and torch's own values."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featreg

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision").models

TABLE = Path(__file__).parents[3] / "specs" / "architectures" / "resnet18.json"
ANY_SIZE = {"images": {0: "n", 2: "height", 3: "width"}}


def export(module: Any, path: Path, axes: Any = ANY_SIZE) -> str:
    """By the exporter that needs no further package."""
    old = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images, names = torch.zeros(2, 3, 64, 64), {"input_names": ["images"], "output_names": ["scores"]}
        torch.onnx.export(module, (images,), str(path), dynamic_axes=axes, opset_version=17, **names, **old)
    return f"onnx:{path}"


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A network with every weight drawn, those of its norms too, and its file."""
    generator = torch.Generator().manual_seed(0)
    module = models.resnet18(weights=None).eval()
    for name, value in module.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            drawn = torch.rand(value.shape, generator=generator)
            value.copy_(drawn + 0.5 if name.endswith(("weight", "running_var")) else drawn - 0.5)
        elif value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
    return module, export(module, tmp_path_factory.mktemp("onnx") / "resnet18.onnx")


def test_the_levels_are_those_of_the_table(resnet18: tuple[Any, str]) -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    info = featreg.describe(resnet18[1], tuple(table["input_size"]))
    found = [
        {
            "level": one.level,
            "channels": one.channels,
            "reduction": one.reduction,
            "shape": [*one.shape(1, 224, 224)[1:]],
        }
        for one in info.features
        if one.level
    ]
    assert found == table["levels"]


@pytest.mark.parametrize("size", [(64, 64), (97, 70)])
def test_the_values_are_those_of_torch(resnet18: tuple[Any, str], size: tuple[int, int]) -> None:
    module, model = resnet18
    names = {"C1": "relu", "C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4", "logits": "fc"}
    images = np.random.default_rng(0).standard_normal((2, 3, *size), dtype=np.float32)
    wanted: dict[str, Any] = {}

    def keep(layer: str) -> Any:
        return lambda module, inputs, output: wanted.update({layer: output})

    handles = [module.get_submodule(names[layer]).register_forward_hook(keep(layer)) for layer in list(names)[1:]]
    # the first ReLU works in place, on what the pooling then takes
    handles.append(module.maxpool.register_forward_pre_hook(lambda _, inputs: wanted.update(C1=inputs[0].clone())))
    with torch.no_grad():
        module(torch.from_numpy(images))
    for handle in handles:
        handle.remove()
    with featreg.create_extractor(model, list(names)) as extractor:
        found = extractor(images)
    for layer in names:
        scale = float(wanted[layer].abs().max())
        np.testing.assert_allclose(found[layer], wanted[layer].numpy(), rtol=1e-4, atol=1e-5 * max(1.0, scale))


def test_a_closing_convolution_is_no_part_of_the_last_level(tmp_path: Path) -> None:
    module = models.mobilenet_v2(weights=None, width_mult=0.35).eval()
    info = featreg.describe(export(module, tmp_path / "net.onnx"))
    channels = {key: info.resolve(key).channels for key in ("C5", "features", "pooled")}
    assert channels == {"C5": 112, "features": 1280, "pooled": 1280}
    assert info.resolve("C5").reduction == 32


def test_blocks_of_tokens_that_stay_images_are_maps(tmp_path: Path) -> None:
    module = models.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [7, 7]).eval()
    info = featreg.describe(export(module, tmp_path / "net.onnx"), (64, 96))
    assert {one.level: one.shape(1, 64, 96) for one in info.features if one.level} == {
        "C2": (1, 16, 16, 24),
        "C3": (1, 32, 8, 12),
    }


def test_a_vision_transformer_has_its_blocks(tmp_path: Path) -> None:
    module = models.VisionTransformer(64, 16, 3, 2, 16, 32).eval()
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    seen: list[Any] = []
    module.encoder.layers[1].register_forward_hook(lambda _, __, output: seen.append(output))
    model = export(module, tmp_path / "net.onnx", {"images": {0: "n"}})
    with featreg.create_extractor(model, ["block.1", 1]) as opened:
        found = opened(images)
        info = opened.info
    seen.clear()
    with torch.no_grad():
        module(torch.from_numpy(images))
    wanted = seen[0][:, 1:].transpose(1, 2).reshape(2, 16, 4, 4)
    np.testing.assert_allclose(found["block.1"], wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert [one.index for one in info.features if one.index is not None] == [0, 1, 2]
    assert info.resolve("tokens").class_token
