"""A store, row for row, against a loop that knows nothing of featreg: timm's data configuration and its own forward."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import featreg

PHOTOS = Path(__file__).parents[3] / "photos"
BATCH = 5


def raw_features(network, paths):
    """The last features, the pooled ones and the logits of the photos, batch by batch."""
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    found = {"features": [], "pooled": [], "logits": []}
    for start in range(0, len(paths), BATCH):
        images = [transform(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH]]
        with torch.no_grad():
            features = network.forward_features(torch.stack(images))
            found["features"].append(features.numpy())
            found["pooled"].append(network.forward_head(features, pre_logits=True).numpy())
            found["logits"].append(network.forward_head(features).numpy())
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


@pytest.mark.parametrize(("model", "last"), [("resnet10t", "features"), ("vit_tiny_patch16_224", "tokens")])
def test_every_row_of_a_store_is_that_of_a_loop_by_hand(model, last, tmp_path):
    torch.manual_seed(3)
    network = timm.create_model(model).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    layers = [last, "pooled", "logits"]
    store = featreg.extract(
        PHOTOS,
        tmp_path / "store",
        f"timm:{model}",
        layers,
        weights=tmp_path / "weights.pth",
        batch_size=BATCH,
        num_workers=2,
    )
    paths = sorted(path for path in PHOTOS.rglob("*") if path.suffix in (".jpg", ".png"))
    assert store.keys == [path.relative_to(PHOTOS).as_posix() for path in paths]
    expected = raw_features(network, paths)
    for layer, rows in zip(layers, expected.values(), strict=True):
        np.testing.assert_array_equal(store[layer][:], rows, strict=True)
    assert len(np.unique(store["pooled"][:], axis=0)) == len(paths)
