"""The same architecture in every backend that has it: the same keys, kinds, layout, channels and shapes.

The expected values are the tables in ``specs/architectures``, which were read off the raw libraries.
"""

import json
from fnmatch import filter as matching
from pathlib import Path

import numpy as np
import pytest

import featreg

TABLES = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent.parent / "specs" / "architectures").glob("*.json"))
}
CASES = [(name, backend) for name, table in TABLES.items() for backend in table["backends"]]
ABSENT = [(name, backend) for name, table in TABLES.items() for backend in table.get("absent", {})]
EVERYWHERE = {"torchvision", "timm", "mindspore", "transformers"}
RUN_IN_FULL = {
    "resnet50": EVERYWHERE,
    "convnext_tiny": EVERYWHERE,
    "mobilenet_v2": EVERYWHERE,
    "mobilenet_v3_large": {"torchvision", "timm", "mindspore"},
    "efficientnet_b0": EVERYWHERE,
    "vgg16": {"torchvision", "timm", "mindspore"},
    "densenet121": {"torchvision", "timm", "mindspore"},
    "regnet_y_800mf": {"torchvision", "timm"},
    "swin_t": EVERYWHERE,
    "vit_b_16": EVERYWHERE,
}
LACKING = {
    "densenet121": "*densenet*",
    "efficientnet_v2_s": "*efficientnet*v2*",
    "mobilenet_v3_large": "*mobilenet*v3*",
    "mobilenet_v3_small": "*mobilenet*v3*",
    "resnext50": "*resnext*",
    "vgg16": "*vgg*",
}
"""What transformers would call the architectures that it does not have."""


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


@pytest.mark.parametrize("name", TABLES)
def test_every_table_speaks_of_every_library(name):
    assert {*TABLES[name]["backends"], *TABLES[name].get("absent", {})} == EVERYWHERE
    assert not set(TABLES[name]["backends"]) & set(TABLES[name].get("absent", {}))


@pytest.mark.parametrize(("name", "backend"), ABSENT)
def test_who_is_absent_has_no_such_network(name, backend):
    """The model that comes nearest has other levels; where none is named, the library has nothing of that name."""
    nearest = TABLES[name]["absent"][backend].get("model")
    if nearest is None:
        assert backend == "transformers"
        assert not matching(featreg.list_models(backend), LACKING[name])
        return
    features = featreg.describe(f"{backend}:{nearest}", input_size=(224, 224)).features
    found = {feature.level: feature.channels for feature in features if feature.level is not None}
    expected = {level["level"]: level["channels"] for level in TABLES[name]["levels"]}
    assert list(found) == list(expected)
    differing = [level for level in expected if found[level] != expected[level]]
    assert differing
    for level in differing:
        assert level in TABLES[name]["absent"][backend]["why"]


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
