"""What adds to a store says before it begins what it takes, refuses before it plans, and says after what it added."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import featreg
from featreg.cli.main import cli
from featreg.engine import additions
from featreg.engine.additions import add_layers, append, estimate_layers, estimate_rows
from featreg.engine.deriving import estimate_derived
from featreg.engine.monitoring.heartbeat import Heartbeat
from featreg.engine.monitoring.monitor import Monitor
from featreg.engine.monitoring.stages import Stages
from featreg.errors import StoreError, StoreFullError, StoreMismatchError
from featreg.export import export_store
from featreg.stores.places.place import LocalPlace
from featreg.stores.progress import workers

Image = pytest.importorskip("PIL.Image")

MODEL = "numpy:tinynet"
ROWS = 6
POOLED, C1, C5 = 48 * 4, 8 * 32 * 32 * 4, 48 * 2 * 2 * 4
"""Bytes of a row."""


def picture(path, number):
    values = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(ROWS):
        picture(folder / f"{number}.png", number)
    return folder


@pytest.fixture
def store(images, tmp_path):
    featreg.extract(images, tmp_path / "s", MODEL, "pooled")
    return tmp_path / "s"


def command(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


def content(store):
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def room(monkeypatch, count):
    monkeypatch.setattr(LocalPlace, "free_bytes", lambda _: count)


def stopped(monkeypatch, call):
    """A layer is planned, and no row of it is done."""
    with monkeypatch.context() as patch:
        patch.setattr(additions, "complete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            call()


# --- refused before anything is planned -------------------------------------------------------------------------------


def test_without_room_for_a_layer_the_store_stays_finished(store, monkeypatch):
    before = content(store)
    room(monkeypatch, ROWS * C1 - 1)
    with pytest.raises(StoreFullError) as caught:
        add_layers(store, "C1")
    assert (caught.value.expected, caught.value.got) == (f"{ROWS * C1:,} bytes", f"{ROWS * C1 - 1:,} bytes free")
    assert "store_dtype='float16'" in caught.value.remedy
    assert "another path" not in caught.value.remedy
    assert content(store) == before
    room(monkeypatch, ROWS * C1)
    assert add_layers(store, "C1").complete


def test_without_room_for_what_is_derived_the_store_stays_finished(store, monkeypatch):
    before = content(store)
    room(monkeypatch, ROWS * POOLED - 1)
    with pytest.raises(StoreFullError):
        featreg.derive(store, "n=pooled:l2")
    assert content(store) == before
    room(monkeypatch, ROWS * POOLED)
    assert featreg.derive(store, "n=pooled:l2").complete


def test_without_room_for_new_rows_the_store_stays_finished(store, images, monkeypatch):
    add_layers(store, "C5")
    before = content(store)
    for number in (7, 8):
        picture(images / f"{number}.png", number)
    needed = (ROWS + 2) * (POOLED + C5)  # the shards that they go to hold the other rows too
    room(monkeypatch, needed - 1)
    with pytest.raises(StoreFullError) as caught:
        append(store)
    assert caught.value.expected == f"{needed:,} bytes"
    assert "layers" not in caught.value.remedy
    assert content(store) == before
    room(monkeypatch, needed)
    assert len(append(store)) == ROWS + 2


def test_a_planned_layer_without_room_is_not_told_of_another_type(store, monkeypatch):
    stopped(monkeypatch, lambda: add_layers(store, "C5"))
    room(monkeypatch, 1)
    with pytest.raises(StoreFullError) as caught:
        add_layers(store, "C5")
    assert caught.value.remedy == "make room and run it again: what is finished is kept"


def test_another_source_is_refused(store, tmp_path):
    (tmp_path / "others").mkdir()
    picture(tmp_path / "others" / "1.png", 1)
    before = content(store)
    with pytest.raises(StoreMismatchError, match="another source"):
        add_layers(store, "C5", source=tmp_path / "others")
    assert content(store) == before
    assert command("extract", tmp_path / "others", store, "--add-layer", "C5").exit_code == 2


# --- rows are pending in some layers only -----------------------------------------------------------------------------


def test_finished_layers_are_read_while_another_one_is_added(store, tmp_path, monkeypatch):
    values = featreg.open_store(store)["pooled"][:]
    stopped(monkeypatch, lambda: add_layers(store, "C5"))
    found = featreg.open_store(store)
    assert list(found.status) == ["pending"] * ROWS
    assert not len(found.where(status="ok"))
    view = found.where(status="ok", layers="pooled")
    assert len(view) == ROWS
    assert not len(found.where(status="pending", layers=["pooled"]))
    assert len(found.where(status="pending", layers=["pooled", "C5"])) == ROWS
    np.testing.assert_array_equal(next(view.batches(ROWS, layers="pooled"))["pooled"], values)
    np.testing.assert_array_equal(found.memmap("pooled"), values)
    np.testing.assert_array_equal(view.memmap("pooled"), values)
    for where in (None, "ok"):
        out = export_store(found, tmp_path / f"out-{where}", "npy", layers="pooled", where=where)
        np.testing.assert_array_equal(np.load(out / "pooled.npy"), values)
        assert (out / "samples.csv").read_text().count('"ok"') == ROWS
    for refused in (lambda: found.memmap("C5"), lambda: export_store(found, tmp_path / "no", "npy")):
        with pytest.raises(StoreError, match=f"{ROWS} of the {ROWS} rows .* are pending"):
            refused()


def test_a_row_that_failed_in_one_layer_is_ok_in_another(store, images):
    (images / "2.png").write_bytes(b"gone bad")
    found = add_layers(store, "C5")
    assert list(np.flatnonzero(found.status == "error")) == [2]
    assert len(found.where(status="ok", layers="pooled")) == ROWS
    assert list(found.where(status="error", layers="C5").rows) == [2]
    [errors] = [table["error"].to_pylist() for table in found.iter_samples("pooled")]
    assert errors == [None] * ROWS


def test_finished_layers_give_derived_ones_while_another_is_pending(store, monkeypatch):
    values = featreg.open_store(store)["pooled"][:]
    stopped(monkeypatch, lambda: add_layers(store, "C5"))
    found = featreg.derive(store, "n=pooled:l2")
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    np.testing.assert_allclose(found["n"][:], values / norms, rtol=1e-5)
    assert (found.complete, found.summary.pending) == (False, ROWS)
    with pytest.raises(StoreError, match=r"pending in \['C5'\]"):
        featreg.derive(store, "m=C5:avg")
    assert featreg.engine.work(store).complete


# --- what it takes ----------------------------------------------------------------------------------------------------


def test_an_estimate_of_layers_is_exact_and_writes_nothing(store):
    before = content(store)
    found = estimate_layers(store, ["C5"], derive="two=pooled:pca=2")
    assert content(store) == before
    assert (found.adds, found.rows, found.rows_left, found.resumed) == ("layers", ROWS, ROWS, False)
    assert [(one.key, one.shape, one.bytes) for one in found.layers] == [
        ("C5", (48, 2, 2), ROWS * C5), ("two", (2,), ROWS * 2 * 4),
    ]  # fmt: skip
    assert found.bytes == found.bytes_left == ROWS * (C5 + 2 * 4)


def test_an_estimate_of_what_is_derived_is_exact_and_writes_nothing(store):
    before = content(store)
    found = estimate_derived(store, ["two=pooled:pca=2", "n=pooled:l2"])
    assert content(store) == before
    assert [(one.key, one.bytes) for one in found.layers] == [("two", ROWS * 2 * 4), ("n", ROWS * POOLED)]
    assert found.to_fit == ("two",)


def test_an_estimate_of_rows_counts_the_new_ones(store, images):
    assert estimate_rows(store).rows == 0
    for number in (7, 8):
        picture(images / f"{number}.png", number)
    before = content(store)
    found = estimate_rows(store)
    assert content(store) == before
    assert (found.adds, found.rows, found.bytes, found.bytes_left) == ("rows", 2, 2 * POOLED, (ROWS + 2) * POOLED)


def test_a_layer_that_is_planned_is_estimated_by_what_is_left(store, monkeypatch):
    stopped(monkeypatch, lambda: add_layers(store, "C5"))
    found = estimate_layers(store, "C5")
    assert (found.resumed, found.rows_left, found.bytes_left) == (True, ROWS, ROWS * C5)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_commands_say_what_they_take_and_what_they_have_added(store, images):
    dry = command("extract", images, store, "--add-layer", "C5", "--dry-run")
    assert (dry.exit_code, dry.stderr) == (0, "")
    assert dry.stdout.startswith(f"layers to add to {store}: {ROWS} rows, 4.6 kB; ")
    added = command("extract", images, store, "--add-layer", "C5")
    assert added.stderr.startswith(dry.stdout.partition(";")[0])
    assert added.stdout.startswith(f"added C5 to {ROWS} rows\n")
    assert "resumed" not in added.output
    assert command("extract", images, store, "--append", "--dry-run").stdout == f"rows to add to {store}: none\n"
    picture(images / "7.png", 7)
    dry = command("extract", images, store, "--append", "--dry-run", "--json")
    assert json.loads(dry.stdout)["rows"] == 1
    appended = command("extract", images, store, "--append")
    assert f"rows to add to {store}: 1 rows, 960 bytes; " in appended.stderr
    assert appended.stdout.startswith("added 1 row of pooled\nadded 1 row of C5\n")
    dry = command("derive", store, "n=pooled:l2", "--dry-run")
    assert dry.stdout.startswith(f"layers to add to {store}: {ROWS + 1} rows, 1.3 kB; ")
    derived = command("derive", store, "n=pooled:l2")
    assert derived.stderr.startswith(dry.stdout.partition(";")[0])
    assert derived.stdout.startswith(f"added n to {ROWS + 1} rows\n")
    again = command("derive", store, "n=pooled:l2")
    assert again.stdout.startswith(f"the store is finished: nothing was left to do in its {ROWS + 1} rows\n")


def test_a_dry_run_without_room_fails(store, images, monkeypatch):
    room(monkeypatch, 10)
    for line in (["extract", images, store, "--add-layer", "C5"], ["derive", store, "n=pooled:l2"]):
        result = command(*line, "--dry-run")
        assert result.exit_code == 2
        assert "has not the room" in result.stderr


# --- signs of life ----------------------------------------------------------------------------------------------------


def test_a_sign_of_life_tells_the_rate_of_a_task_under_way(store):
    now = [0.0]
    place = LocalPlace(store)
    heart = Heartbeat(place, None, clock=lambda: now[0])
    monitor = Monitor(100, tellers=[heart], stages=Stages(clock=lambda: now[0]))
    now[0] = 5.0
    monitor.begin()  # the model is open: what this took is none of the rate
    now[0] = 15.0
    monitor.computed(40)
    [worker] = workers(place)
    assert (worker.rate, worker.rows) == (4.0, 0)
    heart.stop()
