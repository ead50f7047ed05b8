"""How checkpoints are wrapped, and what it means that one fits."""

from types import SimpleNamespace

import pytest

from featreg.checkpoints import AVERAGES, WRAPPERS, Mismatch, WeightsReport, compare, is_counter, unwrap
from featreg.errors import WeightsError

STATE = {"conv.weight": 1.0, "conv.bias": 2.0}
AVERAGE = {"conv.weight": 3.0, "conv.bias": 4.0}


def is_weight(value):
    return isinstance(value, float)


def opened(content, **options):
    return unwrap(content, "file", is_weight, **options)


@pytest.mark.parametrize("key", WRAPPERS)
def test_every_wrapper_is_opened_and_reported(key):
    state, report = opened({"epoch": 3, key: STATE})
    assert state == STATE
    assert report == WeightsReport("file", unwrapped=[key])


@pytest.mark.parametrize("key", AVERAGES)
@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_the_average_is_taken_before_the_weights(key, plain):
    state, report = opened({plain: STATE, key: AVERAGE})
    assert (state, report.unwrapped, report.averaged) == (AVERAGE, (key,), True)
    state, report = opened({plain: STATE, key: AVERAGE}, average=False)
    assert (state, report.unwrapped, report.averaged) == (STATE, (plain,), False)


@pytest.mark.parametrize("prefix", ["ema.", "model_ema."])
def test_averages_among_the_weights_are_taken_likewise(prefix):
    content = STATE | {f"{prefix}conv.weight": 3.0}
    state, report = opened(content)
    assert state == {"conv.weight": 3.0, "conv.bias": 2.0}
    assert report.averaged
    assert opened(content, average=False) == (STATE, WeightsReport("file"))


@pytest.mark.parametrize(
    ("plain", "average", "taken"),
    [
        ("model.", "model_ema.", ()),
        ("model.", "ema.", ()),
        ("model.", "model_ema.module.", ("module.",)),
        ("module.", "module.ema.", ("module.",)),
    ],
)
def test_averages_and_weights_may_be_wrapped_each_in_its_way(plain, average, taken):
    """As Lightning's modules write them, and averages of a parallel model."""
    content = {f"{plain}{name}": value for name, value in STATE.items()}
    content |= {f"{average}{name}": value for name, value in AVERAGE.items()}
    assert opened(content) == (AVERAGE, WeightsReport("file", prefixes=taken, averaged=True))
    state, report = opened(content, average=False)
    assert (state, report.prefixes, report.averaged) == (STATE, (plain,), False)


@pytest.mark.parametrize("prefix", ["ema.", "model_ema."])
def test_averages_alone_are_refused_where_the_weights_are_asked_for(prefix):
    content = {f"{prefix}{name}": value for name, value in AVERAGE.items()}
    assert opened(content)[0] == AVERAGE
    with pytest.raises(WeightsError, match="as they were trained") as caught:
        opened(content, average=False)
    assert caught.value.remedy == f"options={{'ema': True}} takes '{prefix}*'"


def test_deepspeeds_checkpoints_are_opened():
    """As ``DeepSpeedEngine.save_checkpoint`` writes them: the weights under ``module``, plain values beside."""
    state, report = opened({"module": STATE, "optimizer": None, "global_steps": 7, "ds_version": "0.14"})
    assert (state, report.unwrapped) == (STATE, ("module",))


def test_prefixes_come_off_only_where_every_name_has_them():
    state, report = opened({f"module._orig_mod.model.{name}": value for name, value in STATE.items()})
    assert state == STATE
    assert report.prefixes == ("module.", "_orig_mod.", "model.")
    mixed = {"model.conv.weight": 1.0, "head.weight": 2.0}
    assert opened(mixed) == (mixed, WeightsReport("file"))


@pytest.mark.parametrize("content", [[1.0], {}, {"epoch": 3}, {"state_dict": {"a": "text"}}, {"teacher": STATE}, None])
def test_what_holds_no_weights_is_refused(content):
    with pytest.raises(WeightsError, match="holds no state_dict"):
        opened(content)


def test_a_file_of_averages_alone_says_how_to_take_them():
    with pytest.raises(WeightsError) as caught:
        opened({"epoch": 1, "state_dict_ema": AVERAGE}, average=False)
    assert caught.value.remedy == "options={'ema': True} takes 'state_dict_ema'"


def test_a_mismatch_lists_everything():
    own = {"a": SimpleNamespace(shape=(2, 3)), "b": SimpleNamespace(shape=(4,)), "c": SimpleNamespace(shape=())}
    found = compare(own, {"a": SimpleNamespace(shape=(2, 5)), "c": SimpleNamespace(shape=()), "d": own["b"]})
    assert found == Mismatch(("b",), ("d",), {"a": "(2, 5) for (2, 3)"})
    assert str(found) == "1 missing: b; 1 unexpected: d; 1 mis-shaped: a (2, 5) for (2, 3)"
    assert len(found) == 3
    assert not compare(own, own)
    assert found.without({"a", "b"}) == Mismatch(unexpected=("d",))


def test_settling_reports_what_was_excused_and_refuses_the_rest():
    own = {name: SimpleNamespace(shape=(2,)) for name in ("a", "b", "c")}
    given = {"a": own["a"], "b": SimpleNamespace(shape=(5,)), "d": own["a"]}
    found, report = compare(own, given), WeightsReport("w.pth", ignored=["n"])
    settled = found.settle(report, own, given, kept={"c", "b"}, ignored={"d"}, remedy="")
    assert settled == WeightsReport("w.pth", 1, kept=["b", "c"], misshaped=["b"], ignored=["n", "d"])
    assert "of another shape in the file and not needed: b" in str(settled)
    with pytest.raises(WeightsError, match="1 unexpected: d") as caught:
        found.settle(report, own, given, kept={"c", "b"}, ignored=(), remedy="think")
    assert (caught.value.expected, caught.value.remedy) == ("its 3 weights and no others", "think")


def test_counters_may_be_missing_and_not_more_than_are_there():
    counter = {"bn.num_batches_tracked": SimpleNamespace(shape=())}
    assert not compare(counter, {})
    assert compare({}, counter) == Mismatch(unexpected=("bn.num_batches_tracked",))
    assert is_counter("bn.num_batches_tracked")
    assert not is_counter("bn.weight")


def test_long_lists_are_shortened_and_counted():
    text = str(Mismatch(missing=tuple(f"layer{k}" for k in range(14))))
    assert text == f"14 missing: {', '.join(f'layer{k}' for k in range(10))}, … (4 more)"


def test_a_report_reads_as_a_sentence():
    report = WeightsReport("w.pth", 9, ["model"], ["module."], True, "timm to mindcv", ["fc.bias"], ["n"], ["by hand"])
    assert str(report) == (
        "9 weights of w.pth; unwrapped: model; taken off every name: 'module.'; moving average: taken, in place of the "
        "weights that were trained; names mapped: timm to mindcv; not in the file and not needed: fc.bias; in the file "
        "and not used: n; by hand"
    )
