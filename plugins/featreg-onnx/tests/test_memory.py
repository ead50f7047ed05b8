"""What onnxruntime says where memory does not suffice."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from featreg_onnx.extractor import OnnxExtractor


def failure(columns: int) -> Exception:
    """What a product of (2**20, 1) and (1, columns) raises; for 2**25 of them it would take 128 TiB."""
    names = (("a", ["n", 1]), ("b", ["k", "m"]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in names]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "product", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    rows = 1 if columns == 2**25 else 2
    with pytest.raises(Exception) as caught:  # noqa: PT011  (its classes are of no public module)
        session.run(None, {"a": np.ones((2**20, 1), np.float32), "b": np.ones((rows, columns), np.float32)})
    return caught.value


@pytest.mark.parametrize(("columns", "expected"), [(2**25, True), (2, False)])
def test_a_failed_allocation_is_told_apart_from_other_failures(columns: int, expected: bool) -> None:
    assert OnnxExtractor.is_out_of_memory(None, failure(columns)) is expected  # type: ignore[arg-type]
