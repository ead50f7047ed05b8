"""Some layers flattened, and the others not."""

import json
import pickle
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featreg
from featreg import serialize
from featreg.errors import FeatregError, LayerError, SpecError

LAYERS = ("C2", -1, "pooled")
SCHEMA = json.loads((Path(__file__).parent.parent / "specs" / "extraction-request.schema.json").read_text())


def request(flatten):
    return featreg.ExtractionRequest("numpy:tinynet", LAYERS, flatten=flatten)


@given(st.lists(st.sampled_from(LAYERS), unique=True))
def test_equal_requests_are_equal_whatever_the_order(flatten):
    found, turned = request(flatten), request(flatten[::-1])
    assert (found, hash(found)) == (turned, hash(turned))
    assert found.flattened == tuple(layer for layer in LAYERS if layer in flatten)
    assert (found == request(True)) == (len(flatten) == len(LAYERS))
    assert (found == request(False)) == (not flatten)
    plain = serialize.to_dict(found)
    jsonschema.validate(plain, SCHEMA)
    assert serialize.from_dict(featreg.ExtractionRequest, plain) == found
    assert pickle.loads(pickle.dumps(found)) == found


def test_one_layer_stands_for_itself():
    assert request("C2") == request(["C2"])
    assert request(-1).flattened == (-1,)
    assert request(np.array([-1])).flattened == (-1,)


@pytest.mark.parametrize(
    ("flatten", "error"),
    [("C3", LayerError), (["C2", "C2"], LayerError), ({"C2"}, LayerError), (1, LayerError), ([True], LayerError)],
)
def test_what_names_no_layer_is_refused(flatten, error):
    with pytest.raises(error):
        request(flatten)


@pytest.mark.parametrize("flatten", ["C2", {"C2": True}, [1.5], 1, None])
def test_json_says_true_false_or_a_list(flatten):
    plain = serialize.to_dict(request(False)) | {"flatten": flatten}
    with pytest.raises((SpecError, LayerError)):
        serialize.from_dict(featreg.ExtractionRequest, plain)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain, SCHEMA)


def test_the_layers_that_are_listed_are_vectors_and_the_others_as_they_are():
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    with featreg.create_extractor("numpy:tinynet", LAYERS) as plain:
        expected = plain(images)
    with featreg.create_extractor("numpy:tinynet", LAYERS, pool={-1: "adaptive_avgpool=2,2"}, flatten=[-1]) as some:
        found = some(images)
        assert {key: array.shape for key, array in found.items()} == some.output_shapes(images.shape)
        infos = some.describe((64, 64))
    maps = expected[-1]
    side = maps.shape[2] // 2
    quarters = maps.reshape(2, maps.shape[1], 2, side, 2, side).mean(axis=(3, 5))
    np.testing.assert_allclose(found[-1], quarters.reshape(2, -1), rtol=1e-6)
    for layer in ("C2", "pooled"):
        assert np.array_equal(found[layer], expected[layer])
        assert found.info[layer] == expected.info[layer]
    assert (infos[-1].kind, infos[-1].channels) == ("vector", quarters[0].size)


def test_requests_of_before_are_read(tmp_path):
    plain = serialize.to_dict(request(True))
    assert plain["flatten"] is True
    assert (
        serialize.from_dict(featreg.ExtractionRequest, {key: plain[key] for key in ("model", "layers")}).flatten
        is False
    )
    with pytest.raises(FeatregError):
        serialize.from_dict(featreg.ExtractionRequest, plain | {"flatten": "yes"})
