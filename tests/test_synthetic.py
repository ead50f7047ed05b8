"""Weights from a seed: the numbers themselves, against a Philox written from its paper, and where they go."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

import featreg
from featreg import errors
from featreg.plugin import CanonicalNames, KeyMap, Rule, canonical_names, draw_weight, synthetic_seed
from featreg.serialize import from_dict, to_dict
from featreg.spec import ExtractionRequest
from featreg.synthetic import is_drawn_buffer

WORD = 2**64 - 1


# --- an oracle --------------------------------------------------------------------------------------------------------


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 as Salmon et al. 2011 define it: four words from a counter below 2**64."""
    x0, x1, x2, x3 = counter, 0, 0, 0
    k0, k1 = key
    for _ in range(10):
        one, two = 0xD2E7470EE14C6C93 * x0, 0xCA5A826395121157 * x2
        x0, x1, x2, x3 = (two >> 64) ^ x1 ^ k0, two & WORD, (one >> 64) ^ x3 ^ k1, one & WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return [x0, x1, x2, x3]


def sums(seed: int, name: str) -> Any:
    """The sum of the quarters of each word, around 0; NumPy's Philox counts from 1."""
    key = (seed, int(hashlib.sha256(name.encode()).hexdigest()[:16], 16))
    words = itertools.chain.from_iterable(philox(counter, key) for counter in itertools.count(1))
    return (sum((word >> shift) & 0xFFFF for shift in (0, 16, 32, 48)) - 2 * 0xFFFF for word in words)


def first(values: Any, count: int, start: int = 0) -> list[int]:
    return list(itertools.islice(values, start, start + count))


UNIT = math.sqrt((2**32 - 1) / 3)


def test_the_oracle_is_philox() -> None:
    """The first of the known answers that come with the authors' own Random123 (``kat_vectors``)."""
    assert philox(0, (0, 0)) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "mean", "deviation"),
    [
        ("conv1.weight", (4, 2, 3, 3), 0.0, math.sqrt(2 / 18)),
        ("fc.weight", (5, 8), 0.0, math.sqrt(2 / 8)),
        ("pointwise.weight", (5, 8, 1, 1), 0.0, math.sqrt(2 / 8)),
        ("depthwise.weight", (8, 1, 3, 3), 0.0, math.sqrt(2 / 9)),
        ("bn1.weight", (6,), 1.0, 0.1),
        ("layer_scale", (6, 1, 1), 1.0, 0.1),
        ("bn1.bias", (6,), 0.0, 0.02),
        ("bn1.running_mean", (6,), 0.0, 0.02),
        ("bn1.running_var", (6,), 1.5, 0.15),
        ("class_token", (1, 1, 7), 0.0, 0.1),
        ("logit_bias", (), 0.0, 0.02),
        ("attn.relative_position_bias_table", (9, 2), 0.0, 0.1),
        ("empty.weight", (3, 0), 0.0, math.sqrt(2)),
    ],
)
def test_known_answers(name: str, shape: tuple[int, ...], mean: float, deviation: float) -> None:
    found = draw_weight(7, name, shape)
    expected = [value * (deviation / UNIT) + mean for value in first(sums(7, name), math.prod(shape))]
    assert found.dtype == np.float32
    assert found.shape == shape
    assert found.ravel().tolist() == np.array(expected).astype(np.float32).tolist()


def test_the_numbers_never_change() -> None:
    """Literals, so that neither a change of the code nor one of its oracle goes unseen."""
    drawn = draw_weight(0, "conv1.weight", (64, 3, 7, 7))
    assert first(sums(0, "conv1.weight"), 3) == [40128, -9486, -39041]
    assert drawn.ravel()[:3].view(np.uint32).tolist() == [1040013476, 3169816260, 3187047369]
    little = drawn.astype("<f4").tobytes()
    assert hashlib.sha256(little).hexdigest() == "de5af1e59740de5684a8997a0f12cdad4dbc17acc748d103dca18dc7381ceec9"


def test_a_long_weight_is_one_stream() -> None:
    """It is drawn in parts, whose borders do not show."""
    start = (1 << 15) - 2
    found = draw_weight(1, "bias", (start + 5,))[start:]
    expected = first(sums(1, "bias"), 5, start)
    np.testing.assert_array_equal(found, (np.array(expected) * (0.02 / UNIT)).astype(np.float32))


@pytest.mark.parametrize(("shape", "parts"), [((6, 5), 3), ((9,), 3), ((3, 7, 1, 1), 2)])
def test_parts_of_a_weight_are_its_rows(shape: tuple[int, ...], parts: int) -> None:
    whole = draw_weight(2, "attn.qkv.weight", (parts * shape[0], *shape[1:]))
    drawn = [draw_weight(2, f"attn.qkv[{part + 1}/{parts}].weight", shape) for part in range(parts)]
    np.testing.assert_array_equal(np.concatenate(drawn), whole)


def test_a_part_may_be_named_at_the_end() -> None:
    """As torch's ``in_proj_bias``, whose name has no kind behind a dot."""
    whole = draw_weight(2, "attn.in_proj_bias", (12,))
    np.testing.assert_array_equal(draw_weight(2, "attn.in_proj_bias[2/3]", (4,)), whole[4:8])
    with pytest.raises(errors.SpecError, match="beyond the last"):
        draw_weight(2, "attn.in_proj_bias[4/3]", (4,))


def test_neither_order_nor_neighbours_matter() -> None:
    names = ["a.weight", "b.weight", "a.bias"]
    forward = {name: draw_weight(3, name, (4, 5)) for name in names}
    for name in reversed(names):
        np.testing.assert_array_equal(draw_weight(3, name, (4, 5)), forward[name])
    assert len({array.tobytes() for array in forward.values()}) == 3
    assert draw_weight(4, "a.weight", (4, 5)).tobytes() != forward["a.weight"].tobytes()


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()
    draw_weight(0, "a.weight", (100,))
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]


def test_the_numbers_are_spread_as_promised() -> None:
    drawn = draw_weight(0, "fc.weight", (300, 400)) / np.sqrt(2 / 400)
    assert abs(float(drawn.mean())) < 0.01
    assert abs(float(drawn.std()) - 1) < 0.01
    assert float(np.abs(drawn).max()) < 3.47
    variances = draw_weight(0, "bn.running_var", (10_000,))
    assert 0.98 < float(variances.min()) < float(variances.max()) < 2.02


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "seed"), [(None, None), ("default", None), ("a/b.pth", None), ("synthetic:0", 0), ("synthetic:12", 12)]
)
def test_seed_of(weights: str | None, seed: int | None) -> None:
    assert synthetic_seed(weights) == seed


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "01", " 1", "1_0", "²", "٣", str(2**64)])
def test_anything_but_a_seed_is_refused_with_the_request(text: str) -> None:
    with pytest.raises(errors.RequestError, match="no seed of synthetic weights") as caught:
        ExtractionRequest("numpy:tinynet", ["C1"], weights=f"synthetic:{text}")
    assert "whole number" in caught.value.expected


def test_the_largest_seed() -> None:
    assert draw_weight(2**64 - 1, "a.weight", (3,)).shape == (3,)


def test_it_is_a_part_of_the_request() -> None:
    request = ExtractionRequest("numpy:tinynet", ["C1"], weights="synthetic:5")
    assert from_dict(ExtractionRequest, json.loads(json.dumps(to_dict(request)))) == request
    assert request != attrs.evolve(request, weights="synthetic:6")


def test_only_the_statistics_of_batch_normalisation_are_drawn() -> None:
    names = ["bn.running_mean", "bn.running_var", "bn.num_batches_tracked", "attn.relative_position_index", "mask"]
    assert [name for name in names if is_drawn_buffer(name)] == names[:2]


# --- the reference backend --------------------------------------------------------------------------------------------


def features(**fields: Any) -> featreg.FeatureSet:
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
    with featreg.create_extractor("numpy:tinynet", ["C1", "C5", "logits"], **fields) as extractor:
        return extractor(images)


def test_the_reference_backend_computes_with_them() -> None:
    """The first level by hand: a 3x3 kernel of stride 2, padding 1, and ReLU."""
    kernel = draw_weight(5, "stage1.weight", (8, 3, 3, 3)).astype(np.float64)
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
    corner = np.einsum("chw,kchw->k", images[0, :, 1:4, 1:4], kernel).clip(min=0)
    np.testing.assert_allclose(features(weights="synthetic:5")["C1"][0, :, 1, 1], corner, rtol=1e-5, atol=1e-6)


def test_a_seed_gives_the_same_features_and_another_others() -> None:
    one, two, other, plain = (
        features(weights=weights) for weights in ("synthetic:5", "synthetic:5", "synthetic:6", None)
    )
    for layer in one:
        np.testing.assert_array_equal(one[layer], two[layer])
        assert np.isfinite(one[layer]).all()
        assert not np.array_equal(one[layer], other[layer])
        assert not np.array_equal(one[layer], plain[layer])


def test_identity() -> None:
    with featreg.create_extractor("numpy:tinynet", "C1", weights="synthetic:5") as extractor:
        assert extractor.weights_identity() == "synthetic:5"
        assert extractor.weights_report is None


# --- canonical names --------------------------------------------------------------------------------------------------


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> str:
    """A package of its own, with this ``canonical_names.toml``."""
    name = f"names_of_{folder.name}"
    (folder / name).mkdir()
    (folder / name / "__init__.py").touch()
    if text is not None:
        (folder / name / "canonical_names.toml").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


FAMILY = """
[[family]]
models = ["net_[ab]"]
rules = [["stem", "first.0"], ["blocks.{i}", "block.{i+1}"]]
then = [["block.{i}.fc", "features.{i}.1"]]
"""


def test_names_of_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = package(tmp_path, monkeypatch, FAMILY)
    assert canonical_names(own, "net_a").apply(["stem.weight", "blocks.2.fc.bias", "head"]) == {
        "stem.weight": "first.0.weight",
        "blocks.2.fc.bias": "features.3.1.bias",
        "head": "head",
    }
    assert canonical_names(own, "net_c").apply(["stem.weight"]) == {"stem.weight": "stem.weight"}


def test_names_of_a_package_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert canonical_names(package(tmp_path, monkeypatch, None), "net") == CanonicalNames()


@pytest.mark.parametrize(
    "text",
    [
        "families = []",
        '[[family]]\nmodels = ["a"]',
        '[[family]]\nmodels = ["a"]\nrules = [["a", "b", "c"]]',
        '[[family]]\nmodels = ["a"]\nrules = [["a", ["b", "c"]]]',
        '[[family]]\nmodels = ["a"]\nrules = []\nwhen = 1',
        "[[family]",
    ],
)
def test_a_file_of_another_form(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.SpecError, match=r"canonical_names\.toml of names_of_"):
        canonical_names(package(tmp_path, monkeypatch, text), "a")


def test_two_weights_of_one_name_are_refused() -> None:
    names = CanonicalNames((KeyMap("one", (Rule("a", "c"),)),))
    with pytest.raises(errors.WeightsError, match="two weights one name"):
        names.apply(["a.weight", "c.weight"])
