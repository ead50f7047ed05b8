"""What is said before a run starts: exact counts and bytes, free disk, and a guess; and that nothing is left of it."""

import json
from pathlib import Path

import attrs
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import featreg
from featreg.cli.forecast import format_bytes, format_seconds
from featreg.cli.main import cli
from featreg.engine import preparing
from featreg.engine.planning.probe import Probe, Spread, probe
from featreg.errors import BackendError, SourceError, StoreExistsError, StoreFullError, StoreMismatchError
from featreg.sources import FolderSource, Sample, Source
from featreg.stores.places.place import LocalPlace

PHOTOS = str(Path(__file__).parent.parent / "photos")
MODEL = "numpy:tinynet"


def command(*arguments):
    return CliRunner().invoke(cli, ["extract", *map(str, arguments)])


class Pictures(Source):
    """So many pictures; counts how often its index is read to its end, and which of them are read."""

    kind = uri = "pictures"

    def __init__(self, count, bad=()):
        self.count = count
        self.bad = bad
        self.indexed = 0
        self.seen = []

    def index(self):
        for number in range(self.count):
            yield Sample(str(number), str(number))
        self.indexed += 1

    def read(self, sample):
        self.seen.append(int(sample.key))
        if int(sample.key) in self.bad:
            raise SourceError("bad")
        return np.full((64, 64, 3), int(sample.key) % 256, np.uint8)


# --- counts and bytes -------------------------------------------------------------------------------------------------


def test_the_bytes_are_those_of_the_arrays(tmp_path):
    asked = {
        "layers": ["C5", "pooled"], "derive": ["two=C5,C4[avg]:pca=2", "C4:l2"], "limit": 7, "flatten": ["C5"],
        "store_dtype": {"pooled": "float16"},
    }  # fmt: skip
    found = featreg.estimate(PHOTOS, tmp_path / "s", MODEL, **asked)
    assert list(tmp_path.iterdir()) == []
    store = featreg.extract(PHOTOS, tmp_path / "s", MODEL, **asked)
    assert found.rows == found.rows_left == len(store) == 7
    assert [layer.key for layer in found.layers] == ["C5", "pooled", "two", "C4:l2"]
    for layer in found.layers:
        values = store[layer.key][:]
        assert (layer.shape, layer.dtype, layer.bytes) == (values.shape[1:], str(values.dtype), values.nbytes)
        assert not layer.at_most
    assert found.bytes == found.bytes_left == sum(store[layer][:].nbytes for layer in store.layers)
    assert found.to_fit == ("two",)
    assert found.task_bytes == found.bytes
    assert found.free == pytest.approx(LocalPlace(tmp_path).free_bytes(), rel=0.2)


def test_of_a_share_of_the_variance_the_most_is_told(tmp_path):
    found = featreg.estimate(PHOTOS, tmp_path / "s", MODEL, derive="C5:pca=0.5")
    store = featreg.extract(PHOTOS, tmp_path / "s", MODEL, derive="C5:pca=0.5")
    (layer,) = found.layers
    assert layer.at_most
    assert layer.shape == (48 * 2 * 2,)
    assert store["C5:pca=0.5"].shape[1] < 48 * 2 * 2


def test_of_a_store_that_is_begun_what_is_left_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("featreg.engine.planning.plan.TASK_BYTES", 4 * 8 * 32 * 32 * 4)
    source = Pictures(10, bad=(6,))
    with pytest.raises(SourceError):
        featreg.extract(source, tmp_path / "s", MODEL, "C1", on_error="raise", batch_size=2)
    source.seen.clear()
    found = featreg.estimate(source, tmp_path / "s", MODEL, "C1")
    assert (found.rows, found.rows_left, found.resumed) == (10, 6, True)
    assert (found.bytes, found.bytes_left) == (10 * 8 * 32 * 32 * 4, 6 * 8 * 32 * 32 * 4)
    assert (found.probe, found.seconds, source.seen) == (None, None, [])
    told = []
    featreg.extract(source, tmp_path / "s", MODEL, "C1", on_estimate=told.append)
    assert [attrs.evolve(one, free=None) for one in told] == [attrs.evolve(found, free=None)]
    assert featreg.estimate(source, tmp_path / "s", MODEL, "C1").rows_left == 0
    with pytest.raises(StoreMismatchError):
        featreg.estimate(source, tmp_path / "s", MODEL, "C2")
    assert featreg.estimate(source, tmp_path / "s", MODEL, "C2", overwrite=True).rows_left == 10
    with pytest.raises(StoreExistsError):
        featreg.estimate(source, tmp_path, MODEL, "C1")


# --- the index is read once -------------------------------------------------------------------------------------------


def test_the_index_is_read_once_for_the_estimate_and_the_run(tmp_path):
    source, told = Pictures(300), []
    featreg.extract(source, tmp_path / "s", MODEL, "pooled", on_estimate=told.append)
    assert source.indexed == 1
    assert [one.rows for one in told] == [300]


def test_a_run_tries_out_a_bounded_share_spread_over_all(tmp_path):
    source, told = Pictures(300), []
    featreg.extract(source, tmp_path / "s", MODEL, "pooled", on_estimate=told.append, num_workers=1)
    tried = source.seen[: len(source.seen) - 300]
    assert len(tried) == 300 // preparing.PROBE_SHARE == told[0].probe.samples
    assert max(tried) - min(tried) > 150
    assert source.seen[len(tried) :] == list(range(300))
    assert told[0].seconds > 0


def test_a_small_run_and_one_that_nobody_asks_of_try_out_nothing(tmp_path):
    source, told = Pictures(preparing.PROBE_SHARE - 1), []
    featreg.extract(source, tmp_path / "s", MODEL, "pooled", on_estimate=told.append)
    assert len(source.seen) == source.count
    assert (told[0].probe, told[0].seconds) == (None, None)
    large = Pictures(300)
    featreg.extract(large, tmp_path / "t", MODEL, "pooled")
    assert len(large.seen) == 300


@given(count=st.integers(0, 500), most=st.integers(1, 40), number=st.integers(0, 60))
def test_what_is_kept_is_spread_evenly(count, most, number):
    spread = Spread(most)
    assert list(spread.watch(range(count))) == list(range(count))
    assert spread.count == count
    found = spread.some(number)
    assert len(found) == min(number, len(found))
    assert found == sorted(set(found))
    assert len(found) >= min(number, most, count)
    if len(found) > 1:
        gaps = np.diff([*found, count])
        assert gaps.max() <= 4 * max(gaps[:-1].min(), 1)


# --- the guess --------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes by what is done alone: so much for every sample read, and for every sample in the model."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Slow(Pictures):
    def __init__(self, count, clock, seconds, bad=()):
        super().__init__(count, bad)
        self.clock = clock
        self.seconds = seconds

    def read(self, sample):
        self.clock.now += self.seconds
        return super().read(sample)


class Model:
    """An extractor that takes its time, and tells the sizes of its batches."""

    takes_text = False
    preprocess = featreg.create_extractor(MODEL, "pooled").preprocess

    def __init__(self, clock, seconds, fails_at=None):
        self.clock = clock
        self.seconds = seconds
        self.fails_at = fails_at
        self.sizes = []

    def __call__(self, batch):
        if self.fails_at is not None and len(batch) >= self.fails_at:
            raise BackendError("too many")
        self.sizes.append(len(batch))
        self.clock.now += self.seconds * len(batch)


def tried(samples, load, model, *, seconds=10.0, **options):
    clock = Clock()
    source, extractor = Slow(samples, clock, load, options.pop("bad", ())), Model(clock, model, **options)
    return probe(source, list(source.index()), extractor, threads=1, seconds=seconds, clock=clock), extractor, clock


def test_the_model_is_warm_when_it_is_timed():
    found, extractor, _ = tried(32, 0.01, 0.02)
    assert extractor.sizes == [1, 1, 8, 32, 32]
    assert found.samples == 32
    assert found.load == pytest.approx(0.01)
    assert found.model == pytest.approx(0.02)


@pytest.mark.parametrize(("load", "model"), [(0.0, 3.0), (2.0, 0.0), (1.0, 1.0), (100.0, 100.0), (0.05, 0.2)])
def test_a_probe_ends_in_time(load, model):
    found, extractor, clock = tried(32, load, model)
    longest = max(load * 4, model)  # the threads have begun some samples more, and the first call is always made
    assert clock.now <= 10 + 2 * longest
    assert found.samples >= 1
    assert extractor.sizes[0] == 1
    assert found.model == pytest.approx(model)


def test_what_cannot_be_tried_is_not_guessed():
    assert tried(0, 0.1, 0.1)[0] is None
    assert tried(5, 0.1, 0.1, bad=range(5))[0].model is None
    assert tried(5, 0.1, 0.1, bad=range(5))[0].rate(together=True) is None
    found, extractor, _ = tried(32, 0.1, 0.01, fails_at=9)
    assert extractor.sizes == [1, 1, 8]
    assert found.model == pytest.approx(0.01)


def test_the_rate_is_that_of_the_slower_part_or_of_both():
    assert Probe(4, 0.1, 0.3).rate(together=False) == pytest.approx(1 / 0.3)
    assert Probe(4, 0.1, 0.3).rate(together=True) == pytest.approx(1 / 0.4)


def test_the_guess_goes_for_all_rows(tmp_path):
    clock = Clock()
    found = featreg.estimate(Slow(100, clock, 0.05), tmp_path / "s", MODEL, "pooled", clock=clock, num_workers=1)
    assert found.probe.model == 0  # the clock stands still in a real model
    assert found.seconds == pytest.approx(100 * found.probe.load)


# --- room -------------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_an_error_before_anything_is_created(tmp_path, monkeypatch):
    source, needed = Pictures(50), 50 * 48 * 4
    monkeypatch.setattr(LocalPlace, "free_bytes", lambda _: needed - 1)
    told = []
    with pytest.raises(StoreFullError) as caught:
        featreg.extract(source, tmp_path / "deep/s", MODEL, "pooled", on_estimate=told.append)
    assert (caught.value.expected, caught.value.got) == (f"{needed:,} bytes", f"{needed - 1:,} bytes free")
    assert told[0].free == needed - 1
    assert source.seen == []
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(LocalPlace, "free_bytes", lambda _: needed)
    assert featreg.extract(source, tmp_path / "s", MODEL, "pooled").complete


def test_the_old_store_stays_where_there_is_no_room_for_the_new_one(tmp_path, monkeypatch):
    featreg.extract(Pictures(5), tmp_path / "s", MODEL, "pooled")
    monkeypatch.setattr(LocalPlace, "free_bytes", lambda _: 10)
    with pytest.raises(StoreFullError):
        featreg.extract(Pictures(50), tmp_path / "s", MODEL, "pooled", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert len(featreg.open_store(tmp_path / "s")) == 5


def test_at_a_url_nobody_knows_how_much_room_there_is():
    pytest.importorskip("fsspec")
    found = featreg.estimate(Pictures(5), "memory://estimated/s", MODEL, "pooled")
    assert found.free is None
    found.check_room()


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_it_and_leaves_nothing(tmp_path):
    result = command(
        PHOTOS, tmp_path / "s", "--model", MODEL, "--layer", "C5", "--layer", "pooled:float16", "--dry-run"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"to do in {tmp_path / 's'}: 12 rows, 10.4 kB; ")
    assert ["pooled", "48", "float16", "1.2", "kB"] in [line.split() for line in result.stdout.splitlines()]
    assert "a guess (12 samples tried: " in result.stdout
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_in_json_is_one_object(tmp_path):
    result = command(PHOTOS, tmp_path / "s", "--model", MODEL, "--layer", "C5", "--limit", "4", "--dry-run", "--json")
    document = json.loads(result.stdout)
    assert (document["rows"], document["bytes"], document["resumed"]) == (4, 4 * 48 * 2 * 2 * 4, False)
    assert document["probe"]["samples"] == 4
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_finished_store_says_that_nothing_is_left(tmp_path):
    arguments = [PHOTOS, tmp_path / "s", "--model", MODEL, "--layer", "C5"]
    assert command(*arguments).exit_code == 0
    before = sorted(tmp_path.rglob("*"))
    assert command(*arguments, "--dry-run").stdout == f"to do in {tmp_path / 's'}: nothing\n"
    assert command(*arguments).stderr == f"to do in {tmp_path / 's'}: nothing\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_without_room_says_how_much_it_takes_and_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalPlace, "free_bytes", lambda _: 100)
    for form in ([], ["--json"]):
        result = command(PHOTOS, tmp_path / "s", "--model", MODEL, "--layer", "C5", "--dry-run", *form)
        assert result.exit_code == 2
        assert "has not the room" in result.stderr
        assert "9.2 kB; 100 bytes free" in result.stdout or json.loads(result.stdout)["free"] == 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", MODEL, "--layer", "C5", "--save-config", "run.yaml"], "--save-config"),
        (["--add-layer", "C3"], "there is no store"),
        (["--append"], "there is no store"),
        (["--model", MODEL, "--layer", "C9"], "C9"),
    ],
)
def test_what_no_dry_run_does(tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    result = command(PHOTOS, "s", *flags, "--dry-run")
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_reads_no_more_than_it_tries(tmp_path, monkeypatch):
    read, seen = FolderSource.read, []
    monkeypatch.setattr(FolderSource, "read", lambda self, sample: seen.append(sample.key) or read(self, sample))
    monkeypatch.setattr(preparing, "BATCH_SIZE", 3)
    assert command(PHOTOS, tmp_path / "s", "--model", MODEL, "--layer", "C5", "--dry-run").exit_code == 0
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (11520, "11.5 kB"), (99_949, "99.9 kB"),
     (99_950, "100 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"), (5e16, "50.0 PB"), (5e19, "50000 PB")],
)  # fmt: skip
def test_sizes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "1 s"), (89, "89 s"), (90, "1.5 minutes"), (600, "10 minutes"), (5400, "1.5 hours"), (1e6, "12 days")],
)
def test_spans(seconds, text):
    assert format_seconds(seconds) == text
