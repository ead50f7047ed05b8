from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import featreg
from featreg.plugin import ExtractionRequest, errors, read_refused
from featreg_mindspore import networks
from featreg_mindspore.backend import MindsporeBackend
from featreg_mindspore.learning import learn
from featreg_mindspore.libraries import mindcv, mindspore

LEVELS = ("C1", "C2", "C3", "C4", "C5")

# The level table: mindcv's own indices of C1 to C5 (C2 to C5 for ConvNeXt).
INDICES = {
    "resnet18": (0, 1, 2, 3, 4),
    "resnet50": (0, 1, 2, 3, 4),
    "resnext50_32x4d": (0, 1, 2, 3, 4),
    "convnext_tiny": (0, 1, 2, 3),
    "mobilenet_v2_100": (1, 3, 6, 13, 17),
    "mobilenet_v3_large_100": (1, 3, 6, 12, 16),
    "mobilenet_v3_small_100": (0, 1, 3, 8, 12),
    "efficientnet_b0": (1, 2, 3, 5, 7),
    "efficientnet_v2_s": (1, 2, 3, 5, 6),
}

CHANNELS = {
    "resnet18": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "resnext50_32x4d": (64, 256, 512, 1024, 2048),
    "convnext_tiny": (96, 192, 384, 768),
    "mobilenet_v2_100": (16, 24, 32, 96, 320),
    "mobilenet_v3_large_100": (16, 24, 40, 112, 960),
    "mobilenet_v3_small_100": (16, 16, 24, 48, 576),
    "efficientnet_b0": (16, 24, 40, 112, 320),
    "efficientnet_v2_s": (24, 48, 64, 160, 256),
}

# Per family: the cell of each of C1 to C5, and the dense layer whose input is `pooled`. By hand, from mindcv's sources.
CELLS = {
    "resnet18": (["relu", "layer1", "layer2", "layer3", "layer4"], "classifier"),
    "mobilenet_v2_035_96": ([f"features.{n}" for n in (3, 5, 8, 15, 19)], "classifier.1"),
    "mobilenet_v3_small_075": ([f"features.{n}" for n in (2, 3, 5, 10, 16)], "classifier.3"),
    "efficientnet_b0": ([f"features.{n}" for n in (3, 4, 5, 7, 9)], "mlp_head"),
}


@pytest.fixture(scope="module")
def backend() -> MindsporeBackend:
    return MindsporeBackend()


@pytest.fixture(scope="module", params=sorted(CELLS))
def family(request: pytest.FixtureRequest) -> Iterator[tuple[str, featreg.Extractor, Any]]:
    """A model's name, its extractor, and a raw network with the same parameters."""
    with featreg.create_extractor(f"mindspore:{request.param}", [*LEVELS, "features", "pooled", "logits"]) as extractor:
        yield request.param, extractor, raw_copy(request.param, extractor.module)


@pytest.fixture(scope="module")
def resnet() -> Iterator[featreg.Extractor]:
    with featreg.create_extractor("mindspore:resnet18", ["C2", "pooled"]) as extractor:
        yield extractor


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def raw_copy(model: str, trained: Any) -> Any:
    """A network of mindcv's own with another's parameters, as many as it has, copied by MindSpore's own functions."""
    network = mindcv.create_model(model)
    _, unexpected = mindspore.load_param_into_net(network, trained.parameters_dict(), strict_load=True)
    assert unexpected == []
    return network.set_train(False)


def hooked(network: Any, cells: list[str], classifier: str, images: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What some cells of a raw network give, what goes into its classifier and what it returns."""
    found: dict[str, Any] = {}
    named = dict(network.cells_and_names())
    handles = []
    for name in cells:

        def keep(cell: Any, inputs: Any, output: Any, name: str = name) -> None:
            found[name] = output.asnumpy().copy()

        handles.append(named[name].register_forward_hook(keep))

    def keep_input(cell: Any, inputs: Any, output: Any) -> None:
        found["pooled"] = inputs[0].asnumpy().copy()

    handles.append(named[classifier].register_forward_hook(keep_input))
    found["logits"] = network(mindspore.Tensor(images)).asnumpy().copy()
    for handle in handles:
        handle.remove()
    return found


def hook_count(network: Any) -> int:
    return sum(len(cell._forward_hook) for _, cell in network.cells_and_names())


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_outputs_are_those_of_independent_hooks(family: tuple[str, featreg.Extractor, Any]) -> None:
    model, extractor, raw = family
    cells, classifier = CELLS[model]
    final = "layer4" if model == "resnet18" else "features"
    images = noise(2, 3, 65, 97)
    features = extractor(images)
    expected = hooked(raw, [*cells, final], classifier, images)

    for level, cell in zip(LEVELS, cells, strict=True):
        np.testing.assert_array_equal(features[level], expected[cell], err_msg=level)
    np.testing.assert_array_equal(features["pooled"], expected["pooled"])
    np.testing.assert_array_equal(features["logits"], expected["logits"])
    np.testing.assert_array_equal(features["features"], expected[final])


@pytest.mark.parametrize("size", [(225, 225), (193, 257)])
def test_predicted_shapes_are_the_real_ones(family: tuple[str, featreg.Extractor, Any], size: tuple[int, int]) -> None:
    model, extractor, raw = family
    cells, classifier = CELLS[model]
    shapes = extractor.output_shapes((1, 3, *size))
    real = hooked(raw, cells, classifier, noise(1, 3, *size))

    assert [shapes[level] for level in LEVELS] == [real[cell].shape for cell in cells]
    assert (shapes["pooled"], shapes["logits"]) == (real["pooled"].shape, real["logits"].shape)
    assert featreg.describe(f"mindspore:{model}", size).resolve("C5").shape(1, *size) == shapes["C5"]


def test_the_same_batch_gives_the_same_bits_and_touches_no_earlier_output(resnet: featreg.Extractor) -> None:
    first = resnet(noise(2, 3, 64, 64))
    kept = first["C2"].copy()
    resnet(noise(2, 3, 64, 64) * 2)
    np.testing.assert_array_equal(first["C2"], kept)
    np.testing.assert_array_equal(resnet(noise(2, 3, 64, 64))["C2"], kept)


def test_two_opens_give_equal_outputs_whatever_was_drawn_between(resnet: featreg.Extractor) -> None:
    np.random.standard_normal()
    with featreg.create_extractor("mindspore:resnet18", "C2") as other:
        np.testing.assert_array_equal(other(noise(1, 3, 40, 40))["C2"], resnet(noise(1, 3, 40, 40))["C2"])


def test_uint8_images_are_normalised_by_the_models_own_figures(resnet: featreg.Extractor) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 48, 48), dtype=np.uint8)
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32).reshape(3, 1, 1)
    std = np.array([0.229, 0.224, 0.225], dtype=np.float32).reshape(3, 1, 1)
    floats = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    np.testing.assert_array_equal(resnet(pixels)["C2"], resnet(floats)["C2"])


def test_a_view_of_channels_last_images_is_read_in_order(resnet: featreg.Extractor) -> None:
    view = noise(2, 40, 48, 3).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(resnet(view)["C2"], resnet(np.ascontiguousarray(view))["C2"])


def test_native_arrays_go_in_and_come_out() -> None:
    images = noise(1, 3, 64, 64)
    tensor = mindspore.Tensor(images)
    with featreg.create_extractor("mindspore:resnet18", "C2", array="native") as extractor:
        native = extractor(tensor)["C2"]
        assert isinstance(native, mindspore.Tensor)
        np.testing.assert_array_equal(native.asnumpy(), extractor(images)["C2"].asnumpy())
    np.testing.assert_array_equal(tensor.asnumpy(), images)


def test_outputs_share_nothing() -> None:
    images = noise(1, 3, 32, 32)
    with featreg.create_extractor("mindspore:resnet18", ["C5", 4, "features", "layer4", "layer4.1.relu"]) as extractor:
        arrays = [*extractor(images).values()]
    for position, array in enumerate(arrays):
        np.testing.assert_array_equal(array, arrays[0])
        assert not np.shares_memory(array, images)
        assert not any(np.shares_memory(array, other) for other in arrays[:position])


def test_input_parameters_and_statistics_are_left_alone(resnet: featreg.Extractor) -> None:
    images = noise(2, 3, 33, 33)
    before = {name: value.asnumpy().copy() for name, value in resnet.module.parameters_dict().items()}
    kept = images.copy()
    resnet(images)
    np.testing.assert_array_equal(images, kept)
    assert not resnet.module.training
    for name, value in resnet.module.parameters_dict().items():
        np.testing.assert_array_equal(value.asnumpy(), before[name], err_msg=name)


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", sorted(INDICES))
def test_levels_lie_where_the_table_says(model: str, backend: MindsporeBackend) -> None:
    info = backend.info(model)
    levels = LEVELS[-len(INDICES[model]) :]
    found = {feature.level: feature for feature in info.features if feature.level}
    assert tuple(found) == levels
    assert tuple(found[level].index for level in levels) == INDICES[model]
    assert tuple(found[level].channels for level in levels) == CHANNELS[model]
    assert tuple(found[level].reduction for level in levels) == tuple(2 ** int(level[1]) for level in levels)
    assert all(found[level].rounding == "ceil" for level in levels)


@pytest.mark.parametrize(("model", "width"), [("mobilenet_v2_100", 1280), ("efficientnet_b0", 1280)])
def test_a_closing_projection_is_a_head_and_no_level(model: str, width: int, backend: MindsporeBackend) -> None:
    info = backend.info(model)
    last = info.resolve(-1)
    assert (last.channels, last.level) == (width, None)
    assert info.resolve("features").name == last.name
    assert info.resolve("pooled").channels == width


def test_mindcvs_own_indices_resolve(backend: MindsporeBackend) -> None:
    info = backend.info("mobilenet_v2_100")
    own = mindcv.create_model("mobilenet_v2_100").feature_info
    assert [info.resolve(position).name for position in range(len(own))] == [entry["name"] for entry in own]
    assert info.resolve(-len(own)).name == own[0]["name"]
    for index in (len(own), -len(own) - 1):
        with pytest.raises(errors.LayerError, match="no index"):
            info.resolve(index)


def test_indices_give_what_the_wrapper_of_mindcv_gives() -> None:
    images = noise(1, 3, 64, 64)
    wrapped = mindcv.create_model("mobilenet_v2_035_96", features_only=True, out_indices=[3, 17]).set_train(False)
    with featreg.create_extractor("mindspore:mobilenet_v2_035_96", [3, -2]) as extractor:
        features = extractor(images)
        source = list(extractor.module.get_parameters())
    renamed = list(wrapped.get_parameters())  # the wrapper renames them, keeps their order and leaves out the end
    for target, value in zip(renamed, source[: len(renamed)], strict=True):
        target.set_data(mindspore.Tensor(value.asnumpy()))
    for ours, theirs in zip(features.values(), wrapped(mindspore.Tensor(images)), strict=True):
        np.testing.assert_array_equal(ours, theirs.asnumpy())


def test_any_cell_is_a_layer_by_its_own_name() -> None:
    layers = ["layer2.1.conv1", "max_pool", "layer1.0.relu", "pool"]
    images = noise(1, 3, 49, 65)
    with featreg.create_extractor("mindspore:resnet18", layers) as extractor:
        features = extractor(images)
        expected = hooked(raw_copy("resnet18", extractor.module), layers, "classifier", images)
        for layer in layers:
            np.testing.assert_array_equal(features[layer], expected[layer], err_msg=layer)
            assert extractor.output_shapes(images.shape)[layer] == expected[layer].shape


def test_channels_come_second_whatever_the_cell_gives() -> None:
    images, name = noise(1, 3, 64, 96), "feature.1.0.pwconv1"
    with featreg.create_extractor("mindspore:convnextv2_atto", [name]) as extractor:
        output = extractor(images)[name]
        expected = hooked(raw_copy("convnextv2_atto", extractor.module), [name], "classifier", images)[name]
    assert expected.shape[:3] == (1, 16, 24)
    np.testing.assert_array_equal(output, expected.transpose(0, 3, 1, 2))


def test_a_vision_transformer_has_tokens_and_one_size() -> None:
    images, name = noise(2, 3, 224, 224), "transformers.2.blocks.3"
    with featreg.create_extractor("mindspore:pit_ti", ["tokens", "pooled", "logits", name]) as extractor:
        features = extractor(images)
        expected = hooked(raw_copy("pit_ti", extractor.module), [name], "head", images)
        assert extractor.feature_info["tokens"].prefix_tokens == 1
        assert extractor.feature_info["tokens"].kind == "tokens"
        with pytest.raises(errors.InputError, match="size"):
            extractor(noise(1, 3, 256, 256))
    np.testing.assert_array_equal(features["tokens"], expected[name])
    np.testing.assert_array_equal(features[name], expected[name])
    np.testing.assert_array_equal(features["pooled"], expected["pooled"])
    np.testing.assert_array_equal(features["logits"], expected["logits"])


def test_a_grid_that_follows_no_formula_is_measured() -> None:
    size = (231, 197)
    with featreg.create_extractor("mindspore:xception", ["features"]) as extractor:
        real = hooked(raw_copy("xception", extractor.module), ["relu"], "classifier", noise(1, 3, *size))["relu"]
        assert extractor.feature_info["features"].rounding == "measured"
        assert extractor.output_shapes((1, 3, *size))["features"] == real.shape
        np.testing.assert_array_equal(extractor(noise(1, 3, *size))["features"], real)
    assert featreg.describe("mindspore:xception", size).resolve("features").shape(1, *size) == real.shape


# --- bad requests and bad input --------------------------------------------------------------------------------------


def test_an_unknown_layer_names_its_neighbours(backend: MindsporeBackend) -> None:
    with pytest.raises(errors.LayerError) as caught:
        backend.open(ExtractionRequest("resnet18", ["layer33"]))
    assert "layer3" in caught.value.matches


@pytest.mark.parametrize("layer", ["C6", "C0", 5, -6])
def test_what_a_model_lacks_is_a_layer_error(layer: str | int, backend: MindsporeBackend) -> None:
    with pytest.raises(errors.LayerError):
        backend.open(ExtractionRequest("resnet18", [layer]))


@pytest.mark.parametrize("head", ["tokens", "embedding", "text_embedding"])
def test_a_head_that_a_model_lacks_is_a_capability_error(head: str, backend: MindsporeBackend) -> None:
    with pytest.raises(errors.CapabilityError, match=head):
        backend.open(ExtractionRequest("resnet18", [head]))


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "npu", "CPU"])
def test_another_device_is_refused(device: str, backend: MindsporeBackend) -> None:
    with pytest.raises(errors.DeviceError, match="CPU"):
        backend.open(ExtractionRequest("resnet18", ["C2"], device=device))


def test_options_are_refused_by_name(backend: MindsporeBackend) -> None:
    with pytest.raises(errors.CapabilityError) as caught:
        backend.open(ExtractionRequest("resnet18", ["C2"], options={"amp": True}))
    assert caught.value.got == "amp"


@pytest.mark.parametrize("fields", [{"dtype": "float16"}, {"output_stride": 8}, {"grad": True, "array": "native"}])
def test_what_is_not_declared_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(errors.CapabilityError):
        featreg.create_extractor("mindspore:resnet18", "C2", **fields)


def test_a_model_that_mindcv_cannot_run_is_a_capability_error_with_its_reason() -> None:
    """As on another version of MindSpore than that of the list of refused models."""
    with pytest.raises(errors.CapabilityError, match="'pvt_tiny'") as caught:
        learn("pvt_tiny", lambda: networks.build("pvt_tiny", filled=False), (224, 224))
    assert "ResizeBilinear" in caught.value.got
    assert caught.value.__cause__ is not None


def test_refused_models_exist_and_are_few() -> None:
    refused = read_refused("featreg_mindspore")
    assert set(refused) <= set(mindcv.list_models())
    assert all(reason.startswith("mindcv 0.3.0 on MindSpore 2.10: ") for reason in refused.values())


def test_an_unknown_model_names_its_neighbours() -> None:
    with pytest.raises(errors.UnknownModelError) as caught:
        featreg.create_extractor("mindspore:resnet5", "C2")
    assert "resnet50" in caught.value.matches


@pytest.mark.parametrize(
    "images",
    [noise(3, 32, 32), noise(1, 4, 32, 32), noise(1, 32, 32, 3), np.zeros((1, 3, 32, 32), dtype=np.int64), "photo.jpg"],
    ids=["rank", "channels", "channels last", "integers", "path"],
)
def test_bad_images_are_an_input_error(images: Any, resnet: featreg.Extractor) -> None:
    with pytest.raises(errors.InputError):
        resnet(images)


# --- state -----------------------------------------------------------------------------------------------------------


def test_no_hook_is_left_after_a_call_and_after_closing() -> None:
    extractor = featreg.create_extractor("mindspore:resnet18", ["C2", "pooled"])
    network = extractor.module
    extractor(noise(1, 3, 32, 32))
    assert hook_count(network) == 0
    extractor.close()
    assert hook_count(network) == 0
    assert extractor.module is None


def test_no_hook_is_left_after_an_exception(resnet: featreg.Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = resnet.module
    expected = resnet(noise(1, 3, 32, 32))["C2"]

    def fail(*_: Any) -> None:
        raise RuntimeError("layer3 fails")

    with monkeypatch.context() as patch:
        patch.setattr(network.layer3, "construct", fail)
        with pytest.raises(errors.FeatregError):
            resnet(noise(1, 3, 32, 32))
    assert hook_count(network) == 0
    np.testing.assert_array_equal(resnet(noise(1, 3, 32, 32))["C2"], expected)


def test_every_random_generator_is_left_as_it_was(backend: MindsporeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = importlib.import_module("mindspore.common.seed")
    monkeypatch.setattr(seeds, "_GLOBAL_SEED", 3)  # as set_seed(3) does: there is no way to unset it
    monkeypatch.setattr(seeds, "_KERNEL_SEED", {("dropout", 0): 7})

    def states() -> list[Any]:
        own = mindspore.get_rng_state().asnumpy().copy()
        counters = dict(seeds._KERNEL_SEED)
        return [np.random.get_state(legacy=False), random.getstate(), own, counters, mindspore.get_seed()]

    own = mindspore.Tensor(mindspore.get_rng_state().asnumpy().copy())
    mindspore.manual_seed(11)
    try:
        before = states()
        opened = backend.open(ExtractionRequest("efficientnet_b0", ["C2"]))
        opened.forward(noise(1, 3, 32, 32))
        opened.close()
        after = states()
    finally:
        mindspore.set_rng_state(own)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_equal(one, other)


def test_the_callers_graph_mode_comes_back(resnet: featreg.Extractor) -> None:
    expected = resnet(noise(1, 3, 32, 32))["C2"]
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    try:
        np.testing.assert_array_equal(resnet(noise(1, 3, 32, 32))["C2"], expected)
        assert mindspore.get_context("mode") == mindspore.GRAPH_MODE
    finally:
        mindspore.set_context(mode=mindspore.PYNATIVE_MODE)


def test_no_gradient_flows_through_an_output() -> None:
    with featreg.create_extractor("mindspore:resnet18", "C2", array="native") as extractor:
        gradient = mindspore.grad(lambda images: extractor(images)["C2"].sum())(mindspore.Tensor(noise(1, 3, 32, 32)))
    np.testing.assert_array_equal(gradient.asnumpy(), np.zeros((1, 3, 32, 32), np.float32))
