"""The JSON form: there and back for every document, and a mistake that is named where it stands."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featreg.errors import SpecError
from featreg.pool import Pool
from featreg.schema import json_schema
from featreg.serialize import DOCUMENTS, dumps, from_dict, loads, to_dict
from featreg.spec import (
    CAPABILITIES,
    HEADS,
    LEVELS,
    ExtractionRequest,
    FeatureInfo,
    InputRule,
    MeasuredGrid,
    ModelInfo,
    Preprocess,
)

counts = st.integers(1, 4096)
sizes = st.tuples(counts, counts)
numbers = st.floats(-10, 10)
positive = st.floats(1e-6, 10)

rules = st.builds(InputRule, fixed=st.none() | sizes, multiple_of=counts, minimum=sizes, channels=counts)
preprocesses = st.builds(
    Preprocess,
    resize=st.none() | sizes,
    crop=st.none() | sizes,
    mean=st.tuples(numbers, numbers, numbers),
    std=st.tuples(positive, positive, positive),
    resize_mode=st.sampled_from(["shortest", "longest", "exact"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]),
    fill=st.integers(0, 255) | st.tuples(*[st.integers(0, 255)] * 3),
    color=st.sampled_from(["RGB", "BGR"]),
)
grids = st.dictionaries(sizes, sizes, min_size=1, max_size=3).map(
    lambda found: [MeasuredGrid(size, grid) for size, grid in found.items()]
)


@st.composite
def features(draw: st.DrawFn) -> FeatureInfo:
    kind: Any = draw(st.sampled_from(["map", "tokens", "vector"]))
    rounding: Any = draw(st.sampled_from(["ceil", "floor", "measured"]))
    prefix = draw(st.integers(0, 9)) if kind == "tokens" else 0
    return FeatureInfo(
        draw(st.text(max_size=9)),
        draw(counts),
        None if kind == "vector" else draw(counts),
        kind,
        level=draw(st.sampled_from([None, *LEVELS])),
        index=draw(st.none() | st.integers(0, 99)),
        head=draw(st.sampled_from([None, *HEADS])),
        prefix_tokens=prefix,
        rounding=rounding,
        measured=draw(grids) if rounding == "measured" else (),
        class_token=prefix > 0 and draw(st.booleans()),
    )


def unique_names(found: list[FeatureInfo]) -> bool:
    names = [
        (field, value)
        for info in found
        for field in ("level", "index", "head")
        if (value := getattr(info, field)) is not None
    ]
    return len(names) == len(set(names))


models = st.builds(
    ModelInfo,
    backend=st.text(min_size=1, max_size=5),
    model=st.text(min_size=1, max_size=5),
    input_size=sizes,
    features=st.lists(features(), max_size=3).filter(unique_names),
    preprocess=preprocesses,
    input_rule=rules,
    capabilities=st.lists(st.sampled_from(CAPABILITIES), max_size=4),
)
POOLS = (None, "avg", "gem=1e-05", "maxpool=3x2,1,1", Pool("adaptive_avgpool", output=(1, 2)))


@st.composite
def poolings(draw: st.DrawFn) -> dict[str, Any]:
    layers = draw(st.lists(st.text(min_size=1, max_size=4) | st.integers(-3, 9), min_size=1, max_size=4, unique=True))
    by_layer = {layer: draw(st.sampled_from(POOLS)) for layer in layers}
    return {"layers": layers, "pool": draw(st.sampled_from([*POOLS, by_layer])), "flatten": draw(st.booleans())}


requests = st.builds(
    lambda pooling, **fields: ExtractionRequest(**pooling, **fields),
    pooling=poolings(),
    model=st.text(min_size=1, max_size=9),
    output_stride=st.none() | counts,
    options=st.dictionaries(
        st.text(max_size=4), st.lists(st.integers() | st.booleans() | st.none() | st.text(max_size=3), max_size=3)
    ),
)
documents = st.one_of(rules, preprocesses, features(), models, requests)
VALIDATORS = {cls: jsonschema.Draft202012Validator(json_schema(cls)) for cls in DOCUMENTS}


@given(documents)
def test_there_and_back(document: Any) -> None:
    again = loads(type(document), dumps(document))
    assert again == document
    assert hash(again) == hash(document)
    assert dumps(again) == dumps(document)


@given(documents)
def test_what_is_written_is_json_that_fits_its_schema(document: Any) -> None:
    plain = to_dict(document)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    VALIDATORS[type(document)].validate(plain)


@given(documents, st.data())
def test_a_value_of_another_type_is_refused_by_name(document: Any, data: st.DataObject) -> None:
    plain = to_dict(document)
    field = data.draw(st.sampled_from(sorted(plain)))
    with pytest.raises(SpecError, match=rf"\$\.{field}\b") as caught:
        from_dict(type(document), {**plain, field: object()})
    assert caught.value.expected


@given(documents, st.text(min_size=1, max_size=5))
def test_an_unknown_field_is_refused_by_name(document: Any, field: str) -> None:
    plain = to_dict(document)
    name = f"unknown {field}"
    with pytest.raises(SpecError) as caught:
        from_dict(type(document), {**plain, name: 1})
    assert name in caught.value.problem


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        from_dict(
            ModelInfo,
            {
                "backend": 1,
                "model": "net",
                "features": [{"name": "x", "channels": "8", "reduction": 4, "kind": "map"}],
                "preprocess": {"resize": None, "crop": [1], "mean": [0, 0, 0], "std": [1, 1, True]},
                "input_rule": "any",
            },
        )
    problem = caught.value.problem
    for place in (
        "$.backend",
        "$.input_size",
        "$.features[0].channels",
        "$.preprocess.crop",
        "$.preprocess.std[2]",
        "$.input_rule",
    ):
        assert place in problem, place


def test_a_string_is_no_list_of_its_letters() -> None:
    with pytest.raises(SpecError, match=r"expected a list, got 'C5' @ \$\.layers"):
        from_dict(ExtractionRequest, {"model": "timm:net", "layers": "C5"})


@pytest.mark.parametrize("text", ["", "{", "nan", "[]", "null", '"x"', b"\xff"])
def test_what_is_no_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(SpecError):
        loads(FeatureInfo, text)


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_from_dict_takes_mappings(value: Any) -> None:
    with pytest.raises(SpecError, match="JSON object"):
        from_dict(FeatureInfo, value)


def test_whole_numbers_may_stand_for_fractions() -> None:
    plain = {"resize": None, "crop": None, "mean": [0, 0, 0], "std": [1, 1, 1]}
    found = from_dict(Preprocess, plain)
    assert all(type(value) is float for value in (*found.mean, *found.std))
