import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featreg.errors import MissingDependencyError, SourceError
from featreg.sources import KINDS, FolderSource, Sample, Source, is_reopenable, open_source


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """One source of every kind that needs no extra, beside each other; the current folder."""
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.png").write_bytes(b"one")
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "cat" / "1.png").write_bytes(b"one")
    (tmp_path / "list.txt").write_text("flat/1.png\n")
    (tmp_path / "list.csv").write_text("uri\nflat/1.png\n")
    (tmp_path / "list.tsv").write_text("uri\ttarget\nflat/1.png\t3\n")
    pq.write_table(pa.table({"uri": ["flat/1.png"]}), tmp_path / "list.parquet")
    pq.write_table(pa.table({"image": [b"one"]}), tmp_path / "images.parquet")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as archive:
        member = tarfile.TarInfo("1.png")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"one"))
    np.save(tmp_path / "paths.npy", np.array(["flat/1.png"]))
    np.save(tmp_path / "array.npy", np.zeros((1, 2, 2, 3), np.uint8))
    (tmp_path / "prompts.txt").write_text("a photo of a cat\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TOLD = {
    "flat": "folder",
    "classes": "imagefolder",
    "list.txt": "list",
    "list.csv": "list",
    "list.tsv": "list",
    "list.parquet": "list",
    "images.parquet": "parquet",
    "shards": "tar",
    "shards/0.tar": "tar",
    "shards/*.tar": "tar",
    "shards/{0..0}.tar": "tar",
    "array.npy": "numpy",
    "paths.npy": "list",
}


@pytest.mark.parametrize(("path", "kind"), TOLD.items())
def test_the_path_tells_the_kind(shelf, path, kind):
    assert open_source(path).kind == kind
    assert open_source(shelf / path).kind == kind


@pytest.mark.parametrize("path", TOLD)
def test_another_process_opens_the_same_source_and_reads_without_an_index(shelf, path, monkeypatch):
    source = open_source(path)
    record = json.loads(json.dumps({"uri": source.uri, "kind": source.kind, "options": dict(source.options)}))
    [sample] = source.samples
    content = source.read(sample)
    monkeypatch.chdir("/")
    again = open_source(record["uri"], kind=record["kind"], **record["options"])
    pickled = pickle.loads(pickle.dumps(source))
    assert is_reopenable(source)
    assert type(again) is type(source)
    assert not {"samples", "_samples"} & vars(pickled).keys()
    assert np.array_equal(again.read(sample), content)
    assert np.array_equal(pickled.read(sample), content)
    assert list(again.index()) == [sample]


def test_a_path_that_tells_nothing_names_the_kinds(shelf):
    (shelf / "data.bin").write_bytes(b"")
    with pytest.raises(SourceError, match=r"what kind of source 'data.bin' is") as caught:
        open_source("data.bin")
    assert all(kind in caught.value.remedy for kind in KINDS)


@pytest.mark.parametrize(
    ("name", "said"),
    [("x.npz", "numpy.save"), ("x.tar.gz", "uncompress"), ("x.tgz", "uncompress"), ("x.png", "folder")],
)
def test_what_is_nearly_a_source_has_a_remedy(shelf, name, said):
    (shelf / name).write_bytes(b"")
    with pytest.raises(SourceError) as caught:
        open_source(name)
    assert said in caught.value.remedy


def test_texts_are_not_guessed(shelf):
    with pytest.raises(SourceError, match="lists files or texts") as caught:
        open_source("prompts.txt")
    assert "kind='text'" in caught.value.remedy
    assert open_source("prompts.txt", kind="text").kind == "text"


def test_kind_overrides_what_the_path_tells(shelf):
    assert open_source("list.txt", kind="text").samples[0].key == "1"


def test_a_kind_and_an_option_that_are_not_there_name_the_nearest(shelf):
    with pytest.raises(SourceError, match="no kind of source 'foldr'") as caught:
        open_source("flat", kind="foldr")
    assert caught.value.matches[0] == "folder"
    with pytest.raises(SourceError, match="no option 'targte'") as caught:
        open_source("list.csv", targte="label")
    assert caught.value.matches == ("target",)
    with pytest.raises(SourceError, match="its kind and options"):
        open_source(FolderSource("flat"), kind="folder")


@pytest.mark.parametrize("path", ["flt", "flat/2.png", "list.cvs", "shrads/0.tar", "a\0b", "\ud800"])
def test_what_is_not_there_is_said_to_be_missing(shelf, path):
    with pytest.raises(SourceError, match=r"there is no (file|folder)") as caught:
        open_source(path)
    assert "nothing at" in caught.value.got


@pytest.mark.parametrize(
    "options",
    [
        {"target": 3},
        {"key": ["id"]},
        {"classes": "cat"},
        {"classes": [1, 2]},
        {"classes": 5},
        {"kind": ["list"]},
        {"kind": "numpy", "rows": [1.5]},
        {"kind": "numpy", "rows": True},
    ],
)
def test_an_option_of_another_type_is_typed(shelf, options):
    with pytest.raises(SourceError):
        open_source("list.csv", **options)


def test_options_are_plain_data(shelf):
    source = open_source("array.npy", classes=np.array(["a", "b"]), rows=np.arange(1))
    assert json.loads(json.dumps(source.options)) == source.options == {"classes": ["a", "b"], "rows": [0]}


def test_a_missing_file_names_its_neighbours(shelf):
    with pytest.raises(SourceError, match=r"no file 'list.cvs'") as caught:
        open_source("list.cvs", kind="list")
    assert "list.csv" in caught.value.matches


def test_a_folder_of_shards_beside_images_is_a_folder(shelf):
    (shelf / "shards" / "1.png").write_bytes(b"")
    assert open_source("shards").kind == "folder"


def test_a_source_of_ones_own_cannot_be_reopened():
    class Mine(Source):
        kind = uri = "mine"
        samples = (Sample("a", "mine:a"),)

        def read(self, sample):
            return b""

    class Loud(FolderSource):
        pass

    assert not is_reopenable(Mine())
    assert not is_reopenable(Loud(Path(__file__).parent))


def test_a_pattern_that_fits_nothing_and_open_braces_are_errors(shelf):
    with pytest.raises(SourceError, match="no file fits"):
        open_source("nothing/*.tar")
    with pytest.raises(SourceError, match="do not close"):
        open_source("shards/{0..9.tar")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(shelf):
    os.rename(shelf / "shards" / "0.tar", shelf / "shards" / "[0].tar")
    assert [sample.key for sample in open_source("shards/[0].tar").samples] == ["[0].tar/1"]


def test_a_missing_shard_of_a_range_is_noticed(shelf):
    source = open_source("shards/{0..1}.tar")
    with pytest.raises(SourceError, match=r"1 of the 2 files of the pattern '.*\{0\.\.1\}\.tar' are missing") as caught:
        list(source.index())
    assert caught.value.got == "without '1.tar'"


# --- URLs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(shelf):
    """The shelf in fsspec's memory."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in shelf.rglob("*"):
        if path.is_file():
            memory.pipe(f"/shelf/{path.relative_to(shelf)}", path.read_bytes())
    yield "memory://shelf"
    memory.rm("/shelf", recursive=True)


@pytest.mark.parametrize(("path", "kind"), TOLD.items())
@pytest.mark.parametrize("where", ["memory", "file", "local"])
def test_urls_are_read_as_paths_are(shelf, remote, path, kind, where):
    base = {"memory": remote, "file": f"file://{shelf}", "local": f"local://{shelf}"}[where]
    here, there = open_source(path), open_source(f"{base}/{path}")
    assert (there.kind, there.classes, there.skipped) == (kind, here.classes, here.skipped)
    for near, far in zip(here.samples, there.samples, strict=True):
        assert (near.key, near.target, near.size) == (far.key, far.target, far.size)
        assert np.array_equal(here.read(near), there.read(far))
    again = open_source(there.uri, kind=there.kind, **there.options)
    assert np.array_equal(again.read(there.samples[0]), here.read(here.samples[0]))


def test_a_folder_inside_of_an_archive_is_a_url(shelf):
    pytest.importorskip("fsspec")
    import zipfile

    with zipfile.ZipFile(shelf / "images.zip", "w") as archive:
        archive.writestr("in/1.png", b"one")
        archive.writestr("in/2.png", b"two")
    source = open_source(f"zip://in::file://{shelf}/images.zip")
    assert [(sample.key, source.read(sample)) for sample in source.samples] == [("1.png", b"one"), ("2.png", b"two")]


def test_names_that_need_quoting_are_read_over_urls(shelf):
    fsspec = pytest.importorskip("fsspec")
    names = ["a b%20#?.png", "ü\n'\".png", "[x]{y}*.png", "a::b.png", "::c.png", "d::e::f.png"]
    memory = fsspec.filesystem("memory")
    for name in names:
        memory.pipe(f"/quoting/{name}", name.encode())
    source = open_source("memory://quoting")
    assert {sample.key: source.read(sample).decode() for sample in source.samples} == {name: name for name in names}
    memory.rm("/quoting", recursive=True)


def test_a_chain_is_told_from_a_name_with_colons(shelf):
    pytest.importorskip("fsspec")
    import zipfile

    with zipfile.ZipFile(shelf / "a.zip", "w") as archive:
        archive.writestr("in::x/a::b.png", b"one")
    for cache in ("", "simplecache::"):
        source = open_source(f"zip://in::x::{cache}file://{shelf}/a.zip")
        assert [(sample.key, source.read(sample)) for sample in source.samples] == [("a::b.png", b"one")]


def test_a_name_elsewhere_that_is_no_unicode_is_a_row_that_fails(shelf):
    pytest.importorskip("fsspec")
    try:
        (shelf / "flat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"content")
    except OSError:
        pytest.skip("this file system takes Unicode only")
    source = open_source(f"local://{shelf}/flat")
    assert [sample.key for sample in source.samples] == ["1.png", "caf\\xe9.png"]
    assert all((sample.key + sample.uri).encode("utf-8") for sample in source.samples)
    with pytest.raises(SourceError, match="cannot be read"):
        source.read(source.samples[1])


@pytest.mark.parametrize("url", ["ftp://me:secret@host/x", "zip://x::sftp://me:secret@host/x.zip"])
def test_a_password_comes_into_no_uri(url):
    with pytest.raises(SourceError, match="holds a password") as caught:
        open_source(url)
    assert "secret" not in str(caught.value)


def test_an_unknown_protocol_and_a_missing_package_are_typed():
    pytest.importorskip("fsspec")
    with pytest.raises(SourceError, match="Protocol not known"):
        open_source("nonsense://bucket/x")


def test_a_protocol_whose_package_is_missing_names_it(monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(
        fsspec, "url_to_fs", lambda url, **options: (_ for _ in ()).throw(ImportError("Install s3fs to access S3"))
    )
    with pytest.raises(MissingDependencyError, match="package of its own") as caught:
        open_source("s3://bucket/x")
    assert "s3fs" in caught.value.got
