"""The index and the sample table: any rows, in blocks of any size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featreg.errors import StoreError
from featreg.sources import Sample
from featreg.stores import index as index_module
from featreg.stores.index import Index, write_index
from featreg.stores.places.place import LocalPlace


@settings(max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 7), st.data())
def test_any_rows_of_an_index_are_those_that_were_written(tmp_path_factory, lengths, block, data):
    place = LocalPlace(tmp_path_factory.mktemp("store"))
    samples = [
        Sample(f"{row}\n\u00fc", f"file:///{row}", row % 3 if row % 2 else None, row or None)
        for row in range(sum(lengths))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "BLOCK_ROWS", block)
        parts, start = [], 0
        for number, length in enumerate(lengths):
            parts.append(write_index(place, number, start, iter(samples[start : start + length])))
            start += length
        index = Index(place, parts)
        first = data.draw(st.integers(0, len(samples)))
        last = data.draw(st.integers(first, len(samples)))
        rows = index.rows(first, last).to_pylist()
        assert [row["row"] for row in rows] == list(range(first, last))
        found = [Sample(row["key"], row["uri"], row["target"], row["size"]) for row in rows]
        assert found == samples[first:last]
        assert sum(block.num_rows for block in index.blocks()) == len(samples)


def test_the_same_samples_make_the_same_file_and_others_another(tmp_path):
    place = LocalPlace(tmp_path)
    one, two = [Sample("a", "file:///a")], [Sample("b", "file:///b")]
    first = write_index(place, 0, 0, one)
    assert write_index(place, 0, 0, one) == first
    assert write_index(place, 0, 0, two).name != first.name
    assert len(list((tmp_path / "index").iterdir())) == 2
    assert first.sha256.startswith(first.name.split("-")[1].removesuffix(".parquet"))


def test_a_source_that_fails_midway_leaves_no_index(tmp_path):
    def failing():
        yield Sample("a", "file:///a")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_index(LocalPlace(tmp_path), 0, 0, failing())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_every_flipped_bit_of_an_index_is_an_error_or_another_checksum(tmp_path):
    place = LocalPlace(tmp_path)
    part = write_index(place, 0, 0, [Sample(str(row), f"file:///{row}") for row in range(50)])
    data = place.read(part.name)
    for position in np.random.default_rng(0).integers(0, len(data), 40):
        changed = bytearray(data)
        changed[position] ^= 1
        place.write(part.name, bytes(changed))
        assert place.sha256(part.name) != part.sha256
        try:
            rows = Index(place, [part]).rows(0, 50).to_pylist()
        except (StoreError, OSError):
            continue
        assert len(rows) == 50
