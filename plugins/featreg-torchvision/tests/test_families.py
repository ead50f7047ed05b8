"""Detectors, segmentation, optical flow, quantised and dilated networks, against raw networks with the same weights."""

import numpy as np
import pytest
import torch
from torchvision.models import get_model, list_models

import featreg
from featreg import errors
from featreg_torch.backend import Variant
from featreg_torchvision.backend import TorchvisionBackend

VIDEO = {"mc3_18", "mvit_v1_b", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_b", "swin3d_s", "swin3d_t"}


def batch(height, width, count=1):
    return np.random.default_rng(0).standard_normal((count, 3, height, width), dtype=np.float32)


def raw_model(name, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_model(name, weights=None, **options).eval()


def run(module, images):
    with torch.no_grad():
        return module(torch.from_numpy(images))


def upto(body, last):
    return torch.nn.Sequential(*[module for name, module in body.items() if int(name) <= last])


def levels(info):
    described = [feature for feature in info.features if feature.level]
    return {feature.level: (feature.name, feature.channels, feature.reduction) for feature in described}


def test_every_model_is_listed_and_only_video_is_refused():
    assert set(featreg.list_models("torchvision")) == set(list_models())
    assert len(list_models()) == 121
    for name in VIDEO:
        for call in (featreg.describe, featreg.list_nodes):
            with pytest.raises(errors.CapabilityError, match="clips"):
                call(f"torchvision:{name}")
        with pytest.raises(errors.CapabilityError, match="clips"):
            featreg.create_extractor(f"torchvision:{name}", ["C2"])


def test_a_detector_gives_its_backbone_s_levels_and_pyramid():
    pyramid = [f"backbone.fpn.layer_blocks.{k}" for k in range(2)]
    model = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"
    images = batch(75, 97)
    with featreg.create_extractor(model, ["C1", "C4", "C5", "features", *pyramid]) as extractor:
        features = extractor(images)
        assert extractor.output_shapes(images.shape) == {key: array.shape for key, array in features.items()}
        info = extractor.info
    raw = raw_model("fasterrcnn_mobilenet_v3_large_320_fpn", weights_backbone=None)
    body, maps = run(raw.backbone.body, images), run(raw.backbone, images)
    assert np.array_equal(features["C4"], run(upto(raw.backbone.body, 12), images))
    assert np.array_equal(features["C5"], body["1"])
    assert np.array_equal(features["features"], body["1"])
    assert np.array_equal(features[pyramid[0]], maps["0"])
    assert np.array_equal(features[pyramid[1]], maps["1"])
    assert levels(info)["C5"] == ("backbone.body.16", 960, 32)
    with pytest.raises(errors.CapabilityError):
        featreg.create_extractor(model, ["logits"])
    with pytest.raises(errors.LayerError):
        featreg.create_extractor(model, ["roi_heads.box_head"])


def test_a_described_pyramid_is_the_one_that_the_backbone_returns():
    info = featreg.describe("torchvision:retinanet_resnet50_fpn")
    with torch.device("meta"):
        backbone = get_model("retinanet_resnet50_fpn", weights=None, weights_backbone=None).backbone.eval()
        maps = backbone(torch.empty(1, 3, *info.input_size))
    pyramid = [feature for feature in info.features if feature.name.startswith("backbone.fpn.")]
    assert [feature.shape(1, *info.input_size) for feature in pyramid] == [tuple(one.shape) for one in maps.values()]
    assert [feature.reduction for feature in pyramid] == [8, 16, 32, 64, 128]
    assert [feature.name for feature in pyramid[-2:]] == [
        "backbone.fpn.extra_blocks.p6",
        "backbone.fpn.extra_blocks.p7",
    ]
    assert all(feature.level is None for feature in pyramid)


def test_ssd_levels_are_its_own_outputs():
    images = batch(300, 300)  # smaller ones end before the last of its outputs
    with featreg.create_extractor("torchvision:ssd300_vgg16", ["C3", "C4", "C5"]) as extractor:
        features = extractor(images)
    raw = run(raw_model("ssd300_vgg16", weights_backbone=None).backbone, images)
    for level, output in {"C3": "0", "C4": "1", "C5": "2"}.items():
        assert np.array_equal(features[level], raw[output])


def test_segmentation_levels_keep_the_stage_boundaries_of_the_dilated_backbone():
    images = batch(65, 97)
    layers = ["C3", "C4", "C5", "classifier", "interpolate"]
    with featreg.create_extractor("torchvision:fcn_resnet50", layers) as extractor:
        features = extractor(images)
        found = levels(extractor.info)
    assert found == {
        "C1": ("backbone.relu", 64, 2),
        "C2": ("backbone.layer1", 256, 4),
        "C3": ("backbone.layer2", 512, 8),
        "C4": ("backbone.layer3", 1024, 8),
        "C5": ("backbone.layer4", 2048, 8),
    }
    raw = raw_model("fcn_resnet50", weights_backbone=None, aux_loss=True)
    out, maps = run(raw, images)["out"], run(raw.backbone, images)
    assert np.array_equal(features["C5"], maps["out"])
    assert np.array_equal(features["C4"], maps["aux"])
    assert np.array_equal(features["interpolate"], out)
    assert features["classifier"].shape == (1, 21, 9, 13)
    with pytest.raises(errors.CapabilityError, match="logits"):
        featreg.create_extractor("torchvision:fcn_resnet50", ["logits"])


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_mobilenet_backbones_of_segmentation(name):
    found = levels(featreg.describe(f"torchvision:{name}", (97, 65)))
    assert found["C4"] == ("backbone.12", 112, 16)
    assert found["C5"] == ("backbone.16", 960, 16)


def test_optical_flow_gives_its_encoders_of_single_images():
    images = batch(72, 88)
    layers = ["C2", "C3", "context_encoder.layer3"]
    with featreg.create_extractor("torchvision:raft_small", layers) as extractor:
        features = extractor(images)
    raw = raw_model("raft_small")
    assert np.array_equal(features["C3"], run(raw.feature_encoder, images))
    stem = run(torch.nn.Sequential(raw.feature_encoder.convnormrelu, raw.feature_encoder.layer1), images)
    assert np.array_equal(features["C2"], run(raw.feature_encoder.layer2, stem.numpy()))
    assert features["context_encoder.layer3"].shape == (1, 96, 9, 11)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_quantised_models_are_their_float_networks(name):
    images = batch(64, 80)
    with featreg.create_extractor(f"torchvision:quantized_{name}", ["C4", "C5", "logits"]) as extractor:
        features = extractor(images)
        described = levels(extractor.info)
    assert described == levels(featreg.describe(f"torchvision:{name}"))
    raw = raw_model(f"quantized_{name}", quantize=False)
    assert np.array_equal(features["logits"], run(raw, images))


# the reductions of C3, C4 and C5 at each output stride
DILATED = {8: (8, 8, 8), 16: (8, 16, 16), 32: (8, 16, 32)}


@pytest.mark.parametrize("stride", DILATED)
def test_a_dilated_resnet_keeps_the_names_of_its_levels(stride):
    images = batch(65, 97)
    keys = ["C3", "C4", "C5"]
    with featreg.create_extractor("torchvision:resnet50", [*keys, "pooled"], output_stride=stride) as extractor:
        features = extractor(images)
        assert extractor.output_shapes(images.shape) == {key: array.shape for key, array in features.items()}
        assert [features.info[key].reduction for key in keys] == list(DILATED[stride])
        assert [features.info[key].name for key in keys] == ["layer2", "layer3", "layer4"]
    raw = raw_model("resnet50", replace_stride_with_dilation=(False, stride <= 8, stride <= 16))
    x = run(torch.nn.Sequential(raw.conv1, raw.bn1, raw.relu, raw.maxpool, raw.layer1, raw.layer2, raw.layer3), images)
    assert np.array_equal(features["C4"], x)
    assert np.array_equal(features["C5"], run(raw.layer4, x.numpy()))


def test_mobilenet_v3_dilates_its_last_stage():
    backend = TorchvisionBackend()
    blueprint = backend._blueprint(Variant("mobilenet_v3_small", output_stride=16))
    infos = {reading.info.level: reading.info for reading in blueprint.read(blueprint.outlets) if reading.info.level}
    assert {level: info.reduction for level, info in infos.items()} == {"C1": 2, "C2": 4, "C3": 8, "C4": 16, "C5": 16}
    assert [infos[level].name for level in ("C4", "C5")] == ["features.8", "features.12"]


@pytest.mark.parametrize(
    ("name", "stride"),
    [("resnet18", 8), ("resnet50", 4), ("mobilenet_v3_large", 8), ("vgg11", 16), ("fcn_resnet50", 16), ("swin_t", 8)],
)
def test_what_torchvision_cannot_dilate_is_refused(name, stride):
    with pytest.raises(errors.CapabilityError, match="output_stride"):
        featreg.create_extractor(f"torchvision:{name}", ["C5"], output_stride=stride)


def test_only_models_that_dilate_say_so():
    backend = TorchvisionBackend()
    for name, expected in {"resnet50": True, "resnet18": False, "mobilenet_v3_small": True, "vgg11": False}.items():
        assert ("output_stride" in backend.supported(Variant(name))) is expected
