"""The same architecture in every backend that has it: the same keys, kinds, layout, channels and shapes.

The expected values are the tables in ``specs/architectures``, which were read off the raw libraries.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import featreg

TABLES = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent.parent / "specs" / "architectures").glob("*.json"))
}
CASES = [(name, backend) for name, table in TABLES.items() for backend in table["backends"]]
RUN_IN_FULL = {
    "resnet50": {"torchvision", "timm", "mindspore"},
    "convnext_tiny": {"torchvision", "timm", "mindspore"},
    "mobilenet_v2": {"torchvision", "timm", "mindspore"},
    "mobilenet_v3_large": {"torchvision", "timm", "mindspore"},
    "efficientnet_b0": {"torchvision", "timm", "mindspore"},
    "vgg16": {"torchvision", "timm"},
    "densenet121": {"torchvision", "timm"},
    "regnet_y_800mf": {"torchvision", "timm"},
    "swin_t": {"torchvision", "timm"},
    "vit_b_16": {"torchvision", "timm"},
}


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_described_levels_are_those_of_the_table(name, backend):
    table = TABLES[name]
    entry = table["backends"][backend]
    info = featreg.describe(f"{backend}:{entry['model']}", input_size=(224, 224))
    found = {feature.level: feature for feature in info.features if feature.level is not None}
    assert list(found) == [level["level"] for level in table["levels"]]
    for level in table["levels"]:
        feature = found[level["level"]]
        assert feature.kind == "map"
        assert (feature.channels, feature.reduction) == (level["channels"], level["reduction"])
        assert feature.shape(1, 224, 224)[1:] == tuple(level["shape"])
    if "names" in entry:
        assert {level: feature.name for level, feature in found.items()} == entry["names"]
    if "indices" in entry:
        assert {level: feature.index for level, feature in found.items()} == entry["indices"]


@pytest.mark.parametrize("name", RUN_IN_FULL)
def test_outputs_have_identical_keys_shapes_and_layout_in_every_backend(name):
    table = TABLES[name]
    levels = [level["level"] for level in table["levels"]]
    expected = {level["level"]: (2, *level["shape"]) for level in table["levels"]}
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    assert set(table["backends"]) == RUN_IN_FULL[name]
    for backend, entry in table["backends"].items():
        with featreg.create_extractor(f"{backend}:{entry['model']}", [*levels, "pooled"]) as extractor:
            features = extractor(images)
        assert list(features) == [*levels, "pooled"]
        assert {level: features[level].shape for level in levels} == expected, backend
        assert features["pooled"].ndim == 2
        for array in features.values():
            assert isinstance(array, np.ndarray)
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
            assert np.isfinite(array).all()
