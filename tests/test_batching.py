"""How large a batch may be: halved where memory fails, chosen by trying."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featreg
from featreg.engine.loop import batching
from featreg.engine.loop.batching import Batching, choose_batch_size, settle_batch_size
from featreg.engine.monitoring.stages import Stages
from featreg.engine.planning import plan
from featreg.errors import BackendError, OutOfMemoryError
from featreg.reference import backend as reference
from featreg.sources import Sample, Source
from featreg.spec import Preprocess


class Ticking:
    """A clock that only moves when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Limited:
    """An extractor that has no memory for batches of more than ``limit``; a batch takes ``seconds(size)``."""

    takes_text = False
    preprocess = Preprocess(resize=None, crop=(2, 2), mean=(0, 0, 0), std=(1, 1, 1))

    def __init__(self, limit=10**9, clock=None, seconds=lambda size: 0.0):
        self.limit = limit
        self.clock = clock
        self.seconds = seconds
        self.sizes = []
        self.freed = 0

    def __call__(self, inputs, *, transfers=None):
        self.sizes.append(len(inputs))
        if len(inputs) > self.limit:
            raise OutOfMemoryError("no memory")
        if self.clock is not None:
            self.clock.now += self.seconds(len(inputs))
        return {"mean": inputs.mean(axis=(2, 3), dtype=np.float64)}

    def free_memory(self):
        self.freed += 1


class Images(Source):
    """Images of one colour each."""

    kind, uri = "images", "images:"

    def __init__(self, count):
        self.samples = tuple(Sample(str(row), f"images:{row}") for row in range(count))

    def read(self, sample):
        return np.full((64, 64, 3), int(sample.key), np.uint8)


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 2, 2), np.uint8)


# --- back-off -----------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 40), size=st.integers(1, 40), limit=st.integers(1, 40))
def test_every_row_is_computed_once_and_in_order_whatever_fits(rows, size, limit):
    extractor, told = Limited(limit), []
    model = Batching(extractor, size, computed=told.append)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model(images(rows))["mean"]
    np.testing.assert_array_equal(found, images(rows).mean(axis=(2, 3)))
    assert sum(told) == rows
    assert model.size <= size
    fitting = [tried for tried in extractor.sizes if tried <= limit]
    assert sum(fitting) == rows
    assert extractor.freed == len(extractor.sizes) - len(fitting)
    assert all(2 * tried + 1 >= min(size, rows, limit) for tried in fitting[:-1]), "no smaller than need be"


def test_the_smaller_batch_stays_and_is_told_of_once():
    extractor = Limited(limit=3)
    model = Batching(extractor, 16)
    with pytest.warns(UserWarning, match="does not suffice for batches of 16: going on with 2") as caught:
        model(images(16))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images(16))
    assert extractor.sizes == [16, 8, 4, *[2] * 8, *[2] * 8]


def test_what_fits_goes_through_as_it_is():
    extractor = Limited()
    Batching(extractor, 4)(images(4))
    Batching(extractor, 8)(images(4))
    assert extractor.sizes == [4, 4]


def test_where_not_even_one_sample_fits_the_run_stops():
    extractor = Limited(limit=0)
    with pytest.raises(OutOfMemoryError):
        Batching(extractor, 4)(images(4))
    assert extractor.sizes == [4, 2, 1]


def test_other_errors_are_not_retried():
    class Broken(Limited):
        def __call__(self, inputs, *, transfers=None):
            self.sizes.append(len(inputs))
            raise BackendError("broken")

    extractor = Broken()
    with pytest.raises(BackendError, match="broken"):
        Batching(extractor, 4)(images(4))
    assert extractor.sizes == [4]


def test_texts_are_parted_as_images_are():
    class Texts(Limited):
        takes_text = True

        def __call__(self, inputs, *, transfers=None):
            assert isinstance(inputs, list)
            return super().__call__(np.array([[[[len(text)]]] for text in inputs]))

    with pytest.warns(UserWarning, match="going on with 2"):
        found = Batching(Texts(limit=2), 5)(["", "a", "bc", "def", "ghij"])
    assert found["mean"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_transfers_are_told_apart_from_the_model():
    clock = Ticking()

    class Copies(Limited):
        def __call__(self, inputs, *, transfers=None):
            with transfers():
                clock.now += 1.0
            clock.now += 4.0
            with transfers():
                clock.now += 2.0
            return super().__call__(inputs)

    stages = Stages(clock)
    Batching(Copies(), 4, stages=stages)(images(4))
    assert stages.seconds == {"read": 0, "decode": 0, "transfer": 3.0, "model": 4.0, "write": 0}


def test_a_run_that_is_short_of_memory_completes_and_records_no_row_as_failed(tmp_path, monkeypatch):
    whole = featreg.extract(Images(10), tmp_path / "whole", "numpy:tinynet", ["C1", "pooled"], batch_size=8)
    convolve, sizes = reference.convolve, []

    def greedy(x, kernel):
        if len(x) > 3:
            raise MemoryError
        sizes.append(len(x))
        return convolve(x, kernel)

    monkeypatch.setattr(reference, "convolve", greedy)
    with pytest.warns(UserWarning, match="batches of 8: going on with 2"):
        store = featreg.extract(Images(10), tmp_path / "short", "numpy:tinynet", ["C1", "pooled"], batch_size=8)
    assert set(sizes) == {2}
    assert (store.summary.ok, store.summary.failed) == (10, 0)
    assert store.manifest.passes[0].batch_size == 8
    for layer in ("C1", "pooled"):
        np.testing.assert_allclose(store[layer][:], whole[layer][:], rtol=1e-5, atol=1e-6)


def test_a_sample_for_which_memory_does_not_suffice_stops_the_run_with_a_typed_error(tmp_path, monkeypatch):
    def greedy(x, kernel):
        raise MemoryError

    monkeypatch.setattr(reference, "convolve", greedy)
    with pytest.raises(OutOfMemoryError, match="memory does not suffice") as caught:
        featreg.extract(Images(2), tmp_path / "s", "numpy:tinynet", "C1", on_error="record")
    assert isinstance(caught.value.__cause__, MemoryError)
    assert featreg.open_store(tmp_path / "s").status.tolist() == ["pending"] * 2


# --- choosing -----------------------------------------------------------------------------------------------------


def chosen(seconds, most=256, limit=10**9):
    clock = Ticking()
    extractor = Limited(limit, clock, seconds)
    return choose_batch_size(extractor, most, clock=clock), extractor


@pytest.mark.parametrize(
    ("seconds", "expected", "tried"),
    [
        (lambda size: 1.0, 4, [1, 2, 4]),  # the more the better; the cap is 4 here
        (lambda size: 0.1 * size, 1, [1, 2, 4]),  # no gain at all
        (lambda size: 0.1 + 0.1 * size, 4, [1, 2, 4]),
    ],
)
def test_no_larger_batch_is_tried_than_a_task_has_rows(seconds, expected, tried):
    best, extractor = chosen(seconds, most=4)
    assert best == expected
    assert extractor.sizes == [size for size in tried for _ in range(2)]
    assert extractor.freed == 1


def test_trying_ends_where_throughput_stops_growing():
    rates = {1: 10, 2: 18, 4: 30, 8: 31, 16: 30.9}  # from 4 on it gains less than a twentieth
    best, extractor = chosen(lambda size: size / rates[size])
    assert best == 4
    assert max(extractor.sizes) == 16


def test_one_doubling_without_a_gain_is_not_the_end():
    rates = {1: 10, 2: 10, 4: 20, 8: 40, 16: 40, 32: 40}
    assert chosen(lambda size: size / rates[size])[0] == 8


def test_memory_bounds_what_is_chosen():
    best, extractor = chosen(lambda size: 1.0, limit=9)
    assert best == 8
    assert extractor.sizes[-1] == 16


def test_no_batch_is_tried_beyond_one_that_takes_long():
    best, extractor = chosen(lambda size: 3.0 + size / 10)
    assert best == 32
    assert max(extractor.sizes) == 32


def test_a_model_without_room_for_one_sample_is_an_error():
    with pytest.raises(OutOfMemoryError):
        chosen(lambda size: 1.0, limit=0)


def test_a_number_is_taken_as_it_is():
    assert settle_batch_size(7, Limited(limit=0), 4) == 7


def test_the_batches_that_are_tried_are_of_the_form_that_the_model_takes():
    with featreg.create_extractor("numpy:tinynet", "C1") as extractor:
        assert extractor.preprocess.crop == (64, 64)
        assert choose_batch_size(extractor, 2) in (1, 2)


def test_what_was_chosen_is_recorded_and_every_worker_computes_with_it(tmp_path, monkeypatch):
    class Stops(Images):
        def read(self, sample):
            if sample.key == "6":
                raise KeyboardInterrupt
            return super().read(sample)

    asked, sizes, convolve = [], [], reference.convolve

    def choose(extractor, most):
        asked.append(most)
        return 2

    def counted(x, kernel):
        sizes.append(len(x))
        return convolve(x, kernel)

    monkeypatch.setattr(plan, "TASK_BYTES", 4 * 8 * 32 * 32 * 4)
    monkeypatch.setattr(batching, "choose_batch_size", choose)
    with pytest.raises(KeyboardInterrupt):
        featreg.extract(Stops(10), tmp_path / "s", "numpy:tinynet", "C1", batch_size="auto")
    assert featreg.open_store(tmp_path / "s").manifest.passes[0].batch_size == 2
    monkeypatch.setattr(reference, "convolve", counted)
    for asking in ("auto", None):
        featreg.extract(Images(10), tmp_path / "s", "numpy:tinynet", "C1", batch_size=asking)
    assert asked == [4]
    assert sizes == [2, 2, 2]
