"""A store, row for row, against a loop that knows nothing of featreg: open_clip's preprocessing and its encoders."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import featreg

PHOTOS = Path(__file__).parents[3] / "photos"
BATCH = 5
PROMPTS = ["a photo of a cat", "a photo of a rocket", "gravel", "the retina of an eye", "a cup of coffee", "the moon"]


@pytest.fixture
def saved(tmp_path):
    """A small model in evaluation mode, its preprocessing, and its weights in a file."""
    torch.manual_seed(3)
    network, _, preprocess = open_clip.create_model_and_transforms("tiny-vit")
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    return network.eval(), preprocess, tmp_path / "weights.pt"


def batches(items):
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def test_every_row_of_a_store_is_that_of_a_loop_by_hand(tmp_path, saved):
    network, preprocess, weights = saved
    store = featreg.extract(
        PHOTOS, tmp_path / "store", "open_clip:tiny-vit", "embedding", weights=weights, batch_size=BATCH, num_workers=2
    )
    paths = sorted(path for path in PHOTOS.rglob("*") if path.suffix in (".jpg", ".png"))
    assert store.keys == [path.relative_to(PHOTOS).as_posix() for path in paths]
    found = []
    for batch in batches(paths):
        images = torch.stack([preprocess(Image.open(path)) for path in batch])
        with torch.no_grad():
            found.append(network.encode_image(images).numpy())
    np.testing.assert_array_equal(store["embedding"][:], np.concatenate(found), strict=True)
    assert len(np.unique(store["embedding"][:], axis=0)) == len(paths)


def test_every_row_of_prompts_is_that_of_a_loop_by_hand(tmp_path, saved):
    network, _, weights = saved
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    store = featreg.extract(
        tmp_path / "prompts.txt",
        tmp_path / "store",
        "open_clip:tiny-vit",
        "text_embedding",
        weights=weights,
        batch_size=BATCH,
    )
    tokenizer = open_clip.get_tokenizer("tiny-vit")
    with torch.no_grad():
        found = [network.encode_text(tokenizer(batch)).numpy() for batch in batches(PROMPTS)]
    np.testing.assert_array_equal(store["text_embedding"][:], np.concatenate(found), strict=True)
