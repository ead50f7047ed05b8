"""What a call returns: look-up, conversion without needless copies, pooling, flattening."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from featreg.arrays import to_numpy
from featreg.errors import CapabilityError, InputError, LayerError, MissingDependencyError, SpecError
from featreg.featureset import FeatureSet
from featreg.spec import FeatureInfo

MAP = FeatureInfo("layer4", 3, 32, "map", level="C5", index=4)
TOKENS = FeatureInfo("norm", 4, 16, "tokens", head="tokens", prefix_tokens=2, class_token=True)
VECTOR = FeatureInfo("pool", 3, None, "vector", head="pooled")


def array(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture
def features() -> FeatureSet:
    arrays: dict[str | int, Any] = {-1: array(2, 3, 4, 5), "tokens": array(2, 2 + 6, 4), "pooled": array(2, 3)}
    return FeatureSet(arrays, {-1: MAP, "tokens": TOKENS, "pooled": VECTOR})


# --- look-up ----------------------------------------------------------------------------------------------------------


def test_order_and_keys_are_those_asked_for(features: FeatureSet) -> None:
    assert list(features) == [-1, "tokens", "pooled"]
    assert list(features.info) == [-1, "tokens", "pooled"]
    assert len(features) == 3


@pytest.mark.parametrize("key", [-1, "C5", "layer4", np.int64(-1)])
def test_other_names_of_one_layer(features: FeatureSet, key: Any) -> None:
    assert features[key] is features[-1]
    assert key in features


def test_the_key_itself_comes_first() -> None:
    one, two = array(1, 3), array(1, 3)
    infos: dict[str | int, FeatureInfo] = {
        "a": FeatureInfo("b", 3, None, "vector"),
        "b": FeatureInfo("a", 3, None, "vector"),
    }
    features = FeatureSet({"a": one, "b": two}, infos)
    assert features["a"] is one
    assert features["b"] is two


@pytest.mark.parametrize("key", ["C4", "pool ed", 4, 0, True, None, 1.0, (), ["C5"]])
def test_unknown_key(features: FeatureSet, key: Any) -> None:
    assert key not in features
    with pytest.raises(LayerError, match="no layer") as caught:
        features[key]
    assert isinstance(caught.value, KeyError)
    assert "'tokens'" in caught.value.expected


def test_unknown_key_names_the_nearest_and_get_has_a_default(features: FeatureSet) -> None:
    with pytest.raises(KeyError) as caught:
        features["poled"]
    assert caught.value.matches == ("pooled", "pool")  # type: ignore[attr-defined]
    assert features.get("C4") is None


def test_arrays_and_info_go_together() -> None:
    with pytest.raises(SpecError):
        FeatureSet({"a": array(1, 3)}, {"b": VECTOR})


def test_info_cannot_be_changed(features: FeatureSet) -> None:
    with pytest.raises(TypeError):
        features.info["tokens"] = MAP  # type: ignore[index]


def test_pickling(features: FeatureSet) -> None:
    again = pickle.loads(pickle.dumps(features))
    assert list(again) == list(features)
    assert again.info == features.info
    assert all(np.array_equal(again[key], features[key]) for key in features)


def test_repr_shows_shapes(features: FeatureSet) -> None:
    assert repr(features) == "FeatureSet({-1: (2, 3, 4, 5), 'tokens': (2, 8, 4), 'pooled': (2, 3)})"


# --- pooling and flattening -------------------------------------------------------------------------------------------


def test_class_token(features: FeatureSet) -> None:
    only = FeatureSet(
        {"tokens": features["tokens"], "pooled": features["pooled"]}, {"tokens": TOKENS, "pooled": VECTOR}
    )
    pooled = only.pool("cls")
    assert np.array_equal(pooled["tokens"], features["tokens"][:, 0])
    assert pooled["pooled"] is features["pooled"]
    with pytest.raises(CapabilityError, match="layer4"):
        features.pool("cls")


def test_pooled_info_says_vector(features: FeatureSet) -> None:
    pooled = features.pool()
    assert list(pooled) == list(features)
    for key in features:
        assert pooled.info[key].kind == "vector"
        assert pooled[key].shape == pooled.info[key].shape(2, 99, 99)
    assert pooled.info[-1].level == "C5"


@pytest.mark.parametrize("how", ["mean", "", None])
def test_unknown_pooling_is_refused_also_for_vectors(how: Any) -> None:
    with pytest.raises(SpecError, match="pooling"):
        FeatureSet({"pooled": array(2, 3)}, {"pooled": VECTOR}).pool(how)


def test_pools_by_key_and_leaves_the_others(features: FeatureSet) -> None:
    pooled = features.pool({-1: "maxpool=2,2,0", "tokens": "cls"})
    assert [array.shape for array in pooled.values()] == [(2, 3, 2, 2), (2, 4), (2, 3)]
    assert [info.kind for info in pooled.info.values()] == ["map", "vector", "vector"]
    assert pooled["pooled"] is features["pooled"]
    assert pooled.info[-1].reduction == 64
    with pytest.raises(LayerError, match="C4"):
        features.pool({"C4": "avg"})


def test_a_grid_of_what_has_none(features: FeatureSet) -> None:
    with pytest.raises(CapabilityError, match="'norm', which has no grid"):
        features.pool("avgpool=2,2,0")
    with pytest.raises(InputError, match="4x5 is too small for the pooling avgpool=6,1,0"):
        features.pool({-1: "avgpool=6,1,0"})


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_flatten(batch: int) -> None:
    maps = array(batch, 3, 2, 2)
    flat = FeatureSet({"C5": maps}, {"C5": MAP}, input_size=(64, 50)).flatten()
    assert flat["C5"].shape == (batch, 12) == flat.info["C5"].shape(batch, 64, 50)
    assert flat["C5"].tolist() == [
        [maps[n, c, y, x].item() for c in range(3) for y in range(2) for x in range(2)] for n in range(batch)
    ]


@pytest.mark.parametrize("input_size", [(64, 64), None])
def test_a_flattened_width_is_predicted_for_its_own_size_alone(input_size: tuple[int, int] | None) -> None:
    flat = FeatureSet({"C5": array(1, 3, 2, 2)}, {"C5": MAP}, input_size).flatten()
    for size in [(96, 64)] if input_size else [(96, 64), (64, 64)]:
        with pytest.raises(InputError, match="was not measured"):
            flat.info["C5"].shape(1, *size)


def test_a_grid_that_only_the_array_tells_is_kept() -> None:
    odd = FeatureInfo("odd", 3, 4, "map", rounding="measured")
    features = FeatureSet({"odd": array(1, 3, 5, 7)}, {"odd": odd}, input_size=(20, 20))
    for changed in (features.pool("maxpool=2,1,0"), features.flatten(), features.pool("maxpool=2,1,0").flatten()):
        assert changed["odd"].shape == changed.info["odd"].shape(1, 20, 20)


def test_pickling_keeps_the_input_size() -> None:
    features = FeatureSet({"C5": array(1, 3, 2, 2)}, {"C5": MAP}, input_size=(64, 64))
    assert pickle.loads(pickle.dumps(features)).numpy().input_size == (64, 64)


# --- conversion -------------------------------------------------------------------------------------------------------


def one(values: Any) -> FeatureSet:
    return FeatureSet({"x": values}, {"x": FeatureInfo("x", 3, None, "vector")})


def test_numpy_is_kept() -> None:
    values = array(2, 3)
    assert one(values).numpy()["x"] is values


def test_torch_shares_memory_both_ways() -> None:
    torch = pytest.importorskip("torch")
    values = array(2, 3)
    tensor = one(values).torch()["x"]
    values[0, 0] = 42
    assert tensor[0, 0].item() == 42
    assert one(tensor).torch()["x"] is tensor
    assert np.shares_memory(one(tensor).numpy()["x"], values)
    assert isinstance(tensor, torch.Tensor)


def strange_arrays() -> dict[str, np.ndarray[Any, Any]]:
    read_only = array(2, 3)
    read_only.flags.writeable = False
    return {
        "read only": read_only,
        "reversed": array(2, 3)[:, ::-1],
        "other byte order": array(2, 3).astype(">f4"),
        "transposed": array(3, 2).T,
        "half": array(2, 3).astype(np.float16),
    }


@pytest.mark.parametrize("name", strange_arrays())
def test_torch_takes_every_array(name: str) -> None:
    torch = pytest.importorskip("torch")
    values = strange_arrays()[name]
    before = values.copy()
    tensor = one(values).torch()["x"]
    assert tensor.tolist() == before.tolist()
    assert np.shares_memory(tensor.numpy(), values) == (name in ("transposed", "half"))
    tensor += torch.ones((), dtype=tensor.dtype)
    if name == "read only":
        assert np.array_equal(values, before)


def test_torch_gradient_and_bfloat16_come_to_numpy() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([[1.0, 2.5, -3.0]], dtype=torch.bfloat16, requires_grad=True)
    found = one(tensor).numpy()["x"]
    assert found.dtype == np.float32
    assert found.tolist() == [[1.0, 2.5, -3.0]]


def test_torch_pools_natively() -> None:
    pytest.importorskip("torch")
    maps = array(2, 3, 4, 5)
    native = FeatureSet({"C5": maps}, {"C5": MAP}).torch()
    np.testing.assert_allclose(native.pool("avg").numpy()["C5"], maps.mean((2, 3)), atol=1e-6)
    assert np.array_equal(native.pool("max").numpy()["C5"], maps.max((2, 3)))
    assert np.array_equal(native.flatten().numpy()["C5"], maps.reshape(2, -1))


@pytest.mark.parametrize("name", strange_arrays())
def test_mindspore_takes_every_array(name: str) -> None:
    pytest.importorskip("mindspore")
    values = strange_arrays()[name]
    tensor = one(values).mindspore()["x"]
    assert tensor.asnumpy().tolist() == values.tolist()
    assert np.shares_memory(tensor.asnumpy(), values) == (name == "half")
    assert one(tensor).mindspore()["x"] is tensor
    assert one(tensor).torch()["x"].tolist() == values.tolist()


def test_mindspore_bfloat16_comes_to_numpy() -> None:
    mindspore = pytest.importorskip("mindspore")
    found = to_numpy(mindspore.Tensor(np.array([1.0, 2.5], np.float32)).astype(mindspore.bfloat16))
    assert found.dtype == np.float32
    assert found.tolist() == [1.0, 2.5]


@pytest.mark.parametrize("framework", ["torch", "mindspore"])
def test_framework_that_is_not_installed(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(MissingDependencyError, match=framework) as caught:
        getattr(one(array(1, 3)), framework)()
    assert caught.value.remedy == f"pip install {framework}"
    assert isinstance(caught.value.__cause__, ImportError)
