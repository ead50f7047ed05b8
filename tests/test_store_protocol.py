"""The commit protocol, run by the real writer over a place in memory, under every interleaving that hypothesis draws.

Workers are threads that take turns: before each file operation a worker waits until it is called, and one that is
killed never comes back from it. So a draw is a whole history of several workers, and a failing one is replayed exactly.
"""

import errno
import hashlib
import io
import json
import os
import random
import threading
from contextlib import contextmanager, suppress

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featreg.errors import StoreError, StoreExistsError, StoreFullError
from featreg.sources import Sample
from featreg.spec import ExtractionRequest, FeatureInfo
from featreg.stores import layout
from featreg.stores.check import examine
from featreg.stores.frame import ShardMaker
from featreg.stores.layout import LayerRecord, SourceRecord
from featreg.stores.places.place import Incoming, Place
from featreg.stores.repair import repair
from featreg.stores.staging import place_staged
from featreg.stores.writer import Plan, StoreWriter

ROWS, TASK_ROWS = 5, 2
LAYER = LayerRecord("pooled", "pooled", FeatureInfo("pool", 2, None, "vector"), (2,), "float32")


class Killed(BaseException):
    """What a worker sees of SIGKILL: nothing that it could act on."""


class Memory(Place):
    """Files in a dictionary, each operation atomic, and a hook before each of them."""

    uri = "memory"

    def __init__(self, files=None, turn=lambda: None):
        self.files = {} if files is None else files
        self.turn = turn

    def read(self, name):
        self.turn()
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def open(self, name):
        return io.BytesIO(self.read(name))

    def write(self, name, data):
        self.turn()
        self.files[name] = bytes(data)

    def create(self, name, data):
        self.turn()
        if name in self.files:
            raise FileExistsError(name)
        self.files[name] = bytes(data)

    def move(self, source, target):
        self.turn()
        if source not in self.files:
            raise FileNotFoundError(source)
        self.files[target] = self.files.pop(source)

    def remove(self, name):
        self.turn()
        self.files.pop(name, None)

    def names(self, folder):
        self.turn()
        below = f"{folder}/" if folder else ""
        return sorted({name[len(below) :].split("/")[0] for name in self.files if name.startswith(below)})

    def walk(self):
        return iter(sorted(self.files))

    def size(self, name):
        self.turn()
        return len(self.files[name]) if name in self.files else None

    def zarr_store(self):
        raise AssertionError("nothing here reads an array")

    @contextmanager
    def incoming(self):
        place = self

        class Upload(Incoming):
            def publish(self, name):
                place.write(name, self.file.getvalue())

        class Kept(io.BytesIO):
            def close(self):
                """Parquet's writer closes what it is given."""

        yield Upload(Kept())

    def remove_folder(self, folder):
        """There are no folders."""


class Turns:
    """Lets one thread at a time run until its next file operation."""

    def __init__(self):
        self.condition = threading.Condition()
        self.turn = None  # whose it is
        self.dead = set()
        self.done = set()

    def wait(self, worker):
        with self.condition:
            if self.turn == worker:
                self.turn = None
                self.condition.notify_all()
            self.condition.wait_for(lambda: self.turn == worker or worker in self.dead)
            if worker in self.dead:
                raise Killed

    def leave(self, worker):
        with self.condition:
            self.done.add(worker)
            if self.turn == worker:
                self.turn = None
            self.condition.notify_all()

    def step(self, worker):
        """Let a worker do one file operation, and what follows it up to the next."""
        with self.condition:
            if worker in self.done:
                return
            self.turn = worker
            self.condition.notify_all()
            self.condition.wait_for(lambda: self.turn is None or worker in self.done)

    def kill(self, worker):
        with self.condition:
            self.dead.add(worker)
            self.condition.notify_all()
            self.condition.wait_for(lambda: worker in self.done)


def value(row, noise=0.0):
    return np.array([row, row + 0.5 + noise], np.float32)


def plan():
    return Plan(
        ExtractionRequest("m", ("pooled",)),
        {"weights": "none"},
        (LAYER,),
        SourceRecord("file:///x", "folder", None, 0),
        TASK_ROWS,
    )


def samples(start, stop):
    return [Sample(f"{row}.png", f"file:///{row}.png") for row in range(start, stop)]


def work(place, noise=0.0):
    """What a worker does, without a model: row 1 fails, every other row holds its number."""
    writer = StoreWriter(place)
    place_staged(place)
    for part in writer.manifest.passes:
        for task in part.iter_tasks():
            if not writer.is_finished(task):
                rows = np.stack([value(row, noise) for row in range(task.start, task.stop)])
                errors = {1: "ImageError: bad"} if task.start <= 1 < task.stop else {}
                for row in errors:
                    rows[row - task.start] = np.nan
                writer.commit(task, {"pooled": rows}, errors)
    writer.finalize()


def planned(rows=ROWS):
    place = Memory()
    StoreWriter.create(place, plan(), samples(0, rows))
    return place.files


def undisturbed():
    files = planned()
    work(Memory(files))
    return files


def enlarged(files, rows):
    """A finished store with new rows planned at its end."""
    place = Memory(files)
    StoreWriter(place).add_pass(plan(), ROWS, ROWS, samples(ROWS, ROWS + rows))
    return files


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


def play(files, history, count, noise=False):
    """Run ``count`` workers through a history of (worker, whether it is killed there); then none of them is left."""
    turns, raised = Turns(), []

    def body(worker):
        try:
            work(Memory(files, lambda: turns.wait(worker)), noise=worker * 1e-3 if noise else 0.0)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001  (told to the test, whose thread is another one)
            raised.append(error)
        finally:
            turns.leave(worker)

    threads = [threading.Thread(target=body, args=(worker,)) for worker in range(count)]
    for thread in threads:
        thread.start()
    for worker, killed in history:
        turns.kill(worker) if killed else turns.step(worker)
    for worker in range(count):
        turns.kill(worker) if worker not in turns.done else None
    for thread in threads:
        thread.join()
    assert raised == []


def histories(count):
    steps = st.tuples(st.integers(0, count - 1), st.integers(1, 12), st.booleans())
    expanded = st.lists(steps, min_size=5, max_size=60)
    return expanded.map(
        lambda runs: [
            step
            for who, length, dies in runs
            for step in [(who, False)] * length + [(who, True)] * (dies and length == 7)
        ]
    )


def rows_by_hand(files):
    """The rows by what the receipts name: no reader of featreg takes part."""
    found = {}
    for name in sorted(name for name in files if name.startswith("receipts/")):
        receipt = json.loads(files[name])
        for shard, expected in receipt["shards"].items():
            found[shard] = (expected, name)
    return found


def check(files, expected):
    for shard, (sha256, receipt) in rows_by_hand(files).items():
        assert hashlib.sha256(files[shard]).hexdigest() == sha256, (shard, receipt)
    assert list(examine(Memory(files))) == []
    assert set(files) == set(expected)


@settings(max_examples=40)
@given(histories(3))
def test_workers_that_are_killed_anywhere_leave_the_same_bytes(history):
    files = planned()
    play(files, history, 3)
    work(Memory(files))
    expected = undisturbed()
    check(files, expected)
    assert files == expected


@settings(max_examples=25)
@given(histories(3))
def test_workers_whose_rounding_differs_never_mix_what_they_wrote(history):
    files = planned()
    play(files, history, 3, noise=True)
    committed = {name: data for name, data in files.items() if name.startswith("receipts/")}
    work(Memory(files), noise=9e-3)
    check(files, undisturbed())
    assert {name: files[name] for name in committed} == committed


@settings(max_examples=25)
@given(histories(3), st.integers(1, 3))
def test_new_rows_in_a_shard_that_is_there_already(history, rows):
    files = enlarged(undisturbed(), rows)
    play(files, history, 3, noise=True)
    work(Memory(files))
    check(files, set(files))
    whole = enlarged(undisturbed(), rows)
    work(Memory(whole))
    check(files, whole)


@settings(max_examples=25)
@given(histories(2), st.data())
def test_what_is_damaged_is_named_and_mended(history, data):
    files = planned()
    play(files, history, 2)
    name = data.draw(st.sampled_from(sorted(name for name in files if not name.startswith("staged/"))))
    content = bytearray(files[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    files[name] = damaged
    kinds = {finding.name: finding.kind for finding in examine(Memory(files))}
    assert kinds.get(name) == "damaged"
    repair(Memory(files), reindex=lambda part: samples(part.start, part.stop))
    work(Memory(files))
    assert files == undisturbed()


def test_of_two_who_add_rows_at_once_one_does():
    files = undisturbed()
    first, second = StoreWriter(Memory(files)), StoreWriter(Memory(files))
    first.add_pass(plan(), ROWS, ROWS, samples(ROWS, ROWS + 2))
    with pytest.raises(StoreExistsError, match="somebody else"):
        second.add_pass(plan(), ROWS, ROWS, samples(ROWS, ROWS + 3))
    assert second.manifest == first.manifest
    work(Memory(files))
    assert list(examine(Memory(files))) == []


def test_a_receipt_that_is_there_is_never_written_again():
    files = undisturbed()
    before = dict(files)
    writer = StoreWriter(Memory(files))
    task = writer.manifest.tasks[0]
    assert writer.commit(task, {"pooled": np.zeros((2, 2), np.float32)}, {}) is False
    assert files == before


@pytest.mark.parametrize("noise", [0.0, 9e-3])
def test_a_worker_that_slept_while_rows_were_added_takes_nothing_back(noise):
    files = planned(5)
    sleeper = StoreWriter(Memory(files))
    work(Memory(files))
    StoreWriter(Memory(files)).add_pass(plan(), 5, 5, samples(5, 8))
    work(Memory(files))
    before = dict(files)
    assert sleeper.commit(sleeper.manifest.tasks[2], {"pooled": value(4, noise)[None]}, {}) is False
    assert files == before


def test_an_answer_that_was_lost_loses_no_shard():
    """The file system made the receipt, and says that it exists: as over a network, where the answer got lost."""
    files = planned()

    class Forgetful(Memory):
        def create(self, name, data):
            super().create(name, data)
            raise FileExistsError(name)

    work(Forgetful(files))
    assert files == undisturbed()


def test_a_store_without_all_receipts_is_not_finished():
    files = undisturbed()
    for name in ("finished.json", "samples.parquet", "receipts/0000/00000001.json"):
        del files[name]
    with pytest.raises(StoreError, match="not complete"):
        StoreWriter(Memory(files)).finalize()
    assert layout.SAMPLES not in files


# --- workers, an appender and somebody who adds a layer, all at once ----------------------------------------------

HISTORIES = int(os.environ.get("FEATREG_HISTORIES", "16"))
"""How many histories of each cast are played: ``nox -s faults`` plays more."""

SECOND = attrs.evolve(LAYER, key="C5", array="C5")


def second_plan():
    return attrs.evolve(plan(), request=ExtractionRequest("m", ("C5",)), layers=(SECOND,))


def complete(place, noise=0.0):
    """What the engine's loop does, without a model; every row holds its number."""
    writer = StoreWriter(place)
    while True:
        place_staged(place)
        for part in writer.manifest.groups.values():
            if part.stop < writer.manifest.rows:
                plan_rest(writer, part)
        for task in [task for part in writer.manifest.passes for task in part.iter_tasks()]:
            if not writer.is_finished(task):
                rows = np.stack([value(row, noise) for row in range(task.start, task.stop)])
                layers = writer.manifest.passes[task.pass_number].layers
                writer.commit(task, {layer.key: rows for layer in layers}, {})
        if writer.finalize_if_complete() is not None:
            return


def plan_rest(writer, part):
    with suppress(StoreExistsError):
        writer.add_pass(Plan.of(part, writer.manifest.source), part.stop, writer.manifest.rows)


def append_rows(place, noise=0.0):
    complete(place, noise)
    writer = StoreWriter(place)
    with suppress(StoreExistsError):
        if writer.manifest.rows == ROWS:
            writer.add_pass(plan(), ROWS, ROWS, samples(ROWS, ROWS + 2))
    complete(place, noise)


def add_a_layer(place, noise=0.0):
    writer = StoreWriter(place)
    with suppress(StoreExistsError):
        if all(layer.key != "C5" for layer in writer.manifest.layers):
            writer.add_pass(second_plan(), 0, writer.manifest.rows)
    complete(place, noise)


CASTS = {
    "workers and an appender": (complete, complete, append_rows),
    "a worker, an appender and a new layer": (complete, append_rows, add_a_layer),
}


def play_random(files, cast, seed, noise):
    """Let several act in turns of random length, and kill some of them."""
    rng, turns, raised = random.Random(seed), Turns(), []

    def body(number):
        try:
            cast[number](Memory(files, lambda: turns.wait(number)), noise * number)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001  (told to the test, whose thread is another one)
            raised.append(error)
        finally:
            turns.leave(number)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(len(cast))]
    for thread in threads:
        thread.start()
    while len(turns.done) < len(cast):
        number = rng.choice([number for number in range(len(cast)) if number not in turns.done])
        for _ in range(rng.choice([1, 2, 3, 5, 8, 13, 40, 100])):
            turns.step(number)
        if rng.random() < 0.04:
            turns.kill(number)
    for thread in threads:
        thread.join()
    assert raised == []


def check_rows(files):
    """Every row of every layer, from the bytes of the shards."""
    assert list(examine(Memory(files))) == []
    manifest = StoreWriter(Memory(files)).manifest
    for task in manifest.iter_tasks():
        for layer in manifest.passes[task.pass_number].layers:
            rows = ShardMaker(layer, TASK_ROWS).read(task, files[layer.shard(task)])
            assert rows[:, 0].tolist() == list(range(task.start, task.stop))


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("cast", CASTS)
def test_random_histories_end_with_every_row_in_its_place(cast, noise):
    for seed in range(HISTORIES):
        files = planned()
        play_random(files, CASTS[cast], seed, noise)
        complete(Memory(files))
        check_rows(files)


class Fragile(Memory):
    """Memory in which one of the operations that change something ends a worker, or finds the disk full."""

    def __init__(self, files, number, error):
        super().__init__(files)
        self.left, self.error = number, error

    def fail(self):
        self.left -= 1
        if self.left < 0:
            self.left = 1 << 30
            raise self.error

    def write(self, name, data):
        self.fail()
        super().write(name, data)

    def create(self, name, data):
        self.fail()
        super().create(name, data)

    def move(self, source, target):
        self.fail()
        super().move(source, target)

    def remove(self, name):
        if not isinstance(self.error, OSError):  # a full disk lets go
            self.fail()
        super().remove(name)


@pytest.mark.parametrize("action", [append_rows, add_a_layer])
@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "full")])
def test_whatever_is_added_goes_on_from_every_step(action, error):
    finished = planned()
    complete(Memory(finished))
    for number in range(1000):
        files = dict(finished)
        place = Fragile(files, number, error)
        with suppress(Killed, StoreFullError):
            action(place)
        if place.left < 1 << 29:  # it ended before that step
            break
        action(Memory(files))
        check_rows(files)
    assert number > 10
