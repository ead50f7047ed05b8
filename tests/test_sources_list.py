import csv
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featreg.errors import SourceError
from featreg.sources import open_source
from featreg.sources.lists import ListSource
from featreg.sources.text import TextSource

PHOTOS = Path(__file__).parent.parent / "photos"


def written(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows(source):
    return [(sample.key, sample.target) for sample in source.samples]


# --- one path a line ----------------------------------------------------------------------------------------------


def test_lines_are_paths_from_the_folder_of_the_list(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "1.png").write_bytes(b"one")
    (tmp_path / "2.png").write_bytes(b"two")
    lines = ["\ufeff1.png", "", "../2.png", str(tmp_path / "2.png"), (tmp_path / "2.png").as_uri()]
    source = ListSource(written(tmp_path / "sub" / "list.txt", "\r\n".join(lines)))
    monkeypatch.chdir("/")
    assert [source.read(sample) for sample in source.samples] == [b"one", b"two", b"two", b"two"]
    assert source.samples[0].key == "1.png"
    assert (source.skipped, source.classes) == (1, None)


def test_a_line_ends_with_its_newline_alone(tmp_path):
    (tmp_path / "a\rb.png").write_bytes(b"content")
    source = ListSource(written(tmp_path / "list.txt", b"a\rb.png\r\n\r\n"))
    assert [sample.key for sample in source.samples] == ["a\rb.png"]
    assert (source.read(source.samples[0]), source.skipped) == (b"content", 1)


def test_names_that_are_no_unicode_are_read(tmp_path):
    name = b"caf\xe9.png"
    try:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(b"content")
    except OSError:
        pytest.skip("this file system takes Unicode only")
    source = ListSource(written(tmp_path / "list.txt", name + b"\n"))
    assert source.samples[0].key == "caf\\xe9.png"
    assert source.read(source.samples[0]) == b"content"


@pytest.mark.parametrize("line", ["missing.png", "sub", "a\0b.png", "x" * 5000 + ".png", "memory://nothing/x.png"])
def test_a_path_that_cannot_be_read_is_a_row_that_fails(tmp_path, line):
    pytest.importorskip("fsspec")
    (tmp_path / "sub").mkdir()
    source = ListSource(written(tmp_path / "list.txt", f"{line}\n"))
    with pytest.raises(SourceError):
        source.read(source.samples[0])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_a_list_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    source = ListSource(written(tmp_path / "list.txt", "pipe.png\n"))
    with pytest.raises(SourceError, match="no file"):
        source.read(source.samples[0])


def test_an_empty_list_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="lists no images"):
        list(ListSource(written(tmp_path / "list.txt", "\n\n")).index())
    with pytest.raises(SourceError, match="lists no images"):
        list(ListSource(written(tmp_path / "list.csv", "uri,target\n")).index())


@pytest.mark.parametrize("root", ["elsewhere", "memory://elsewhere"])
def test_paths_are_relative_to_the_root_that_is_given(tmp_path, monkeypatch, root):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/elsewhere/cat/1.png", b"memory")
    (tmp_path / "elsewhere" / "cat").mkdir(parents=True)
    (tmp_path / "elsewhere" / "cat" / "1.png").write_bytes(b"here")
    monkeypatch.chdir(tmp_path)
    source = open_source(written(tmp_path / "list.txt", "cat/1.png\n"), root=root)
    monkeypatch.chdir("/")
    again = open_source(source.uri, kind=source.kind, **source.options)
    assert [sample.key for sample in source.samples] == ["cat/1.png"]
    assert [again.read(sample) for sample in source.samples] == [b"memory" if "://" in root else b"here"]


PREFIXES = ["/old/imagenet", "/old/imagenet/", "s3://old/imagenet", "old"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_folder_that_paths_had_elsewhere_is_cut_off(tmp_path, prefix):
    paths = [f"{folder.rstrip('/')}/cat/1.png" for folder in PREFIXES] + ["/older/imagenet/1.png"]
    source = open_source(written(tmp_path / "list.txt", "\n".join(paths)), root="/new", strip=prefix)
    found = dict(zip(paths, (sample.uri for sample in source.samples), strict=True))
    assert [sample.key for sample in source.samples] == paths
    assert {uri for path, uri in found.items() if path.startswith(prefix.rstrip("/") + "/")} == {
        "file:///new/cat/1.png"
    }
    assert found["/older/imagenet/1.png"] == "file:///older/imagenet/1.png"


# --- arrays of paths ----------------------------------------------------------------------------------------------

ANY = st.text(st.characters(exclude_characters="\0"), max_size=8)
"""With lone surrogates, which an array holds and no file system does."""


@settings(max_examples=40)
@given(st.lists(ANY, min_size=1), st.sampled_from("<>"), st.integers(1, 64))
def test_any_name_survives_an_array_of_texts(tmp_path_factory, names, order, block):
    path = tmp_path_factory.mktemp("npy") / "list.npy"
    np.save(path, np.array(names, f"{order}U8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featreg.sources.npy.BLOCK_BYTES", block)
        samples = open_source(path).samples
    assert len(samples) == len(names)
    for row, (name, sample) in enumerate(zip(names, samples, strict=True)):
        assert sample.key.encode("utf-8")
        if all(not 0xD800 <= ord(letter) < 0xE000 for letter in name):
            assert sample.key == (name or f"row {row}")


def test_an_array_of_bytes_names_files_that_are_no_unicode(tmp_path):
    np.save(tmp_path / "list.npy", np.array([b"caf\xe9.png", b""]))
    try:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"))).write_bytes(b"content")
    except OSError:
        pytest.skip("this file system takes Unicode only")
    source = open_source(tmp_path / "list.npy")
    assert (source.kind, [sample.key for sample in source.samples]) == ("list", ["caf\\xe9.png", "row 1"])
    assert source.read(source.samples[0]) == b"content"
    with pytest.raises(SourceError, match="has no path"):
        source.read(source.samples[1])


@pytest.mark.parametrize(
    ("labels", "targets", "classes"),
    [
        (np.array([3, -1, 3], np.int16), [3, -1, 3], None),
        (np.array(["dog", "Cat", "dog"]), [1, 0, 1], ("Cat", "dog")),
        (np.array([b"7", b"", b"8"]), [7, None, 8], None),
    ],
)
def test_the_targets_of_an_array_of_paths_lie_in_another(tmp_path, labels, targets, classes):
    """As VISSL's disk_filelist has them: one .npy for DATA_PATHS and one for LABEL_PATHS."""
    np.save(tmp_path / "paths.npy", np.array(["1.png", "2.png", "3.png"]))
    np.save(tmp_path / "labels.npy", labels)
    source = open_source(tmp_path / "paths.npy", target="labels.npy")
    assert (rows(source), source.classes) == (list(zip(["1.png", "2.png", "3.png"], targets, strict=True)), classes)


def test_arrays_that_are_no_lists_say_what_they_are(tmp_path):
    np.save(tmp_path / "objects.npy", np.array(["a.png", "b.png"], object))
    with pytest.raises(SourceError, match="pickled objects") as caught:
        open_source(tmp_path / "objects.npy")
    assert "astype(str)" in caught.value.remedy
    np.save(tmp_path / "paths.npy", np.array(["a.png", "b.png"]))
    np.save(tmp_path / "square.npy", np.array([["a.png"], ["b.png"]]))
    np.save(tmp_path / "short.npy", np.arange(1))
    np.save(tmp_path / "floats.npy", np.zeros(2))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "paths.npy").read_bytes()[:-1])
    for name, target, said in [
        ("square", None, "holds no paths"),
        ("cut", None, "is cut"),
        ("paths", "short.npy", "one for each|does not hold the targets"),
        ("paths", "floats.npy", "holds no targets"),
        ("paths", "missing.npy", "No such file"),
    ]:
        with pytest.raises(SourceError, match=said):
            list(open_source(tmp_path / f"{name}.npy", target=target).index())


@pytest.mark.parametrize(
    ("name", "option"), [("list.txt", "target"), ("list.txt", "key"), ("list.npy", "uri"), ("list.npy", "delimiter")]
)
def test_a_list_without_columns_takes_none(tmp_path, name, option):
    np.save(tmp_path / "list.npy", np.array(["a.png"]))
    written(tmp_path / "list.txt", "a.png\n")
    with pytest.raises(SourceError, match=f"has no option '{option}'"):
        open_source(tmp_path / name, **{option: "x"})


# --- tables -------------------------------------------------------------------------------------------------------

CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(CELLS, min_size=1), st.sampled_from([",", ";", "\t"]))
def test_any_name_survives_a_csv_file(tmp_path_factory, names, delimiter):
    path = tmp_path_factory.mktemp("csv") / "list.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerow(["other", "uri"])
        writer.writerows(["x", name] for name in names)
    assert [sample.key for sample in ListSource(path, delimiter=delimiter).samples] == names


@settings(max_examples=30)
@given(st.lists(st.one_of(st.none(), CELLS), min_size=1), st.integers(1, 5))
def test_any_name_survives_a_parquet_file(tmp_path_factory, names, group):
    path = tmp_path_factory.mktemp("parquet") / "list.parquet"
    pq.write_table(pa.table({"uri": pa.array(names, pa.string())}), path, row_group_size=group)
    found = [sample.key for sample in ListSource(path).samples]
    assert found == [f"row {row}" if name is None else name for row, name in enumerate(names)]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_of_classes_become_their_places_in_code_point_order(tmp_path, suffix):
    targets = ["dog", "Cat", "", "10", "9", "dog"]
    path = tmp_path / f"list.{suffix}"
    if suffix == "csv":
        written(path, "uri,target\n" + "".join(f"{row}.png,{target}\n" for row, target in enumerate(targets)))
    else:
        pq.write_table(pa.table({"uri": [f"{row}.png" for row in range(6)], "target": targets}), path)
    source = ListSource(path)
    assert source.classes == ("10", "9", "Cat", "dog")
    assert rows(source) == [("0.png", 3), ("1.png", 2), ("2.png", None), ("3.png", 0), ("4.png", 1), ("5.png", 3)]


def test_whole_numbers_are_the_targets_themselves(tmp_path):
    source = ListSource(written(tmp_path / "list.csv", "uri,target\na.png,10\nb.png,-1\nc.png,\n"))
    assert (rows(source), source.classes) == ([("a.png", 10), ("b.png", -1), ("c.png", None)], None)
    table = pa.table({"uri": ["a", "b", "c"], "target": [2.0, None, float("nan")]})
    pq.write_table(table, tmp_path / "list.parquet")
    assert rows(ListSource(tmp_path / "list.parquet")) == [("a", 2), ("b", None), ("c", None)]


def test_given_classes_fix_the_places(tmp_path):
    path = written(tmp_path / "list.csv", "uri,target\na.png,dog\nb.png,0\n")
    assert rows(ListSource(path, classes=["dog", "cat"])) == [("a.png", 0), ("b.png", 0)]
    with pytest.raises(SourceError, match="none of the 2 classes") as caught:
        list(ListSource(path, classes=["doge", "cat"]).index())
    assert caught.value.matches == ("doge",)
    with pytest.raises(SourceError, match="named twice"):
        list(ListSource(path, classes=["dog", "dog"]).index())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_have_the_names_that_are_given(tmp_path, suffix):
    path = tmp_path / f"list.{suffix}"
    columns = {"file": ["a.png"], "species": [7], "id": ["A1"], "bytes": [42]}
    if suffix == "csv":
        written(path, "file,species,id,bytes\na.png,7,A1,42\n")
    else:
        pq.write_table(pa.table(columns), path)
    source = open_source(path, uri="file", target="species", key="id", size="bytes")
    [sample] = source.samples
    assert (sample.key, sample.target, sample.size) == ("A1", 7, 42)
    assert sample.uri == (tmp_path / "a.png").as_uri()
    with pytest.raises(SourceError, match="no column 'uri'") as caught:
        list(open_source(path).index())
    assert "'species'" in caught.value.got
    with pytest.raises(SourceError, match="no column 'specis'") as caught:
        list(open_source(path, uri="file", target="specis").index())
    assert caught.value.matches == ("species",)


@pytest.fixture
def field_limit():
    """The longest cell that csv reads by default, which some libraries change for the whole process."""
    before = csv.field_size_limit(2**17)
    yield
    csv.field_size_limit(before)


@pytest.mark.parametrize("text", ["uri,target\na.png,1\nb.png\n", 'uri,target\n"a.png,1\n', "uri\n" + "x" * 200_000])
def test_a_line_that_cannot_be_parsed_is_named(tmp_path, text, field_limit):
    with pytest.raises(SourceError, match=r"line [123] of"):
        list(ListSource(written(tmp_path / "list.csv", text)).index())


def test_another_delimiter_is_noticed(tmp_path):
    with pytest.raises(SourceError, match="no column 'uri'") as caught:
        list(ListSource(written(tmp_path / "list.csv", "uri;target\na.png;1\n")).index())
    assert caught.value.remedy == "delimiter=';'"


def test_targets_are_numbers_or_texts(tmp_path):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"uri": ["a", "b"], "target": [True, False]}), path)
    assert rows(ListSource(path)) == [("a", 1), ("b", 0)]
    assert all(type(target) is int for _, target in rows(ListSource(path)))
    for value in ([1], b"cat", {"a": 1}):
        pq.write_table(pa.table({"uri": ["a"], "target": [value]}), path)
        with pytest.raises(SourceError, match="neither a number nor a name"):
            list(ListSource(path).index())


@pytest.mark.parametrize("delimiter", ["", "::", "\n", '"'])
def test_a_delimiter_is_one_character(tmp_path, delimiter):
    with pytest.raises(SourceError, match="delimiter"):
        ListSource(written(tmp_path / "list.csv", "uri\na.png\n"), delimiter=delimiter)


def test_a_damaged_parquet_file_is_typed(tmp_path):
    with pytest.raises(SourceError, match="no readable Parquet"):
        list(ListSource(written(tmp_path / "list.parquet", b"PAR1" + bytes(100))).index())


def test_a_list_of_photos_gives_their_bytes(tmp_path):
    files = sorted(PHOTOS.glob("*/*.jpg"))
    path = written(tmp_path / "list.csv", "uri,target\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    source = open_source(path)
    assert [source.read(sample) for sample in source.samples] == [file.read_bytes() for file in files]
    assert [source.classes[sample.target] for sample in source.samples] == [file.parent.name for file in files]


# --- texts --------------------------------------------------------------------------------------------------------

LINES = st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])), min_size=1)


@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_every_line_is_a_text_of_its_own_row(tmp_path_factory, texts, end, mark, ended):
    joined = end.join(texts) + (end if ended or not texts[-1] else "")
    path = written(tmp_path_factory.mktemp("text") / "prompts.txt", "\ufeff" * mark + joined)
    source = TextSource(path)
    assert [sample.key for sample in source.index()] == [str(row + 1) for row in range(len(texts))]
    for sample, text in zip(source.index(), texts, strict=True):
        if text.strip():
            assert source.read(sample) == text
        else:
            with pytest.raises(SourceError, match="is empty"):
                source.read(sample)


def test_a_line_that_is_no_utf_8_costs_its_row_only(tmp_path):
    source = TextSource(written(tmp_path / "prompts.txt", b"one\n\xff\nthree"))
    assert [source.read(source.samples[row]) for row in (0, 2)] == ["one", "three"]
    with pytest.raises(SourceError, match="no UTF-8"):
        source.read(source.samples[1])


def test_no_texts_are_an_error(tmp_path):
    with pytest.raises(SourceError, match="no texts"):
        list(TextSource(written(tmp_path / "prompts.txt", b"")).index())


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path):
    """A sparse file: three GiB that take no room."""
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(3 * 2**30)
    source = ListSource(written(tmp_path / "list.txt", "large.png\n"))
    with pytest.raises(SourceError, match="too large"):
        source.read(source.samples[0])
