"""extractor.module as a part of a larger model: a detector over a feature pyramid trains one step."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

import featreg

LEVELS = ["C2", "C3", "C4", "C5"]


class Pyramid(nn.Module):
    """A backbone of torchvision's detectors, built from nothing but what the extractor says of itself."""

    def __init__(self, extractor, channels=32):
        super().__init__()
        self.body = extractor.module
        self.fpn = FeaturePyramidNetwork([info.channels for info in extractor.feature_info.values()], channels)
        self.out_channels = channels

    def forward(self, images):
        return self.fpn(self.body(images))


@pytest.mark.parametrize("backend", ["torchvision", "timm"])
def test_a_mask_rcnn_over_an_fpn_trains_one_step(backend):
    pytest.importorskip(f"featreg_{backend}")
    torch.manual_seed(0)
    extractor = featreg.create_extractor(f"{backend}:resnet18", LEVELS)
    anchors = AnchorGenerator(tuple((16 * 2**k,) for k in range(4)), ((0.5, 1.0, 2.0),) * 4)
    model = MaskRCNN(
        Pyramid(extractor),
        num_classes=3,
        rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(LEVELS, 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, 14, 2),
        min_size=96,
        max_size=128,
    ).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    mask = torch.zeros(1, 96, 96, dtype=torch.uint8)
    mask[:, 20:60, 20:60] = 1
    target = {"boxes": torch.tensor([[20.0, 20.0, 60.0, 60.0]]), "labels": torch.tensor([1]), "masks": mask}
    before = {name: value.detach().clone() for name, value in extractor.module.named_parameters()}
    losses = model([torch.rand(3, 96, 96)], [target])
    sum(losses.values()).backward()
    optimizer.step()
    assert set(losses) > {"loss_mask", "loss_classifier"}
    trained = dict(extractor.module.named_parameters())
    assert all(value.grad is not None and value.grad.isfinite().all() for value in trained.values())
    assert not torch.equal(trained[next(iter(before))], before[next(iter(before))])
    features = extractor(torch.rand(1, 3, 64, 64))
    assert features["C5"].shape == (1, 512, 2, 2)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_those_of_the_raw_model(training):
    extractor = featreg.create_extractor("torchvision:resnet18", LEVELS)
    raw = resnet18()
    with torch.no_grad():
        for name, parameter in extractor.module.network.named_parameters():
            raw.get_parameter(name).copy_(parameter)
    raw.train(training)
    extractor.module.train(training)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    x = raw.maxpool(raw.relu(raw.bn1(raw.conv1(images))))
    expected = []
    for layer in (raw.layer1, raw.layer2, raw.layer3, raw.layer4):
        x = layer(x)
        expected.append(x)
    sum(value.square().mean() for value in expected).backward()
    features = extractor.module(images)
    sum(value.square().mean() for value in features.values()).backward()
    assert list(features) == LEVELS
    for name, parameter in extractor.module.network.named_parameters():
        # equal up to the order in which the gradients of several levels are summed
        torch.testing.assert_close(parameter.grad, raw.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


def test_parameters_behind_the_last_layer_are_gone():
    raw = dict(resnet18().named_parameters())
    extractor = featreg.create_extractor("torchvision:resnet18", ["C2"])
    kept = {name for name, _ in extractor.module.network.named_parameters()}
    assert kept == {name for name in raw if name.startswith(("conv1", "bn1", "layer1"))}
    assert sum(p.numel() for p in extractor.module.parameters()) == sum(raw[name].numel() for name in kept)


@torch.no_grad()
def test_the_graph_compiles_and_exports():
    module = featreg.create_extractor("torchvision:resnet18", ["C2", "C3"]).module
    images = torch.rand(1, 3, 64, 64)
    expected = module(images)
    compiled = torch.compile(module, backend="eager", fullgraph=True)(images)
    exported = torch.export.export(module, (images,), strict=False).module()(images)
    for found in (compiled, exported):
        assert all(torch.equal(found[key], value) for key, value in expected.items())
