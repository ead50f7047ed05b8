"""Graphs of other makes: names, layouts, batches, number types, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import featreg
from featreg import errors
from featreg_onnx.cases import evaluate
from featreg_onnx.graph import cut, scope_of
from featreg_onnx.nets import Builder

LEVELS = ["C1", "C2", "C3", "C4", "C5"]


def levels(model: str) -> dict[str, str]:
    return {info.level: info.name for info in featreg.describe(model).features if info.level}


def extract(model: str, layers: Any, images: Any, **fields: Any) -> Any:
    with featreg.create_extractor(model, layers, **fields) as extractor:
        return extractor(images)


def dim(model: Any, axis: int) -> Any:
    return model.graph.input[0].type.tensor_type.shape.dim[axis]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("/layer1/layer1.0/relu_1/Relu", "layer1.0.relu_1"),
        ("/features/features.1/features.1.0/block/block.0/block.0.0/Conv", "features.1.0.block.0.0"),
        ("/encoder/layers/encoder_layer_0/Add", "encoder.layers.encoder_layer_0"),
        ("model/stage1/conv/Conv2D", "model.stage1.conv"),
        ("/Flatten", ""),
        ("Relu_17", ""),
        ("", ""),
    ],
)
def test_modules_are_read_from_names(name: str, scope: str) -> None:
    assert scope_of(helper.make_node("Relu", ["x"], ["y"], name)) == scope


def test_modules_are_read_from_the_names_of_tensors() -> None:
    assert scope_of(helper.make_node("Relu", ["x"], ["/stem/Relu_output_0"], "n7")) == "stem"


@pytest.mark.parametrize(
    ("scopes", "scope"), [(["", "layer1", "layer1.0", "relu_3"], "layer1.0"), (["", "relu"], ""), (["relu"], "")]
)
def test_modules_are_read_from_metadata_first(scopes: list[str], scope: str) -> None:
    node = helper.make_node("Relu", ["x"], ["/other/y"], "/other/Relu")
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", repr(scopes)
    assert scope_of(node) == scope


def test_metadata_that_is_no_list_says_nothing() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], "/stem/Relu")
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "__import__('os')"
    assert scope_of(node) == "stem"


def renamed(model: Any) -> Any:
    """The same graph with names that say nothing, and for each tensor its name before."""
    names = {name: f"t{number}" for number, name in enumerate(o for node in model.graph.node for o in node.output)}
    for node in model.graph.node:
        node.name = ""
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    for output in model.graph.output:
        output.name = names[output.name]
    return {new: old for old, new in names.items()}


def test_levels_from_the_metadata_of_torch(save: Any, resnet: Any) -> None:
    """Its newer exporter names no node, and a module that runs twice has one name."""
    named = levels(save(resnet))
    for node in resnet.graph.node:
        modules = scope_of(node).replace("relu_1", "relu").split(".")
        scopes = ["", *(".".join(modules[:count]) for count in range(1, len(modules) + 1)), "call"]
        entry = node.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.name_scopes", repr(scopes)
    before = renamed(resnet)
    assert {level: before[name] for level, name in levels(save(resnet, "bare.onnx")).items()} == named


def test_without_names_the_levels_are_the_ends_of_residual_blocks(save: Any, resnet: Any) -> None:
    named = levels(save(resnet))
    before = renamed(resnet)
    assert {level: before[name] for level, name in levels(save(resnet, "bare.onnx")).items()} == named


def test_a_plain_transformer_is_known_by_its_blocks(save: Any, vit: Any) -> None:
    info = featreg.describe(save(vit))
    assert [info.resolve(f"block.{n}").name for n in range(3)] == [
        f"/encoder/layers/layers.{n}/Add_1_output_0" for n in range(3)
    ]
    tokens = info.resolve("tokens")
    assert (tokens.prefix_tokens, tokens.class_token) == (1, True)
    assert levels(save(vit)) == {"C3": "/encoder/layers/layers.2/Add_1_output_0"}
    block = info.resolve("/encoder/layers/layers.1/Add_1_output_0")
    assert block.shape(2, 32, 32) == (2, 17, 24), "by its own name a block is its tokens"
    assert str(info.input_rule) == "exactly 32x32"


def test_without_names_a_transformer_has_heads_and_native_names(save: Any, vit: Any, images: Any) -> None:
    names = {old: new for new, old in renamed(vit).items()}
    model = save(vit)
    block = names["/encoder/layers/layers.1/Add_1_output_0"]
    found = extract(model, [block, "logits"], images[:, :, :32, :32])
    assert found[block].shape == (2, 17, 24)
    assert featreg.describe(model).keys[-1] == "logits"


def test_an_unknown_layer_names_the_nearest_tensor(save: Any, resnet: Any) -> None:
    with pytest.raises(errors.LayerError) as caught:
        featreg.create_extractor(save(resnet), "/layer2/layer2.0/conv1/Conv_output_1")
    assert caught.value.matches[0] == "/layer2/layer2.0/conv1/Conv_output_0"


def test_every_node_that_is_listed_is_as_listed(save: Any, resnet: Any, images: Any) -> None:
    model = save(resnet)
    nodes = featreg.list_nodes(model, (40, 33))
    found = extract(model, [node.name for node in nodes], images[:, :, :40, :33])
    assert {node.name: (2, *node.shape) for node in nodes} == {name: array.shape for name, array in found.items()}
    assert {"Conv", "Relu", "Gemm"} <= {node.type for node in nodes}


# --- what runs --------------------------------------------------------------------------------------------------------


def test_only_what_the_layers_need_is_run(save: Any, resnet: Any, images: Any) -> None:
    weight = next(tensor for tensor in resnet.graph.initializer if tensor.name == "layer3.layer3.0.conv1.weight")
    broken = np.full(tuple(weight.dims), np.nan, np.float32)
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
    model = save(resnet)
    with featreg.create_extractor(model, ["C3", "C1"]) as extractor:
        assert [output.name for output in extractor.module.get_outputs()] == [levels(model)["C3"], levels(model)["C1"]]
        assert all(np.isfinite(array).all() for array in extractor(images).values())
    assert np.isnan(extract(model, "C4", images)["C4"]).any()


def test_the_rest_is_cut_off(resnet: Any) -> None:
    part = cut(resnet, ["/layer2/layer2.0/relu_1/Relu_output_0", "/relu/Relu_output_0"])
    kept = {scope_of(node).partition(".")[0] for node in part.graph.node}
    assert kept == {"conv1", "relu", "layer1", "layer2"}
    assert {tensor.name.partition(".")[0] for tensor in part.graph.initializer} == kept - {"relu"}
    assert [output.name for output in part.graph.output][1] == "/relu/Relu_output_0"


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("RandomNormalLike", ["images"], ["noise"]),
        helper.make_node("Dropout", ["images", "", "training"], ["dropped"]),
        helper.make_node("BatchNormalization", ["images", *"sbmv"], [*"xyz"], training_mode=1),
    ],
)
def test_a_network_in_training_mode_is_refused(save: Any, resnet: Any, node: Any) -> None:
    resnet.graph.node.append(node)
    with pytest.raises(errors.CapabilityError, match="each time"):
        featreg.describe(save(resnet))


def test_functions_of_a_file_are_taken_apart(save: Any, resnet: Any, images: Any) -> None:
    wanted = extract(save(resnet), "C1", images)["C1"]
    relu = next(node for node in resnet.graph.node if node.name == "/relu/Relu")
    body, opsets = [helper.make_node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 17)]
    resnet.functions.append(helper.make_function("acme", "Activation", ["x"], ["y"], body, opsets))
    relu.op_type, relu.domain = "Activation", "acme"
    resnet.opset_import.append(helper.make_opsetid("acme", 1))
    model = save(resnet, "functions.onnx")
    assert extract(model, "C1", images)["C1"].tobytes() == wanted.tobytes()


def test_weights_of_attention_are_no_level(save: Any, vit: Any) -> None:
    """17 by 17 positions look like a map of a 32x32 image."""
    info = featreg.describe(save(vit))
    assert {one.reduction for one in info.features if one.kind != "vector"} == {8}


def test_graphs_inside_nodes_keep_what_they_read(save: Any, images: Any) -> None:
    net = Builder()
    x = net.add("Relu", "stem", net.add("Conv", "stem", "images", net.weight("w", 4, 3, 3, 3, fan=27), strides=[2, 2]))
    result = onnx.ValueInfoProto(name="chosen")
    then = helper.make_graph([helper.make_node("Neg", [x], ["chosen"])], "then", [], [result])
    other = helper.make_graph([helper.make_node("Abs", [x], ["chosen"])], "other", [], [result])
    y = net.add("If", "choice", net.keep("yes", True, np.bool_), then_branch=then, else_branch=other)
    pooled = net.add("Flatten", "", net.add("GlobalAveragePool", "", y), axis=1)
    model = net.model(net.classifier("fc", pooled, 4, 5), ("h", "w"), 5)
    wanted = evaluate(model, {"logits": "/fc/Gemm_output_0"}, images)["logits"]
    np.testing.assert_allclose(extract(save(model), "logits", images)["logits"], wanted, rtol=1e-4, atol=1e-5)


def test_tensors_whose_shape_follows_values_are_no_features(save: Any, resnet: Any) -> None:
    image = resnet.graph.node[0].input[0]
    resnet.graph.node.append(helper.make_node("NonZero", [image], ["places"]))
    resnet.graph.node.append(helper.make_node("Cast", ["places"], ["result"], to=TensorProto.FLOAT))
    resnet.graph.output.append(onnx.ValueInfoProto(name="result"))
    model = save(resnet)
    assert "result" not in {node.name for node in featreg.list_nodes(model)}
    with pytest.raises(errors.LayerError):
        featreg.create_extractor(model, "result")


def test_probabilities_have_logits_before_them(save: Any, resnet: Any, images: Any) -> None:
    wanted = extract(save(resnet), "logits", images)["logits"]
    resnet.graph.node.append(helper.make_node("Softmax", [resnet.graph.output[0].name], ["scores"]))
    resnet.graph.output[0].name = "scores"
    got = extract(save(resnet, "scores.onnx"), ["logits", "scores"], images)
    assert got["logits"].tobytes() == wanted.tobytes()
    np.testing.assert_allclose(got["scores"].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("flat", [True, False])
def test_a_classifier_may_be_a_convolution_of_one_position(save: Any, images: Any, flat: bool) -> None:
    net = Builder()
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    x = net.add("Relu", "stem", net.add("Conv", "stem", "images", net.weight("w", 6, 3, 2, 2, fan=12), **window))
    pooled = net.add("GlobalAveragePool", "pool", x)
    scores = net.add("Conv", "fc", pooled, net.weight("v", 5, 6, 1, 1, fan=6), kernel_shape=[1, 1])
    model = net.model(net.add("Flatten", "", scores) if flat else scores, ("h", "w"), 5)
    if not flat:
        model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name=scores))
    wanted = evaluate(model, {"pooled": pooled, "logits": scores}, images)
    got = extract(save(model), ["pooled", "logits"], images)
    for layer, array in wanted.items():
        np.testing.assert_allclose(got[layer], array[:, :, 0, 0], rtol=1e-4, atol=1e-5)


def test_a_network_without_a_classifier_has_pooled_features(save: Any, resnet: Any) -> None:
    resnet.graph.node.pop()
    resnet.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="/Flatten_output_0"))
    info = featreg.describe(save(resnet))
    assert info.keys == (*LEVELS, "features", "pooled")
    with pytest.raises(errors.CapabilityError):
        info.resolve("logits")


# --- batches, layouts, numbers ----------------------------------------------------------------------------------------


def test_a_file_for_one_image_takes_them_in_turn(save: Any, resnet: Any, images: Any) -> None:
    wanted = extract(save(resnet), ["C2", "logits"], images)
    dim(resnet, 0).dim_value = 1
    resnet.graph.output[0].CopyFrom(onnx.ValueInfoProto(name=resnet.graph.output[0].name))
    got = extract(save(resnet, "one.onnx"), ["C2", "logits"], images)
    for layer in wanted:
        np.testing.assert_allclose(got[layer], wanted[layer], rtol=1e-4, atol=1e-5)


def test_a_file_for_several_images_takes_multiples(save: Any, resnet: Any, images: Any) -> None:
    dim(resnet, 0).dim_value = 2
    model = save(resnet)
    assert extract(model, "C2", np.concatenate([images, images]))["C2"].shape[0] == 4
    with pytest.raises(errors.InputError, match="2 images at once"):
        extract(model, "C2", images[:1])


def test_a_batch_that_the_graph_fixes_inside_is_one(save: Any, vit: Any, images: Any) -> None:
    sequence = next(tensor for tensor in vit.graph.initializer if tensor.name == "sequence")
    sequence.CopyFrom(numpy_helper.from_array(np.array([1, 24, 16]), "sequence"))
    assert extract(save(vit), "tokens", images[:, :, :32, :32])["tokens"].shape == (2, 17, 24)


def test_channels_may_come_last(save: Any, resnet: Any, images: Any) -> None:
    """As tf2onnx writes the networks of TensorFlow."""
    wanted = extract(save(resnet), ["C2", "C5", "logits"], images)
    resnet.graph.node.insert(0, helper.make_node("Transpose", ["nhwc"], ["images"], perm=[0, 3, 1, 2]))
    resnet.graph.input[0].CopyFrom(helper.make_tensor_value_info("nhwc", TensorProto.FLOAT, ("n", "h", "w", 3)))
    got = extract(save(resnet, "tf.onnx"), ["C2", "C5", "logits"], images)
    for layer in wanted:
        np.testing.assert_allclose(got[layer], wanted[layer], rtol=1e-4, atol=1e-5)


def test_maps_stored_channels_last_come_channels_first(save: Any, resnet: Any, images: Any) -> None:
    level = "/layer1/layer1.0/relu_1/Relu_output_0"
    resnet.graph.node.append(helper.make_node("Transpose", [level], ["/tail/nhwc"], "/tail/T", perm=[0, 2, 3, 1]))
    resnet.graph.output.append(onnx.ValueInfoProto(name="/tail/nhwc"))
    got = extract(save(resnet), ["/tail/nhwc", level], images)
    assert got["/tail/nhwc"].tobytes() == got[level].tobytes()


def in_halves(model: Any) -> Any:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def test_a_file_in_float16_is_asked_for_in_float16(save: Any, resnet: Any, images: Any) -> None:
    wanted = extract(save(resnet), "C5", images)["C5"]
    model = save(in_halves(resnet), "half.onnx")
    assert "float16" in featreg.describe(model).capabilities
    got = extract(model, "C5", images, dtype="float16")["C5"]
    assert got.dtype == np.float16
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()
    with pytest.raises(errors.CapabilityError, match="computes in float16"):
        extract(model, "C5", images)


def test_a_file_in_float32_is_not_asked_for_in_float16(save: Any, resnet: Any) -> None:
    model = save(resnet)
    assert "float16" not in featreg.describe(model).capabilities
    with pytest.raises(errors.CapabilityError, match="computes in float32"):
        featreg.create_extractor(model, "C5", dtype="float16")


def test_parameters_of_another_type_are_a_deviation(save: Any, resnet: Any) -> None:
    assert featreg.describe(save(resnet)).deviations == ()
    weight = resnet.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), "half"))
    cast = helper.make_node("Cast", ["half"], ["conv1.weight"], to=TensorProto.FLOAT)
    resnet.graph.node.insert(0, cast)
    assert featreg.describe(save(resnet, "mixed.onnx")).deviations == (
        "1 of its parameters are float16, while it takes float32",
    )


# --- sizes ------------------------------------------------------------------------------------------------------------


def pyramid(least: int) -> Any:
    """A network that adds a map, scaled up, to a finer one: sides are multiples of 4, and at least ``least``."""
    net = Builder()
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    one = net.add("Conv", "down1", "images", net.weight("a", 4, 3, 2, 2, fan=12), **window)
    two = net.add("Conv", "down2", one, net.weight("b", 4, 4, 2, 2, fan=16), **window)
    up = net.add("Resize", "up", two, "", net.keep("scales", [1, 1, 2, 2]), mode="nearest")
    joined = net.add("Add", "join", one, up)
    pool = net.add("AveragePool", "pool", joined, kernel_shape=[least // 2] * 2)
    flat = net.add("Flatten", "", net.add("GlobalAveragePool", "", pool), axis=1)
    return net.model(net.classifier("fc", flat, 4, 5), ("h", "w"), 5)


def test_the_sizes_that_a_network_takes_are_found_out(save: Any) -> None:
    model = save(pyramid(24))
    assert str(featreg.describe(model).input_rule) == "at least 24x24, multiples of 4"
    for size in ((20, 24), (26, 28)):
        with pytest.raises(errors.InputError):
            featreg.describe(model, size)


def test_a_fixed_size_is_the_only_one(save: Any, resnet: Any) -> None:
    dim(resnet, 2).dim_value, dim(resnet, 3).dim_value = 48, 40
    info = featreg.describe(save(resnet))
    assert (info.input_size, str(info.input_rule)) == ((48, 40), "exactly 48x40")


def test_grids_without_a_formula_are_measured(save: Any) -> None:
    net = Builder()
    a = net.add("Conv", "a", "images", net.weight("wa", 4, 3, 3, 3, fan=27), strides=[2, 2], pads=[1] * 4)
    b = net.add("Relu", "b", net.add("Conv", "b", a, net.weight("wb", 4, 4, 2, 2, fan=16), strides=[2, 2]))
    model = save(net.model(net.classifier("fc", net.add("Flatten", "", b), 4, 5), ("h", "w"), 5))
    with pytest.raises(errors.CapabilityError, match="does not run"):
        featreg.describe(model)  # the classifier fits no size that is tried
    pooled = net.nodes[-2]
    pooled.CopyFrom(helper.make_node("Flatten", ["pool"], [pooled.output[0]], pooled.name))
    net.nodes.insert(-2, helper.make_node("GlobalAveragePool", [b], ["pool"], "/pool/G"))
    model = save(net.model("/fc/Gemm_output_0", ("h", "w"), 5), "measured.onnx")
    info = featreg.describe(model, (65, 63)).resolve("C2")
    assert info.rounding == "measured"
    with featreg.create_extractor(model, "C2") as extractor:
        for size in ((65, 63), (66, 67), (7, 9)):
            images = np.zeros((1, 3, *size), np.float32)
            assert extractor.output_shapes(images.shape)["C2"] == extractor(images)["C2"].shape


# --- preprocessing, options, devices ----------------------------------------------------------------------------------

OWN = {"resize": [50, 50], "crop": [48, 48], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "color": "BGR"}


def test_preprocessing_lies_in_the_metadata(save: Any, resnet: Any) -> None:
    import json

    entry = resnet.metadata_props.add()
    entry.key, entry.value = "featreg.preprocess", json.dumps(OWN)
    info = featreg.describe(save(resnet))
    assert (info.preprocess.mean, info.preprocess.color, info.input_size) == ((0.5, 0.4, 0.3), "BGR", (48, 48))
    for bad in ("{", '{"mean": 1}'):
        entry.value = bad
        with pytest.raises(errors.SpecError):
            featreg.describe(save(resnet, f"bad{len(bad)}.onnx"))


def test_preprocessing_may_be_given(save: Any, resnet: Any, images: Any) -> None:
    model = save(resnet)
    assert featreg.describe(model).preprocess.std == (1, 1, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 48, 48), np.uint8)
    mean, std = (np.reshape(OWN[name], (3, 1, 1)) for name in ("mean", "std"))
    floats = ((pixels[:, ::-1] / 255 - mean) / std).astype(np.float32)
    got = extract(model, "C2", pixels, options={"preprocess": OWN})["C2"]
    np.testing.assert_allclose(got, extract(model, "C2", floats)["C2"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"preprocess": {"mean": 1}}, {"preprocess": 3}, {"threads": -1}, {"threads": "2"}])
def test_options_of_another_form_are_refused(save: Any, resnet: Any, options: Any) -> None:
    with pytest.raises(errors.SpecError):
        featreg.create_extractor(save(resnet), "C2", options=options)


def test_threads_change_no_value(save: Any, resnet: Any, images: Any) -> None:
    model = save(resnet)
    one, two = (extract(model, "C5", images, options={"threads": count})["C5"] for count in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_cuda_needs_its_provider(save: Any, resnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    model = save(resnet)
    assert "cuda" not in featreg.describe(model).capabilities
    with pytest.raises(errors.CapabilityError, match="CUDA"):
        featreg.create_extractor(model, "C2", device="cuda")
    with pytest.raises(errors.DeviceError):
        featreg.create_extractor(model, "C2", device="tpu")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_device_that_fails_is_not_replaced_by_the_cpu(
    save: Any, resnet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime itself would go on without the provider."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA works here")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(errors.DeviceError):
        featreg.create_extractor(save(resnet), "C2", device="cuda:0")


def test_the_same_name_twice_is_two_arrays(save: Any, resnet: Any, images: Any) -> None:
    found = extract(save(resnet), ["C5", "features", 4], images)
    assert not np.shares_memory(found["C5"], found["features"])
    assert found["C5"].tobytes() == found["features"].tobytes() == found[4].tobytes()


def test_nothing_is_written(save: Any, resnet: Any, tmp_path: Path, images: Any) -> None:
    extract(save(resnet), "C5", images)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
