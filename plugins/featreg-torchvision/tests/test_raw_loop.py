"""A store, row for row, against a loop that knows nothing of featreg: torchvision's transform and its own extractor."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.models.feature_extraction import create_feature_extractor

import featreg

PHOTOS = Path(__file__).parents[3] / "photos"
NODES = {"layer2": "C3", "layer4": "C5", "avgpool": "pooled", "fc": "logits"}
BATCH = 5


def raw_features(network, paths):
    """What ``create_feature_extractor`` gives for the photos, batch by batch, by featreg's names."""
    transform = ResNet18_Weights.DEFAULT.transforms()
    extractor = create_feature_extractor(network.eval(), NODES)
    found = {layer: [] for layer in NODES.values()}
    for start in range(0, len(paths), BATCH):
        images = [transform(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH]]
        with torch.no_grad():
            outputs = extractor(torch.stack(images))
        for layer, output in outputs.items():
            found[layer].append(output.numpy())
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


def test_every_row_of_a_store_is_that_of_a_loop_by_hand(tmp_path):
    torch.manual_seed(3)
    network = resnet18()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    store = featreg.extract(
        PHOTOS,
        tmp_path / "store",
        "torchvision:resnet18",
        list(NODES.values()),
        weights=tmp_path / "resnet18.pth",
        batch_size=BATCH,
        num_workers=2,
    )
    paths = sorted(path for path in PHOTOS.rglob("*") if path.suffix in (".jpg", ".png"))
    assert store.keys == [path.relative_to(PHOTOS).as_posix() for path in paths]
    assert [store.classes[target] for target in store.targets] == [path.parent.name for path in paths]
    expected = raw_features(network, paths)
    expected["pooled"] = expected["pooled"][:, :, 0, 0]
    for layer, rows in expected.items():
        np.testing.assert_array_equal(store[layer][:], rows, strict=True)
    assert len(np.unique(store["pooled"][:], axis=0)) == len(paths)
