"""What every place promises: local folders, and file systems behind fsspec."""

import threading

import pytest

from featreg.errors import CapabilityError
from featreg.stores.check import examine
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import LocalPlace, write_errors
from featreg.stores.places.remote import FsspecPlace
from featreg.stores.progress import progress
from featreg.stores.receipts import Ledger, read_receipts
from featreg.stores.writer import StoreWriter

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["local", "memory", "local behind fsspec"])
def place(request, tmp_path):
    if request.param == "local":
        return LocalPlace(tmp_path / "s")
    if request.param == "memory":
        return FsspecPlace(f"memory://{tmp_path.name}/s")
    return FsspecPlace(str(tmp_path / "s"), fsspec.filesystem("file"))


def test_a_file_is_written_read_replaced_and_removed(place):
    assert not place.is_taken()
    assert not place.exists("a/b.json")
    assert place.size("a/b.json") is None
    with pytest.raises(FileNotFoundError):
        place.read("a/b.json")
    place.write("a/b.json", b"first")
    place.write("a/b.json", b"second")
    assert place.is_taken()
    assert place.read("a/b.json") == b"second"
    assert place.size("a/b.json") == 6
    with place.open("a/b.json") as file:
        file.seek(2)
        assert file.read() == b"cond"
    assert place.sha256("a/b.json") == "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4"
    place.remove("a/b.json")
    place.remove("a/b.json")
    assert not place.exists("a/b.json")


def test_a_name_is_created_once(place):
    place.create("receipts/0.json", b"first")
    with pytest.raises(FileExistsError):
        place.create("receipts/0.json", b"second")
    assert place.read("receipts/0.json") == b"first"


def test_of_many_who_create_a_name_one_wins(place):
    won, lost, gate = [], [], threading.Barrier(8)

    def create(number):
        gate.wait()
        try:
            place.create("receipts/0.json", b"%d" % number)
            won.append(number)
        except FileExistsError:
            lost.append(number)

    if "memory" in place.uri:
        pytest.skip("the memory file system of fsspec is made for one thread")
    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert place.read("receipts/0.json") == b"%d" % won[0]


def test_moving_replaces_and_needs_a_source(place):
    place.write("staged/x", b"new")
    place.write("C5/c/0", b"old")
    place.move("staged/x", "C5/c/0")
    assert place.read("C5/c/0") == b"new"
    assert not place.exists("staged/x")
    with pytest.raises(FileNotFoundError):
        place.move("staged/x", "C5/c/0")
    assert place.read("C5/c/0") == b"new"


def test_names_and_files_are_listed(place):
    assert place.names("receipts") == []
    for name in ("receipts/0000/1.json", "receipts/0000/0.json", "receipts/0001/0.json", "manifest.json"):
        place.write(name, b"x")
    assert place.names("receipts") == ["0000", "0001"]
    assert place.names("receipts/0000") == ["0.json", "1.json"]
    assert set(place.walk()) == {
        "receipts/0000/1.json",
        "receipts/0000/0.json",
        "receipts/0001/0.json",
        "manifest.json",
    }
    place.remove_folder("receipts/0001")  # something is in it
    for name in ("receipts/0000/1.json", "receipts/0000/0.json", "receipts/0001/0.json"):
        assert place.exists(name)
        place.remove(name)
    place.remove_folder("receipts/0001")
    place.remove_folder("receipts/0001")
    assert "0001" not in place.names("receipts")
    assert list(place.walk()) == ["manifest.json"]


def test_what_is_missing_or_empty_is_lost(place):
    place.write("C5/c/0/0", b"x")
    place.write("C5/c/1/0", b"")
    assert list(place.lost(["C5/c/0/0", "C5/c/1/0", "C5/c/2/0", "C4/c/0/0"])) == ["C5/c/1/0", "C5/c/2/0", "C4/c/0/0"]


def test_a_file_that_is_written_piece_by_piece_is_there_whole_or_not_at_all(place):
    with place.incoming() as incoming:
        incoming.file.write(b"half")  # and never published
    assert list(place.walk()) == []
    with place.incoming() as incoming:
        incoming.file.write(b"wh")
        incoming.file.write(b"ole")
        assert len(incoming.sha256()) == 64
        incoming.publish("index/0.parquet")
    assert {name: place.read(name) for name in place.walk()} == {"index/0.parquet": b"whole"}


def test_a_store_is_written_finished_and_whole_anywhere(place, make_plan_and_rows):
    plan, samples, rows = make_plan_and_rows
    writer = StoreWriter.create(place, plan, samples)
    for task in writer.manifest.tasks:
        assert writer.commit(task, {"pooled": rows[task.start : task.stop]}, {})
        assert not writer.commit(task, {"pooled": -rows[task.start : task.stop]}, {})
    writer.finalize()
    assert list(examine(place)) == []
    assert not any(name.startswith(("staged", "workers")) for name in place.walk())


@pytest.fixture
def make_plan_and_rows():
    import numpy as np

    from featreg.sources import Sample
    from featreg.spec import ExtractionRequest, FeatureInfo
    from featreg.stores.layout import LayerRecord, SourceRecord
    from featreg.stores.writer import Plan

    layer = LayerRecord("pooled", "pooled", FeatureInfo("pool", 2, None, "vector"), (2,), "float32")
    source = SourceRecord("file:///x", "folder", None, 0)
    plan = Plan(ExtractionRequest("m", ("pooled",)), {"weights": "none"}, (layer,), source, 2)
    samples = [Sample(str(row), f"file:///{row}") for row in range(5)]
    return plan, samples, np.arange(10, dtype=np.float32).reshape(5, 2)


def test_a_file_system_without_exclusive_creation_is_for_reading():
    class Plain(fsspec.AbstractFileSystem):
        protocol = "plain"

        def cat_file(self, path, start=None, end=None, **_):
            return b"content of " + path.encode()

    place = FsspecPlace("plain://x", Plain())
    assert place.read("a") == b"content of plain://x/a"
    for write in (
        lambda: place.create("a", b"x"),
        lambda: place.write("a", b"x"),
        lambda: place.move("a", "b"),
        lambda: place.incoming().__enter__(),
    ):
        with pytest.raises(CapabilityError, match="creates no file exclusively"):
            write()


def test_paths_and_urls_lead_to_their_places(tmp_path):
    assert place_at(tmp_path / "a b").root == tmp_path / "a b"
    assert place_at((tmp_path / "a b").as_uri()).root == tmp_path / "a b"
    assert place_at("memory://x/s/").uri == "memory://x/s"
    (tmp_path / "link").symlink_to(tmp_path / "s")
    assert place_at(tmp_path / "link").root == tmp_path / "s"


def test_errors_of_featreg_pass_unchanged(tmp_path):
    error = CapabilityError("no")
    with pytest.raises(CapabilityError) as caught, write_errors(LocalPlace(tmp_path)):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("name", ["plain", "what?", "star*", "a[1]", "sp ace#x%20"])
def test_any_url_holds_a_store(name, make_plan_and_rows, tmp_path):
    plan, samples, rows = make_plan_and_rows
    place = FsspecPlace(f"memory://{tmp_path.name}/{name}/s")
    writer = StoreWriter.create(place, plan, samples)
    for task in writer.manifest.tasks:
        assert writer.commit(task, {"pooled": rows[task.start : task.stop]}, {})
    writer.finalize()
    assert list(examine(place)) == []
    assert sum("/c/" in file for file in place.walk()) == 3


def test_receipts_at_a_url_are_on_the_way_together(make_plan_and_rows, tmp_path, monkeypatch):
    plan, samples, rows = make_plan_and_rows
    place = FsspecPlace(f"memory://{tmp_path.name}/s")
    writer = StoreWriter.create(place, plan, samples)
    for task in writer.manifest.tasks:
        writer.commit(task, {"pooled": rows[task.start : task.stop]}, {})
    together = threading.Barrier(3, timeout=30)
    read = FsspecPlace.read

    def waits(self, name):
        if name.startswith("receipts/"):
            together.wait()
        return read(self, name)

    monkeypatch.setattr(FsspecPlace, "read", waits)
    found = list(read_receipts(place, writer.manifest.tasks))
    assert [receipt.start for receipt in found] == [0, 2, 4]
    assert progress(place, writer.manifest).done == 5
    assert [receipt.stop for _, receipt in Ledger(place).over(writer.manifest.passes[0], 0, 5)] == [2, 4, 5]


def test_local_urls_are_local_folders(tmp_path):
    assert place_at(f"local://{tmp_path}/s").root == tmp_path / "s"
    assert isinstance(place_at(f"local://{tmp_path}/s"), LocalPlace)
