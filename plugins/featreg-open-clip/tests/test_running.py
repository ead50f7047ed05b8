"""What a call leaves behind: nothing in the network, the process or earlier outputs."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

import featreg
from featreg import errors

MODELS = ("tiny-vit", "tiny-coca", "tiny-rn", "tiny-convnext")
LAYERS = {
    "tiny-vit": ["C4", "features", "tokens", "pooled", "embedding"],
    "tiny-coca": ["C4", "features", "tokens", "pooled", "embedding"],
    "tiny-rn": ["C1", "C5", "features", "embedding"],
    "tiny-convnext": ["C2", "C5", "features", "pooled", "visual.trunk", "visual", "embedding"],
}


def open_model(name, **fields):
    return featreg.create_extractor(f"open_clip:{name}", LAYERS[name], **fields)


def hooks(module):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@pytest.mark.parametrize("name", MODELS)
def test_network_is_in_evaluation_mode(name):
    assert not any(module.training for module in open_model(name).module.modules())


@pytest.mark.parametrize("name", MODELS)
def test_calls_change_neither_the_network_nor_the_process(name, images):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)

    def process():
        keys, position = np.random.get_state()[1:3]
        return (
            torch.random.get_rng_state().tolist(),
            random.getstate(),
            keys.tolist(),
            position,
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
        )

    before = process()
    extractor = open_model(name)
    assert process() == before
    batch = images(extractor)
    kept = batch.clone()
    state = {key: value.clone() for key, value in extractor.module.state_dict().items()}
    extractor(batch)
    assert process() == before
    assert torch.equal(batch, kept)
    assert all(torch.equal(value, state[key]) for key, value in extractor.module.state_dict().items())
    assert hooks(extractor.module) == 0


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_nobody_elses(name, images):
    extractor = open_model(name, array="native")
    batch = images(extractor)
    first = extractor(batch)
    tensors = [first[key] for key in first]
    owned = [batch, *extractor.module.parameters(), *extractor.module.buffers()]
    places = [tensor.untyped_storage().data_ptr() for tensor in (*tensors, *owned)]
    assert len(set(places[: len(tensors)])) == len(tensors)
    assert not set(places[: len(tensors)]) & set(places[len(tensors) :])
    copies = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.zero_()
    second = extractor(batch)
    for key, copy in zip(second, copies, strict=True):
        assert torch.equal(second[key], copy)
    extractor(images(extractor, seed=1))
    for key, copy in zip(second, copies, strict=True):
        assert torch.equal(second[key], copy)


@pytest.mark.parametrize("name", MODELS)
def test_single_layers_equal_those_asked_for_together(name, images):
    """A run that stops at the last wanted layer, or skips a head, gives the same values."""
    together = open_model(name)
    batch = images(together)
    features = together(batch)
    for layer in LAYERS[name]:
        alone = featreg.create_extractor(f"open_clip:{name}", layer)(batch)
        np.testing.assert_array_equal(alone[layer], features[layer])


@pytest.mark.parametrize("layers", [["C4"], ["pooled"], ["embedding", "pooled", 0]])
def test_hooks_are_gone_after_an_exception_and_after_closing(layers, images, monkeypatch):
    extractor = featreg.create_extractor("open_clip:tiny-vit", layers)
    module = extractor.module.network
    batch = images(extractor)
    expected = extractor(batch)

    def fail(*_, **__):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(module.visual.transformer.resblocks[1].mlp, "forward", fail)
        with pytest.raises(errors.BackendError, match="out of luck"):
            extractor(batch)
    assert hooks(module) == 0
    again = extractor(batch)
    for layer in layers:
        np.testing.assert_array_equal(again[layer], expected[layer])
    extractor.close()
    assert hooks(module) == 0
    with pytest.raises(errors.RequestError, match="closed"):
        extractor(batch)


def test_batch_size_changes_nothing(images):
    extractor = open_model("tiny-vit")
    batch = images(extractor, batch=4)
    whole = extractor(batch)
    for row in range(4):
        for layer, array in extractor(batch[row : row + 1]).items():
            np.testing.assert_allclose(array[0], whole[layer][row], rtol=1e-4, atol=1e-5)


def test_light_module_imports_no_framework():
    code = (
        "import sys, featreg_open_clip\n"
        "spec, = featreg_open_clip.featreg_backends()\n"
        "assert spec.name == 'open_clip' and 'text' in spec.capabilities\n"
        "print([name for name in ('torch', 'open_clip', 'timm') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_declared_capabilities_agree():
    (declared,) = (spec for spec in __import__("featreg_open_clip").featreg_backends())
    assert declared.capabilities == featreg.describe("open_clip:tiny-vit").capabilities


def test_output_stride_is_refused():
    with pytest.raises(errors.CapabilityError, match="output_stride"):
        featreg.create_extractor("open_clip:tiny-rn", "C5", output_stride=16)
