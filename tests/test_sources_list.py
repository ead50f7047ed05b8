import csv
import os
from pathlib import Path

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
