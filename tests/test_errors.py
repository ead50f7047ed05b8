"""The error tree: complete, picklable, readable."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featreg import errors
from featreg.errors import FeatregError, near_matches
from featreg.featureset import FeatureKeyError

TREE = {
    name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, FeatregError)
}  # fmt: skip
FIELDS = ("the problem", "this", "that", ("near", "by"), "do so")


@pytest.mark.parametrize("cls", [*TREE.values(), FeatureKeyError])
def test_every_class_pickles_and_copies(cls: type[FeatregError]) -> None:
    error = cls(*FIELDS)
    error.__cause__ = OSError("the cause")
    error.add_note("a note")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is cls
        assert again.args == FIELDS
        assert (again.problem, again.expected, again.got, again.matches, again.remedy) == FIELDS
        assert str(again) == str(error)
        assert again.__notes__ == ["a note"]


@pytest.mark.parametrize("cls", TREE.values())
def test_problem_alone_is_enough(cls: type[FeatregError]) -> None:
    error = cls("the problem")
    assert str(error) == "the problem"
    assert error.args == ("the problem", "", "", (), "")
    assert pickle.loads(pickle.dumps(error)).args == error.args


def test_message() -> None:
    assert str(errors.LayerError(*FIELDS)).splitlines() == [
        "the problem",
        "  expected: this",
        "  got: that",
        "  did you mean: near, by",
        "  try: do so",
    ]
    assert repr(errors.LayerError(*FIELDS)) == "LayerError('the problem')"


def test_docstring_draws_the_tree() -> None:
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([ │├└─]*)(\w+Error)\b", line):
            depth = (len(match[1]) - 4) // 4
            parents[depth:] = [match[2]]
            drawn[match[2]] = parents[depth - 1] if depth else "Exception"
    assert drawn == {name: cls.__mro__[1].__name__ for name, cls in TREE.items()}


def test_all_is_complete() -> None:
    assert set(errors.__all__) == {*TREE, "near_matches"}


def test_feature_key_error_is_a_key_error() -> None:
    error = FeatureKeyError(*FIELDS)
    assert isinstance(error, KeyError)
    assert isinstance(error, errors.LayerError)
    assert str(error).startswith("the problem\n"), "not the repr, as KeyError would give"


def test_matches_may_be_any_iterable() -> None:
    assert errors.LayerError("p", matches=(name for name in "ab")).matches == ("a", "b")


# --- near matches -----------------------------------------------------------------------------------------------------

MODELS = (
    "ViT-B-32",
    "resnet18",
    "resnet50",
    "resnet50.a1_in1k",
    "resnet50d",
    "vit_base_patch16_224",
    "wide_resnet50_2",
)


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("resnet5O", "resnet50"),
        ("ResNet50", "resnet50"),
        ("resnet50", "resnet50"),
        ("rsenet18", "resnet18"),
        ("vit_base", "vit_base_patch16_224"),
        ("vit-b-32", "ViT-B-32"),
        ("patch16", "vit_base_patch16_224"),
    ],
)
def test_nearest(word: str, first: str) -> None:
    assert near_matches(word, MODELS)[0] == first


def test_shorter_beginnings_come_first() -> None:
    assert near_matches("resnet50", MODELS)[:3] == ("resnet50", "resnet50d", "resnet50.a1_in1k")
    assert near_matches("resnet50", MODELS)[3:] == ("wide_resnet50_2", "resnet18")[::-1]


def test_nothing_is_near() -> None:
    assert near_matches("zzz", MODELS) == ()
    assert near_matches("", MODELS) == ()


@given(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=12), st.integers(1, 6))
def test_matches_are_candidates_once_and_few(word: str, candidates: list[str], limit: int) -> None:
    matches = near_matches(word, candidates, limit)
    assert set(matches) <= set(candidates)
    assert len(matches) == len(set(matches)) <= limit
    if word and word in candidates:
        assert word in matches or sum(name.casefold() == word.casefold() for name in candidates) > limit
