"""A module of the caller's own is described and extracted exactly, and stays as it was."""

import copy
import gc
import pickle
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import featreg
from featreg.plugin import Preprocess, errors


class Block(nn.Module):
    """Halves the image; the activation works in place on what the norm gave."""

    def __init__(self, before, after):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(after)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


class Net(nn.Module):
    """Three levels and a classifier; ``ran`` tells which parts were computed."""

    def __init__(self):
        super().__init__()
        self.stem = Block(3, 8)
        self.one = Block(8, 16)
        self.two = Block(16, 32)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(32, 10)
        self.ran = []

    def forward(self, images):
        x = self.two(self.one(self.stem(images)))
        self.ran.append("body")
        x = self.fc(self.drop(x.mean((2, 3))))
        self.ran.append("head")
        return x


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def images():
    return torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(0))


def by_hand(network, images):
    """The three levels, the pooled vector and the scores, with no hook."""
    network = copy.deepcopy(network).eval()
    c1 = network.stem(images)
    c2 = network.one(c1)
    c3 = network.two(c2)
    return {"C1": c1, "C2": c2, "C3": c3, "pooled": c3.mean((2, 3)), "logits": network.fc(c3.mean((2, 3)))}


@torch.no_grad()
def test_levels_heads_and_native_names_of_any_module(network, images):
    expected = by_hand(network, images)
    layers = [*expected, "stem.norm", -1]
    with featreg.from_module(network, layers, input_size=(64, 64), array="native") as extractor:
        features = extractor(images)
        assert extractor.output_shapes(images.shape) == {key: tuple(features[key].shape) for key in layers}
        assert (extractor.info.backend, extractor.info.model) == ("torch", "Net")
    for key, value in expected.items():
        assert torch.equal(features[key], value)
    assert torch.equal(features[-1], expected["C3"])
    reference = copy.deepcopy(network).eval()
    assert torch.equal(features["stem.norm"], reference.stem.norm(reference.stem.conv(images)))


def test_the_module_stays_as_it_was(network, images):
    network.train()
    network.two.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with featreg.from_module(network, ["C2"], input_size=(64, 64)) as extractor:
        extractor(images.numpy())
        assert [network.training, network.stem.training, network.two.training] == [True, True, False]
    assert [network.training, network.stem.training, network.two.training] == [True, True, False]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not [module for module in network.modules() if module._forward_hooks or "forward" in vars(module)]
    assert len(list(network.parameters())) == 14, "all of a caller's own parameters stay"
    network(images)  # and it still runs whole


def test_what_comes_after_the_last_layer_does_not_run(network, images):
    with featreg.from_module(network, ["C2"], input_size=(64, 64)) as extractor:
        network.ran.clear()
        extractor(images.numpy())
    assert network.ran == []


def test_the_caller_trains_the_same_parameters(network, images):
    reference = copy.deepcopy(network)
    extractor = featreg.from_module(network, ["C3"], input_size=(64, 64), array="native", grad=True)
    extractor(images)["C3"].square().sum().backward()
    reference.eval()
    reference.two(reference.one(reference.stem(images))).square().sum().backward()
    for name, parameter in reference.named_parameters():
        found = dict(network.named_parameters())[name].grad
        assert (parameter.grad is None and found is None) or torch.equal(parameter.grad, found), name


def test_uint8_is_scaled_to_one_unless_the_preprocessing_says_more(network):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    with featreg.from_module(network, ["C1"], input_size=(64, 64)) as extractor:
        assert extractor.preprocess.crop == (64, 64)
        plain = extractor(pixels)["C1"]
        np.testing.assert_array_equal(plain, extractor(pixels.astype(np.float32) / 255)["C1"])
    preprocess = Preprocess((64, 64), (64, 64), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    with featreg.from_module(network, ["C1"], input_size=(64, 64), preprocess=preprocess) as extractor:
        normalised = (pixels.astype(np.float32) / 255 - 0.5) / 0.25
        np.testing.assert_allclose(extractor(pixels)["C1"], extractor(normalised)["C1"], rtol=1e-5, atol=1e-5)


def test_the_name_stands_in_for_the_class(network):
    with featreg.from_module(network, ["C1"], input_size=(64, 64), name="mine-v2") as extractor:
        assert extractor.info.id == "torch:mine-v2"


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"layers": ["C9"]}, errors.LayerError, "C9"),
        ({"layers": ["stem.nrom"]}, errors.LayerError, "stem.norm"),
        ({"layers": ["tokens"]}, errors.CapabilityError, "tokens"),
        ({"layers": ["C1"], "weights": "default"}, errors.SpecError, "weights"),
        ({"layers": ["C1"], "output_stride": 8}, errors.SpecError, "output_stride"),
        ({"layers": ["C1"], "options": {"a": 1}}, errors.CapabilityError, "options"),
        ({"layers": ["C1"], "dtype": "float16"}, errors.CapabilityError, "float16"),
        ({"layers": ["C1"], "input_size": (0, 5)}, errors.InputError, "size"),
    ],
)
def test_requests_that_cannot_be_met(network, fields, error, said):
    with pytest.raises(error, match=said):
        featreg.from_module(network, **{"input_size": (64, 64), **fields})


def test_what_is_no_module_of_a_known_framework():
    with pytest.raises(errors.CapabilityError, match="dict"):
        featreg.from_module({}, ["C1"])


class Branching(nn.Module):
    """Its forward depends on the values of the images, so that no shape can be inferred."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(images) if images.sum() > 0 else images


def test_a_forward_that_depends_on_values_is_refused():
    with pytest.raises(errors.CapabilityError, match="Branching"):
        featreg.from_module(Branching(), ["conv"])


def test_models_by_name_there_are_none():
    assert featreg.list_models("torch") == ()
    with pytest.raises(errors.UnknownModelError, match="from_module"):
        featreg.describe("torch:resnet50")


# --- the module of an extractor ---


@torch.no_grad()
def test_the_extractors_module_maps_images_to_features_by_key(network, images):
    network.eval()
    module = featreg.from_module(network, ["C2", 0], input_size=(64, 64)).module
    features = module(images)
    assert list(features) == ["C2", "0"]
    expected = by_hand(network, images)
    assert torch.equal(features["C2"], expected["C2"])
    assert torch.equal(features["0"], expected["C1"])
    assert module.network is network


@torch.no_grad()
def test_it_outlives_its_extractor_and_can_be_copied_and_pickled(network, images):
    network.eval()
    with featreg.from_module(network, ["C2"], input_size=(64, 64)) as extractor:
        module = extractor.module
    expected = by_hand(network, images)["C2"]
    assert torch.equal(module(images)["C2"], expected)
    assert torch.equal(copy.deepcopy(module)(images)["C2"], expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(images)["C2"], expected)


def test_it_trains_with_batch_statistics_as_the_network_does(network, images):
    reference = copy.deepcopy(network).train()
    module = featreg.from_module(network, ["C2"], input_size=(64, 64)).module.train()
    found = module(images)["C2"]
    expected = reference.one(reference.stem(images))
    assert torch.equal(found, expected)
    found.mean().backward()
    expected.mean().backward()
    assert torch.equal(network.stem.conv.weight.grad, reference.stem.conv.weight.grad)
    assert torch.equal(network.stem.norm.running_mean, reference.stem.norm.running_mean)


@torch.no_grad()
def test_it_compiles_to_one_graph(network, images):
    network.eval()
    module = featreg.from_module(network, ["C2", "C1"], input_size=(64, 64)).module
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(module, backend=backend)
    features = [compiled(images) for _ in range(3)][-1]
    expected = by_hand(network, images)
    assert all(torch.equal(features[key], expected[key]) for key in ("C1", "C2"))
    assert len(graphs) == 1, "later calls use the first graph"


@torch.no_grad()
def test_it_exports_without_what_is_not_asked_for(network, images):
    network.eval()
    module = featreg.from_module(network, ["C2"], input_size=(64, 64)).module
    exported = torch.export.export(module, (images,), strict=False)
    convolutions = [node for node in exported.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == 2
    assert torch.equal(exported.module()(images)["C2"], by_hand(network, images)["C2"])
    assert not [one for one in network.modules() if "forward" in vars(one)]


class Transformer(nn.Module):
    """A plain transformer with a class token in front."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.cls_token = nn.Parameter(torch.ones(1, 1, 16))
        block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.blocks = nn.ModuleList(copy.deepcopy(block) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


@torch.no_grad()
def test_a_plain_transformer_gives_maps_and_tokens_from_one_request():
    torch.manual_seed(0)
    network, images = Transformer().eval(), torch.rand(2, 3, 32, 48)
    layers = ["C3", "tokens", "blocks.0"]
    with featreg.from_module(network, layers, input_size=(32, 48), array="native") as extractor:
        features = extractor(images)
        tokens = extractor.feature_info["tokens"]
        assert (tokens.prefix_tokens, tokens.class_token) == (1, True)
        assert not extractor.feature_info["C3"].class_token
    outputs = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    network(images)
    assert torch.equal(features["tokens"], outputs[1])
    assert torch.equal(features["C3"], outputs[1][:, 1:].transpose(1, 2).reshape(2, 16, 4, 6))
    assert torch.equal(features["blocks.0"], outputs[0])


# --- what is shared by several users of one module ---


@torch.no_grad()
def test_threads_extract_from_a_module_in_training_mode(network):
    batches = [torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    expected = [by_hand(network, batch)["C3"] for batch in batches]
    network.train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    extractors = [featreg.from_module(network, ["C3"], input_size=(64, 64), array="native") for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(extractors[k % 2], batch) for _ in range(3) for k, batch in enumerate(batches)]
    for k, job in enumerate(jobs):
        assert torch.equal(job.result()["C3"], expected[k % len(batches)])
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())


class Cached(nn.Module):
    """Keeps a product of its weights for evaluation until it trains again, as timm's attention biases do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.bias = nn.Parameter(torch.zeros(4))
        self.kept = None

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.kept = None
        return self

    def forward(self, images):
        if self.training:
            return self.conv(images) + (2 * self.bias).view(-1, 1, 1)
        if self.kept is None:
            self.kept = 2 * self.bias
        return self.conv(images) + self.kept.view(-1, 1, 1)


@torch.no_grad()
def test_what_a_module_keeps_for_evaluation_follows_its_training(images):
    module = nn.Sequential(Cached())
    with featreg.from_module(module, ["0"], input_size=(64, 64), array="native") as extractor:
        module.train()
        first = extractor(images)["0"]
        module[0].bias.add_(1)
        assert torch.allclose(extractor(images)["0"], first + 2)
        assert module[0].training


class Repeating(nn.Module):
    """Runs its block more often the wider the image."""

    def __init__(self):
        super().__init__()
        self.block = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        for _ in range(images.shape[-1] // 32):
            images = self.block(images)
        return self.last(images)


@torch.no_grad()
def test_the_last_output_counts_however_often_a_module_runs():
    torch.manual_seed(0)
    module = Repeating()
    with featreg.from_module(module, ["block"], input_size=(32, 32), array="native") as extractor:
        for width in (32, 64, 128):
            images = expected = torch.rand(1, 3, 32, width)
            for _ in range(width // 32):
                expected = module.block(expected)
            assert torch.equal(extractor(images)["block"], expected)


@torch.no_grad()
def test_parts_of_the_module_live_on_without_it(network, images):
    network.eval()
    module = featreg.from_module(network, ["C2"], input_size=(64, 64)).module
    sequence, shallow = nn.Sequential(*module.children()), copy.copy(module)
    expected = module(images)["C2"]
    del module
    gc.collect()
    assert torch.equal(sequence(images)[0], expected)
    assert torch.equal(shallow(images)["C2"], expected)


def test_a_conversion_reaches_every_tensor_once(network):
    module = featreg.from_module(network, ["C2"], input_size=(64, 64)).module
    before = {name: value.detach().clone() for name, value in network.state_dict().items()}
    module._apply(lambda tensor: tensor * 2)
    assert all(torch.equal(value, 2 * before[name]) for name, value in network.state_dict().items())
    assert module.double()(torch.rand(1, 3, 32, 32, dtype=torch.float64))["C2"].dtype == torch.float64


def test_the_callers_hooks_see_nothing_of_the_description(network, images):
    seen = []
    network.one.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    network.two.register_forward_pre_hook(lambda *arguments: seen.append(arguments[1]))
    with featreg.from_module(network, ["C3"], input_size=(64, 64)) as extractor:
        assert seen == []
        extractor(images)
    assert len(seen) == 2


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("normalise", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weights_that_are_made_of_others(network, images, normalise):
    network.eval()
    normalise(network.one.conv)
    expected = network.one(network.stem(images))
    with featreg.from_module(network, ["C2"], input_size=(64, 64), array="native") as extractor:
        assert torch.allclose(extractor(images)["C2"], expected)


@pytest.mark.parametrize("name", ["embedding", "tokens", "C5"])
def test_a_module_named_like_a_level_or_head_that_the_network_has_not_is_a_native_name(name):
    network = nn.Sequential(OrderedDict([(name, nn.Conv2d(3, 8, 16, 16)), ("pool", nn.AdaptiveAvgPool2d(1))]))
    with featreg.from_module(network, [name], input_size=(64, 64)) as extractor:
        images = torch.rand(1, 3, 64, 64)
        assert np.array_equal(extractor(images.numpy())[name], network[0](images).detach().numpy())
        assert extractor.output_shapes((1, 3, 64, 64))[name] == (1, 8, 4, 4)


@pytest.mark.parametrize("preprocess", ["imagenet", {}, 3])
def test_preprocess_that_is_none_is_refused_at_once(preprocess):
    with pytest.raises(errors.SpecError, match="Preprocess"):
        featreg.from_module(nn.Conv2d(3, 8, 3), ["features"], preprocess=preprocess)


class Unet(nn.Module):
    """Poolings that drop a row and column, up again to sides that fit: 65 pixels do, 66 do not."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.third = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)

    def forward(self, images):
        half = self.second(self.first(images))
        return self.up(self.third(half)) + half


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (224, 225)])
def test_levels_are_found_at_an_odd_size_that_only_fits_by_itself(size):
    network = Unet().eval()
    extractor = featreg.from_module(network, ["C0", "C1", "C2"], input_size=size)
    pixels = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    features = extractor.module(pixels)
    with torch.no_grad():
        first = network.first(pixels)
        second = network.second(first)
        expected = {"C0": first, "C1": second, "C2": network.third(second)}
    assert all(torch.equal(features[level], expected[level]) for level in expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_module_of_other_channels_takes_those_of_its_first_convolution(channels):
    net = nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
    images = torch.randn(2, channels, 24, 40, generator=torch.Generator().manual_seed(1))
    with featreg.from_module(net, ["C1", "C2"], input_size=(32, 32), array="native") as extractor, torch.no_grad():
        assert extractor.info.input_rule.channels == channels
        features = extractor(images)
        assert torch.equal(features["C2"], net(images))
        assert extractor.output_shapes(images.shape) == {"C1": (2, 4, 12, 20), "C2": (2, 8, 6, 10)}
        with pytest.raises(errors.InputError, match=f"the model takes {channels} channels"):
            extractor(images.to(torch.uint8))
        with pytest.raises(errors.InputError, match="wrong shape"):
            extractor(torch.zeros(2, 3, 24, 40))
