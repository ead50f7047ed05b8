"""What is inferred of a module from hooks, against what the module was written to be."""

import functools

import pytest
import torch
from torch import nn

from featreg_torch.infer import INPUT, infer_outlets, run_module
from featreg_torch.shapes import build_on_meta
from featreg_torch.taps import Glance, HookTaps


class Block(nn.Module):
    """A residual block: the sum and its activation are seen only in what the whole block gives."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 1)
        self.norm = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride, 1)
        self.short = nn.Conv2d(before, after, 1, stride)

    def forward(self, x):
        return torch.relu(self.conv2(self.norm(self.conv1(x))) + self.short(x))


class Net(nn.Module):
    """Levels C1 to C3, then what ``ending`` makes of them."""

    def __init__(self, ending="scores"):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList([
            nn.Sequential(Block(8, 12, 2), Block(12, 12, 1)),
            nn.Sequential(Block(12, 16, 2)),
        ])  # fmt: skip
        self.norm = nn.BatchNorm2d(16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)
        self.ending = ending

    def forward(self, images):
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        if self.ending == "maps":
            return maps
        if self.ending == "dictionary":
            return {"out": maps[-1], "low": maps[0]}
        scores = self.fc(torch.flatten(self.pool(self.norm(maps[-1])), 1))
        return (scores, maps[-1]) if self.ending == "pair" else scores


LEVELS = {"C1": "stem", "C2": "stages.0", "C3": "stages.1"}


def infer(build, size=(224, 224)):
    outlets = infer_outlets(build_on_meta(build), size)
    return {outlet.level or outlet.head or outlet.index: outlet for outlet in outlets}


def sources(found, *keys):
    return {key: found[key].source for key in keys}


def test_levels_and_heads_of_a_classifier():
    found = infer(Net)
    assert sources(found, *LEVELS) == LEVELS
    assert [found[level].index for level in LEVELS] == [0, 1, 2]
    assert sources(found, "features", "pooled", "logits") == {
        "features": "norm", "pooled": f"fc{INPUT}", "logits": "fc",
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["maps", "dictionary", "pair"])
def test_other_endings_have_the_levels_and_no_scores(ending):
    found = infer(lambda: Net(ending))
    assert sources(found, *LEVELS) == LEVELS
    assert not {"pooled", "logits"} & set(found)
    assert found["features"].source == ("norm" if ending == "pair" else "stages.1")


def test_the_input_of_a_module_is_what_the_module_gets():
    torch.manual_seed(0)
    network = Net().eval()
    images = torch.randn(2, 3, 33, 40)
    taps = HookTaps(network, [f"fc{INPUT}", "fc"], [Glance(), Glance()], run=run_module)
    with torch.no_grad():
        pooled, scores = taps(images)
        assert torch.equal(network.fc(pooled), scores)
        assert torch.equal(scores, network(images))
    assert not any(module._forward_pre_hooks for module in network.modules())


class InPlace(nn.Module):
    """The classifier takes what an activation made in place of a linear layer's output."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))
        self.hidden = nn.Linear(4, 6)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(6, 3)

    def forward(self, images):
        return self.fc(self.drop(self.act(self.hidden(self.body(images).mean((2, 3))))))


def test_pooled_is_what_an_activation_in_place_left_and_not_what_was_there_before():
    assert infer(InPlace)["pooled"].source == "act"


class Scaled(nn.Module):
    """Nothing but a function stands between two modules that hand the same tensor on."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))
        self.hidden = nn.Linear(4, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, images):
        return self.fc(self.hidden(self.body(images).mean((2, 3))).mul_(2))


def test_a_function_in_place_hides_what_the_module_gave():
    assert infer(Scaled)["pooled"].source == f"fc{INPUT}"


class Closing(nn.Module):
    """MobileNetV2's ending: a 1x1 convolution, pooling, dropout, a classifier; ``hidden`` makes it MobileNetV3's."""

    def __init__(self, hidden):
        super().__init__()
        closing = nn.Sequential(nn.Conv2d(16, 64, 1), nn.BatchNorm2d(64), nn.Hardswish())
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Block(8, 16, 2), closing)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        middle = [nn.Linear(64, 48), nn.Hardswish()] if hidden else []
        self.classifier = nn.Sequential(*middle, nn.Dropout(), nn.Linear(48 if hidden else 64, 10))

    def forward(self, images):
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


@pytest.mark.parametrize(("hidden", "last"), [(False, "features.1"), (True, "features.2")])
def test_a_closing_convolution_belongs_to_the_level_only_before_a_hidden_layer(hidden, last):
    found = infer(functools.partial(Closing, hidden))
    assert found["C2"].source == last
    assert found["features"].source == "features"


class Transformer(nn.Module):
    """A ViT with two prefix tokens."""

    def __init__(self, size=64):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 16, 16)
        self.prefix = nn.Parameter(torch.zeros(1, 2, 32))
        self.position = nn.Parameter(torch.zeros(1, 2 + (size // 16) ** 2, 32))
        layers = [nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(3)]
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 7)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(images), -1, -1), tokens], 1) + self.position
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def test_a_plain_transformer():
    found = infer(Transformer, (64, 64))
    assert sources(found, 0, 1, "C4") == {0: "blocks.0", 1: "blocks.1", "C4": "blocks.2"}
    assert {(found[key].prefix_tokens, found[key].reduction) for key in (0, 1, "C4", "features", "tokens")} == {(2, 16)}
    assert sources(found, "features", "tokens", "pooled", "logits") == {
        "features": "norm", "tokens": "norm", "pooled": f"head{INPUT}", "logits": "head",
    }  # fmt: skip
    assert found["tokens"].kind == "tokens"


class AnySize(nn.Module):
    """A ViT for images of any size, whose attention shows the keys of each head: (N, heads, L, d)."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 16, 16)
        self.blocks = nn.ModuleList(Heads() for _ in range(2))

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.mean(1)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 32)
        self.keys = nn.Identity()
        self.weights = nn.Identity()

    def forward(self, tokens):
        keys = self.keys(self.fc(tokens).unflatten(2, (2, 16)).transpose(1, 2))
        self.weights(keys @ keys.transpose(2, 3))
        return tokens + keys.transpose(1, 2).flatten(2)


def test_keys_and_weights_of_an_attention_are_no_maps():
    found = infer(AnySize)
    assert sources(found, 0, "C4", "features", "tokens") == {
        0: "blocks.0", "C4": "blocks.1", "features": "blocks.1", "tokens": "blocks.1",
    }  # fmt: skip


class Ending(nn.Module):
    """A convolution, pooling and whatever makes a vector of it."""

    def __init__(self, *head):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(*head)

    def forward(self, images):
        return self.head(self.pool(self.body(images)))


@pytest.mark.parametrize(
    ("head", "heads"),
    [
        (lambda: [nn.Identity()], {"pooled": "pool.1"}),
        (lambda: [nn.Dropout(), nn.Identity()], {"pooled": "pool.1"}),
        (lambda: [nn.Linear(6, 3)], {"pooled": "pool.1", "logits": "head.0"}),
        (lambda: [nn.Linear(6, 3), nn.Identity()], {"pooled": "pool.1", "logits": "head.0"}),
        (lambda: [nn.Linear(6, 5), nn.BatchNorm1d(5)], {"pooled": "head.1"}),
        (lambda: [nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 3, 1), nn.Flatten()], {"logits": "head.2"}),
        (lambda: [nn.Linear(6, 3), nn.Softmax(1)], {}),
    ],
)
def test_logits_are_what_a_linear_layer_makes_and_else_the_vector_is_pooled(head, heads):
    found = infer(lambda: Ending(*head()))
    assert {key: found[key].source for key in ("pooled", "logits") if key in found} == heads


class Function(nn.Module):
    """A network without its classifier: a function pools, and nothing but an identity hands the vector on."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1))
        self.fc = nn.Identity()

    def forward(self, images):
        return self.fc(self.body(images).mean((2, 3)))


def test_a_classifier_replaced_by_an_identity_gives_pooled():
    found = infer(Function)
    assert found["pooled"].source == "fc"
    assert "logits" not in found


class Branches(nn.Module):
    """A stage of two resolutions side by side, which gives a list."""

    def __init__(self):
        super().__init__()
        self.high = Block(8, 8, 1)
        self.low = Block(8, 8, 2)

    def forward(self, images):
        return [self.high(images), self.low(images)]


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.branches = Branches()
        self.fc = nn.Linear(16, 5)

    def forward(self, images):
        return self.fc(torch.cat([one.mean((2, 3)) for one in self.branches(self.stem(images))], 1))


def test_a_stage_that_gives_no_single_map_has_neither_levels_nor_the_final_map():
    found = infer(Parallel)
    assert {key for key in found if str(key).startswith("C")} == set()
    assert "features" not in found
    assert found["logits"].source == "fc"


class Square(nn.Module):
    """For one size, at which a map has as many channels as rows and columns, and another does not divide the image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.low = nn.Conv2d(32, 48, 5, 2)
        self.position = nn.Parameter(torch.zeros(48, 14, 14))

    def forward(self, images):
        return (self.low(self.stem(images)) + self.position).mean((2, 3))


def test_at_one_size_a_convolution_tells_its_layout():
    assert sources(infer(Square, (64, 64)), "C1", "C2") == {"C1": "stem", "C2": "low"}


class Encoder(nn.Module):
    """A U-shaped net: an encoder, then a decoder that gives the encoder's strides again."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([Block(3, 4, 1), Block(4, 8, 2), Block(8, 16, 2)])
        self.up = nn.ModuleList([Block(16, 8, 1), Block(8, 4, 1)])

    def forward(self, images):
        for block in self.down:
            images = block(images)
        for block in self.up:
            images = block(nn.functional.interpolate(images, scale_factor=2))
        return images


def test_a_decoder_gives_no_levels_but_the_final_features():
    found = infer(Encoder)
    assert sources(found, "C0", "C1", "C2") == {"C0": "down.0", "C1": "down.1", "C2": "down.2"}
    assert found["features"].source == "up.1"


def test_a_module_that_runs_twice_counts_where_it_finishes_last():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, 2, 1)
            self.mid = nn.Conv2d(3, 3, 3, 1, 1)

        def forward(self, images):
            return self.conv(self.mid(self.conv(images)))

    assert sources(infer(Twice), "C1", "C2") == {"C1": "mid", "C2": "conv"}


def test_what_the_module_raises_at_its_own_size_goes_through():
    with pytest.raises(RuntimeError):
        infer(Transformer, (96, 64))
