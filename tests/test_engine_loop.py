"""The loop of a worker: what goes on at once, what is held, and how it ends."""

import os
import signal
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featreg
from featreg.engine.loop import loader
from featreg.engine.loop.budget import Budget
from featreg.engine.loop.committer import Committer
from featreg.engine.loop.loader import load_crops
from featreg.engine.loop.options import Options
from featreg.engine.monitoring.stages import Stages
from featreg.engine.planning import plan
from featreg.engine.run import MAX_THREADS, Run
from featreg.errors import BackendError, ErrorRateError, StoreDamagedError, StoreFullError
from featreg.images import decoded_size
from featreg.reference import backend as reference
from featreg.sources import Sample, Source
from featreg.stores.index import Index
from featreg.stores.layout import Task
from featreg.stores.writer import StoreWriter

LONG = 60.0
"""Seconds after which a test that waits has failed."""


@pytest.fixture(autouse=True)
def tasks_of_four(monkeypatch):
    monkeypatch.setattr(plan, "TASK_BYTES", 4 * 8 * 32 * 32 * 4)


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("featreg-")]


class Images(Source):
    """Images of one colour each; reading a row in ``raising`` raises."""

    kind, uri = "images", "images:"

    def __init__(self, count, raising=None):
        self.samples = tuple(Sample(str(row), f"images:{row}") for row in range(count))
        self.raising = raising or {}

    def read(self, sample):
        row = int(sample.key)
        if row in self.raising:
            raise self.raising[row]
        return np.full((64, 64, 3), row, np.uint8)


def extract(source, store, **options):
    return featreg.extract(source, store, "numpy:tinynet", "C1", batch_size=4, **options)


def statuses(store):
    return featreg.open_store(store).status.tolist()


def failing_commits(monkeypatch, errors):
    """Commits raise for the tasks in ``errors``, by their number; the tasks that were tried."""
    commit, tried = StoreWriter.commit, []

    def failing(self, task, *arguments):
        tried.append(task.number)
        if task.number in errors:
            raise errors[task.number]
        return commit(self, task, *arguments)

    monkeypatch.setattr(StoreWriter, "commit", failing)
    return tried


def failing_model(monkeypatch, calls):
    """The model raises at one of its calls, by number from 0."""
    convolve, count = reference.convolve, iter(range(10**6))

    def failing(x, kernel):
        number = next(count)
        if number in calls:
            raise calls[number]
        return convolve(x, kernel)

    monkeypatch.setattr(reference, "convolve", failing)


# --- writing while computing --------------------------------------------------------------------------------------


def test_a_task_is_written_while_the_next_is_computed(tmp_path, monkeypatch):
    commit, convolve, second = StoreWriter.commit, reference.convolve, threading.Event()
    computed, together = [], []

    def counted(x, kernel):
        computed.append(len(x))
        if len(computed) == 2:
            second.set()
        return convolve(x, kernel)

    def patient(self, task, *arguments):
        if task.number == 0:
            together.append(second.wait(LONG))
        return commit(self, task, *arguments)

    monkeypatch.setattr(reference, "convolve", counted)
    monkeypatch.setattr(StoreWriter, "commit", patient)
    store = extract(Images(10), tmp_path / "s")
    assert together == [True]
    assert (store.summary.ok, computed) == (10, [4, 4, 2])


class Slow:
    """Stands for a writer whose commits wait until they are let go."""

    def __init__(self):
        self.begun, self.go = [], threading.Semaphore(0)

    def commit(self, task, features, errors):
        self.begun.append(task.number)
        assert self.go.acquire(timeout=LONG)
        return True


def test_no_more_than_one_task_is_held_for_writing():
    writer, told = Slow(), []
    tasks = [Task(number, number, number + 1) for number in range(3)]
    with ThreadPoolExecutor(1) as caller, Committer(writer, lambda *facts: told.append(facts), Stages()) as committer:
        committer.put(tasks[0], {}, {})
        second = caller.submit(committer.put, tasks[1], {}, {0: "bad"})
        with pytest.raises(TimeoutError):
            second.result(timeout=0.05)
        writer.go.release()
        second.result(timeout=LONG)
        assert told == [(tasks[0], 0, True)]
        writer.go.release(2)
        committer.put(tasks[2], {}, {})
    assert writer.begun == [0, 1, 2]
    assert told == [(tasks[0], 0, True), (tasks[1], 1, True), (tasks[2], 0, True)]


def test_waiting_for_the_writer_and_writing_are_both_counted(tmp_path):
    stages = Stages()
    writer = Slow()
    writer.go.release(2)
    with Committer(writer, lambda *_: None, stages) as committer:
        for number in range(2):
            committer.put(Task(number, number, number + 1), {}, {})
    assert stages.seconds["write"] > 0
    assert stages.waited["write"] > 0


# --- what goes wrong, in order ------------------------------------------------------------------------------------


def test_a_write_that_fails_stops_the_run_before_a_later_task_is_written(tmp_path, monkeypatch):
    tried = failing_commits(monkeypatch, {1: StoreFullError("no room")})
    with pytest.raises(StoreFullError, match="no room"):
        extract(Images(16), tmp_path / "s")
    assert tried == [0, 1]
    assert statuses(tmp_path / "s") == ["ok"] * 4 + ["pending"] * 12


def test_a_write_that_fails_comes_before_what_went_wrong_later(tmp_path, monkeypatch):
    failing_commits(monkeypatch, {1: StoreFullError("no room")})
    failing_model(monkeypatch, {2: FloatingPointError("later")})
    with pytest.raises(StoreFullError, match="no room") as caught:
        extract(Images(16), tmp_path / "s")
    assert isinstance(caught.value.__context__, BackendError)


def test_the_last_write_is_waited_for(tmp_path, monkeypatch):
    failing_commits(monkeypatch, {3: StoreFullError("no room")})
    with pytest.raises(StoreFullError, match="no room"):
        extract(Images(16), tmp_path / "s")
    assert statuses(tmp_path / "s") == ["ok"] * 12 + ["pending"] * 4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), FloatingPointError("no")])
def test_what_is_being_written_is_finished_whatever_stops_the_run(tmp_path, monkeypatch, error):
    commit, failing = StoreWriter.commit, threading.Event()

    def slow(self, *arguments):
        assert failing.wait(LONG)
        return commit(self, *arguments)

    class Failing(Images):
        def read(self, sample):
            if sample.key == "7":
                failing.set()
                raise error
            return super().read(sample)

    monkeypatch.setattr(StoreWriter, "commit", slow)
    with pytest.raises(type(error)):
        extract(Failing(16), tmp_path / "s", num_workers=1)
    assert statuses(tmp_path / "s") == ["ok"] * 4 + ["pending"] * 12


def test_an_interrupt_is_told_even_where_the_write_fails_too(tmp_path, monkeypatch):
    failing_commits(monkeypatch, {0: StoreFullError("no room")})
    with pytest.raises(KeyboardInterrupt):
        extract(Images(16, {6: KeyboardInterrupt()}), tmp_path / "s")
    assert statuses(tmp_path / "s") == ["pending"] * 16


def test_the_error_rate_is_that_of_written_tasks(tmp_path):
    source = Images(16)
    source.read = lambda sample: b"bad"
    with pytest.raises(ErrorRateError):
        extract(source, tmp_path / "s", max_error_rate=0.3)
    assert statuses(tmp_path / "s") == ["error"] * 8 + ["pending"] * 8


def test_an_index_that_cannot_be_read_on_stops_the_run(tmp_path, monkeypatch):
    rows = Index.rows

    def damaged(self, start, stop):
        if start == 8:
            raise StoreDamagedError("the index is damaged")
        return rows(self, start, stop)

    monkeypatch.setattr(Index, "rows", damaged)
    with pytest.raises(StoreDamagedError, match="the index is damaged"):
        extract(Images(16), tmp_path / "s", num_workers=1)


@pytest.mark.parametrize("error", [GeneratorExit(), StopIteration(), SystemExit(1), MemoryError(), RecursionError()])
def test_nothing_that_a_source_raises_hangs_the_run(tmp_path, error):
    with pytest.raises((type(error), RuntimeError)):
        extract(Images(40, {9: error}), tmp_path / "s", num_workers=3)


def test_a_full_queue_is_no_hindrance_for_ending(tmp_path, monkeypatch):
    failing_model(monkeypatch, {1: FloatingPointError("no")})
    monkeypatch.setattr(loader, "DECODING_BYTES", 1)
    with pytest.raises(BackendError):
        extract(Images(400), tmp_path / "s", num_workers=4)


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to a process of its own")
def test_ctrl_c_ends_a_run_that_reads_slowly_and_keeps_what_is_finished(tmp_path):
    code = f"""
import threading, time
import numpy as np
import featreg
from featreg.engine.planning import plan
from featreg.sources import Sample, Source

class Slow(Source):
    kind, uri = "slow", "slow:"
    samples = tuple(Sample(str(row), f"slow:{{row}}") for row in range(4000))

    def read(self, sample):
        if int(sample.key) > 40:
            time.sleep(0.05)
        if sample.key == "60":
            print("reading", flush=True)
        return np.zeros((64, 64, 3), np.uint8)

plan.TASK_BYTES = 4 * 8 * 32 * 32 * 4
try:
    featreg.extract(Slow(), {str(tmp_path / "s")!r}, "numpy:tinynet", "C1", batch_size=2, num_workers=2)
except KeyboardInterrupt:
    print([thread.name for thread in threading.enumerate() if thread.name.startswith("featreg-")])
    raise
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"reading\n"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LONG)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert out == b"[]\n"
    assert err.rstrip().endswith(b"KeyboardInterrupt")
    done = statuses(tmp_path / "s")
    assert set(done[:36]) == {"ok"}
    assert done[-1] == "pending"


# --- what is held -------------------------------------------------------------------------------------------------


class Counting(Images):
    """Counts the images that were read and have not come out of the loader."""

    def __init__(self, count):
        super().__init__(count)
        self.lock = threading.Lock()
        self.held = self.most = 0

    def read(self, sample):
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
        return super().read(sample)


@pytest.mark.parametrize(("allowed", "asked", "threads"), [(2, None, 2), (100, None, MAX_THREADS), (2, 5, 5)])
def test_a_job_has_a_thread_for_each_processor_that_it_may_use(monkeypatch, allowed, asked, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    part = types.SimpleNamespace(batch_size=4)
    assert Run(num_workers=asked).options(part) == Options(batch_size=4, threads=threads)


@pytest.mark.parametrize(("room", "most"), [(10**9, 16), (5, 5), (1, 2)])
def test_large_crops_are_not_loaded_as_far_ahead(monkeypatch, room, most):
    monkeypatch.setattr(loader, "AHEAD_BYTES", room * 64 * 64 * 3)
    source, rows = Counting(60), 0
    for crop in load_crops(source, source.samples, reference.PREPROCESS, threads=2, ahead=16):
        with source.lock:
            source.held -= 1
        assert crop[0, 0, 0] == rows
        rows += 1
    assert rows == 60
    assert source.most <= most


@pytest.mark.parametrize("room", [1, 2 * 64 * 64 * 3, 10**9])
def test_the_room_for_decoding_changes_no_row(monkeypatch, room):
    monkeypatch.setattr(loader, "DECODING_BYTES", room)
    source = Images(30)
    crops = load_crops(source, source.samples, reference.PREPROCESS, threads=4, ahead=8)
    assert [int(crop[0, 0, 0]) for crop in crops] == list(range(30))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 20))
def test_a_budget_is_never_exceeded_and_everyone_has_a_turn(sizes, room):
    budget, lock = Budget(room), threading.Lock()
    held, most = [], []

    def take(size):
        with budget.taken(size):
            with lock:
                held.append(size)
                most.append(sum(held) if len(held) > 1 else min(size, room))
            with lock:
                held.remove(size)
        return size

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(take, sizes, timeout=LONG)) == sizes
    assert max(most) <= room


def test_a_budget_is_given_back_whatever_happens():
    budget = Budget(10)
    with pytest.raises(ZeroDivisionError), budget.taken(10):
        raise ZeroDivisionError
    with budget.taken(10):
        pass


def test_the_weight_of_a_sample_is_what_it_takes_decoded():
    photo = os.path.join(os.path.dirname(__file__), "..", "photos", "people", "astronaut.jpg")
    with open(photo, "rb") as file:
        data = file.read()
    from PIL import Image

    with Image.open(photo) as image:
        assert decoded_size(data) == 3 * image.width * image.height
    assert decoded_size(np.zeros((5, 7, 3), np.uint8)) == 105
    assert [decoded_size(nothing) for nothing in (b"", b"bad", data[:20], "text")] == [0, 0, 0, 0]
