"""What a run tells of itself: stages, the bar, plain lines, metrics."""

import io
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import featreg
from featreg.engine.monitoring import metrics as metrics_module
from featreg.engine.monitoring import progress as progress_module
from featreg.engine.monitoring.facts import peak_memory
from featreg.engine.monitoring.metrics import Metrics
from featreg.engine.monitoring.monitor import Monitor
from featreg.engine.monitoring.progress import Bar, Lines, progress_teller, summary
from featreg.engine.monitoring.stages import Stages
from featreg.engine.planning import plan
from featreg.sources import Sample, Source

ROOT = Path(__file__).parent.parent
FIELDS = {
    "format": int,
    "time": float,
    "worker": str,
    "pass": int,
    "rows": int,
    "there": int,
    "done": int,
    "failed": int,
    "elapsed": float,
    "rate": float,
    "eta": float | None,
    "batch_size": int,
    "seconds": dict,
    "waited": dict,
    "bottleneck": str | None,
    "peak_memory": int | None,
    "last": bool,
}


class Ticking:
    """A clock that only moves when it is told to."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Images(Source):
    """Images of one colour each; ``bad`` ones are none."""

    kind, uri = "images", "images:"

    def __init__(self, count, bad=()):
        self.samples = tuple(Sample(str(row), f"images:{row}") for row in range(count))
        self.bad = bad

    def read(self, sample):
        row = int(sample.key)
        return b"bad" if row in self.bad else np.full((64, 64, 3), row, np.uint8)


@pytest.fixture
def clock():
    return Ticking()


@pytest.fixture
def small_tasks(monkeypatch):
    monkeypatch.setattr(plan, "TASK_BYTES", 4 * 8 * 32 * 32 * 4)


# --- stages -------------------------------------------------------------------------------------------------------


def spend(stages, clock, **seconds):
    for stage, amount in seconds.items():
        with stages.timed(stage):
            clock.now += amount


def test_stages_add_up_over_threads(clock):
    stages = Stages(time.perf_counter)
    barrier = threading.Barrier(3)

    def read():
        with stages.timed("read"):
            barrier.wait(timeout=30)

    threads = [threading.Thread(target=read) for _ in range(3)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < stages.seconds["read"] <= 3 * (time.perf_counter() - started)


def test_a_stage_that_raises_is_counted(clock):
    stages = Stages(clock)

    def fail():
        clock.now += 2
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), stages.timed("decode"):
        fail()
    assert stages.seconds["decode"] == 2


def test_waiting_for_items_is_counted_and_working_on_them_is_not(clock):
    stages = Stages(clock)

    def slow():
        for item in "abc":
            clock.now += 1
            yield item

    seen = []
    for item in stages.waited_for("load", slow()):
        clock.now += 10
        seen.append(item)
    assert seen == ["a", "b", "c"]
    assert stages.waited == {"load": 3, "write": 0}


@pytest.mark.parametrize(
    ("spent", "loading", "writing", "expected"),
    [
        ({}, 0, 0, None),
        ({"read": 90, "decode": 5, "model": 10}, 1, 0, "model"),  # eight threads read, and nobody waited for them
        ({"read": 30, "decode": 50, "model": 10}, 20, 0, "decode"),
        ({"read": 50, "decode": 30, "model": 10}, 20, 0, "read"),
        ({"transfer": 11, "model": 10, "write": 15}, 20, 0, "transfer"),
        ({"model": 10, "write": 90}, 1, 70, "write"),
    ],
)
def test_the_bottleneck_is_what_the_loop_waits_for(clock, spent, loading, writing, expected):
    stages = Stages(clock)
    spend(stages, clock, **spent)
    with stages.waiting("load"):
        clock.now += loading
    with stages.waiting("write"):
        clock.now += writing
    assert stages.bottleneck == expected


# --- counting -----------------------------------------------------------------------------------------------------


def test_rate_and_time_left_are_of_the_rows_of_this_run_alone(clock):
    monitor = Monitor(1000, 600, batch_size=8, stages=Stages(clock))
    clock.now += 500  # a model is opened
    monitor.begin()
    assert (monitor.facts.rate, monitor.facts.eta) == (0.0, None)
    monitor.computed(64)
    clock.now += 10
    monitor.computed(36)
    facts = monitor.facts
    assert (facts.there, facts.done, facts.failed, facts.elapsed) == (600, 100, 0, 10)
    assert (facts.rate, facts.eta) == (10, 30)
    monitor.found(200)
    assert (monitor.facts.rate, monitor.facts.eta) == (10, 10)


def test_rows_that_went_through_no_model_or_through_it_twice_count_with_their_task(clock):
    monitor = Monitor(20, stages=Stages(clock))
    monitor.computed(3)
    monitor.finished(8)
    assert monitor.facts.done == 8
    monitor.computed(11)  # of the next task, while this one is written
    assert monitor.facts.done == 19
    monitor.committed(8, failed=5)
    monitor.finished(8)
    assert (monitor.facts.done, monitor.facts.failed) == (16, 5)
    monitor.committed(8, failed=0)
    monitor.committed(4, failed=1)  # of another process
    assert (monitor.facts.done, monitor.facts.failed) == (20, 6)


# --- the bar ------------------------------------------------------------------------------------------------------


def test_the_bar_begins_with_what_is_there_and_shows_failures_and_the_bottleneck(clock, monkeypatch):
    monkeypatch.setattr("tqdm.std.time", clock)
    stream = Terminal()
    stages = Stages(clock)
    bar = progress_teller(100, 40, stream)
    assert isinstance(bar, Bar)
    monitor = Monitor(100, 40, tellers=[bar], stages=stages)
    with monitor:
        spend(stages, clock, model=5.0)
        monitor.computed(10)
        monitor.found(20)
        clock.now += 5
        monitor.finished(20)
        monitor.committed(20, failed=3)
    bars = stream.getvalue().split("\r")
    assert " 40/100 " in bars[1]
    assert " 50/100 [00:05<00:25,  2.00row/s, 0 failed, bottleneck: model]" in bars[2]
    assert " 80/100 [00:10<00:10,  2.00row/s, 3 failed, bottleneck: model]" in bars[3]
    assert bars[-1].splitlines()[-1] == (
        "20 rows in 00:10, 2.0 rows/s, 3 failed, bottleneck: model "
        "(read 0.0 s, decode 0.0 s, transfer 0.0 s, model 5.0 s, write 0.0 s, overlapping)"
    )


# --- plain lines --------------------------------------------------------------------------------------------------


def test_without_a_terminal_there_is_a_line_every_thirty_seconds(clock):
    stream = io.StringIO()
    lines = progress_teller(3600, 600, stream)
    assert isinstance(lines, Lines)
    stages = Stages(clock)
    with Monitor(3600, 600, tellers=[lines], stages=stages) as monitor:
        for _ in range(10):
            spend(stages, clock, decode=1, model=8)
            with stages.waiting("load"):
                clock.now += 1
            monitor.computed(100)
        monitor.finished(1000)
        monitor.committed(1000, failed=2)
    told = stream.getvalue().splitlines()
    assert told[:2] == [
        "900 of 3600 rows (25%), 10.0 rows/s, 04:30 left, 0 failed, bottleneck: model",
        "1200 of 3600 rows (33%), 10.0 rows/s, 04:00 left, 0 failed, bottleneck: model",
    ]
    assert len(told) == 4
    assert told[-1].startswith(
        "1000 rows in 01:40, 10.0 rows/s, 2 failed, bottleneck: model (read 0.0 s, decode 10.0 s"
    )


def test_a_short_run_without_a_terminal_says_nothing(clock):
    stream = io.StringIO()
    with Monitor(10, tellers=[progress_teller(10, 0, stream)], stages=Stages(clock)) as monitor:
        clock.now += 29
        monitor.computed(10)
    assert stream.getvalue() == ""


def test_nothing_is_told_where_it_is_not_asked_for(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress_module, "EVERY", 0.0)
    featreg.extract(Images(5), tmp_path / "quiet", "numpy:tinynet", "pooled")
    assert capfd.readouterr() == ("", "")
    featreg.extract(Images(5), tmp_path / "told", "numpy:tinynet", "pooled", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith("5 of 5 rows (100%), ")
    assert err.splitlines()[-1].startswith("5 rows in 00:0")


def test_an_empty_run_can_be_summed_up(clock):
    assert "0 rows in 00:00, 0.0 rows/s, 0 failed, bottleneck: ? " in summary(Monitor(stages=Stages(clock)).facts)


# --- metrics ------------------------------------------------------------------------------------------------------


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_have_one_form(tmp_path, clock):
    now = Ticking(1_700_000_000.0)
    writer = Metrics(tmp_path / "m.jsonl", "host-1", 2, now=now)
    stages = Stages(clock)
    with Monitor(100, 50, batch_size=8, tellers=[writer], stages=stages) as monitor:
        for _ in range(12):
            spend(stages, clock, model=2)
            monitor.computed(2)
        monitor.finished(24)
        monitor.committed(24, failed=1)
    lines = read(tmp_path / "m.jsonl")
    assert [line["elapsed"] for line in lines] == [10, 20, 24]
    assert [line["last"] for line in lines] == [False, False, True]
    assert lines[-1] == {
        "format": 1,
        "time": 1_700_000_000.0,
        "worker": "host-1",
        "pass": 2,
        "rows": 100,
        "there": 50,
        "done": 24,
        "failed": 1,
        "elapsed": 24.0,
        "rate": 1.0,
        "eta": 26.0,
        "batch_size": 8,
        "seconds": {"read": 0, "decode": 0, "transfer": 0, "model": 24, "write": 0},
        "waited": {"load": 0, "write": 0},
        "bottleneck": "model",
        "peak_memory": lines[-1]["peak_memory"],
        "last": True,
    }


def test_the_documented_fields_are_those_that_are_written(tmp_path):
    featreg.extract(Images(3), tmp_path / "s", "numpy:tinynet", "pooled", metrics=tmp_path / "m.jsonl")
    [line] = read(tmp_path / "m.jsonl")
    assert list(line) == list(FIELDS)
    assert all(isinstance(line[name], kind) for name, kind in FIELDS.items())
    page = (ROOT / "docs" / "metrics.md").read_text()
    documented = [row.split("`")[1] for row in page.splitlines() if row.startswith("| `")]
    assert documented == list(FIELDS)


def test_a_run_appends_its_metrics(tmp_path, small_tasks, monkeypatch):
    monkeypatch.setattr(metrics_module, "EVERY", 0.0)
    path = tmp_path / "m.jsonl"
    path.write_text('{"mine": true}\n')
    source = Images(10, bad=(1, 8))
    featreg.extract(source, tmp_path / "s", "numpy:tinynet", "C1", batch_size=2, metrics=path)
    first, *lines = read(path)
    assert first == {"mine": True}
    assert [line["done"] for line in lines] == sorted(line["done"] for line in lines)
    assert {line["rows"] for line in lines} == {10}
    assert (lines[-1]["done"], lines[-1]["failed"], lines[-1]["last"]) == (10, 2, True)
    assert len({line["worker"] for line in lines}) == 1
    assert all(seconds > 0 for stage, seconds in lines[-1]["seconds"].items() if stage != "transfer")


def test_a_run_that_goes_on_tells_what_was_there(tmp_path, small_tasks):
    class Stops(Images):
        def read(self, sample):
            if sample.key == "6":
                raise KeyboardInterrupt
            return super().read(sample)

    path = tmp_path / "m.jsonl"
    with pytest.raises(KeyboardInterrupt):
        featreg.extract(Stops(10), tmp_path / "s", "numpy:tinynet", "C1", batch_size=2, metrics=path)
    featreg.extract(Images(10), tmp_path / "s", "numpy:tinynet", "C1", batch_size=2, metrics=path)
    stopped, finished = read(path)
    assert (stopped["there"], stopped["done"], stopped["last"]) == (0, 6, True)
    assert (finished["there"], finished["done"]) == (4, 6)


@pytest.mark.parametrize("name", ["missing/m.jsonl", "a\0b", "."])
def test_metrics_that_cannot_be_written_cost_a_warning_and_no_more(tmp_path, monkeypatch, name):
    monkeypatch.setattr(metrics_module, "EVERY", 0.0)
    with pytest.warns(UserWarning, match="the metrics cannot be written") as caught:
        store = featreg.extract(
            Images(5), tmp_path / "s", "numpy:tinynet", "pooled", batch_size=1, metrics=os.path.join(tmp_path, name)
        )
    assert [str(one.message).count("the run goes on") for one in caught if one.category is UserWarning] == [1]
    assert store.summary.ok == 5


def test_peak_memory_is_that_of_this_process():
    page = np.ones(200 * 2**20, np.uint8)  # 200 MiB that are really there
    peak = peak_memory()
    assert peak is None or page.nbytes < peak < 64 * 2**30
