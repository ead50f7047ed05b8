"""What MindSpore says where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from featreg_mindspore.extractor import MindsporeExtractor
from featreg_mindspore.libraries import mindspore

ONE = mindspore.Tensor([[1.0]])


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda ops: ops.zeros((1 << 45,)), True),
        (lambda ops: ops.broadcast_to(ONE, (1 << 30, 1 << 15)), True),
        (lambda ops: ops.matmul(ONE, mindspore.Tensor([[1.0], [1.0]])), False),
    ],
)
def test_a_failed_allocation_is_told_apart_from_other_failures(compute: Callable[[Any], Any], expected: bool) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  (RuntimeError and ValueError)
        compute(mindspore.ops).asnumpy()
    assert MindsporeExtractor.is_out_of_memory(None, caught.value) is expected  # type: ignore[arg-type]
