"""The index: which sample each row is, in Parquet files that are written and read a block at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from featreg.errors import SpecError
from featreg.extras import data_extra
from featreg.stores.documents import damaged
from featreg.stores.layout import INDEX, IndexPart
from featreg.stores.places.place import Place

with data_extra():
    import pyarrow
    import pyarrow.parquet

pa: Any = pyarrow  # a compiled module without types
pq: Any = pyarrow.parquet

__all__ = ["BLOCK_ROWS", "WRITING", "Index", "IndexRow", "write_index"]

BLOCK_ROWS = 4096
"""The rows of a row group: what is held in memory at once."""

WRITING: dict[str, Any] = {"write_page_checksum": True, "use_dictionary": False}
"""Keys and URIs are all different: a dictionary of them would only take memory."""

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("uri", pa.string()),
        ("target", pa.int64()),
        ("size", pa.int64()),
    ]
)


class IndexRow(Protocol):
    """What the index keeps of a sample."""

    @property
    def key(self) -> str: ...

    @property
    def uri(self) -> str: ...

    @property
    def target(self) -> int | None: ...

    @property
    def size(self) -> int | None: ...


def write_index(place: Place, number: int, start: int, samples: Iterable[IndexRow]) -> IndexPart:
    """Write the samples of the rows from ``start`` on; the name of the file tells its content.

    Two workers that write the same samples write the same file, and others do not touch each other's. Raises SpecError
    for a key or a URI that no file can hold.
    """
    with place.incoming() as incoming:
        stop = start
        with pq.ParquetWriter(incoming.file, SCHEMA, **WRITING) as writer:
            for block in _blocks(samples):
                writer.write_table(_table(stop, block), row_group_size=BLOCK_ROWS)
                stop += len(block)
        content = incoming.sha256()
        name = f"{INDEX}/{number:04d}-{content[:16]}.parquet"
        incoming.publish(name)
    pa.default_memory_pool().release_unused()  # what blocks took; the run that follows needs room for features
    return IndexPart(name, start, stop, content)


class Index:
    """The samples of a store, read where they are asked for; a few blocks are kept in memory."""

    def __init__(self, place: Place, parts: Sequence[IndexPart]) -> None:
        self._place = place
        self._parts = tuple(parts)
        self._file = functools.lru_cache(maxsize=4)(self._open)
        self._block = functools.lru_cache(maxsize=2)(self._read)

    def rows(self, start: int, stop: int) -> Any:
        """The rows from ``start`` to before ``stop``, as a table; raises StoreDamagedError."""
        found = []
        for part in self._parts:
            first, last = max(start, part.start) - part.start, min(stop, part.stop) - part.start
            for block in range(first // BLOCK_ROWS, -(-last // BLOCK_ROWS)) if first < last else ():
                above = block * BLOCK_ROWS
                found.append(self._block(part, block).slice(max(first - above, 0), last - max(first, above)))
        return pa.concat_tables(found) if found else SCHEMA.empty_table()

    def blocks(self) -> Iterator[Any]:
        """Every row, a block at a time."""
        for part in self._parts:
            for block in range(-(-(part.stop - part.start) // BLOCK_ROWS)):
                yield self._read(part, block)

    def _read(self, part: IndexPart, block: int) -> Any:
        try:
            return self._file(part).read_row_group(block)
        except (OSError, pa.ArrowException) as error:
            raise damaged(part.name, f"{type(error).__name__}: {error}", "an index as featreg writes it") from error

    def _open(self, part: IndexPart) -> Any:
        try:
            file = pq.ParquetFile(self._place.open(part.name), page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise damaged(part.name, f"{type(error).__name__}: {error}", "an index as featreg writes it") from error
        if file.metadata.num_rows != part.stop - part.start or file.schema_arrow != SCHEMA:
            raise damaged(part.name, f"{file.metadata.num_rows} rows", f"{part.stop - part.start} rows of an index")
        return file


def _blocks(samples: Iterable[IndexRow]) -> Iterator[list[IndexRow]]:
    remaining = iter(samples)
    while block := list(itertools.islice(remaining, BLOCK_ROWS)):
        yield block


def _table(start: int, block: Sequence[IndexRow]) -> Any:
    columns = {
        "row": range(start, start + len(block)),
        "key": [sample.key for sample in block],
        "uri": [sample.uri for sample in block],
        "target": [sample.target for sample in block],
        "size": [sample.size for sample in block],
    }
    try:
        return pa.table(columns, schema=SCHEMA)
    except UnicodeEncodeError as error:
        raise SpecError(
            "the key or the URI of a sample is no text", "Unicode without lone surrogates", repr(error.object)
        ) from error
