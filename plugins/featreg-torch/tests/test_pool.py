"""Pooling of tensors, and of arrays, against torch's own layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import featreg
from featreg import errors
from featreg.pooling import pool_array

MAP = featreg.FeatureInfo("x", 3, 4, "map")
TOKENS = featreg.FeatureInfo("x", 5, 4, "tokens", prefix_tokens=2, class_token=True)
SETTINGS = {"deadline": None, "derandomize": True, "database": None}
sides = st.tuples(st.integers(1, 12), st.integers(1, 12))


class GeM(nn.Module):
    """As in the code of Radenović et al. 2018, github.com/filipradenovic/cnnimageretrieval-pytorch."""

    def __init__(self, p=3.0, eps=1e-6):
        super().__init__()
        self.p = p
        self.eps = eps

    def forward(self, x):
        whole = (x.size(-2), x.size(-1))
        return nn.functional.avg_pool2d(x.clamp(min=self.eps).pow(self.p), whole).pow(1.0 / self.p).flatten(1)


@st.composite
def layers(draw):
    """A layer of torch, and what it is called here."""
    kind = draw(st.sampled_from(["avg", "max", "gem", "avgpool", "maxpool", "adaptive_avgpool"]))
    if kind == "avg":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), kind
    if kind == "max":
        return nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), kind
    if kind == "gem":
        p = draw(st.sampled_from([1, 3, 4.5]))
        return GeM(p), f"gem={p}"
    if kind == "adaptive_avgpool":
        output = draw(sides)
        return nn.AdaptiveAvgPool2d(output), featreg.Pool(kind, output=output)
    kernel, stride = draw(sides), draw(st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = tuple(draw(st.integers(0, side // 2)) for side in kernel)
    made = nn.AvgPool2d if kind == "avgpool" else nn.MaxPool2d
    return made(kernel, stride, padding), featreg.Pool(kind, kernel, stride, padding)


def as_pool(text):
    return featreg.Pool.parse(text) if isinstance(text, str) else text


def pooled_or_refused(layer, maps):
    try:
        return layer(maps)
    except RuntimeError:  # the map is too small for the kernel, as the test then asks of featreg
        return None


@settings(max_examples=120, **SETTINGS)
@given(layers(), sides, st.integers(1, 2))
def test_values_and_gradients_are_those_of_the_layer(made, size, batch):
    layer, text = made
    maps = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = pooled_or_refused(layer, maps)
    if wanted is None:
        for array in (maps, maps.detach().numpy()):
            with pytest.raises(errors.InputError, match="too small"):
                pool_array(array, MAP, as_pool(text))
        return
    found = pool_array(maps, MAP, as_pool(text))
    torch.testing.assert_close(found, wanted)
    np.testing.assert_allclose(
        pool_array(maps.detach().numpy(), MAP, as_pool(text)), wanted.detach().numpy(), rtol=1e-4, atol=1e-5
    )
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((wanted * weights).sum(), maps, retain_graph=True)
    (own,) = torch.autograd.grad((found * weights).sum(), maps)
    torch.testing.assert_close(own, gradient)


@settings(**SETTINGS)
@given(st.sampled_from(["avg", "max", "gem"]), st.integers(1, 9))
def test_tokens_are_pooled_without_the_prefix(text, positions):
    tokens = torch.randn(2, 2 + positions, 5, generator=torch.Generator().manual_seed(0))
    unrolled = tokens[:, 2:].transpose(1, 2).reshape(2, 5, 1, positions)
    layer = {"avg": nn.AdaptiveAvgPool2d(1), "max": nn.AdaptiveMaxPool2d(1), "gem": GeM()}[text]
    torch.testing.assert_close(pool_array(tokens, TOKENS, as_pool(text)), layer(unrolled).flatten(1))
    assert torch.equal(pool_array(tokens, TOKENS, as_pool("cls")), tokens[:, 0])


@pytest.mark.parametrize("text", ["avg", "gem", "max", "avgpool=64,1,0", "adaptive_avgpool=1", "maxpool=64,1,0"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_formats_are_kept_and_summed_in_single_at_least(text, dtype):
    maps = torch.full((1, 3, 64, 64), 50.0, dtype=dtype)
    pooled = pool_array(maps, MAP, as_pool(text))
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.float(), torch.full_like(pooled, 50).float(), rtol=5e-3, atol=0)


def test_infinities_and_nans_pass_as_in_torch():
    maps = torch.zeros(1, 3, 4, 4)
    maps[0, 0, 0, 0], maps[0, 1, 0, 0], maps[0, 2] = float("inf"), float("nan"), float("-inf")
    for text, layer in (("avgpool=3,1,1", nn.AvgPool2d(3, 1, 1)), ("maxpool=3,1,1", nn.MaxPool2d(3, 1, 1))):
        for found in (pool_array(maps, MAP, as_pool(text)), pool_array(maps.numpy(), MAP, as_pool(text))):
            np.testing.assert_array_equal(np.asarray(found), layer(maps).numpy())


def test_feature_sets_pool_and_flatten_tensors_as_tensors():
    maps = torch.randn(2, 3, 6, 8, requires_grad=True)
    features = featreg.FeatureSet({"C2": maps}, {"C2": MAP}, input_size=(24, 32))
    pooled = features.pool("maxpool=3,2,1")
    assert torch.equal(pooled["C2"], nn.functional.max_pool2d(maps, 3, 2, 1))
    flat = pooled.flatten()
    assert flat["C2"].shape == (2, 3 * 3 * 4) == flat.info["C2"].shape(2, 24, 32)
    flat["C2"].sum().backward()
    assert maps.grad is not None


@pytest.mark.parametrize(
    ("pool", "layer"),
    [
        (None, nn.Identity()),
        ("gem", GeM()),
        ("avgpool=3,2,1", nn.AvgPool2d(3, 2, 1)),
        ("adaptive_avgpool=2,3", nn.AdaptiveAvgPool2d((2, 3))),
    ],
)
def test_an_extractor_pools_on_the_graph_whatever_the_modes_of_the_caller(pool, layer):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
    images = torch.rand(2, 3, 33, 41, generator=torch.Generator().manual_seed(0))
    with featreg.from_module(
        network, ["3"], input_size=(32, 32), array="native", grad=True, pool=pool, flatten=True
    ) as extractor:
        with torch.no_grad():
            found = extractor(images)["3"]
        assert {"3": tuple(found.shape)} == extractor.output_shapes((2, 3, 33, 41))
        found.square().sum().backward()
    own = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    wanted = layer(network(images)).flatten(1)
    torch.testing.assert_close(found, wanted)
    wanted.square().sum().backward()
    torch.testing.assert_close(own, [parameter.grad for parameter in network.parameters()])
