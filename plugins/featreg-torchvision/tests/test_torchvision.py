"""The torchvision backend against hooks on raw torchvision models."""

import gc
import re
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models import get_model
from torchvision.models.feature_extraction import get_graph_node_names

import featreg
from featreg import errors
from featreg_torch.backend import Variant
from featreg_torchvision.backend import TorchvisionBackend

# the level table: module whose output is the level, None where an operation of the network's own forward makes it
LEVELS = {
    "resnet18": {"C1": "relu", "C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"},
    "resnext50_32x4d": {"C1": "relu", "C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"},
    "convnext_tiny": {"C2": "features.1", "C3": "features.3", "C4": "features.5", "C5": "features.7"},
    "mobilenet_v2": {
        "C1": "features.1", "C2": "features.3", "C3": "features.6", "C4": "features.13", "C5": "features.17",
    },
    "mobilenet_v3_large": {
        "C1": "features.1", "C2": "features.3", "C3": "features.6", "C4": "features.12", "C5": "features.16",
    },
    "mobilenet_v3_small": {
        "C1": "features.0", "C2": "features.1", "C3": "features.3", "C4": "features.8", "C5": "features.12",
    },
    "efficientnet_b0": {
        "C1": "features.1", "C2": "features.2", "C3": "features.3", "C4": "features.5", "C5": "features.7",
    },
    "efficientnet_v2_s": {
        "C1": "features.1", "C2": "features.2", "C3": "features.3", "C4": "features.5", "C5": "features.6",
    },
    "vgg11": {
        "C0": "features.1", "C1": "features.4", "C2": "features.9", "C3": "features.14", "C4": "features.19",
        "C5": "features.20",
    },
    "densenet121": {
        "C1": "features.relu0", "C2": "features.denseblock1", "C3": "features.denseblock2",
        "C4": "features.denseblock3", "C5": None,
    },
    "regnet_y_400mf": {
        "C1": "stem", "C2": "trunk_output.block1", "C3": "trunk_output.block2", "C4": "trunk_output.block3",
        "C5": "trunk_output.block4",
    },
    "swin_t": {"C2": "features.1", "C3": "features.3", "C4": "features.5", "C5": "features.7"},
}  # fmt: skip


def batch(height, width, count=2, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, height, width), dtype=np.float32)


def raw_model(name, **options):
    """A raw model with the random weights that featreg gives it: torchvision's own of seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_model(name, weights=None, **options).eval()


def hooked(model, modules, images):
    """The output of each module, copied when it is made, and the model's output."""
    found = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: found.update({name: out.clone()}))
        for name in modules
    ]
    with torch.no_grad():
        logits = model(torch.from_numpy(images))
    for handle in handles:
        handle.remove()
    return found, logits


@pytest.mark.parametrize("name", LEVELS)
def test_levels_and_heads_equal_raw_hooks_bit_for_bit(name):
    table = LEVELS[name]
    with featreg.create_extractor(f"torchvision:{name}", [*table, "pooled", "logits"]) as extractor:
        images = batch(97, 75)
        features = extractor(images)
        model = raw_model(name)
        expected = extractor.output_shapes(images.shape)
    found, logits = hooked(model, [module for module in table.values() if module], images)
    if name == "densenet121":
        with torch.no_grad():
            final = torch.nn.functional.relu(model.features(torch.from_numpy(images)))
    for level, module in table.items():
        raw = found[module] if module else final
        raw = raw.permute(0, 3, 1, 2) if name == "swin_t" else raw
        assert features.info[level].name == (module or "relu")
        assert np.array_equal(features[level], raw.numpy()), level
    assert np.array_equal(features["logits"], logits.numpy())
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert np.array_equal(last(torch.from_numpy(features["pooled"])).detach().numpy(), logits.numpy())
    assert expected == {key: array.shape for key, array in features.items()}
    assert [info.level for info in extractor.info.features if info.level] == list(table)


def test_vit_blocks_as_maps_and_as_tokens():
    layers = ["C4", -1, 3, "encoder.layers.encoder_layer_3", "tokens", "features", "pooled"]
    with featreg.create_extractor("torchvision:vit_b_16", layers) as extractor:
        images = batch(224, 224, count=1)
        features = extractor(images)
        model = raw_model("vit_b_16")
    blocks = ["encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_11", "encoder.ln", "heads.head"]
    found, _ = hooked(model, blocks, images)
    tokens = found["encoder.layers.encoder_layer_3"].numpy()
    assert features[layers[3]].shape == (1, 197, 768)
    assert np.array_equal(features[layers[3]], tokens)
    assert features.info[layers[3]].prefix_tokens == 1
    assert features.info[layers[3]].class_token
    assert extractor.feature_info[layers[3]] == featreg.describe("torchvision:vit_b_16").resolve(layers[3])
    assert np.array_equal(features[3][0, :, 2, 5], tokens[0, 1 + 2 * 14 + 5])
    last = found["encoder.layers.encoder_layer_11"].numpy()[:, 1:].transpose(0, 2, 1).reshape(1, 768, 14, 14)
    assert np.array_equal(features["C4"], last)
    assert np.array_equal(features[-1], last)
    assert np.array_equal(features["tokens"], found["encoder.ln"].numpy())
    assert np.array_equal(features["features"][0, :, 0, 1], found["encoder.ln"].numpy()[0, 2])
    assert np.array_equal(features["pooled"], found["encoder.ln"].numpy()[:, 0])


def test_in_place_activations_do_not_overwrite_native_nodes():
    layers = ["bn1", "layer1.0.bn2", "layer1.0.relu_1", "layer1.0.add", "layer1.0.relu_2"]
    with featreg.create_extractor("torchvision:resnet18", ["bn1", "layer1.0.bn2", "layer1.0.relu_1"]) as extractor:
        images = batch(64, 64)
        features = extractor(images)
        model = raw_model("resnet18")
    found, _ = hooked(model, ["bn1", "layer1.0.bn2", "layer1.0"], images)
    assert (features["bn1"] < 0).any()
    assert np.array_equal(features["bn1"], found["bn1"].numpy())
    assert np.array_equal(features["layer1.0.bn2"], found["layer1.0.bn2"].numpy())
    assert np.array_equal(features["layer1.0.relu_1"], found["layer1.0"].numpy())
    assert layers[0] in get_graph_node_names(model)[1]


def test_a_module_s_name_is_its_last_operation_and_never_a_pattern():
    with featreg.create_extractor("torchvision:resnet18", ["layer1", "layer1.1.relu_1"]) as extractor:
        features = extractor(batch(64, 64))
    assert np.array_equal(features["layer1"], features["layer1.1.relu_1"])
    for name in ("l.yer1", "layer", "layer1.", ".*", "layer1.9"):
        with pytest.raises(errors.LayerError) as caught:
            featreg.create_extractor("torchvision:resnet18", [name])
        assert name in str(caught.value)
    assert "layer1" in caught.value.matches or any("layer1" in match for match in caught.value.matches)


def test_request_order_and_computation_stops():
    with featreg.create_extractor("torchvision:resnet50", ["C2", "C1"]) as extractor:
        assert list(extractor(batch(64, 64))) == ["C2", "C1"]
        remaining = {name.removeprefix("taps.") for name, _ in extractor.module.named_parameters()}
    model = raw_model("resnet50")
    assert remaining == {name for name, _ in model.named_parameters() if name.startswith(("conv1.", "bn1.", "layer1."))}


@pytest.mark.parametrize("size", [(225, 225), (193, 257), (33, 64)])
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "swin_t", "squeezenet1_1", "mobilenet_v3_small"])
def test_predicted_shapes_equal_the_raw_model_s(name, size):
    info = featreg.describe(f"torchvision:{name}", size)
    layers = [feature.level for feature in info.features if feature.level]
    with featreg.create_extractor(f"torchvision:{name}", layers) as extractor:
        features = extractor(batch(*size, count=1))
        assert extractor.output_shapes((1, 3, *size)) == {key: array.shape for key, array in features.items()}
    for layer in layers:
        assert info.resolve(layer).shape(1, *size) == features[layer].shape


def test_sizes_that_the_model_does_not_take():
    with featreg.create_extractor("torchvision:vit_b_32", ["C5"]) as extractor, pytest.raises(errors.InputError):
        extractor(batch(225, 224, count=1))
    with featreg.create_extractor("torchvision:vgg11", ["C5"]) as extractor:
        with pytest.raises(errors.InputError):
            extractor(batch(16, 16, count=1))
        with pytest.raises(errors.InputError):
            extractor.output_shapes((1, 3, 16, 16))


def test_uint8_is_normalised_as_torchvision_does():
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 40, 56), dtype=np.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    as_float = torchvision.transforms.functional.convert_image_dtype(torch.from_numpy(images), torch.float32)
    normalised = torchvision.transforms.functional.normalize(as_float, mean, std).numpy()
    with featreg.create_extractor("torchvision:resnet18", ["C1"]) as extractor:
        assert np.array_equal(extractor(images)["C1"], extractor(normalised)["C1"])


def test_preprocess_is_that_of_the_weights():
    info = featreg.describe("torchvision:mobilenet_v3_large")
    transform = torchvision.models.MobileNet_V3_Large_Weights.DEFAULT.transforms()
    assert (info.preprocess.resize[0], info.preprocess.crop[0]) == (*transform.resize_size, *transform.crop_size)
    assert info.preprocess.interpolation == "bilinear"
    backend = TorchvisionBackend()
    resizes = {tag: backend.preprocess(Variant("resnet50", tag)).resize for tag in ("IMAGENET1K_V1", "IMAGENET1K_V2")}
    assert resizes == {"IMAGENET1K_V1": (256, 256), "IMAGENET1K_V2": (232, 232)}


def test_vit_h_14_is_built_for_224_and_its_default_weights_for_518():
    info = featreg.describe("torchvision:vit_h_14")
    assert info.input_rule.fixed == (224, 224)
    assert info.preprocess.crop == (224, 224)
    assert info.resolve("C4").reduction == 14


def test_models_are_sorted_and_an_unknown_one_names_its_neighbours():
    names = featreg.list_models("torchvision")
    assert names == tuple(sorted(names))
    with pytest.raises(errors.UnknownModelError) as caught:
        featreg.describe("torchvision:resnet5")
    assert "resnet50" in caught.value.matches


def test_state_of_the_process_and_of_the_model_is_untouched():
    torch.manual_seed(11)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with featreg.create_extractor("torchvision:resnet18", ["C5"]) as extractor:
        images = batch(64, 64)
        images.flags.writeable = False
        kept = images.copy()
        weights = {name: value.clone() for name, value in extractor.module.network.state_dict().items()}
        first = extractor(images)["C5"]
        first_copy = first.copy()
        second = extractor(images[::-1])["C5"]  # a view with negative strides
        assert not extractor.module.training
        assert all(torch.equal(weights[name], value) for name, value in extractor.module.network.state_dict().items())
        assert np.array_equal(first, first_copy)
        assert np.allclose(second[::-1], first, rtol=1e-4, atol=1e-5)
    assert np.array_equal(images, kept)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_two_opens_are_equal_and_gradients_flow_on_request():
    images = batch(64, 64)
    with featreg.create_extractor("torchvision:resnet18", ["C5"]) as one:
        expected = one(images)["C5"]
        one_weights = one.module.network.state_dict()["layer4.1.conv2.weight"].clone()
    tensor = torch.from_numpy(images).requires_grad_()
    with featreg.create_extractor("torchvision:resnet18", ["C5"], grad=True, array="native") as two:
        output = two(tensor)["C5"]
        assert np.array_equal(output.detach().numpy(), expected)
        assert torch.equal(two.module.network.state_dict()["layer4.1.conv2.weight"], one_weights)
        output.square().sum().backward()
        assert tensor.grad is not None
        assert two.module.network.conv1.weight.grad.abs().sum() > 0
        model = raw_model("resnet18")
    again = torch.from_numpy(images).requires_grad_()
    x = model.maxpool(model.relu(model.bn1(model.conv1(again))))
    model.layer4(model.layer3(model.layer2(model.layer1(x)))).square().sum().backward()
    assert torch.equal(tensor.grad, again.grad)


def test_weights_from_a_file_and_what_does_not_fit(tmp_path):
    torch.manual_seed(5)
    model = get_model("resnet18", weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    images = batch(64, 64)
    with (
        featreg.create_extractor(
            "torchvision:resnet18", ["logits"], weights=str(tmp_path / "resnet18.pth")
        ) as extractor,
        torch.no_grad(),
    ):
        assert np.array_equal(extractor(images)["logits"], model(torch.from_numpy(images)).numpy())
    with pytest.raises(errors.WeightsError, match="missing"):
        featreg.create_extractor("torchvision:resnet34", ["C5"], weights=str(tmp_path / "resnet18.pth"))


def test_tags_offline_and_unknown_tags(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(errors.WeightsError) as caught:
        featreg.create_extractor("torchvision:resnet18", ["C5"], weights="IMAGENET1K_V1")
    text = str(caught.value)
    assert "IMAGENET1K_V1" in text
    assert str(tmp_path) in text
    assert "checkpoint file" in text
    with pytest.raises(errors.WeightsError) as caught:
        featreg.create_extractor("torchvision:resnet18", ["C5"], weights="IMAGENET1K_V9")
    assert "IMAGENET1K_V1" in caught.value.matches


def test_half_precision_and_options():
    with featreg.create_extractor("torchvision:resnet18", ["C5"], dtype="bfloat16") as extractor:
        output = extractor(batch(64, 64))["C5"]
        assert output.dtype == np.float32
        assert extractor.module.network.conv1.weight.dtype == torch.bfloat16
    with pytest.raises(errors.CapabilityError, match="no option 'x'"):
        featreg.create_extractor("torchvision:resnet18", ["C5"], options={"x": 1})
    with pytest.raises(errors.CapabilityError, match="output_stride"):
        featreg.create_extractor("torchvision:resnet18", ["C5"], output_stride=8)
    with pytest.raises(errors.LayerError):
        featreg.create_extractor("torchvision:resnet18", ["size"])


def test_the_plugin_itself_imports_no_framework():
    code = "import featreg_torchvision, sys; sys.exit(any(m in sys.modules for m in ('torch', 'torchvision')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def library_weights(monkeypatch, name, state=None):
    """Stand in for a download: torchvision's default weights of a model are these."""
    torch.manual_seed(9)
    model = get_model(name, weights=None, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {}))
    state = model.state_dict() if state is None else state(model.state_dict())
    weights = torchvision.models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: dict(state))
    return weights


def test_library_weights_bring_the_library_s_own_input_transform(monkeypatch):
    weights = library_weights(monkeypatch, "inception_v3")
    images = batch(299, 299, count=1)
    with featreg.create_extractor("torchvision:inception_v3", ["logits"], weights="default") as extractor:
        assert extractor.module.network.transform_input
        found = extractor(images)["logits"]
    model = get_model("inception_v3", weights=weights).eval()
    with torch.no_grad():
        assert np.array_equal(found, model(torch.from_numpy(images)).numpy())


def test_library_weights_under_their_old_names_load(monkeypatch):
    def old(state):  # as the published files of DenseNet are
        dotted = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in state.items()}
        return {key: value for key, value in dotted.items() if not key.endswith("num_batches_tracked")}

    weights = library_weights(monkeypatch, "densenet121", old)
    images = batch(64, 64)
    with featreg.create_extractor("torchvision:densenet121", ["logits"], weights="default") as extractor:
        found = extractor(images)["logits"]
    model = get_model("densenet121", weights=weights).eval()
    with torch.no_grad():
        assert np.array_equal(found, model(torch.from_numpy(images)).numpy())


def test_networks_that_read_their_tensors_by_version_load_from_a_file(tmp_path):
    torch.manual_seed(1)
    model = get_model("mnasnet0_5", weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "mnasnet.pth")
    images = batch(64, 64)
    path = str(tmp_path / "mnasnet.pth")
    with featreg.create_extractor("torchvision:mnasnet0_5", ["logits"], weights=path) as extractor, torch.no_grad():
        assert np.array_equal(extractor(images)["logits"], model(torch.from_numpy(images)).numpy())


def test_nothing_is_traced_after_opening(monkeypatch):
    with featreg.create_extractor("torchvision:resnet18", ["C5"]) as extractor:

        def refuse(*_):
            raise AssertionError("traced")  # tracing replaces nn.Module.__call__ for every thread

        monkeypatch.setattr("featreg_torchvision.graph.NodePathTracer.trace", refuse)
        assert extractor.output_shapes((1, 3, 70, 90)) == {"C5": (1, 512, 3, 3)}
        featreg.create_extractor("torchvision:resnet18", ["C4"]).close()


def test_opens_in_threads_are_equal_and_leave_the_process_alone():
    torch.manual_seed(4)
    state = torch.random.get_rng_state()
    with featreg.create_extractor("torchvision:resnet18", ["C1"]) as alone:
        expected = alone.module.network.state_dict()
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: featreg.create_extractor("torchvision:resnet18", ["C1"]), range(4)))
    for extractor in opened:
        found = extractor.module.network.state_dict()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        extractor.close()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_caller_s_modes_change_nothing():
    images = torch.from_numpy(batch(64, 64))
    with torch.inference_mode(), torch.device("meta"):
        extractor = featreg.create_extractor("torchvision:resnet18", ["C5"], array="native", grad=True, pool="avg")
        under = extractor(images)["C5"]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            pooled = extractor(images)["C5"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(under, pooled)
    assert under.requires_grad
    pooled.sum().backward()
    assert extractor.module.network.conv1.weight.grad.abs().sum() > 0
    before = extractor.module.network.bn1.running_mean.clone()
    extractor.module.train()
    assert torch.equal(extractor(images)["C5"], under)
    assert torch.equal(extractor.module.network.bn1.running_mean, before)


def test_closing_frees_the_weights_at_once():
    gc.collect()
    gc.disable()
    try:
        extractor = featreg.create_extractor("torchvision:resnet18", ["C5"])
        weight = weakref.ref(extractor.module.network.layer4[0].conv1.weight)
        extractor.close()
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8, device="meta"), torch.zeros(1, 3, 8, 8).to_sparse()])
def test_tensors_without_plain_data_are_refused(images):
    with featreg.create_extractor("torchvision:resnet18", ["C1"]) as extractor, pytest.raises(errors.InputError):
        extractor(images)
