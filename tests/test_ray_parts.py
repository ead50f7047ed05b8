"""The engine on Ray without Ray's processes: what is cut up, packed, counted and watched, and what each side does."""

from __future__ import annotations

import io
import math
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import featreg
from featreg.engine.planning import plan
from featreg.engine.run import Run, Work
from featreg.errors import (
    CapabilityError,
    EngineError,
    ImageError,
    InputError,
    LayerError,
    SpecError,
    StoreDamagedError,
    UnknownModelError,
)
from featreg.registry import Registry, default_registry
from featreg.sources import Sample, Source, open_source
from featreg.spec import ExtractionRequest
from featreg.stores.places.opening import place_at
from featreg.stores.writer import StoreWriter

pytest.importorskip("ray.data")

from featreg.engine.monitoring.stages import Stages
from featreg.engine.ray import complete, extractor_udf, reading, session
from featreg.engine.ray.chunks import MAX_CHUNKS, chunks
from featreg.engine.ray.crops import Decoded, decoded_rows, pack
from featreg.engine.ray.extracting import Job, TaskExtractor
from featreg.engine.ray.ledger import Ledger
from featreg.engine.ray.outcomes import Outcome, Raised, WorkerTraceback, outcome_table, outcomes
from featreg.engine.ray.reading import Reader
from featreg.engine.ray.shares import shares
from featreg.engine.ray.watchdog import Watchdog

LAYERS = ["C4", "pooled"]
ROW_BYTES = 4 * (32 * 4 * 4 + 48)
BAD = {2: b"no image", 9: b""}


def png(row: int) -> bytes:
    pixels = np.random.default_rng(row).integers(0, 256, (64, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fourteen images, two of them bad; tasks have four rows, so that the last one has two."""
    monkeypatch.setattr(plan, "TASK_BYTES", 4 * ROW_BYTES)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    folder = tmp_path / "images"
    folder.mkdir()
    for row in range(14):
        (folder / f"{row:02}.png").write_bytes(BAD.get(row, png(row)))
    return folder


def planned(images: Path, store: Path, **options: object) -> Path:
    """A store of which nothing but the plan is done: its only run stops at the first row."""

    class Stopped(Exception):
        pass

    def stop(*_: object) -> bool:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "commit", stop)
        with pytest.raises(Stopped):
            featreg.extract(images, store, "numpy:tinynet", LAYERS, batch_size=3, **options)
    return store


def content(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


# --- which tasks are read together --------------------------------------------------------------------------------


@given(st.integers(0, 5000), st.integers(1, 64))
def test_chunks_hold_every_task_once_and_in_order(count: int, slots: int) -> None:
    numbers = np.arange(count, dtype=np.int64) * 3 + 7
    found = chunks(numbers, slots)
    assert np.concatenate([numbers[:0], *found]).tolist() == numbers.tolist()
    assert all(len(chunk) for chunk in found)
    assert len(found) >= min(count, slots)


def test_a_billion_rows_make_no_more_chunks_than_a_driver_can_hold() -> None:
    found = chunks(np.arange(4_000_000), 1000)
    assert len(found) <= MAX_CHUNKS
    assert {len(chunk) for chunk in found[:-1]} == {400}


# --- who decodes and who extracts -------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0, 8.0, 64.0]), min_size=1, max_size=5), st.integers(1, 64))
def test_a_decoder_has_room_wherever_the_workers_are(cpus: list[float], workers: int) -> None:
    found = shares([{"CPU": count} for count in cpus], 0.0, workers, 1000)
    workers = min(workers, max(1, sum(map(math.floor, cpus))))
    assert (found.least, found.most) == (workers, workers)
    assert found.worker_cpus == found.decoder_cpus > 0
    room = sum(math.floor(count / found.decoder_cpus) for count in cpus)
    assert room >= workers + 1  # of one size: whatever the workers take, a place of that size is left


MACHINE = {"CPU": 64.0, "GPU": 8.0, "memory": 1e12}


@pytest.mark.parametrize(
    ("nodes", "gpus", "workers", "least", "most", "cpus", "decoders"),
    [
        ([MACHINE], 1.0, None, 1, 8, 1.0, 64),
        ([MACHINE, MACHINE, {"CPU": 32.0}], 1.0, None, 1, 16, 1.0, 160),
        ([MACHINE], 0.5, None, 1, 16, 1.0, 64),
        ([MACHINE], 0.3, None, 1, 26, 1.0, 64),
        ([{"CPU": 8.0, "GPU": 1.0}] * 2, 0.4, None, 1, 4, 1.0, 16),
        ([MACHINE], 1.0, 3, 3, 3, 1.0, 64),
        ([{"CPU": 16.0}], 0.0, None, 1, 12, 1.0, 4),
        ([{"CPU": 2.0}], 0.0, None, 1, 1, 1.0, 1),
        ([{"CPU": 1.0}], 0.0, None, 1, 1, 0.5, 1),
        ([{"CPU": 1.0}, {"CPU": 1.0}], 0.0, 2, 2, 2, 0.5, 2),
        ([{"CPU": 2.0}], 0.0, 2, 2, 2, 0.5, 2),
        ([], 1.0, None, 1, 1, 1.0, 1),
        ([{"CPU": 0.0}], 0.0, None, 1, 1, 1.0, 1),
    ],
)
def test_shares(
    nodes: list[dict[str, float]],
    gpus: float,
    workers: int | None,
    least: int,
    most: int,
    cpus: float,
    decoders: int,
) -> None:
    found = shares(nodes, gpus, workers, 1000)
    assert (found.least, found.most, found.decoder_cpus, found.decoders) == (least, most, cpus, decoders)
    assert (found.worker_gpus, found.worker_cpus) == ((gpus, 0.0) if gpus else (0.0, cpus))


@pytest.mark.parametrize(
    ("nodes", "gpus", "workers", "tasks", "least", "most"),
    [
        ([{"CPU": 2.0}], 0.0, 50, 1, 1, 1),
        ([{"CPU": 2.0}], 0.0, 50, 1000, 2, 2),
        ([{"CPU": 64.0}], 0.0, None, 5, 1, 5),
        ([{"CPU": 0.0}], 0.0, 50, 1000, 50, 50),  # it may grow yet
        ([MACHINE], 1.0, 50, 1000, 8, 50),
        ([MACHINE], 1.0, None, 3, 1, 3),
        ([{"CPU": 2.0}], 1.0, 4, 2, 1, 2),
    ],
)
def test_no_worker_is_begun_without_a_task_or_a_place(
    nodes: list[dict[str, float]], gpus: float, workers: int | None, tasks: int, least: int, most: int
) -> None:
    found = shares(nodes, gpus, workers, tasks)
    assert (found.least, found.most) == (least, most)


# --- what crosses from process to process -----------------------------------------------------------------------------


def crossed(table: object) -> object:
    """A table in another process's memory, as Ray hands it over."""
    return pickle.loads(pickle.dumps(table, protocol=5))


@given(st.lists(st.sampled_from(["crop", "error", "text"]), max_size=9), st.integers(0, 2**40))
def test_samples_cross_as_they_are(kinds: list[str], number: int) -> None:
    made = {
        "crop": lambda place: np.random.default_rng(place).integers(0, 256, (5, 7, 3), np.uint8),
        "error": lambda place: ImageError(f"image {place}", "a", "b", ("c",), "d"),
        "text": lambda place: f"text {place} \N{SNOWMAN}",
    }
    samples = [made[kind](place) for place, kind in enumerate(kinds)]
    [found] = decoded_rows(crossed(pack(Decoded(number, samples))))
    assert found.number == number
    assert len(found.samples) == len(samples)
    for got, sent in zip(found.samples, samples, strict=True):
        assert type(got) is type(sent)
        if isinstance(sent, np.ndarray):
            np.testing.assert_array_equal(got, sent)
        else:
            assert (got.args if isinstance(sent, ImageError) else got) == (
                sent.args if isinstance(sent, ImageError) else sent
            )


def raised(error: Exception) -> Raised:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001
        return Raised.of(caught)


def test_an_error_arrives_with_its_type_its_fields_its_notes_and_its_traceback() -> None:
    error = StoreDamagedError("a", "b", "c", ("d",), "e")
    error.add_note("row 7")
    [outcome] = outcomes(crossed(outcome_table([Outcome(3, 0, False, "host-1", raised(error))])))
    assert outcome.raised is not None
    with pytest.raises(StoreDamagedError) as caught:
        outcome.raised.throw()
    assert caught.value.args == error.args
    assert caught.value.__notes__ == ["row 7"]
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "in raised" in str(caught.value.__cause__)


def test_an_error_that_cannot_cross_is_quoted() -> None:
    class Local(Exception):
        pass

    with pytest.raises(EngineError, match=r"(?s)worker on Ray failed.*Local: what it says"):
        raised(Local("what it says")).throw()


def test_an_error_whose_class_is_missing_here_is_quoted() -> None:
    there = Raised(b"cnowhere.at.all\nMissing\n.", "Traceback\nnowhere.at.all.Missing: what it says\n")
    with pytest.raises(EngineError, match=r"(?s)no class for.*Missing: what it says"):
        there.throw()


# --- the watchdog -----------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_watchdog_is_hungry_only_where_no_receipt_was_written() -> None:
    clock, receipts = Clock(), [5]
    watchdog = Watchdog(100, lambda: receipts[0], clock)
    clock.now = 99
    assert not watchdog.is_hungry()
    watchdog.fed("host-1")
    clock.now = 198
    assert not watchdog.is_hungry()
    clock.now, receipts[0] = 199, 6  # nobody told, but another worker is at work
    assert not watchdog.is_hungry()
    clock.now = 298
    assert not watchdog.is_hungry()
    clock.now = 299
    assert watchdog.is_hungry()


def test_the_watchdog_is_hungry_sooner_where_that_is_asked_for() -> None:
    clock = Clock()
    watchdog = Watchdog(100, lambda: 0, clock)
    clock.now = 60
    assert watchdog.is_hungry(60)
    assert not watchdog.is_hungry(61)
    assert not watchdog.is_hungry()


def test_the_watchdog_names_what_hangs() -> None:
    clock = Clock()
    watchdog = Watchdog(60, lambda: 0, clock)
    watchdog.fed("host-17")
    clock.now = 75
    error = watchdog.error([3, 8, 9, 10, 11, 12], "1 of 2 nodes are alive")
    assert isinstance(error, EngineError)
    assert "6 tasks" in error.problem
    assert "3, 8" in error.problem
    assert "host-17 75 s ago" in error.got
    assert "1 of 2 nodes" in error.got


def test_the_watchdog_waits_no_longer_than_its_patience() -> None:
    assert Watchdog(0.5, lambda: 0, Clock()).wait == 0.5
    assert 0 < Watchdog(10_000, lambda: 0, Clock()).wait < 60


# --- the driver's account ---------------------------------------------------------------------------------------------


def test_the_ledger_tells_of_each_task_once(images: Path, tmp_path: Path) -> None:
    writer = StoreWriter(place_at(planned(images, tmp_path / "store")))
    told: list[tuple[int, int, bool]] = []
    part, stages = writer.manifest.passes[0], Stages()
    ledger = Ledger(writer, part, {1}, lambda task, failed, own: told.append((task.start, failed, own)), stages)
    assert ledger.open().tolist() == [0, 2, 3]
    for _ in range(2):
        ledger.settle(Outcome(2, 1, True, "host-1", seconds={"model": 3.0}, waited={"load": 5.0}))
    assert (stages.seconds["model"], stages.waited["load"]) == (3.0, 5.0)
    assert told == [(8, 1, True)]
    assert ledger.open().tolist() == [0, 3]


def test_the_ledger_finds_what_was_committed_without_a_word(images: Path, tmp_path: Path) -> None:
    writer = StoreWriter(place_at(planned(images, tmp_path / "store")))
    part = writer.manifest.passes[0]
    told: list[tuple[int, int, bool]] = []
    ledger = Ledger(writer, part, (), lambda task, failed, own: told.append((task.start, failed, own)), Stages())
    zeros = {layer.key: np.zeros((4, *layer.shape), np.float32) for layer in part.layers}
    writer.commit(part.task(1), zeros, {5: "ImageError: bad"})
    assert ledger.recount() == 1
    assert told == [(4, 1, False)]
    assert ledger.recount() == 0
    assert ledger.open().tolist() == [0, 2, 3]


# --- the connection ---------------------------------------------------------------------------------------------------


class FakeRay:
    """A Ray that starts nothing: it notes how it is asked, and has a node with these resources."""

    def __init__(self, resources: dict[str, float], running: bool) -> None:
        self.asked: list[str] = []
        self._nodes = [{"Alive": True, "Resources": resources}]
        self._running = running

    def init(self, address: str, **_: object) -> None:
        if address == "auto" and not self._running:
            raise ConnectionError("no cluster")
        self.asked.append(address)

    def is_initialized(self) -> bool:
        return False

    def nodes(self) -> list[dict[str, object]]:
        return self._nodes

    def shutdown(self) -> None:
        self.asked.append("shutdown")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = FakeRay({"CPU": 2.0}, running=False)
    monkeypatch.setattr(session, "ray", found)
    return found


@pytest.mark.parametrize("address", [None, "local"])
def test_a_cluster_of_our_own_without_gpus_is_refused_before_anything_waits(fake: FakeRay, address: str | None) -> None:
    with pytest.raises(EngineError, match="more GPUs than this machine has"), session.connected(address, 1.0):
        pass
    assert fake.asked == ["local", "shutdown"]
    with session.connected(address, 0.0):
        pass


def test_somebody_elses_cluster_may_grow(monkeypatch: pytest.MonkeyPatch, fake: FakeRay) -> None:
    monkeypatch.setattr(fake, "_running", True)
    with pytest.warns(UserWarning, match="no node of the Ray cluster has 1 GPUs"), session.connected(None, 1.0):
        pass
    assert fake.asked == ["auto", "shutdown"]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_said_before_a_store_is_planned(
    images: Path, tmp_path: Path, fake: FakeRay, scheme: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody else gets the port, and nobody listens there
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EngineError, match="no Ray cluster at") as caught:
            featreg.extract(images, tmp_path / "store", "numpy:tinynet", LAYERS, engine="ray", address=address)
    assert "--address" in caught.value.remedy
    assert fake.asked == []
    assert not (tmp_path / "store").exists()


def test_a_port_that_cannot_be_is_refused(fake: FakeRay) -> None:
    with pytest.raises(EngineError, match="no Ray cluster at"), session.connected("127.0.0.1:65536"):
        pass


# --- both ends of the pipeline in this process ------------------------------------------------------------------------


def run_by_hand(store: Path, numbers: list[int]) -> list[Outcome]:
    """What Ray does, without Ray: each task read, packed, handed over, extracted and committed."""
    writer = StoreWriter(place_at(store))
    reader = Reader(writer.place.uri, 0, "run")
    worker = TaskExtractor(Job(writer.place.uri, 0, Run().options(writer.manifest.passes[0]), None))
    tables = [pickle.loads(pickle.dumps(reader))(np.array([number])) for number in numbers]
    return [outcome for [table] in tables for outcome in outcomes(worker(crossed(table)))]


def test_rows_files_and_errors_are_those_of_the_local_engine(images: Path, tmp_path: Path) -> None:
    featreg.extract(images, tmp_path / "local", "numpy:tinynet", LAYERS, batch_size=3)
    store = planned(images, tmp_path / "store")
    found = run_by_hand(store, [2, 0, 3, 1])
    StoreWriter(place_at(store)).finalize()
    assert [(outcome.number, outcome.failed, outcome.own) for outcome in found] == [
        (2, 1, True),
        (0, 1, True),
        (3, 0, True),
        (1, 0, True),
    ]
    assert content(store) == content(tmp_path / "local")


def test_a_task_that_is_handed_out_twice_is_done_once(images: Path, tmp_path: Path) -> None:
    store = planned(images, tmp_path / "store")
    found = run_by_hand(store, [0, 0])
    assert all(found[0].seconds[stage] > 0 for stage in ("read", "decode", "model", "write"))
    assert found[1].seconds["model"] == 0
    assert [(outcome.failed, outcome.own) for outcome in found] == [(1, True), (1, False)]


def test_what_stops_reading_is_told_for_every_task(images: Path, tmp_path: Path) -> None:
    store = planned(images, tmp_path / "store")
    [index] = (store / "index").iterdir()
    index.write_bytes(b"damaged")
    found = run_by_hand(store, [0, 1])
    assert [outcome.number for outcome in found] == [0, 1]
    for outcome in found:
        assert outcome.raised is not None
        with pytest.raises(StoreDamagedError, match="index"):
            outcome.raised.throw()


def test_the_number_of_tables_depends_on_the_tasks_alone(images: Path, tmp_path: Path) -> None:
    store = planned(images, tmp_path / "store")
    run_by_hand(store, [0, 1])
    tables = list(Reader(str(store), 0, "another run")(np.array([0, 1, 2])))
    assert [decoded.number for table in tables for decoded in decoded_rows(table)] == [0, 1, 2]


def test_texts_are_read_as_texts(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = planned(images, tmp_path / "store")
    monkeypatch.setattr(reading, "reads_text", lambda part: True)
    [table] = Reader(str(store), 0, "texts")(np.array([0]))
    [decoded] = decoded_rows(crossed(table))
    assert decoded.samples[2] == "no image"
    assert isinstance(decoded.samples[0], InputError)


# --- what cannot leave this process -----------------------------------------------------------------------------------


class OfMyOwn(Source):
    kind, uri = "mine", "mine:"
    samples = tuple(Sample(f"{row}.png", str(row)) for row in range(5))

    def read(self, sample: Sample) -> bytes:
        return png(int(sample.uri))


def writer_and_work(images: Path, store: Path) -> tuple[StoreWriter, Work]:
    planned(images, store)
    return StoreWriter(place_at(store)), Work(open_source(images), default_registry())


def test_a_source_of_ones_own_stays_here(images: Path, tmp_path: Path) -> None:
    store = planned(OfMyOwn(), tmp_path / "store")  # type: ignore[arg-type]
    with pytest.raises(CapabilityError, match=r"source .* cannot be opened") as caught:
        complete(StoreWriter(place_at(store)), Work(OfMyOwn(), default_registry()), Run())
    assert "local" in caught.value.remedy


def test_an_open_extractor_stays_here(images: Path, tmp_path: Path) -> None:
    writer, work = writer_and_work(images, tmp_path / "store")
    with (
        featreg.create_extractor("numpy:tinynet", LAYERS) as extractor,
        pytest.raises(CapabilityError, match="open extractor"),
    ):
        complete(writer, Work(work.source, work.registry, extractor), Run())


def test_a_store_in_memory_stays_here(images: Path, fake: FakeRay) -> None:
    with pytest.raises(CapabilityError, match="the store 'memory://kept' cannot be opened"):
        featreg.extract(images, "memory://kept", "numpy:tinynet", LAYERS, engine="ray")
    assert not place_at("memory://kept").is_taken()
    assert fake.asked == []


def test_what_stays_here_is_said_before_a_store_is_planned(images: Path, tmp_path: Path, fake: FakeRay) -> None:
    with (
        featreg.create_extractor("numpy:tinynet", LAYERS) as extractor,
        pytest.raises(CapabilityError, match="open ext"),
    ):
        featreg.extract(images, tmp_path / "store", extractor, engine="ray")
    with pytest.raises(CapabilityError, match=r"source .* cannot be opened"):
        featreg.extract(OfMyOwn(), tmp_path / "store", "numpy:tinynet", LAYERS, engine="ray")
    assert not (tmp_path / "store").exists()
    assert fake.asked == []


def test_a_registry_of_ones_own_stays_here(images: Path, tmp_path: Path) -> None:
    writer, work = writer_and_work(images, tmp_path / "store")
    with pytest.raises(CapabilityError, match="registry"):
        complete(writer, Work(work.source, Registry()), Run())


def test_without_ray_the_pip_line_is_said() -> None:
    code = "import sys; sys.modules['ray'] = None; import featreg; featreg.extract('a', 'b', 'c', 'd', engine='ray')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in found.stderr
    assert 'pip install "featreg[ray]"' in found.stderr


# --- a model as a function of batches ---------------------------------------------------------------------------------

REQUEST = ExtractionRequest("numpy:tinynet", ("C4", "pooled"))


def expected(rows: list[int]) -> dict[str, np.ndarray]:
    """The features of some images through the extractor itself."""
    from featreg.images import decode
    from featreg.preprocess import crop

    with featreg.create_extractor(REQUEST) as extractor:
        batch = np.stack([crop(decode(png(row)), extractor.preprocess).transpose(2, 0, 1) for row in rows])
        return {str(key): values for key, values in extractor(batch).items()}


def test_a_batch_of_encoded_images() -> None:
    udf = extractor_udf(REQUEST)()
    found = udf({"image": np.array([png(3), b"no image", png(4)], object), "id": np.arange(3)})
    assert set(found) == {"id", "error", "C4", "pooled"}
    assert found["id"].tolist() == [0, 1, 2]
    for key, values in expected([3, 4]).items():
        np.testing.assert_allclose(found[key][[0, 2]], values, rtol=1e-5, atol=1e-6)
        assert np.isnan(found[key][1]).all()
    assert found["error"][[0, 2]].tolist() == ["", ""]
    assert found["error"][1].startswith("ImageError: ")


@pytest.mark.parametrize("sizes", [[(64, 64), (64, 64)], [(64, 80), (90, 70)]])
def test_a_batch_of_pixels(sizes: list[tuple[int, int]]) -> None:
    pixels = [np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    column = np.empty(2, object)
    column[:] = pixels
    one_size = len(set(sizes)) == 1
    found = extractor_udf(REQUEST)()({"image": np.stack(pixels) if one_size else column})
    assert found["C4"].shape == (2, 32, 4, 4)
    assert found["C4"].dtype == np.float32
    assert not np.isnan(found["pooled"]).any()


def test_the_input_is_kept_where_that_is_asked_for() -> None:
    found = extractor_udf(REQUEST, column="jpg", keep_input=True)()({"jpg": np.array([png(1)], object)})
    assert found["jpg"][0] == png(1)


def test_errors_are_raised_where_that_is_asked_for() -> None:
    udf = extractor_udf(REQUEST, on_error="raise")()
    assert set(udf({"image": np.array([png(1)], object)})) == {"C4", "pooled"}
    with pytest.raises(ImageError):
        udf({"image": np.array([png(1), b"no image"], object)})


def test_rows_without_an_image_fail_alone() -> None:
    found = extractor_udf(REQUEST)()({"image": np.array([png(1), None], object)})
    assert found["error"][0] == ""
    assert "no image" in found["error"][1]


def test_features_are_ones_own() -> None:
    udf = extractor_udf(REQUEST)()
    first = udf({"image": np.array([png(1)], object)})["pooled"]
    first[:] = 0
    assert udf({"image": np.array([png(1)], object)})["pooled"].any()


def test_columns_of_one_name_are_refused() -> None:
    with pytest.raises(SpecError, match="one name"):
        extractor_udf(ExtractionRequest("numpy:tinynet", ("pooled",)), error_column="pooled")
    with pytest.raises(SpecError, match="one name"):
        extractor_udf(ExtractionRequest("numpy:tinynet", ("pooled",)), column="pooled", keep_input=True)
    with pytest.raises(SpecError, match="already"):
        extractor_udf(REQUEST)()({"image": np.array([png(1)], object), "pooled": np.zeros(1)})
    with pytest.raises(SpecError, match="no column 'image'"):
        extractor_udf(REQUEST)()({"jpg": np.array([png(1)], object)})


@pytest.mark.parametrize(
    ("model", "layer", "error"),
    [
        ("numpy:tinynetx", "C4", UnknownModelError),
        ("numpy:tinynet", "C9", LayerError),
        ("numpy:tinynet", 99, LayerError),
        ("numpy:tinynet", "no.such.node", LayerError),
    ],
)
def test_a_model_and_its_layers_are_looked_for_when_it_is_made(
    model: str, layer: str | int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        extractor_udf(ExtractionRequest(model, (layer,)))


def test_what_is_not_installed_here_may_be_on_the_workers() -> None:
    assert extractor_udf(ExtractionRequest("elsewhere:net", ("C4",)))


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(SpecError, match="no request"):
        extractor_udf("numpy:tinynet")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="on_error"):
        extractor_udf(REQUEST, on_error="ignore")  # type: ignore[arg-type]
