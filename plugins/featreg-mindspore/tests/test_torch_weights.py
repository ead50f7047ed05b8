"""Checkpoints of torch's libraries in mindcv's networks: every name has its place, and the features are torch's.

The reference is the torch library's own network, run here with the weights that the test saves. To agree is to differ
by less than 1e-4 of a layer's largest value; networks are random, and so small inputs do.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision

import featreg
from featreg.plugin import WeightsReport, errors
from featreg_mindspore import likeness, networks, weights
from featreg_mindspore.families import family_of
from featreg_mindspore.libraries import mindspore, nn
from featreg_mindspore.onednn import cap_instruction_set
from featreg_mindspore.reading import Checkpoint, read_checkpoint
from featreg_mindspore.trace import run

TOLERANCE = 1e-4
ALIKE = {"padding": "torch"}
ZERO = np.float32(0)


@pytest.fixture(autouse=True, scope="module")
def capped() -> None:
    """As the backend does when it is made: here networks run before."""
    cap_instruction_set()


def build(library: str, model: str) -> Any:
    return torchvision.models.get_model(model) if library == "torchvision" else timm.create_model(model)


def random_network(library: str, model: str) -> Any:
    """A network whose every number matters: running statistics and scales are drawn too."""
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = build(library, model).eval()
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif name.endswith("running_mean") or value.ndim == 1:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
            elif name.endswith(("layer_scale", "relative_position_bias_table")):
                value.copy_(torch.randn(value.shape, generator=generator))
    return network


def deviation(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def images(side: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).standard_normal((1, 3, side, side)).astype(np.float32)


# --- names ------------------------------------------------------------------------------------------------------------

PAIRS = [
    ("resnet18", "torchvision", "resnet18"),
    ("resnet50", "torchvision", "resnet50"),
    ("resnext50_32x4d", "timm", "resnext50_32x4d"),
    ("convnext_tiny", "timm", "convnext_tiny"),
    ("convnext_base", "torchvision", "convnext_base"),
    ("mobilenet_v2_100", "torchvision", "mobilenet_v2"),
    ("mobilenet_v2_100", "timm", "mobilenetv2_100"),
    ("mobilenet_v3_large_100", "torchvision", "mobilenet_v3_large"),
    ("mobilenet_v3_small_100", "timm", "mobilenetv3_small_100"),
    ("efficientnet_b0", "torchvision", "efficientnet_b0"),
    ("efficientnet_b0", "timm", "efficientnet_b0"),
    ("efficientnet_v2_s", "torchvision", "efficientnet_v2_s"),
    ("efficientnet_v2_s", "timm", "tf_efficientnetv2_s"),
    ("vgg16", "torchvision", "vgg16"),
    ("vgg16", "timm", "vgg16"),
    ("densenet121", "torchvision", "densenet121"),
    ("densenet121", "timm", "densenet121"),
    ("regnet_y_400mf", "torchvision", "regnet_y_400mf"),
    ("regnet_y_400mf", "timm", "regnety_004"),
    ("regnet_x_400mf", "timm", "regnetx_004"),  # torchvision's is wider than mindcv's at its end
    ("regnet_x_800mf", "torchvision", "regnet_x_800mf"),
    ("regnet_y_800mf", "timm", "regnety_008"),
    ("regnet_y_8_0gf", "timm", "regnety_080"),
    ("swin_tiny", "torchvision", "swin_t"),
    ("swin_tiny", "timm", "swin_tiny_patch4_window7_224"),
    ("vit_b_16_224", "torchvision", "vit_b_16"),
    ("vit_b_16_224", "timm", "vit_base_patch16_224"),
]


@pytest.mark.parametrize(("ours", "library", "theirs"), PAIRS)
def test_every_name_has_its_place(ours: str, library: str, theirs: str) -> None:
    with torch.device("cpu" if theirs.startswith("regnet_") else "meta"):  # torchvision's RegNet copies while it builds
        state = build(library, theirs).state_dict()
    shapes = {name: np.broadcast_to(ZERO, tuple(value.shape)) for name, value in state.items()}
    checkpoint = Checkpoint(shapes, WeightsReport(theirs))
    family = family_of(ours)
    assert family is not None
    network = networks.build(ours, filled=False)
    source = weights.find_source(checkpoint, network, family)
    assert source is not None
    assert library in source.library
    found = weights.misfit(checkpoint, weights.parameters(network), source, family)
    assert not found, str(found)


def checkpoint_of(library: str, model: str, **more: tuple[int, ...]) -> Checkpoint:
    with torch.device("meta"):
        state = build(library, model).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    shapes |= {name.replace("__", "."): shape for name, shape in more.items()}
    return Checkpoint({name: np.broadcast_to(ZERO, shape) for name, shape in shapes.items()}, WeightsReport(model))


def test_no_name_is_dropped_that_no_rule_knows() -> None:
    """torchvision's ViT has no ``blocks``: what a file has there is not its own, and is said."""
    family, network = family_of("vit_b_16_224"), networks.build("vit_b_16_224", filled=False)
    checkpoint = checkpoint_of("torchvision", "vit_b_16", blocks__99__norm1__weight=(768,))
    source = weights.find_source(checkpoint, network, family)
    assert source is not None
    assert source.library == "torchvision"
    with pytest.raises(errors.WeightsError, match=r"1 unexpected: blocks\.99\.norm1"):
        weights.load_into(weights.parameters(network), checkpoint, source, family)


def test_what_a_rule_drops_is_reported() -> None:
    """torch's Swin stores the index of its relative positions, which mindcv computes."""
    family, network = family_of("swin_tiny"), networks.build("swin_tiny", filled=False)
    checkpoint = checkpoint_of("torchvision", "swin_t")
    source = weights.find_source(checkpoint, network, family)
    report = weights.load_into(weights.parameters(network), checkpoint, source, family)
    indices = [name for name in checkpoint.state if name.endswith("relative_position_index")]
    assert len(indices) == 12
    assert report.ignored == tuple(indices)


def test_in_order_another_classifier_is_left_out_where_it_is_not_needed(tmp_path: Path) -> None:
    torch.save(timm.create_model("mobilenetv3_small_100", num_classes=7).state_dict(), tmp_path / "seven.pth")
    model = "mindspore:mobilenet_v3_small_100"
    with featreg.create_extractor(model, "C2", weights=tmp_path / "seven.pth") as extractor:
        report = extractor.weights_report
    assert report is not None
    assert (report.mapped, len(report.misshaped)) == ("timm to mindcv", 2)
    with pytest.raises(errors.WeightsError):
        featreg.create_extractor(model, "logits", weights=tmp_path / "seven.pth")


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "library", "theirs", "side"),
    [
        ("mobilenet_v2_100", "torchvision", "mobilenet_v2", 64),
        ("mobilenet_v3_small_100", "timm", "mobilenetv3_small_100", 64),
        ("efficientnet_b0", "timm", "efficientnet_b0", 64),
        ("regnet_y_400mf", "torchvision", "regnet_y_400mf", 65),
        ("convnext_tiny", "torchvision", "convnext_tiny", 65),
        ("densenet121", "timm", "densenet121", 65),
        ("swin_tiny", "torchvision", "swin_t", 224),
        ("vit_b_16_224", "torchvision", "vit_b_16", 224),
    ],
)
def test_outputs_are_torchs(ours: str, library: str, theirs: str, side: int, tmp_path: Path) -> None:
    family, network, torchs = family_of(ours), networks.build(ours, filled=False), random_network(library, theirs)
    assert family is not None
    torch.save(torchs.state_dict(), tmp_path / "torch.pth")
    checkpoint = read_checkpoint(str(tmp_path / "torch.pth"))
    source = weights.find_source(checkpoint, network, family)
    assert source is not None
    likeness.imitate(network, source)
    weights.load_into(weights.parameters(network), checkpoint, source, family)
    with torch.no_grad():
        expected = torchs(torch.from_numpy(images(side))).numpy()
    assert deviation(run(network, images(side)).asnumpy(), expected) < TOLERANCE


def test_levels_are_torchs_at_even_and_odd_sizes_once_padding_and_epsilon_are(tmp_path: Path) -> None:
    """At 224 pixels mindcv pads otherwise than torchvision, at every size it adds another epsilon; and it says so."""
    layers = ["C1", "C2", "C3", "C4", "C5", "pooled", "logits"]
    path = tmp_path / "torch.pth"
    torch.save(random_network("torchvision", "mobilenet_v3_small").state_dict(), path)
    with featreg.create_extractor("torchvision:mobilenet_v3_small", layers, weights=path) as extractor:
        expected = {side: extractor(images(side)) for side in (224, 225)}
    worst, said = {}, {}
    for way, options in (("mindcv", {}), ("torch", ALIKE)):
        with featreg.create_extractor(
            "mindspore:mobilenet_v3_small_100", layers, weights=path, options=options
        ) as extractor:
            assert str(extractor.weights_report).endswith("names mapped: torchvision to mindcv")
            said[way] = extractor.info.deviations
            for side in (224, 225):
                found = extractor(images(side))
                worst[way, side] = max(deviation(found[layer], expected[side][layer]) for layer in layers)
    assert max(worst["torch", 224], worst["torch", 225]) < TOLERANCE
    assert worst["mindcv", 224] > 0.1
    assert worst["mindcv", 225] > TOLERANCE
    assert said["torch"] == ()
    assert said["mindcv"] == featreg.describe("mindspore:mobilenet_v3_small_100").deviations
    assert any("SAME" in sentence for sentence in said["mindcv"])
    assert any("adds 1e-05 to the variance, not 0.001 as in torchvision" in sentence for sentence in said["mindcv"])


def test_a_resnet_differs_at_even_sizes_alone(tmp_path: Path) -> None:
    network = random_network("torchvision", "resnet18")
    torch.save(network.state_dict(), tmp_path / "torch.pth")
    worst = {}
    with featreg.create_extractor("mindspore:resnet18", "C2", weights=tmp_path / "torch.pth") as extractor:
        assert len(extractor.info.deviations) == 1
        assert extractor.info.deviations[0].startswith("max pooling pads as TensorFlow's SAME")
        for side in (64, 65):
            stem = torch.nn.Sequential(*list(network.children())[:5])
            with torch.no_grad():
                worst[side] = deviation(extractor(images(side))["C2"], stem(torch.from_numpy(images(side))).numpy())
    assert worst[64] > 0.1
    assert worst[65] < TOLERANCE


def test_a_network_that_computes_alike_deviates_in_nothing() -> None:
    assert featreg.describe("mindspore:regnet_y_400mf").deviations == ()


def test_grids_are_torchs_where_the_padding_is() -> None:
    """mindcv's ConvNeXt gives 57 rows at 225 pixels, torch's 56."""
    info = featreg.describe("mindspore:convnext_tiny", (225, 225))
    assert [info.resolve(layer).shape(1, 225, 225) for layer in ("C2", "C5")] == [(1, 96, 57, 57), (1, 768, 8, 8)]
    with featreg.create_extractor("mindspore:convnext_tiny", ["C2", "C5"], options=ALIKE) as extractor:
        assert extractor.output_shapes((1, 3, 225, 225)) == {"C2": (1, 96, 56, 56), "C5": (1, 768, 7, 7)}


# --- the rest ---------------------------------------------------------------------------------------------------------


class Vgg(nn.Cell):  # type: ignore[misc]
    """A VGG as mindcv builds them: no biases in the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.SequentialCell(
            [nn.Conv2d(3, 4, 3, pad_mode="pad", padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3)]
        )
        self.classifier = nn.SequentialCell([nn.Dense(5, 6)])

    def construct(self, x: Any) -> Any:
        return self.classifier(self.features(x).mean((2, 3)))


def test_biases_that_mindcv_leaves_out_are_added(tmp_path: Path) -> None:
    """mindcv's convolutions of VGG have none, so that torch's weights could not compute what they should."""
    family = family_of("vgg16")
    assert family is not None
    theirs = torch.nn.Module()
    theirs.features = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3, padding="same")
    )
    theirs.classifier = torch.nn.Sequential(torch.nn.Linear(5, 6))
    torch.save(theirs.state_dict(), tmp_path / "vgg.pth")
    network, checkpoint = Vgg(), read_checkpoint(str(tmp_path / "vgg.pth"))
    source = weights.find_source(checkpoint, network, family)
    assert source is not None
    checkpoint = weights.prepare(network, checkpoint, source)
    report = weights.load_into(weights.parameters(network), checkpoint, source, family)
    assert report.notes == ("2 layers were given the biases that mindcv leaves out",)
    batch = images(8)
    with torch.no_grad():
        expected = theirs.classifier(theirs.features(torch.from_numpy(batch)).mean((2, 3))).numpy()
    np.testing.assert_allclose(network(mindspore.Tensor(batch)).asnumpy(), expected, rtol=1e-4, atol=1e-6)


def test_wrappings_and_another_classifier_are_handled_as_elsewhere(tmp_path: Path) -> None:
    network = torchvision.models.resnet18(num_classes=7).eval()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "seven.tar")
    with featreg.create_extractor("mindspore:resnet18", "C2", weights=tmp_path / "seven.tar") as extractor:
        report = extractor.weights_report
    assert report is not None
    assert (report.unwrapped, report.prefixes) == (("state_dict",), ("module.",))
    assert report.kept == ("classifier.bias", "classifier.weight")
    with pytest.raises(errors.WeightsError, match="2 mis-shaped"):
        featreg.create_extractor("mindspore:resnet18", "logits", weights=tmp_path / "seven.tar")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.mobilenet_v3_small(), tmp_path / "module.pth")
    with pytest.raises(errors.WeightsError, match="pickled objects are not loaded"):
        featreg.create_extractor("mindspore:resnet18", "C2", weights=tmp_path / "module.pth")


def test_without_torch_its_files_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "torch.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(errors.WeightsError, match="torch is not installed") as caught:
        read_checkpoint(str(tmp_path / "torch.pth"))
    assert "safetensors" in caught.value.remedy


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [
        ("resnet18", {"padding": "same"}, errors.SpecError),
        ("resnet18", {"ema": 1}, errors.SpecError),
        ("resnet18", {"pad": "torch"}, errors.CapabilityError),
        ("squeezenet1_0", ALIKE, errors.CapabilityError),
    ],
)
def test_options_that_do_not_exist_are_refused(model: str, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        featreg.create_extractor(f"mindspore:{model}", "C2", options=options)
