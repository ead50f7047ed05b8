"""What adding to a store holds in memory, and what it takes for arguments."""

import tracemalloc

import numpy as np
import pytest

import featreg
from featreg.engine.additions import add_layers, append
from featreg.engine.arguments import run_of
from featreg.engine.planning.newcomers import KnownKeys
from featreg.engine.resume import work
from featreg.errors import SpecError
from featreg.sources import Sample


class Column(list):
    def to_pylist(self):
        return self


def known(keys):
    """The keys of a store whose sample table has these, seven to a block."""
    return KnownKeys(({"key": Column(keys[start : start + 7])} for start in range(0, len(keys), 7)), len(keys))


def test_the_unknown_keys_are_those_that_are_new():
    keys = [f"{row}.png" for row in range(0, 4000, 2)]  # the hash of every 256th ends with a zero
    found = known(keys).unknown([Sample(f"{row}.png", "") for row in range(4000)])
    assert [sample.key for sample in found] == [f"{row}.png" for row in range(1, 4000, 2)]


def test_sixteen_bytes_are_held_for_each_key():
    keys = [str(row) for row in range(40_000)]
    known(keys[:7])
    tracemalloc.start()
    known(keys)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 18 * len(keys)


@pytest.fixture
def store(write_store, tmp_path):
    return write_store(tmp_path / "s", {"pooled": np.zeros((3, 2), np.float32)})


@pytest.mark.parametrize("call", [add_layers, append, work, featreg.derive])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batchsize": 3}, "no such argument: batchsize"),
        ({"raise_errors": True}, "no such argument: raise_errors"),
        ({"max_error_rate": 2}, "max_error_rate is out of range"),
    ],
)
def test_an_argument_that_there_is_not_is_refused(store, call, fields, said):
    with pytest.raises(SpecError, match=said):
        call(store, *(["n=pooled:l2"] if call is featreg.derive else ["C5"] if call is add_layers else []), **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_workers": -1}, "num_workers is out of range"),
        ({"batch_size": 0}, "batch_size is out of range"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
    ],
)
def test_an_argument_out_of_range_is_refused(store, fields, said):
    with pytest.raises(SpecError, match=said):
        work(store, **fields)


def test_arguments_of_extract_are_those_of_other_runs():
    assert run_of({"on_error": "raise", "batch_size": "auto"}).raise_errors
    assert run_of({"num_workers": 3}).num_workers == 3
    assert not run_of({"on_error": "record"}).raise_errors
    with pytest.raises(SpecError) as caught:
        run_of({"batchsize": 3})
    assert caught.value.matches == ("batch_size",)
