"""A store, row for row, against a loop that knows nothing of featreg: MindSpore's own transforms, mindcv's network.

mindcv's own pipeline decodes and resizes in another library than Pillow, so the transforms are those that MindSpore
has for Pillow's images.
"""

from pathlib import Path

import numpy as np
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter
from PIL import Image

import featreg
from featreg_mindspore.libraries import mindcv, mindspore

DEFAULT_CROP_PCT = mindcv.data.constants.DEFAULT_CROP_PCT
IMAGENET_DEFAULT_MEAN = mindcv.data.constants.IMAGENET_DEFAULT_MEAN
IMAGENET_DEFAULT_STD = mindcv.data.constants.IMAGENET_DEFAULT_STD
PHOTOS = Path(__file__).parents[3] / "photos"
MODEL = "resnet18"
BATCH = 5
ROUNDING = 1e-6
"""A part of the largest value: MindSpore normalises in another order of operations than featreg."""


def transform(path):
    """A photo as mindcv's evaluation pipeline gives it to a network without a configuration of its own."""
    image = vision.Resize(int(224 / DEFAULT_CROP_PCT), Inter.BILINEAR)(Image.open(path).convert("RGB"))
    pixels = np.asarray(vision.CenterCrop(224)(image))
    return vision.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)(pixels).transpose(2, 0, 1)


def test_every_row_of_a_store_is_that_of_a_loop_by_hand(tmp_path):
    mindspore.set_seed(3)
    network = mindcv.create_model(MODEL).set_train(False)
    mindspore.save_checkpoint(network, str(tmp_path / "weights.ckpt"))
    store = featreg.extract(
        PHOTOS,
        tmp_path / "store",
        f"mindspore:{MODEL}",
        ["features", "pooled", "logits"],
        weights=tmp_path / "weights.ckpt",
        batch_size=BATCH,
        num_workers=2,
    )
    paths = sorted(path for path in PHOTOS.rglob("*") if path.suffix in (".jpg", ".png"))
    assert store.keys == [path.relative_to(PHOTOS).as_posix() for path in paths]
    found = {"features": [], "pooled": [], "logits": []}
    for start in range(0, len(paths), BATCH):
        images = np.stack([transform(path) for path in paths[start : start + BATCH]])
        features = network.forward_features(mindspore.Tensor(images))
        found["features"].append(features.asnumpy())
        found["pooled"].append(network.pool(features).asnumpy())
        found["logits"].append(network.forward_head(features).asnumpy())
    for layer, parts in found.items():
        rows = np.concatenate(parts)
        assert store[layer].shape == rows.shape
        np.testing.assert_allclose(store[layer][:], rows, rtol=0, atol=ROUNDING * np.abs(rows).max())
    assert len(np.unique(store["pooled"][:], axis=0)) == len(paths)
