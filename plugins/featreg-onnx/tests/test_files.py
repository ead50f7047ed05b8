"""Files that are damaged, incomplete, or not for images; and what the weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import featreg
from featreg import errors


def one_node(kind: str, *, element: int = TensorProto.FLOAT, shape: Any = ("n", 3, 8, 8), **more: Any) -> Any:
    images = helper.make_tensor_value_info("images", element, shape)
    result = onnx.ValueInfoProto(name="result")
    graph = helper.make_graph([helper.make_node(kind, ["images"], ["result"], **more)], "net", [images], [result])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(errors.WeightsError, match=r"net\.onnx"):
        featreg.describe(f"onnx:{tmp_path / 'net.onnx'}")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_refused(save: Any, resnet: Any, tmp_path: Path, share: float) -> None:
    model = save(resnet)
    content = (tmp_path / "net.onnx").read_bytes()
    (tmp_path / "net.onnx").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(errors.WeightsError):
        featreg.create_extractor(model, "C2")


def test_a_file_that_is_mended_is_read_anew(save: Any, resnet: Any, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(errors.WeightsError):
        featreg.describe(f"onnx:{tmp_path / 'net.onnx'}")
    assert featreg.describe(save(resnet)).keys


def test_an_operator_that_nobody_has_is_a_capability(save: Any) -> None:
    with pytest.raises(errors.CapabilityError, match="does not run") as caught:
        featreg.describe(save(one_node("Nonsense", domain="acme")))
    assert "Nonsense" in caught.value.got


def test_a_version_of_the_future_is_a_capability(save: Any, resnet: Any) -> None:
    resnet.opset_import[0].version = 999
    with pytest.raises(errors.CapabilityError, match="does not run") as caught:
        featreg.describe(save(resnet))
    assert "opset" in caught.value.got


def test_a_graph_that_contradicts_itself_is_refused(save: Any, resnet: Any) -> None:
    resnet.graph.node[3].input[0] = "nowhere"
    with pytest.raises((errors.WeightsError, errors.CapabilityError)):
        featreg.describe(save(resnet))


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (one_node("Relu", shape=("n", 4, 8, 8)), "(?, 4, 8, 8)"),
        (one_node("Relu", shape=("n", 3, 8)), "('n', 3, 8)"),
        (one_node("Relu", shape=("n", 3, 8, "width")), "(?, 3, 8, ?)"),
        (one_node("Cast", element=TensorProto.UINT8, to=TensorProto.FLOAT), "uint8"),
        (one_node("Cast", element=TensorProto.DOUBLE, to=TensorProto.FLOAT), "double"),
    ],
)
def test_what_takes_no_images_is_refused(save: Any, model: Any, got: str) -> None:
    with pytest.raises(errors.CapabilityError) as caught:
        featreg.describe(save(model))
    assert caught.value.got == got


def test_two_inputs_are_refused(save: Any, resnet: Any) -> None:
    resnet.graph.input.append(helper.make_tensor_value_info("text", TensorProto.INT64, ("n", 77)))
    with pytest.raises(errors.CapabilityError) as caught:
        featreg.describe(save(resnet))
    assert caught.value.got == "images, text"


def test_parameters_among_the_inputs_are_none(save: Any, resnet: Any) -> None:
    """As files of ONNX's early versions have them."""
    before = featreg.describe(save(resnet)).features
    values = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in resnet.graph.initializer]
    resnet.graph.input.extend(values)
    assert featreg.describe(save(resnet, "old.onnx")).features == before


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def external(tmp_path: Path, resnet: Any) -> Path:
    """A file whose weights lie in another."""
    path = tmp_path / "big.onnx"
    onnx.save(resnet, str(path), save_as_external_data=True, location="big.bin", size_threshold=0)
    return path


def test_weights_beside_the_file_are_found(external: Path, save: Any, resnet: Any, images: Any) -> None:
    layers = ["C2", "C5", "logits"]
    with (
        featreg.create_extractor(f"onnx:{external}", layers) as one,
        featreg.create_extractor(save(resnet), layers) as other,
    ):
        for got, wanted in zip(one(images).values(), other(images).values(), strict=True):
            assert got.tobytes() == wanted.tobytes()


def test_links_to_weights_are_followed(external: Path, tmp_path: Path) -> None:
    """As they lie in the cache of a hub."""
    (tmp_path / "snapshot").mkdir()
    for name in ("big.onnx", "big.bin"):
        (tmp_path / name).rename(tmp_path / f"blob-{name}")
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / f"blob-{name}")
    assert featreg.describe(f"onnx:{tmp_path}/snapshot/big.onnx").keys


def test_missing_weights_are_named(external: Path) -> None:
    external.with_suffix(".bin").unlink()
    with pytest.raises(errors.WeightsError, match="not there") as caught:
        featreg.describe(f"onnx:{external}")
    assert "big.bin" in caught.value.got


@pytest.mark.parametrize("location", ["../big.bin", "/etc/hostname"])
def test_weights_from_elsewhere_are_refused(external: Path, location: str) -> None:
    model = onnx.load(str(external), load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    external.write_bytes(model.SerializeToString())
    with pytest.raises(errors.WeightsError, match="outside"):
        featreg.describe(f"onnx:{external}")


def test_the_identity_is_that_of_all_files(external: Path) -> None:
    weights = external.with_suffix(".bin")
    with featreg.create_extractor(f"onnx:{external}", "C2") as extractor:
        before = extractor.weights_identity()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with featreg.create_extractor(f"onnx:{external}", "C2") as extractor:
        assert extractor.weights_identity() != before
        weights.write_bytes(b"")
        with pytest.raises(errors.WeightsError, match="changed"):
            extractor.weights_identity()


@pytest.mark.parametrize("weights", ["default", "file", "other.pth"])
def test_other_weights_are_refused(save: Any, resnet: Any, weights: str) -> None:
    with pytest.raises(errors.CapabilityError, match="weights"):
        featreg.create_extractor(save(resnet), "C2", weights=weights)
