"""Where mindcv and MindSpore mislead: what the raw library does, and what is said and done here instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import featreg
from featreg.plugin import ExtractionRequest, errors
from featreg_mindspore.backend import MindsporeBackend
from featreg_mindspore.fake import unfilled
from featreg_mindspore.libraries import mindcv, mindspore


@pytest.fixture(scope="module")
def backend() -> MindsporeBackend:
    return MindsporeBackend()


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(4).standard_normal(shape).astype(np.float32)


def create(model: str, **options: Any) -> Any:
    """A raw network whose parameters hold anything: sizes and shapes do not depend on them."""
    with unfilled():
        return mindcv.create_model(model, **options)


def run(network: Any, images: np.ndarray[Any, Any]) -> Any:
    return network.set_train(False)(mindspore.Tensor(images))


def test_indices_that_do_not_exist_are_dropped_without_a_word(backend: MindsporeBackend) -> None:
    wrapper = create("resnet18", features_only=True, out_indices=[1, 9, -1])
    assert [array.shape for array in run(wrapper, noise(1, 3, 32, 32))] == [(1, 64, 8, 8)]

    with pytest.raises(errors.LayerError, match="no index 9"):
        backend.open(ExtractionRequest("resnet18", [1, 9, -1]))
    with featreg.create_extractor("mindspore:resnet18", [1, -1]) as extractor:
        assert [array.shape for array in extractor(noise(1, 3, 32, 32)).values()] == [(1, 64, 8, 8), (1, 512, 1, 1)]


def test_indices_are_returned_in_forward_order_and_once() -> None:
    wrapper = create("resnet18", features_only=True, out_indices=[3, 1, 1])
    assert [array.shape[1] for array in run(wrapper, noise(1, 3, 32, 32))] == [64, 256]

    with featreg.create_extractor("mindspore:resnet18", [3, 1]) as extractor:
        assert [array.shape[1] for array in extractor(noise(1, 3, 32, 32)).values()] == [256, 64]


def test_the_order_of_indices_is_not_that_of_other_libraries(backend: MindsporeBackend) -> None:
    wrapper = create("efficientnet_b0", features_only=True, out_indices=[0, 1, 2, 3, 4])
    sides = [array.shape[2] for array in run(wrapper, noise(1, 3, 64, 64))]
    assert sides == [32, 32, 16, 8, 4]  # reductions 2, 2, 4, 8, 16

    info = backend.info("efficientnet_b0")
    assert [info.resolve(index).shape(1, 64, 64)[2] for index in range(5)] == sides
    assert [info.resolve(level).index for level in ("C1", "C2", "C3", "C4", "C5")] == [1, 2, 3, 5, 7]


@pytest.mark.parametrize("model", ["coat_lite_tiny", "edgenext_xx_small", "repmlp_t224"])
def test_models_that_take_features_only_and_return_logits(model: str, backend: MindsporeBackend) -> None:
    size = backend.info(model).input_size
    wrapped = create(model, features_only=True, out_indices=[0, 1])
    result = run(wrapped, noise(1, 3, *size))
    assert (type(result), result.shape) == (mindspore.Tensor, (1, 1000))

    info = backend.info(model)
    assert [info.resolve(level).shape(1, *size)[2:] for level in ("C3", "C5")] == [
        (size[0] // 8, size[1] // 8),
        (size[0] // 32, size[1] // 32),
    ]


def test_edgenext_gives_its_levels() -> None:
    with featreg.create_extractor("mindspore:edgenext_xx_small", ["C5", "C3"]) as extractor:
        shapes = [array.shape for array in extractor(noise(1, 3, 64, 96)).values()]
    assert shapes == [(1, 168, 2, 3), (1, 48, 8, 12)]


def test_wrapping_renames_parameters() -> None:
    wrapper = create("convnextv2_atto", features_only=True, out_indices=[1])
    assert "net.feature_0.0.weight" in dict(wrapper.parameters_and_names())
    with featreg.create_extractor("mindspore:convnextv2_atto", [1]) as extractor:
        assert "feature.0.0.weight" in dict(extractor.module.parameters_and_names())


def test_padding_makes_other_shapes_than_torch_has(backend: MindsporeBackend) -> None:
    """At 225 torchvision and timm have 56, 28, 14 and 7."""
    wrapper = create("convnextv2_atto", features_only=True, out_indices=[0, 1, 2, 3])
    real = [array.shape for array in run(wrapper, noise(1, 3, 225, 225))]
    assert [shape[2] for shape in real] == [57, 29, 15, 8]

    info = backend.info("convnextv2_atto", (225, 225))
    assert [info.resolve(f"C{k}").shape(1, 225, 225) for k in (2, 3, 4, 5)] == real


@pytest.mark.parametrize(("model", "side"), [("swinv2_tiny_window8", 256), ("cmt_tiny", 160), ("cmt_xsmall", 192)])
def test_sizes_that_names_do_not_say(model: str, side: int, backend: MindsporeBackend) -> None:
    raw = create(model).set_train(False)
    with pytest.raises((ValueError, AssertionError, RuntimeError)):
        raw(mindspore.Tensor(noise(1, 3, 224, 224)))

    info = backend.info(model)
    assert (info.input_size, info.input_rule.fixed) == ((side, side), (side, side))
    with pytest.raises(errors.InputError, match="size"):
        backend.info(model, (224, 224))


def test_a_truncated_grid_is_no_grid(backend: MindsporeBackend) -> None:
    """swin_tiny takes 227x227, and looks at 224x224 of it: other sizes than its own are refused here."""
    raw = create("swin_tiny").set_train(False)
    assert raw(mindspore.Tensor(noise(1, 3, 227, 227))).shape == (1, 1000)
    with pytest.raises(errors.InputError, match="size"):
        backend.info("swin_tiny", (227, 227))


def test_windows_of_one_image_look_like_images(backend: MindsporeBackend) -> None:
    """At the last stage of swin_tiny one window is the whole map; earlier ones have windows on the first axis."""
    nodes = {node.name: node.shape for node in backend.nodes("swin_tiny")}
    assert nodes["layers.0.blocks.0.attn"] is None
    assert nodes["layers.0.blocks.0"] == (3136, 96)


def test_a_model_that_is_broken_upstream_is_refused_with_its_error(backend: MindsporeBackend) -> None:
    raw = create("pvt_tiny").set_train(False)
    with pytest.raises(AttributeError, match="ResizeBilinear"):
        raw(mindspore.Tensor(noise(1, 3, 224, 224)))
    for call in (backend.info, backend.nodes, lambda model: backend.open(ExtractionRequest(model, ["C2"]))):
        with pytest.raises(errors.CapabilityError, match="ResizeBilinear"):
            call("pvt_tiny")
