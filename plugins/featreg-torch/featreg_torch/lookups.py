"""Tables that a network looks up by numbers which it computes from the image's size.

Torch's meta device holds no numbers, so an index beyond the end of a table passes there and fails in a real run. What
needs no numbers: a table that stays the same while more or fewer rows of it are asked for bounds the sizes that the
network takes, and shapes alone do not tell where. An index that stays the same, as that of a window does, or a table
that is resized with it bounds nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Lookups"]

aten = torch.ops.aten
_Table: TypeAlias = tuple[Any, torch.Size]

_INDICES = {
    aten.index.Tensor: 1,
    aten._unsafe_index.Tensor: 1,
    aten.embedding.default: 1,
    aten.take.default: 1,
    aten.index_select.default: 2,
    aten.gather.default: 2,
}
"""Operations that read a table, their first argument, at given rows, and which argument gives these."""


class Lookups(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type this class
    """Notes, in its first run, how many rows a network looks up in each table; raises IndexError where others do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: defaultdict[_Table, set[tuple[torch.Size, ...]]] = defaultdict(set)
        self._learns = True

    def __exit__(self, *raised: Any) -> None:
        self._learns = False
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        position = _INDICES.get(func)
        if position is not None and len(args) > position:
            self._check((func, args[0].shape), args[position])
        return func(*args, **(kwargs or {}))

    def _check(self, table: _Table, index: torch.Tensor | list[torch.Tensor | None]) -> None:
        indices = [index] if isinstance(index, torch.Tensor) else index
        shapes = tuple(one.shape for one in indices if one is not None)
        if self._learns:
            self._seen[table].add(shapes)
        elif table in self._seen and shapes not in self._seen[table]:
            raise IndexError(f"rows of a table of shape {tuple(table[1])} that follow the image's size")
