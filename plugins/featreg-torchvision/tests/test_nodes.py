"""Native names are torchvision's own, in both modes; and each trap of its feature extraction, sprung and avoided."""

import numpy as np
import pytest
import torch
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import featreg
from featreg import errors
from featreg_torchvision.graph import Trace

NAMES = ["resnet18", "googlenet", "densenet121", "vit_b_32", "lraspp_mobilenet_v3_large"]


def raw_model(name):
    options = {"weights_backbone": None} if "lraspp" in name else {}
    options |= {"init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_model(name, weights=None, **options).eval()


def on_meta(name):
    with torch.device("meta"):
        return raw_model(name)


def image(side=64):
    return np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_get_graph_node_names_in_either_mode(name):
    network = on_meta(name)
    train, evaluation = get_graph_node_names(network, suppress_diff_warning=True)
    assert list(Trace(network).nodes) == evaluation
    assert list(Trace(network, train=True).nodes) == train


@pytest.mark.parametrize("train", [False, True])
def test_listed_nodes_are_named_nodes_then_modules_with_types_and_shapes(train):
    network = on_meta("googlenet")
    names = get_graph_node_names(network, suppress_diff_warning=True)[0 if train else 1]
    nodes = featreg.list_nodes("torchvision:googlenet", (96, 128), train=train)
    assert [node.name for node in nodes][: len(names)] == names
    modules = {name for name, _ in network.named_modules()}
    assert {node.name for node in nodes[len(names) :]} < modules
    found = {node.name: node for node in nodes}
    assert ("aux1.fc2" in found) is train
    assert (found["conv1.conv"].type, found["conv1.conv"].shape) == ("Conv2d", (64, 48, 64))
    assert (found["inception4a"].type, found["inception4a"].shape) == ("Inception", (512, 6, 8))
    assert (found["flatten"].type, found["flatten"].shape) == ("flatten", (1024,))
    assert (found["fc"].type, found["fc"].shape) == ("Linear", (1000,))


def test_names_of_training_alone_cannot_be_extracted():
    with pytest.raises(errors.LayerError):
        featreg.create_extractor("torchvision:googlenet", ["aux1.fc2"])


def test_the_parts_of_a_detector_have_the_names_that_its_backbone_s_nodes_have():
    with torch.device("meta"):
        network = get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None)
    own = get_graph_node_names(network.backbone, suppress_diff_warning=True)[1]
    names = {node.name for node in featreg.list_nodes("torchvision:fasterrcnn_resnet50_fpn", (64, 64))}
    assert {f"backbone.{name}" for name in own if name.startswith("body.")} <= names
    assert "fpn" in own  # one node that gives a dictionary, whose maps cannot be asked for
    assert {"backbone.fpn.layer_blocks.0", "backbone.fpn.inner_blocks.3", "backbone.fpn.extra_blocks"} <= names
    with pytest.raises(ValueError, match="not present"):
        create_feature_extractor(network.backbone, ["fpn.layer_blocks.0"], suppress_diff_warning=True)


# --- traps: what torchvision's own extractor does, and what a backend does instead ------------------------------------


def library_s(model, layers, images):
    extractor = create_feature_extractor(model, layers, suppress_diff_warning=True).eval()
    with torch.no_grad():
        return {name: array.numpy() for name, array in extractor(torch.from_numpy(images)).items()}


def ours(layers, images, model="torchvision:resnet18"):
    with featreg.create_extractor(model, layers) as extractor:
        return extractor(images)


def test_order_is_the_request_s_and_not_that_of_execution():
    layers, images = ["layer2", "bn1", "layer1"], image()
    assert list(library_s(raw_model("resnet18"), layers, images)) == ["bn1", "layer1", "layer2"]
    assert list(ours(layers, images)) == layers


def test_a_repeated_layer_is_refused_and_does_not_vanish():
    assert len(library_s(raw_model("resnet18"), ["layer1", "layer1"], image())) == 1
    with pytest.raises(errors.LayerError):
        featreg.create_extractor("torchvision:resnet18", ["layer1", "layer1"])


def test_two_names_of_one_node_give_two_features():
    layers, images = ["layer1", "layer1.1", "layer1.1.relu_1"], image()
    assert len(library_s(raw_model("resnet18"), layers, images)) < 3
    features = ours(layers, images)
    assert list(features) == layers
    assert all(np.array_equal(features[layer], features["layer1"]) for layer in layers)


def test_a_name_is_no_pattern():
    assert library_s(raw_model("resnet18"), ["l.yer1"], image()) == {}
    with pytest.raises(errors.LayerError) as caught:
        featreg.create_extractor("torchvision:resnet18", ["l.yer1"])
    assert "layer1" in caught.value.matches


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "bn1"), ("vgg11", "features.0"), ("densenet121", "features.norm0")]
)
def test_an_activation_in_place_does_not_overwrite_a_tap(name, layer):
    model, images = raw_model(name), image()
    true = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *args: true.append(args[2].clone().numpy()))
    with torch.no_grad():
        model(torch.from_numpy(images))
    handle.remove()
    after = {"resnet18": "relu", "vgg11": "features.1", "densenet121": "features.relu0"}[name]
    both = library_s(model, [layer, after], images)
    assert (true[0] < 0).any()
    assert not (both[layer] < 0).any()
    assert np.array_equal(ours([layer, after], images, f"torchvision:{name}")[layer], true[0])


def test_the_last_operation_at_a_stride_is_no_level():
    """The last node at stride 4 lies inside the next block, and has other channels in an EfficientNet."""
    for name, node, level in (
        ("resnet50", "layer2.0.relu", "layer1"),
        ("efficientnet_b0", "features.3.0.block.0", "features.2"),
    ):
        trace = Trace(on_meta(name))
        shapes = {key: sizes[(224, 224)] for key, sizes in trace.shapes((224, 224)).items()}
        last = [key for key, shape in shapes.items() if shape[2:] == (56, 56)][-1]
        described = featreg.describe(f"torchvision:{name}").resolve("C2")
        assert last == node
        assert described.name == level
        assert described.channels != shapes[last][1]


def test_an_auxiliary_head_that_takes_fewer_sizes_does_not_hide_the_training_graph():
    nodes = {node.name: node.shape for node in featreg.list_nodes("torchvision:inception_v3", train=True)}
    assert nodes["AuxLogits.fc"] == (1000,)


def test_a_node_with_as_many_heads_as_a_probe_has_images_is_refused():
    """The relative position bias of two heads is no batch of two sequences."""
    node = "blocks.0.layers.0.layers.grid_attention.attn_layer.1.permute_3"
    with pytest.raises(errors.CapabilityError, match="no output per image"):
        featreg.create_extractor("torchvision:maxvit_t", [node], weights=None)
