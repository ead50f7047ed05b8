"""Slow workers, finalizers and repairs that meet at the worst moment: a hook before one step fixes each history."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import zarr
from pyarrow import parquet

import featreg
from featreg import serialize
from featreg.errors import CapabilityError, SpecError, StoreDamagedError, StoreError, StoreFullError
from featreg.sources import Sample
from featreg.spec import ExtractionRequest, FeatureInfo
from featreg.stores.check import examine
from featreg.stores.documents import seal
from featreg.stores.layout import Finish, LayerRecord, SourceRecord
from featreg.stores.places import disk
from featreg.stores.places.place import LocalPlace
from featreg.stores.progress import SILENT
from featreg.stores.receipts import count_passes, read_finish, read_manifest, read_receipt
from featreg.stores.repair import repair
from featreg.stores.staging import place_staged
from featreg.stores.writer import Plan, StoreWriter

INFO = FeatureInfo("pool", 2, None, "vector")
LAYER = LayerRecord("pooled", "pooled", INFO, (2,), "float32")
OTHER = LayerRecord("C5", "C5", INFO, (2,), "float32")
HICCUP = {4: "ImageError: hiccup"}


class Killed(BaseException):
    """What a worker sees of SIGKILL."""


def kill():
    raise Killed


class Hooked(LocalPlace):
    """A folder with something to do before one operation on a name, the first time that it comes."""

    def __init__(self, root, operation, match, action):
        super().__init__(root)
        self.hook = operation, match, action

    def before(self, operation, name):
        if self.hook is not None and self.hook[0] == operation and self.hook[1](name):
            action, self.hook = self.hook[2], None
            action()

    def read(self, name):
        self.before("read", name)
        return super().read(name)

    def write(self, name, data):
        self.before("write", name)
        super().write(name, data)

    def create(self, name, data):
        self.before("create", name)
        super().create(name, data)

    def move(self, source, target):
        self.before("move", target)
        super().move(source, target)

    def names(self, folder):
        self.before("names", folder)
        return super().names(folder)


def plan(layer=LAYER, weights="none"):
    source = SourceRecord("file:///x", "folder", None, 0)
    return Plan(ExtractionRequest("m", (layer.key,)), {"weights": weights}, (layer,), source, 2)


def samples(start, stop):
    return [Sample(f"{row}.png", f"file:///{row}.png") for row in range(start, stop)]


def create(root, rows=5, **options):
    StoreWriter.create(root, plan(**options), samples(0, rows))
    return root


def values(task, noise=0.0):
    return np.array([[row, row + 0.5 + noise] for row in range(task.start, task.stop)], np.float32)


def commit(writer, task, noise=0.0, errors=None):
    part = writer.manifest.passes[task.pass_number]
    return writer.commit(task, {layer.key: values(task, noise) for layer in part.layers}, errors or {})


def work(root, finalize=True):
    place = LocalPlace(root)
    writer = StoreWriter(place)
    place_staged(place)
    for task in writer.manifest.iter_tasks():
        if not writer.is_finished(task):
            commit(writer, task)
    if finalize:
        writer.finalize()


def add_rows(root, place=None, stop=6):
    writer = StoreWriter(place or LocalPlace(root))
    writer.add_pass(plan(), writer.manifest.rows, writer.manifest.rows, samples(writer.manifest.rows, stop))
    return writer


def add_layer(root, place=None):
    writer = StoreWriter(place or LocalPlace(root))
    writer.add_pass(plan(OTHER), 0, writer.manifest.rows)
    return writer


def check_whole(root, rows):
    """By plain receipts and Zarr, and by verify."""
    for layer in StoreWriter(LocalPlace(root)).manifest.layers:
        array = np.asarray(zarr.open_array(str(root), path=layer.array, mode="r"))
        assert array[:, 0].tolist() == list(range(rows))
    assert list(examine(LocalPlace(root))) == []
    assert set(featreg.open_store(root).status) == {"ok"}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "s.zarr"


# --- finishing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("add", [add_layer, add_rows])
@pytest.mark.parametrize("folder", ["staged", "workers", "passes"])
def test_a_slow_finalizer_takes_nothing_that_was_staged_for_a_later_pass(root, add, folder):
    work(create(root), finalize=False)
    staged = []

    def meanwhile():  # between any two steps of tidying up, somebody plans a pass and stages its first shard
        writer = add(root)
        writer.place = Hooked(root, "create", lambda name: name.startswith("receipts/0001"), kill)
        with pytest.raises(Killed):
            commit(writer, writer.manifest.passes[1].task(0))
        staged.extend(LocalPlace(root).names("staged"))

    slow = Hooked(root, "names", lambda name: name == folder and (root / "finished.json").exists(), meanwhile)
    StoreWriter(slow).finalize_if_complete()
    assert len(staged) == 1
    assert LocalPlace(root).names("staged") == staged
    work(root)
    check_whole(root, 5 if add is add_layer else 6)


@pytest.mark.parametrize("add", [add_layer, add_rows])
def test_a_shard_that_is_tidied_away_after_its_receipt_is_written_again(root, add):
    work(create(root))
    writer = add(root)
    writer.place = Hooked(root, "move", lambda _: True, lambda: shutil.rmtree(root / "staged"))
    assert commit(writer, writer.manifest.passes[1].task(0))
    work(root)
    check_whole(root, 5 if add is add_layer else 6)


@pytest.mark.parametrize("step", [("names", "staged"), ("write", "zarr.json"), ("write", "finished.json")])
def test_a_slow_finalizer_brings_nothing_old_back(root, step):
    work(create(root), finalize=False)
    (root / "zarr.json").unlink()  # so that it has something to write

    def meanwhile():
        StoreWriter(LocalPlace(root)).finalize()
        add_rows(root, stop=8)
        work(root)

    finish = StoreWriter(Hooked(root, step[0], lambda name: name == step[1], meanwhile)).finalize()
    assert (finish.passes, finish.rows, finish.ok) == (2, 8, 8)
    check_whole(root, 8)


def test_of_two_finalizers_whose_pyarrow_differs_one_has_the_last_word(root):
    work(create(root), finalize=False)

    def meanwhile():  # the other one has written the same table in other bytes
        table = parquet.read_table(root / "samples.parquet")
        parquet.write_table(table, root / "samples.parquet", compression="none")

    StoreWriter(Hooked(root, "write", lambda name: name == "finished.json", meanwhile)).finalize()
    check_whole(root, 5)


class Unlisted(LocalPlace):
    """A folder of a network file system, of which a listing is old."""

    def __init__(self, root, folder):
        super().__init__(root)
        self.folder = folder

    def names(self, folder):
        return [] if folder == self.folder else super().names(folder)


@pytest.mark.parametrize("shared", [False, True])
def test_an_old_listing_of_what_is_staged_never_finishes_a_store_without_it(root, shared):
    create(root)
    if shared:
        work(root)
        add_rows(root)

    last = StoreWriter(LocalPlace(root)).manifest.tasks[-1]
    for task in StoreWriter(LocalPlace(root)).manifest.tasks[:-1]:
        commit(StoreWriter(LocalPlace(root)), task)
    with pytest.raises(Killed):
        commit(StoreWriter(Hooked(root, "move", lambda _: True, kill)), last)
    with pytest.raises(StoreDamagedError):
        StoreWriter(Unlisted(root, "staged")).finalize()
    work(root)
    check_whole(root, 6 if shared else 5)


def test_passes_are_counted_by_their_names_too(root):
    work(create(root))
    add_rows(root)
    assert count_passes(Unlisted(root, "passes")) == 2


def test_a_stray_receipt_makes_up_for_no_missing_one(root):
    writer = StoreWriter(LocalPlace(create(root)))
    for task in writer.manifest.tasks[:2]:
        commit(writer, task)
    shutil.copy(root / "receipts/0000/00000000.json", root / "receipts/0000/00000077.json")
    with pytest.raises(StoreError, match="not complete") as caught:
        writer.finalize()
    assert caught.value.got == "1 tasks of pass 0 have none"
    assert writer.finalize_if_complete() is None


# --- another store, and repair ------------------------------------------------------------------------------------


def test_a_worker_of_a_store_that_is_gone_commits_nothing_to_the_next_one(root):
    old = StoreWriter(LocalPlace(create(root, weights="old")))
    shutil.rmtree(root)
    create(root, weights="new")
    before = sorted(LocalPlace(root).walk())
    with pytest.raises(StoreError, match="was replaced or deleted"):
        commit(old, old.manifest.tasks[0], noise=100)
    assert sorted(LocalPlace(root).walk()) == before
    shutil.rmtree(root)
    with pytest.raises(StoreError, match="was replaced or deleted"):
        commit(old, old.manifest.tasks[0])


def test_a_receipt_of_another_pass_is_found(root, tmp_path):
    work(create(root, weights="new"))
    work(create(tmp_path / "old.zarr", weights="old"))
    shutil.copytree(tmp_path / "old.zarr" / "receipts", root / "receipts", dirs_exist_ok=True)
    place = LocalPlace(root)
    with pytest.raises(StoreDamagedError, match="receipts/0000/00000000"):
        read_receipt(place, read_manifest(place).tasks[0])
    assert {finding.name for finding in examine(place)} == {f"receipts/0000/0000000{task}.json" for task in range(3)}


def failing_and_shared(root):
    """Row 4 has failed, and shares its shard with row 5, which came later."""
    writer = StoreWriter(LocalPlace(create(root)))
    for task in writer.manifest.tasks:
        commit(writer, task, errors=HICCUP if task.number == 2 else {})
    writer.finalize()
    return add_rows(root)


@pytest.mark.parametrize("moment", ["create", "before"])
def test_a_late_worker_never_takes_rows_back_that_were_repaired(root, moment):
    writer = failing_and_shared(root)

    def meanwhile():
        assert [task.start for task in repair(LocalPlace(root), retry_failed=True).replanned] == [5, 4]

    if moment == "create":  # after all that it looks at
        writer.place = Hooked(root, "create", lambda name: name.startswith("receipts/0001"), meanwhile)
        assert commit(writer, writer.manifest.passes[1].task(0))
    else:
        writer.place = Hooked(root, "read", lambda name: name == "passes/0001.json", meanwhile)
        with pytest.raises(StoreDamagedError, match="not complete"):
            commit(writer, writer.manifest.passes[1].task(0))
    work(root)
    check_whole(root, 6)


def test_a_worker_that_was_later_still_is_found_and_mended(root):
    writer = failing_and_shared(root)

    def meanwhile():
        repair(LocalPlace(root), retry_failed=True)
        again = StoreWriter(LocalPlace(root))
        assert commit(again, again.manifest.passes[0].task(2), noise=1)

    writer.place = Hooked(root, "create", lambda name: name.startswith("receipts/0001"), meanwhile)
    commit(writer, writer.manifest.passes[1].task(0))
    with pytest.raises(StoreDamagedError, match="receipts/0001/00000002"):
        StoreWriter(LocalPlace(root)).finalize()
    assert ("damaged", "receipts/0001/00000002.json") in {(one.kind, one.name) for one in examine(LocalPlace(root))}
    repair(LocalPlace(root))
    work(root)
    check_whole(root, 6)


def test_a_shared_shard_may_be_on_the_way_as_the_next_pass_goes_on_with_it(root):
    failing_and_shared(root)
    work(root)
    repair(LocalPlace(root), retry_failed=True)
    other = StoreWriter(LocalPlace(root))

    def meanwhile():  # between the receipt and the move of the task before
        assert commit(other, other.manifest.passes[1].task(0))

    writer = StoreWriter(Hooked(root, "move", lambda _: True, meanwhile))
    assert commit(writer, writer.manifest.passes[0].task(2))
    work(root)
    check_whole(root, 6)


@pytest.mark.parametrize(
    ("host", "pid", "updated", "busy"),
    [("here", None, 0, True), ("here", 2**22 + 1, 1000, False), ("far", 1, 1000, True), ("far", 1, 0, False)],
)
def test_repair_waits_for_workers(root, monkeypatch, host, pid, updated, busy):
    work(create(root))
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    pid = os.getpid() if pid is None else pid
    worker = {"name": "w", "host": host, "pid": pid, "part": None, "started": 0, "updated": updated}
    LocalPlace(root).write("workers/w.json", json.dumps({**worker, "rows": 0, "failed": 0, "rate": 0}).encode())
    if busy:
        with pytest.raises(StoreError, match="1 workers are at work") as caught:
            repair(LocalPlace(root), clock=lambda: 900 + SILENT)
        assert "--force" in caught.value.remedy
    repair(LocalPlace(root), clock=lambda: 900 + SILENT, force=busy)


# --- what verify says ---------------------------------------------------------------------------------------------


def test_verify_reads_the_status_of_every_row(root):
    work(create(root))
    place = LocalPlace(root)
    table = parquet.read_table(root / "samples.parquet")
    forged = table.to_pylist()
    forged[3] |= {"status": "error", "error": "x"}
    parquet.write_table(type(table).from_pylist(forged, schema=table.schema), root / "samples.parquet")
    finish = json.loads(place.read("finished.json"))
    reseal(place, {**finish, "files": {**finish["files"], "samples.parquet": place.sha256("samples.parquet")}})
    assert [finding.name for finding in examine(place)] == ["samples.parquet"]
    repair(place)
    work(root)
    check_whole(root, 5)


@pytest.mark.parametrize("field", ["ok", "failed", "rows"])
def test_verify_counts_the_rows(root, field):
    work(create(root))
    place = LocalPlace(root)
    reseal(place, {**json.loads(place.read("finished.json")), field: 99})
    assert [finding.name for finding in examine(place)] == ["finished.json"]


def reseal(place, plain):
    plain = {name: value for name, value in plain.items() if name != "sha256"}
    place.write("finished.json", seal(serialize.from_dict(Finish, plain)))


def test_what_waits_to_be_placed_is_no_damage(root):
    work(create(root))
    writer = add_rows(root)

    writer.place = Hooked(root, "move", lambda _: True, kill)
    with pytest.raises(Killed):
        commit(writer, writer.manifest.passes[1].task(0))
    kinds = {finding.name: finding.kind for finding in examine(LocalPlace(root))}
    assert kinds == {"pooled/c/2/0": "pending", "finished.json": "pending"}
    assert repair(LocalPlace(root)).replanned == []
    work(root)
    check_whole(root, 6)


@pytest.mark.parametrize("add", [add_layer, add_rows])
def test_a_pass_that_was_planned_and_no_more_is_no_damage(root, add):
    work(create(root))
    place = Hooked(root, "write", lambda name: name == "passes/0001.copy.json", kill)
    with pytest.raises(Killed):
        add(root, place)
    assert {finding.kind for finding in examine(LocalPlace(root))} == {"pending"}
    assert featreg.open_store(root).summary.pending == (5 if add is add_layer else 1)
    work(root)
    check_whole(root, 5 if add is add_layer else 6)


class Broken(LocalPlace):
    """A folder with one file that cannot be read."""

    def __init__(self, root, name, number):
        super().__init__(root)
        self.broken, self.number = name, number

    def read(self, name):
        self.fail(name)
        return super().read(name)

    def open(self, name):
        self.fail(name)
        return super().open(name)

    def fail(self, name):
        if name == self.broken:
            raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    "name", ["pooled/c/0/0", "receipts/0000/00000000.json", "passes/0000.json", "zarr.json", "samples.parquet"]
)
@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, "damaged"), (errno.EACCES, "unreadable")])
def test_verify_names_what_cannot_be_read_and_goes_on(root, name, number, kind):
    work(create(root))
    (root / "pooled/c/2/0").unlink()
    found = {finding.name: finding.kind for finding in examine(Broken(root, name, number))}
    assert found == {name: kind, "pooled/c/2/0": "damaged"}
    if kind == "unreadable":
        before = sorted(LocalPlace(root).walk())
        with pytest.raises(StoreError, match="cannot be read") as caught:
            repair(Broken(root, name, number))
        assert name in caught.value.got
        assert sorted(LocalPlace(root).walk()) == before


def test_a_folder_in_the_place_of_a_file_is_named(root):
    work(create(root))
    (root / "receipts/0000/00000001.json").unlink()
    (root / "receipts/0000/00000001.json").mkdir()
    assert "receipts/0000/00000001.json" in {finding.name for finding in examine(LocalPlace(root))}
    with pytest.raises(StoreError, match="00000001"):
        read_receipt(LocalPlace(root), read_manifest(LocalPlace(root)).tasks[1])
    shutil.rmtree(root / "receipts")
    (root / "receipts").write_bytes(b"")
    assert LocalPlace(root).names("receipts/0000") == []
    with pytest.raises(StoreError, match="is not a feature store"):
        featreg.open_store(root / "manifest.json")


# --- single steps -------------------------------------------------------------------------------------------------


def test_a_receipt_that_no_disk_could_take_leaves_its_name_free(root, monkeypatch):
    """Without hard links a document is copied to its name; the disk runs full in the middle."""
    writer = StoreWriter(LocalPlace(create(root)))
    monkeypatch.setattr(disk.os, "link", refuse_link)
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "fsync", full_for_receipts(os.fsync))
        with pytest.raises(StoreFullError):
            commit(writer, writer.manifest.tasks[0])
    assert LocalPlace(root).names("receipts/0000") == []
    work(root)
    check_whole(root, 5)


def refuse_link(*_):
    raise OSError(errno.EPERM, "no links")


def full_for_receipts(fsync):
    def full(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}") if os.path.exists("/proc/self/fd") else ""
        if "/receipts/" in path and path.endswith(".json"):
            raise OSError(errno.ENOSPC, "full")
        fsync(descriptor)

    return full


def test_what_is_staged_waits_for_a_receipt_that_is_half_written(root):
    writer = StoreWriter(Hooked(create(root), "move", lambda _: True, kill))
    with pytest.raises(Killed):
        commit(writer, writer.manifest.tasks[0])
    receipt = root / "receipts/0000/00000000.json"
    whole = receipt.read_bytes()
    receipt.write_bytes(whole[:20])
    place_staged(LocalPlace(root))
    assert len(LocalPlace(root).names("staged")) == 1
    receipt.write_bytes(whole)
    work(root)
    check_whole(root, 5)


def test_an_index_is_published_though_its_folder_was_tidied_away(root):
    work(create(root))

    def slow():
        yield from samples(5, 8)
        shutil.rmtree(root / "staged")

    StoreWriter(LocalPlace(root)).add_pass(plan(), 5, 5, slow())
    work(root)
    check_whole(root, 8)


def test_the_index_has_the_rights_that_the_process_gives(root, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask is that of all threads"))
    create(root)
    [index] = (root / "index").iterdir()
    assert index.stat().st_mode == (root / "manifest.json").stat().st_mode


def test_a_message_that_is_no_text_is_written_escaped(root):
    writer = StoreWriter(LocalPlace(create(root)))
    for task in writer.manifest.tasks:
        commit(writer, task, errors={0: "SourceError: caf\udce9.png"} if task.number == 0 else {})
    assert writer.finalize().failed == 1
    assert featreg.open_store(root).errors == {"0.png": "SourceError: caf\\udce9.png"}


def test_a_key_that_is_no_text_is_an_error(root):
    with pytest.raises(SpecError, match="no text"):
        StoreWriter.create(root, plan(), [Sample("caf\udce9.png", "file:///x")])
    assert list(root.parent.iterdir()) == []


def test_a_place_where_two_may_create_one_file_is_refused(root):
    class Careless(LocalPlace):
        def create(self, name, data):
            self.write(name, data)

    with pytest.raises(CapabilityError, match="created there twice"):
        StoreWriter(Careless(create(root))).check_writable()
    assert LocalPlace(root).names("staged") == []


def test_a_store_gives_way_to_another_in_one_step(root, tmp_path, monkeypatch):
    work(create(root))
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    if not disk.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this system cannot exchange names")
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("a kill here would leave no store at the path"))
    StoreWriter.create(root, plan(weights="new"), samples(0, 5), overwrite=True)
    assert featreg.open_store(root).summary.pending == 5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "other", "s.zarr"]


def test_a_store_that_a_kill_left_hidden_is_named(root):
    work(create(root))
    hidden = root.rename(root.with_name(".s.zarr.0123456789abcdef"))
    with pytest.raises(StoreError, match="there is no store") as caught:
        featreg.open_store(root)
    assert repr(str(hidden)) in caught.value.remedy


def test_a_finish_is_read_back(root):
    work(create(root))
    place = LocalPlace(root)
    finish = read_finish(place, read_manifest(place))
    assert (finish.passes, finish.rows, finish.ok, finish.failed) == (1, 5, 5, 0)
    assert finish.files == {name: place.sha256(name) for name in finish.files}
    assert set(finish.files) == {"manifest.json", "samples.parquet", "zarr.json", "pooled/zarr.json"}
