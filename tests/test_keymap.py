"""Name maps: declared rules, and the order of registration where nothing speaks against it."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featreg import map_in_order
from featreg.errors import SpecError, WeightsError
from featreg.plugin import KeyMap, Rule


def state(**shapes):
    return {name.replace("__", "."): SimpleNamespace(shape=shape) for name, shape in shapes.items()}


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "name", "expected"),
    [
        ("fc", "classifier", "fc.weight", ("classifier.weight",)),
        ("fc", "classifier", "fcx.weight", None),
        ("fc", "classifier", "head.fc.weight", None),
        ("features.{i}.{k}", "features.{i+k+2}", "features.17.1.running_mean", ("features.20.running_mean",)),
        ("a.{i}.{j}", "b.{3*i+j}", "a.2.1.weight", ("b.7.weight",)),
        ("block{s}.block{s}-{b}.f", "s.{s-1}.{b}", "block2.block2-10.f.weight", ("s.1.10.weight",)),
        ("block{s}.block{s}-{b}.f", "s.{s-1}.{b}", "block2.block3-10.f.weight", None),
        ("f.{2*s+1}.{b}", "layers.{s}.{b}", "f.5.0.norm", ("layers.2.0.norm",)),
        ("f.{2*s+1}.{b}", "layers.{s}.{b}", "f.4.0.norm", None),
        ("f.{2*s+2}", "layers.{s}", "f.0.norm", None),  # no negative s
        ("attn.qkv", ["attn.q", "attn.k", "attn.v"], "attn.qkv.bias", ("attn.q.bias", "attn.k.bias", "attn.v.bias")),
        ("index", [], "index", ()),
    ],
)
def test_a_rule_renames_what_begins_like_it(old, new, name, expected):
    assert Rule(old, new)(name) == expected


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 9), st.integers(0, 9))
def test_numbers_come_back_from_what_a_template_made_of_them(i, k, factor, more):
    there, back = (
        Rule("a.{i}.{k}", f"b.{{{factor}*i+{more}}}.{{k}}.c"),
        Rule(f"b.{{{factor}*i+{more}}}.{{k}}.c", "a.{i}.{k}"),
    )
    (new,) = there(f"a.{i}.{k}.weight")
    assert new == f"b.{factor * i + more}.{k}.c.weight"
    assert back(new) == (f"a.{i}.{k}.weight",)


@pytest.mark.parametrize(("old", "new"), [("a.{i}", "b.{k}"), ("a.{i+k}", "b"), ("a.{i*2}", "b.{i}"), ("a.{}", "b")])
def test_templates_that_cannot_be_read_are_refused(old, new):
    with pytest.raises(SpecError):
        Rule(old, new)


def test_the_first_rule_decides_and_other_names_stay():
    names = KeyMap("mine", (Rule("a.0", "stem"), Rule("a.{i}", "body.{i-1}")))
    assert names("a.0.weight") == ("stem.weight",)
    assert names("a.3.weight") == ("body.2.weight",)
    assert names("other.weight") == ("other.weight",)


def test_rules_that_decide_no_name_are_idle():
    names = KeyMap("mine", (Rule("a.0", "stem"), Rule("a.{i}", "body.{i}"), Rule("b", "c")))
    assert names.idle(["a.0.weight", "a.0.bias", "z"]) == 2
    assert names.idle(["a.0.weight", "a.1.weight", "b"]) == 0
    assert names.idle([]) == 3


def test_two_weights_of_one_name_are_refused():
    with pytest.raises(WeightsError, match="one name") as caught:
        KeyMap("mine", (Rule("a", "b"),)).apply(["a.weight", "b.weight"])
    assert "a.weight and b.weight both become b.weight" in caught.value.got


# --- order ------------------------------------------------------------------------------------------------------------

SOURCE = state(_stem__weight=(8, 3, 3, 3), _bn__weight=(8,), _bn__bias=(8,), _fc__weight=(5, 8))
TARGET = state(conv__weight=(8, 3, 3, 3), norm__bias=(8,), norm__weight=(8,), head__weight=(5, 8))


def test_layers_pair_in_order_and_their_weights_by_kind():
    assert map_in_order(SOURCE, TARGET) == {
        "_stem.weight": "conv.weight",
        "_bn.weight": "norm.weight",
        "_bn.bias": "norm.bias",
        "_fc.weight": "head.weight",
    }


def test_kinds_may_be_spelt_otherwise():
    target = state(conv__weight=(8, 3, 3, 3), norm__gamma=(8,), norm__beta=(8,), head__weight=(5, 8))
    pairs = map_in_order(SOURCE, target, {"gamma": "weight", "beta": "bias"})
    assert (pairs["_bn.weight"], pairs["_bn.bias"]) == ("norm.gamma", "norm.beta")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"extra__weight": (1,)}, "numbers of layers differ"),
        ({"head__weight": (6, 8)}, "'_fc' does not fit 'head'"),
        ({"norm__running_mean": (8,)}, "do not lie together"),
    ],
)
def test_what_speaks_against_the_order_refuses(change, problem):
    with pytest.raises(WeightsError, match=problem):
        map_in_order(SOURCE, TARGET | state(**change))


def test_what_is_spare_may_be_of_another_shape_or_absent():
    spare = {"head.weight"}
    assert map_in_order(SOURCE | state(_fc__weight=(9, 8)), TARGET, spare=spare)["_fc.weight"] == "head.weight"
    headless = {name: value for name, value in SOURCE.items() if name != "_fc.weight"}
    assert list(map_in_order(headless, TARGET, spare=spare).values()) == ["conv.weight", "norm.weight", "norm.bias"]
    with pytest.raises(WeightsError, match="'_fc' does not fit"):
        map_in_order(SOURCE | state(_fc__weight=(9, 8)), TARGET, spare={"conv.weight"})
    with pytest.raises(WeightsError, match="numbers of layers differ"):
        map_in_order(headless, TARGET, spare={"norm.weight"})  # half a layer


def test_layers_of_equal_shape_are_not_swapped():
    """Shapes alone would pair them; that both sides have the same names in another order speaks against it."""
    with pytest.raises(WeightsError, match="while the model has one of its name"):
        map_in_order(state(a__weight=(4, 4), b__weight=(4, 4)), state(b__weight=(4, 4), a__weight=(4, 4)))


def test_a_layer_with_other_kinds_is_refused():
    with pytest.raises(WeightsError, match="does not fit"):
        map_in_order(state(a__weight=(4,)), state(b__bias=(4,)))
