"""Options that timm builds a network with: the size of its images, and the classes of its head."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import featreg
from featreg.errors import CapabilityError, InputError, SpecError, WeightsError


def draw_network(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return timm.create_model(name, **options).eval()


def load_by_timm(name, path, **options):
    """timm's own network with a file that timm itself reads, and resamples where need be."""
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **options).eval()


def batch(height, width):
    return np.random.default_rng(3).standard_normal((1, 3, height, width), dtype=np.float32)


# bicubic positions, bilinear ones, tables of relative ones
SIZED = {"test_vit": 96, "flexivit_small": [64, 80], "swin_tiny_patch4_window7_224": [96, 128]}


@pytest.mark.parametrize("name", SIZED)
def test_another_image_size_resamples_a_file_as_timm_does(name, tmp_path):
    option, path = SIZED[name], tmp_path / "w.pth"
    torch.save(draw_network(name).state_dict(), path)
    size = (option, option) if isinstance(option, int) else tuple(option)
    fields = {"weights": path, "options": {"img_size": option}}
    with featreg.create_extractor(f"timm:{name}", ["C4", "pooled", "logits"], **fields) as extractor:
        info, report = extractor.info, extractor.weights_report
        features, shapes = extractor(batch(*size)), extractor.output_shapes((1, 3, *size))
    network = load_by_timm(name, path, img_size=size)
    last = max(index for index, entry in enumerate(network.feature_info) if entry["reduction"] == 16)
    with torch.no_grad():
        images = torch.from_numpy(batch(*size))
        (level,) = network.forward_intermediates(images, [last], intermediates_only=True)
        final = network.forward_features(images)
        heads = {"pooled": network.forward_head(final, pre_logits=True), "logits": network.forward_head(final)}
    assert np.array_equal(features["C4"], level.numpy())
    for head, tensor in heads.items():
        assert np.array_equal(features[head], tensor.numpy()), head
    assert (info.input_size, info.preprocess.crop) == (size, size)
    assert shapes == {layer: array.shape for layer, array in features.items()}
    assert any("resampled by timm" in note for note in report.notes)


def test_preprocessing_keeps_the_part_that_is_cropped():
    with featreg.create_extractor("timm:swin_tiny_patch4_window7_224", "C2", options={"img_size": 192}) as extractor:
        info = extractor.info
    config = timm.data.resolve_data_config(
        {"img_size": 192}, pretrained_cfg=timm.get_pretrained_cfg("swin_tiny_patch4_window7_224").to_dict()
    )
    assert config["input_size"] == (3, 192, 192)
    assert info.preprocess.resize == (int(192 / config["crop_pct"]),) * 2
    assert info.input_rule.fixed == (192, 192)


def test_any_multiple_of_the_patch_goes_where_positions_are_dynamic(tmp_path):
    name, options = "vit_tiny_patch16_224", {"dynamic_img_size": True}
    network = draw_network(name, **options)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    fields = {"weights": tmp_path / "w.pth", "options": options}
    with featreg.create_extractor(f"timm:{name}", ["C4", "logits"], **fields) as extractor:
        features, shapes = extractor(batch(96, 160)), extractor.output_shapes((1, 3, 96, 160))
    with torch.no_grad():
        images = torch.from_numpy(batch(96, 160))
        (level,) = network.forward_intermediates(images, [11], norm=False, intermediates_only=True)
        logits = network(images)
    assert np.array_equal(features["C4"], level.numpy())
    assert np.array_equal(features["logits"], logits.numpy())
    assert shapes == {layer: array.shape for layer, array in features.items()}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_a_fine_tuned_file_gives_the_logits_of_its_own_classes(name, tmp_path):
    network = draw_network(name, num_classes=7)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    fields = {"weights": tmp_path / "w.pth", "options": {"num_classes": 7}}
    with featreg.create_extractor(f"timm:{name}", "logits", **fields) as extractor:
        found = extractor(batch(160, 160))["logits"]
        assert extractor.weights_report.misshaped == ()
    with torch.no_grad():
        assert np.array_equal(found, network(torch.from_numpy(batch(160, 160))).numpy())


def test_a_file_of_other_classes_and_of_another_size_keeps_its_features(tmp_path):
    torch.save(draw_network("test_vit", num_classes=7).state_dict(), tmp_path / "w.pth")
    fields = {"weights": tmp_path / "w.pth", "options": {"img_size": 96}}
    with featreg.create_extractor("timm:test_vit", "C4", **fields) as extractor:
        found = extractor(batch(96, 96))["C4"]
        assert extractor.weights_report.misshaped == ("head.bias", "head.weight")
    network = load_by_timm("test_vit", tmp_path / "w.pth", img_size=96, num_classes=7)
    with torch.no_grad():
        expected = network.forward_intermediates(torch.from_numpy(batch(96, 96)), [-1], intermediates_only=True)[0]
    assert np.array_equal(found, expected.numpy())
    with pytest.raises(WeightsError, match=r"head\.weight"):
        featreg.create_extractor("timm:test_vit", "logits", **fields)


def test_what_timm_cannot_resample_is_reported(tmp_path):
    state = draw_network("test_vit").state_dict()
    torch.save({**state, "blocks.0.norm1.weight": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"blocks\.0\.norm1\.weight"):
        featreg.create_extractor("timm:test_vit", "C4", weights=tmp_path / "w.pth", options={"img_size": 96})


@pytest.fixture
def folder(tmp_path):
    """A fine-tuned model as timm writes it."""
    network = draw_network("test_vit", num_classes=7)
    content = {"architecture": "test_vit", "num_classes": 7, "pretrained_cfg": network.pretrained_cfg}
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    return f"local-dir:{tmp_path}"


def test_a_folder_is_resampled_and_keeps_its_classes(folder):
    fields = {"weights": folder, "options": {"img_size": 96, "num_classes": 7}}
    with featreg.create_extractor("timm:test_vit", "logits", **fields) as extractor:
        found = extractor(batch(96, 96))["logits"]
    network = timm.create_model(folder, pretrained=True, img_size=96).eval()
    with torch.no_grad():
        assert np.array_equal(found, network(torch.from_numpy(batch(96, 96))).numpy())


def test_other_classes_than_those_of_named_weights_are_refused(folder):
    """timm would give a classifier of random weights."""
    for model, weights in (("test_vit", folder), ("resnet18", "a1_in1k"), ("resnet18", "default")):
        with pytest.raises(WeightsError, match="no classifier of 5 classes"):
            featreg.create_extractor(f"timm:{model}", "C4", weights=weights, options={"num_classes": 5})


@pytest.mark.parametrize(
    ("model", "option", "value"),
    [
        ("resnet18", "img_size", 192),
        ("resnet18", "dynamic_img_size", True),
        ("levit_128s", "dynamic_img_size", True),
        ("qwen3_vit_88m_enc", "num_classes", 7),  # an encoder: timm's builder drops it
        ("test_vit", "img_size", 8),  # less than a patch
        ("test_maxvit", "img_size", 100),  # no multiple of its windows
        ("crossvit_tiny_240", "img_size", 192),  # its second scale has no whole number of patches then
    ],
)
def test_an_option_that_the_network_does_not_take_is_refused(model, option, value):
    with pytest.raises(CapabilityError, match=option):
        featreg.create_extractor(f"timm:{model}", "features", options={option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("img_size", "192"),
        ("img_size", True),
        ("img_size", 0),
        ("img_size", 192.0),
        ("img_size", [192]),
        ("img_size", [192, -1]),
        ("num_classes", 0),
        ("num_classes", "7"),
        ("num_classes", None),
        ("dynamic_img_size", 1),
    ],
)
def test_a_value_of_another_type_is_refused(option, value):
    with pytest.raises(SpecError, match=option):
        featreg.create_extractor("timm:test_vit", "C4", options={option: value})


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(CapabilityError) as caught:
        featreg.create_extractor("timm:test_vit", "C4", options={"image_size": 96})
    assert "img_size" in caught.value.matches


def test_random_numbers_are_left_as_they_were(tmp_path):
    torch.save(draw_network("test_vit").state_dict(), tmp_path / "w.pth")
    state = torch.random.get_rng_state()
    featreg.create_extractor("timm:test_vit", "C4", weights=tmp_path / "w.pth", options={"img_size": 96}).close()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit_tiny_patch16_224", {"options": {"img_size": [96, 64]}}),
        ("resnet18", {"options": {"num_classes": 7}, "output_stride": 16}),
        ("resnet18", {"weights": "synthetic:3"}),
    ],
)
def test_what_is_described_is_what_would_be_opened(name, fields):
    described = featreg.describe(f"timm:{name}", **fields)
    with featreg.create_extractor(f"timm:{name}", [0], **fields) as extractor:
        assert extractor.info == described
    for wrong in ({"options": {"img": 1}}, {"output_stride": 5}):
        with pytest.raises(CapabilityError):
            featreg.describe("timm:resnet18", **wrong)


@pytest.mark.parametrize(("name", "channels", "size"), [("resnet18", 1, 32), ("resnet18", 5, 32), ("test_vit", 4, 160)])
def test_images_of_other_channels_with_weights_that_timm_adapts(name, channels, size, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(draw_network(name).state_dict(), path)
    images = np.random.default_rng(4).standard_normal((2, channels, size, size), dtype=np.float32)
    with featreg.create_extractor(f"timm:{name}", "logits", weights=path, options={"in_chans": channels}) as extractor:
        found = extractor(images)["logits"]
        assert extractor.output_shapes(images.shape) == {"logits": (2, 1000)}
        for wrong in (images[:, :1].repeat(3, 1), images.astype(np.uint8)):
            with pytest.raises(InputError, match=r"channels|shape"):
                extractor(wrong)
    with torch.no_grad():
        expected = load_by_timm(name, path, in_chans=channels)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    described = featreg.describe(f"timm:{name}", options={"in_chans": channels})
    assert (described.input_rule.channels, described.resolve("logits").channels) == (channels, 1000)
