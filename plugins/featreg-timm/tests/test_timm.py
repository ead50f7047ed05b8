"""The timm backend against hooks on raw timm models, and against timm's own feature extraction."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import timm
import torch

import featreg
from featreg import errors

LEVELS = {
    "resnet18": {"C1": "act1", "C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"},
    "resnext50_32x4d": {"C1": "act1", "C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"},
    "convnext_tiny": {"C2": "stages.0", "C3": "stages.1", "C4": "stages.2", "C5": "stages.3"},
    "mobilenetv2_100": {"C1": "blocks.0", "C2": "blocks.1", "C3": "blocks.2", "C4": "blocks.4", "C5": "blocks.6"},
    "mobilenetv3_large_100": {"C1": "blocks.0", "C2": "blocks.1", "C3": "blocks.2", "C4": "blocks.4", "C5": "blocks.6"},
    "mobilenetv3_small_100": {"C1": "bn1", "C2": "blocks.0", "C3": "blocks.1", "C4": "blocks.3", "C5": "blocks.5"},
    "efficientnet_b0": {"C1": "blocks.0", "C2": "blocks.1", "C3": "blocks.2", "C4": "blocks.4", "C5": "blocks.6"},
    "tf_efficientnetv2_s": {"C1": "blocks.0", "C2": "blocks.1", "C3": "blocks.2", "C4": "blocks.4", "C5": "blocks.5"},
    "vgg11": {
        "C0": "features.1", "C1": "features.4", "C2": "features.9", "C3": "features.14", "C4": "features.19",
        "C5": "features.20",
    },
    "densenet121": {
        "C1": "features.norm0", "C2": "features.denseblock1", "C3": "features.denseblock2",
        "C4": "features.denseblock3", "C5": "features.norm5",
    },
    "regnety_008_tv": {"C1": "stem", "C2": "s1", "C3": "s2", "C4": "s3", "C5": "s4"},
}  # fmt: skip


def batch(height, width, count=2, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, height, width), dtype=np.float32)


def raw_twin(extractor, name, **options):
    """timm's own network with the extractor's weights; those that no requested layer needs are left as they are."""
    model = timm.create_model(name, **options).eval()
    unknown = model.load_state_dict(extractor.module.network.state_dict(), strict=False).unexpected_keys
    assert not unknown
    return model


def hooked(model, modules, images):
    """The output of each module, copied when it is made; the classifier's input; the model's output."""
    found = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: found.update({name: out.clone()}))
        for name in modules
    ]
    classifier = model.get_classifier()
    if isinstance(classifier, torch.nn.Module):
        handles.append(classifier.register_forward_pre_hook(lambda _, args: found.update(pooled=args[0].clone())))
    with torch.no_grad():
        logits = model(torch.from_numpy(images))
    for handle in handles:
        handle.remove()
    return found, logits


@pytest.mark.parametrize("name", LEVELS)
def test_levels_and_heads_equal_raw_hooks_bit_for_bit(name):
    table = LEVELS[name]
    # timm's VGG head pads nothing: its 7x7 convolution needs 224 pixels
    height, width = (224, 224) if name == "vgg11" else (97, 75)
    with featreg.create_extractor(f"timm:{name}", [*table, "pooled", "logits"]) as extractor:
        images = batch(height, width)
        features = extractor(images)
        expected = extractor.output_shapes(images.shape)
        found, logits = hooked(raw_twin(extractor, name), table.values(), images)
    for level, module in table.items():
        assert features.info[level].name == module
        assert np.array_equal(features[level], found[module].numpy()), level
    assert np.array_equal(features["pooled"], found["pooled"].numpy())
    assert np.array_equal(features["logits"], logits.numpy())
    assert expected == {key: array.shape for key, array in features.items()}
    assert [info.level for info in extractor.info.features if info.level] == list(table)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "mobilenetv3_small_100", "efficientnet_b0"])
def test_indices_equal_features_only(name):
    images = batch(96, 128)
    count = len([info for info in featreg.describe(f"timm:{name}").features if info.index is not None])
    with featreg.create_extractor(f"timm:{name}", [*range(count), -1]) as extractor:
        features = extractor(images)
        wrapped = timm.create_model(name, features_only=True, out_indices=tuple(range(count))).eval()
        state = extractor.module.network.state_dict()
        source = timm.create_model(name, features_only=True, out_indices=tuple(range(count)))
        renamed = {key: state[key] for key in state if key in source.state_dict()}
        if renamed.keys() != source.state_dict().keys():  # ConvNeXt: stages.0 became stages_0
            renamed = {
                key: state[key.replace("stem_", "stem.").replace("stages_", "stages.")] for key in source.state_dict()
            }
        wrapped.load_state_dict(renamed)
    with torch.no_grad():
        expected = wrapped(torch.from_numpy(images))
    for index, tensor in enumerate(expected):
        assert np.array_equal(features[index], tensor.numpy())
    assert np.array_equal(features[-1], expected[-1].numpy())
    channels = [features.info[index].channels for index in range(count)]
    assert channels == wrapped.feature_info.channels()


def test_vit_maps_equal_forward_intermediates_and_tokens_the_blocks():
    name = "vit_tiny_patch16_224"
    layers = ["C4", 2, "blocks.2", "blocks.2.mlp.fc1", "patch_embed", "tokens", "features", "pooled"]
    with featreg.create_extractor(f"timm:{name}", layers) as extractor:
        images = batch(224, 224)
        features = extractor(images)
        model = raw_twin(extractor, name)
    found, _ = hooked(model, ["blocks.2", "blocks.2.mlp.fc1", "patch_embed"], images)
    with torch.no_grad():
        final, maps = model.forward_intermediates(torch.from_numpy(images), norm=False)
    assert np.array_equal(features[2], maps[2].numpy())
    assert np.array_equal(features["C4"], maps[-1].numpy())
    assert np.array_equal(features["blocks.2"], found["blocks.2"].numpy())
    assert features.info["blocks.2"].prefix_tokens == 1
    assert features["blocks.2.mlp.fc1"].shape == (2, 197, 768)
    assert features.info["patch_embed"].prefix_tokens == 0
    assert np.array_equal(features["patch_embed"], found["patch_embed"].numpy())
    assert np.array_equal(features["tokens"], final.numpy())
    assert np.array_equal(features["features"][:, :, 3, 4], final.numpy()[:, 1 + 3 * 14 + 4])
    assert np.array_equal(features["pooled"], found["pooled"].numpy())


def test_two_prefix_tokens_are_counted_and_left_out_of_maps():
    name = "deit_tiny_distilled_patch16_224"
    with featreg.create_extractor(f"timm:{name}", ["C4", "tokens", "blocks.11"], pool=None) as extractor:
        images = batch(224, 224, count=1)
        features = extractor(images)
        found, _ = hooked(raw_twin(extractor, name), ["blocks.11"], images)
    assert features.info["tokens"].prefix_tokens == 2
    assert features["tokens"].shape == (1, 198, 192)
    assert np.array_equal(features["C4"][0, :, 0, 0], found["blocks.11"].numpy()[0, 2])


def test_swin_maps_are_channels_first():
    name = "swin_tiny_patch4_window7_224"
    levels = {"C2": "layers.0", "C3": "layers.1", "C4": "layers.2", "C5": "layers.3"}
    with featreg.create_extractor(f"timm:{name}", [*levels, "features"]) as extractor:
        images = batch(224, 224, count=1)
        features = extractor(images)
        model = raw_twin(extractor, name)
        found, _ = hooked(model, [*levels.values(), "norm"], images)
    for level, module in levels.items():
        assert np.array_equal(features[level], found[module].permute(0, 3, 1, 2).numpy())
    assert np.array_equal(features["features"], found["norm"].permute(0, 3, 1, 2).numpy())
    assert features["C5"].shape == (1, 768, 7, 7)


def test_order_repeats_and_wrong_layers():
    with featreg.create_extractor("timm:resnet18", [-1, 0, "C5", 4]) as extractor:
        features = extractor(
            batch(64, 64, count=1),
        )
        assert list(features) == [-1, 0, "C5", 4]
        assert features[0].shape == (1, 64, 32, 32)
        assert features[-1].shape == (1, 512, 2, 2)
        assert np.array_equal(features[-1], features[4])
        assert not np.shares_memory(features[-1], features["C5"])
    for layers, word in (([1, 1], "more than once"), ([], "no layer"), ([5], "index 5"), ([-6], "index -6")):
        with pytest.raises(errors.LayerError, match=word):
            featreg.create_extractor("timm:resnet18", layers)
    with pytest.raises(errors.LayerError) as caught:
        featreg.create_extractor("timm:resnet18", ["layer9"])
    assert "layer1" in caught.value.matches


def test_a_later_layer_is_not_computed():
    with featreg.create_extractor("timm:resnet18", ["C2"]) as extractor:
        ran = []
        extractor.module.network.layer2.register_forward_hook(lambda *_: ran.append("layer2"))
        extractor.module.network.layer1.register_forward_hook(lambda *_: ran.append("layer1"))
        extractor(batch(64, 64))
        assert ran == ["layer1"]


@pytest.mark.parametrize("size", [(225, 225), (193, 257)])
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "convnext_tiny", "resnet50_clip", "inception_v3"])
def test_predicted_shapes_equal_real_ones(name, size):
    info = featreg.describe(f"timm:{name}", size)
    levels = [feature.level for feature in info.features if feature.level]
    with featreg.create_extractor(f"timm:{name}", levels) as extractor:
        found, _ = hooked_shapes(raw_twin(extractor, name), info, size)
        assert extractor.output_shapes((1, 3, *size)) == found
    assert {level: info.resolve(level).shape(1, *size) for level in levels} == found


def hooked_shapes(model, info, size):
    modules = {feature.level: feature.name for feature in info.features if feature.level}
    found, logits = hooked(model, modules.values(), batch(*size, count=1))
    return {level: tuple(found[module].shape) for level, module in modules.items()}, logits


def test_output_stride_keeps_names_and_dilates():
    with featreg.create_extractor("timm:resnet18", ["C3", "C4", "C5"], output_stride=8) as extractor:
        features = extractor(batch(64, 96, count=1))
        assert [features.info[key].reduction for key in features] == [8, 8, 8]
        assert [features[key].shape[1:] for key in features] == [(128, 8, 12), (256, 8, 12), (512, 8, 12)]
        model = raw_twin(extractor, "resnet18", output_stride=8)
    found, _ = hooked(model, ["layer4"], batch(64, 96, count=1))
    assert np.array_equal(features["C5"], found["layer4"].numpy())
    with pytest.raises(errors.CapabilityError):
        featreg.create_extractor("timm:vit_tiny_patch16_224", ["C4"], output_stride=8)


def test_preprocess_follows_the_tag():
    plain = featreg.describe("timm:resnet50.tv_in1k").preprocess
    newer = featreg.describe("timm:resnet50.a1_in1k").preprocess
    for info, tag in ((plain, "tv_in1k"), (newer, "a1_in1k")):
        config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(f"resnet50.{tag}").to_dict())
        assert info.crop == config["input_size"][1:]
        assert info.resize[0] == int(config["input_size"][1] / config["crop_pct"])
        assert (info.mean, info.std, info.interpolation) == (config["mean"], config["std"], config["interpolation"])
    assert plain.interpolation != newer.interpolation


def test_names_with_tags_and_unknown_names():
    assert featreg.describe("timm:resnet50.a1_in1k").model == "resnet50.a1_in1k"
    assert len(featreg.list_models("timm")) == len(timm.list_models())
    for name in ("resnet5", "resnet50.nope", ""):
        with pytest.raises(errors.UnknownModelError):
            featreg.describe(f"timm:{name}")


def test_weights_from_files_and_tags(tmp_path, monkeypatch):
    torch.manual_seed(3)
    model = timm.create_model("resnet18").eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    images = batch(64, 64)
    with (
        featreg.create_extractor("timm:resnet18", ["logits"], weights=str(tmp_path / "w.pth")) as extractor,
        torch.no_grad(),
    ):
        assert np.array_equal(extractor(images)["logits"], model(torch.from_numpy(images)).numpy())
    with pytest.raises(errors.WeightsError) as caught:
        featreg.create_extractor("timm:resnet18", ["C5"], weights="a1_in2k")
    assert "a1_in1k" in caught.value.matches

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    with pytest.raises(errors.WeightsError) as caught:
        featreg.create_extractor("timm:resnet18", ["C5"], weights="a1_in1k")
    assert "a1_in1k" in str(caught.value)
    assert "checkpoint file" in str(caught.value)


def test_evaluation_mode_and_random_numbers():
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    with featreg.create_extractor("timm:efficientnet_b0", ["C5"]) as extractor:
        images = batch(64, 64)
        assert not any(module.training for module in extractor.module.modules())
        assert np.array_equal(extractor(images)["C5"], extractor(images)["C5"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_plugin_itself_imports_no_framework():
    code = "import featreg_timm, sys; sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'torchvision')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_native_names_in_networks_of_one_size_are_arranged_or_refused():
    name = "swin_tiny_patch4_window7_224"
    modules = ["patch_embed", "layers.1.downsample", "layers.0.blocks.0"]
    with featreg.create_extractor(f"timm:{name}", modules) as extractor:
        images = batch(224, 224, count=1)
        features = extractor(images)
        found, _ = hooked(raw_twin(extractor, name), modules, images)
    for module in modules:
        assert np.array_equal(features[module], found[module].permute(0, 3, 1, 2).numpy()), module
    for model, module in (
        ("vit_tiny_patch16_224", "blocks.0.attn.attn_drop"),
        ("mixer_b16_224", "blocks.0.mlp_tokens"),
    ):
        with pytest.raises(errors.CapabilityError):
            featreg.create_extractor(f"timm:{model}", [module])


def test_networks_whose_declared_modules_give_no_map_keep_their_heads():
    for name in ("coat_tiny", "levit_128s", "hrnet_w18"):
        info = featreg.describe(f"timm:{name}")
        assert {feature.head for feature in info.features if feature.head} >= {"pooled", "logits"}
        assert all(feature.kind == "map" for feature in info.features if feature.level is not None)
    with featreg.create_extractor("timm:levit_128s", ["logits"]) as extractor:
        images = batch(224, 224)
        features = extractor(images)
        model = raw_twin(extractor, "levit_128s")
    with torch.no_grad():
        assert np.array_equal(features["logits"], model(torch.from_numpy(images)).numpy())


def test_a_stride_that_is_no_power_of_two_is_said():
    assert featreg.describe("timm:convmixer_768_32").resolve("C3").reduction == 7


def test_another_thread_may_run_the_network_by_itself():
    with featreg.create_extractor("timm:resnet18", ["C2", "logits"]) as extractor:
        images, others = batch(64, 64), torch.from_numpy(batch(64, 64, seed=1))
        expected, module = extractor(images)["C2"], extractor.module.network
        started = threading.Event()
        results = []

        def run_alone():
            with torch.no_grad():
                results.append(module(others))

        def interrupt(*_):  # while the extractor's hooks are on the modules, another thread runs them
            if not started.is_set():
                started.set()
                thread = threading.Thread(target=run_alone)
                thread.start()
                thread.join()

        handle = module.conv1.register_forward_hook(interrupt)
        found = extractor(images)["C2"]
        handle.remove()
    assert np.array_equal(found, expected)
    assert results[0].shape == (2, 1000)


def test_a_network_that_was_trained_is_no_longer_what_was_asked_for():
    with featreg.create_extractor("timm:resnet18", ["C1"], array="native") as extractor:
        extractor(batch(32, 32))
        assert extractor.weights_identity() == "none: seeded random init"
        loss = extractor.module(torch.ones(1, 3, 32, 32))["C1"].sum()
        torch.optim.SGD(extractor.module.parameters(), 0.1).step(loss.backward)
        trained = extractor.weights_identity()
        assert trained.startswith("state sha256:")
        assert extractor.weights_identity() == trained


@pytest.mark.parametrize(
    ("name", "layers", "size"),
    [("vit_tiny_patch16_224", ["blocks.1", "block.2"], 224), ("resnet18", ["layer1.0", "layer2.1"], 32)],
)
def test_gradient_checkpointing_changes_no_gradient_of_a_cut_network(name, layers, size):
    found = []
    for switched in (False, True):
        with featreg.create_extractor(f"timm:{name}", layers, array="native") as extractor:
            extractor.module.network.set_grad_checkpointing(switched)
            sum(value.sum() for value in extractor.module(torch.ones(1, 3, size, size)).values()).backward()
            found.append({key: value.grad for key, value in extractor.module.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient)


@pytest.mark.parametrize("layers", [["C3"], ["C2", "pooled"], ["logits", "C2"]])
def test_gradient_checkpointing_past_a_layer_is_refused(layers):
    """timm's ResNets then run the blocks of a stage, and not the stage."""
    with featreg.create_extractor("timm:resnet18", layers, array="native") as extractor:
        extractor.module.network.set_grad_checkpointing(True)
        with pytest.raises(errors.CapabilityError, match=r"layer[12] did not run: with gradient checkpointing"):
            extractor.module(torch.ones(1, 3, 32, 32))
        extractor.module.network.set_grad_checkpointing(False)
        assert list(extractor.module(torch.ones(1, 3, 32, 32))) == layers


def test_only_networks_that_dilate_declare_it():
    assert "output_stride" in featreg.describe("timm:efficientnet_b0").capabilities
    for name in ("vgg11", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        assert "output_stride" not in featreg.describe(f"timm:{name}").capabilities


def test_nodes_are_the_modules_with_the_shapes_that_asking_for_them_gives():
    nodes = {node.name: node for node in featreg.list_nodes("timm:resnet18", (97, 75))}
    assert set(nodes) > {name for name, _ in timm.create_model("resnet18").named_modules() if name}
    names = ["layer3.0.conv1", "layer2", "global_pool", "fc"]
    assert [nodes[name].type for name in names] == ["Conv2d", "Sequential", "SelectAdaptivePool2d", "Linear"]
    with featreg.create_extractor("timm:resnet18", names) as extractor:
        features = extractor(batch(97, 75))
    assert [nodes[name].shape for name in names] == [features[name].shape[1:] for name in names]
