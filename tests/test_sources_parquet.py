import io
import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featreg.errors import SourceError
from featreg.sources import open_source
from featreg.sources.parquet import ParquetSource


def written(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def contents(source):
    """The bytes of every row, or what is wrong with it."""
    found = []
    for sample in source.samples:
        try:
            found.append(source.read(sample))
        except SourceError as error:
            found.append(error.problem)
    return found


@settings(max_examples=30)
@given(st.lists(st.binary(), min_size=1, max_size=20), st.integers(1, 7), st.randoms(use_true_random=False))
def test_every_row_gives_its_own_bytes_in_any_order(tmp_path_factory, images, group, random):
    path = written(tmp_path_factory.mktemp("pq") / "x.parquet", {"jpg": images}, row_group_size=group)
    source = ParquetSource(path)
    assert [sample.key for sample in source.samples] == [f"x.parquet#{row}" for row in range(len(images))]
    rows = list(enumerate(source.samples))
    random.shuffle(rows)
    assert all(source.read(sample) == images[row] for row, sample in rows)


def test_threads_read_the_same_row_group_once(tmp_path, monkeypatch):
    source = ParquetSource(written(tmp_path / "x.parquet", {"jpg": [bytes([row]) for row in range(64)]}))
    decoded = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, *args, **given: decoded.append(args) or read(self, *args, **given),
    )
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, source.samples)) == [bytes([row]) for row in range(64)]
    assert len(decoded) == 1


def test_structs_of_bytes_and_path_are_those_of_hugging_face(tmp_path):
    (tmp_path / "beside.png").write_bytes(b"beside")
    images = [
        {"bytes": b"inside", "path": None},
        {"bytes": None, "path": "beside.png"},
        None,
        {"bytes": None, "path": None},
    ]
    source = open_source(written(tmp_path / "x.parquet", {"image": images, "label": [1, 0, 1, None]}))
    assert contents(source) == [b"inside", b"beside", "the row holds no image", "the row holds no image"]
    assert [sample.target for sample in source.samples] == [1, 0, 1, None]


def test_files_are_in_natural_order_and_names_are_classes(tmp_path):
    written(tmp_path / "10.parquet", {"jpg": [b"ten"], "target": ["b"], "id": ["x"]})
    written(tmp_path / "9.parquet", {"jpg": [b"nine"], "target": ["a"], "id": [5]})
    for path in (tmp_path, tmp_path / "*.parquet", tmp_path / "{9,10}.parquet"):
        source = open_source(path, key="id")
        assert [(sample.key, sample.target) for sample in source.samples] == [("5", 0), ("x", 1)]
        assert (source.classes, contents(source)) == (("a", "b"), [b"nine", b"ten"])


def test_the_labels_of_hugging_face_are_classes_in_their_own_order(tmp_path):
    """As ``datasets.Dataset.to_parquet`` writes them; -1 stands for a label that is not known."""
    features = {"label": {"names": ["b", "a"], "_type": "ClassLabel"}}
    table = pa.table({"jpg": [b"", b"", b""], "label": [1, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "x.parquet")
    source = open_source(tmp_path)
    assert (source.classes, [sample.target for sample in source.samples]) == (("b", "a"), [1, 0, None])
    pq.write_table(table.replace_schema_metadata({"huggingface": "{"}), tmp_path / "x.parquet")
    source = open_source(tmp_path)
    assert (source.classes, [sample.target for sample in source.samples]) == (None, [1, 0, -1])


def test_an_empty_key_gives_way_to_the_row(tmp_path):
    path = written(tmp_path / "x.parquet", {"jpg": [b"", b"", b""], "id": ["", None, "x"]})
    assert [sample.key for sample in open_source(path, key="id").samples] == ["x.parquet#0", "x.parquet#1", "x"]


def test_a_damaged_file_is_a_row_that_fails_between_the_others(tmp_path):
    for number in range(3):
        written(tmp_path / f"{number}.parquet", {"jpg": [b"content"]})
    data = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(data[: len(data) // 2])
    source = ParquetSource(tmp_path)
    assert contents(source) == [b"content", "the Parquet file is damaged, and its rows are lost", b"content"]
    assert source.samples[1].key == "1.parquet#damaged"


class Broken(io.BytesIO):
    """A file on a disk that fails."""

    def read(self, size=-1):
        raise OSError(5, "Input/output error")


def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch):
    source = ParquetSource(written(tmp_path / "x.parquet", {"jpg": [b"content"]}))
    monkeypatch.setattr("featreg.sources.parquet.open_file", lambda uri: Broken(b"content" * 100))
    with pytest.raises(SourceError, match="Input/output error"):
        list(source.index())


def test_a_damaged_row_group_costs_its_rows_only(tmp_path):
    rows = [bytes([row]) * 1000 for row in range(4)]
    path = written(
        tmp_path / "x.parquet", {"jpg": rows}, row_group_size=2, compression="NONE", write_page_checksum=True
    )
    place = path.read_bytes().index(b"\x00" * 900)
    data = bytearray(path.read_bytes())
    data[5:place] = b"\xff" * (place - 5)  # the header of the first page
    path.write_bytes(data)
    found = contents(ParquetSource(path))
    assert found[2:] == rows[2:]
    assert all(isinstance(content, str) for content in found[:2])


def test_the_column_of_images_is_said_where_there_are_several(tmp_path):
    path = written(tmp_path / "x.parquet", {"left": [b"l"], "right": [b"r"], "label": [1]})
    with pytest.raises(SourceError, match="which column") as caught:
        list(open_source(path).index())
    assert caught.value.matches == ("left", "right")
    assert contents(open_source(path, image="right")) == [b"r"]
    with pytest.raises(SourceError, match="no column of images 'label'"):
        list(open_source(path, image="label").index())
    with pytest.raises(SourceError, match="no column 'labl'") as caught:
        list(open_source(path, image="left", target="labl").index())
    assert caught.value.matches == ("label",)


def test_no_row_is_an_error(tmp_path):
    path = written(tmp_path / "x.parquet", {"jpg": pa.array([], pa.binary())})
    with pytest.raises(SourceError, match="no images found"):
        list(open_source(path).index())


# --- Hugging Face datasets on disk --------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A dataset of three encoded images with two classes, in two splits."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"]), "id": datasets.Value("string")}
    )
    images = [{"bytes": f"image {row}".encode(), "path": None} for row in range(3)]
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1, -1], "id": ["x", "y", None]}, features=features)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([2])}).save_to_disk(tmp_path / "two")
    return tmp_path


def test_a_dataset_on_disk_gives_the_bytes_of_its_images(saved):
    source = open_source(saved / "one")
    assert (source.kind, source.classes) == ("huggingface", ("b", "a"))
    assert [(sample.key, sample.target) for sample in source.samples] == [("0", 0), ("1", 1), ("2", None)]
    again = open_source(source.uri, kind=source.kind, **source.options)
    assert [again.read(sample) for sample in source.samples] == [b"image 0", b"image 1", b"image 2"]


def test_a_split_is_chosen_and_keys_may_be_a_column(saved):
    with pytest.raises(SourceError, match="which split") as caught:
        list(open_source(saved / "two").index())
    assert set(caught.value.matches) == {"train", "test"}
    source = open_source(saved / "two", split="test")
    assert [(sample.key, source.read(sample)) for sample in source.samples] == [("test/0", b"image 2")]
    assert [sample.key for sample in open_source(saved / "two", split="train", key="id").samples] == [
        "x",
        "y",
        "train/2",
    ]
    with pytest.raises(SourceError, match="no column 'imgae'") as caught:
        list(open_source(saved / "one", image="imgae").index())
    assert caught.value.matches == ("image",)


def test_a_folder_that_is_no_dataset_and_a_url_are_typed(tmp_path):
    pytest.importorskip("datasets")
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(SourceError, match="no dataset on disk"):
        list(open_source(tmp_path).index())
    with pytest.raises(SourceError, match="where they lie"):
        open_source("memory://x", kind="huggingface")
