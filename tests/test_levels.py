"""The rule for levels on small made-up networks, told step by step as a backend would."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featreg.levels import Step, Transformer, find_final, find_levels, find_transformer, level_of


def leaf(name, stride=None, **fields):
    return [Step(name, stride, output=name, **fields)]


def conv(name, stride, kernel=3, channels=8):
    return leaf(name, stride, kernel=(kernel, kernel), channels=channels, type="Conv2d", learned=True)


def below(name, *children):
    """Steps as they are told from inside a container: longer names, and tensors of their own."""
    steps = [step for child in children for step in child]
    return [attrs.evolve(step, name=f"{name}.{step.name}", output=f"{name} {step.output}") for step in steps]


def holder(name, *children, called=True):
    """A container that hands on what its last child gives; ``called`` False: its children are run by its parent."""
    inside = below(name, *children)
    if not called:
        return inside
    last = next(step for step in reversed(inside))
    return [*inside, Step(name, last.stride, tokens=last.tokens, output=last.output, type="Sequential")]


def block(name, stride, before=None):
    """A residual block as fx and hooks both see it: an operation at the old stride, one at the new, its own sum."""
    inside = [*conv("conv1", before or stride), *leaf("norm", before or stride, passive=True), *conv("conv2", stride)]
    return [*below(name, inside), Step(name, stride, output=f"sum of {name}", type="Block")]


def chain(*children):
    return [step for child in children for step in child]


def named(steps, width=None):
    return {level.level: level.name for level in find_levels(steps, width)}


def resnet(called=True):
    return chain(
        conv("conv1", 2),
        leaf("bn1", 2, passive=True),
        leaf("relu", 2),
        leaf("maxpool", 4),
        holder("layer1", block("0", 4), block("1", 4), called=called),
        holder("layer2", block("0", 8, 4), block("1", 8), called=called),
        holder("layer3", block("0", 16, 8), called=called),
        leaf("avgpool"),
        leaf("fc"),
    )


def test_a_stage_ends_a_level_and_never_an_operation_inside_the_next():
    steps = resnet()
    assert [step.name for step in steps if step.stride == 4][-1] == "layer2.0.norm"
    assert named(steps) == {"C1": "relu", "C2": "layer1", "C3": "layer2", "C4": "layer3"}
    assert [level.stride for level in find_levels(steps)] == [2, 4, 8, 16]


def test_stages_that_are_no_modules_that_run_give_their_last_block():
    assert named(resnet(called=False)) == {"C1": "relu", "C2": "layer1.1", "C3": "layer2.1", "C4": "layer3.0"}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_wrappers_change_only_the_prefix(depth):
    steps = resnet()
    prefix = ""
    for _ in range(depth):
        steps, prefix = holder("net", steps), f"net.{prefix}"
    assert named(steps) == {level: prefix + name for level, name in named(resnet()).items()}


def test_a_container_that_halves_more_than_once_is_cut():
    steps = holder("features", conv("0", 2), block("1", 4, 2), block("2", 4), block("3", 8, 4))
    steps = chain(steps, leaf("pool"), leaf("fc"))
    assert named(steps) == {"C1": "features.0", "C2": "features.2", "C3": "features.3"}


def test_a_container_that_works_on_its_last_part_is_itself_the_last_unit():
    inner = holder("body", conv("0", 2), block("1", 4, 2), leaf("norm", 4, passive=True))
    own = attrs.evolve(inner[-1], output="relu of the norm")
    assert named([*inner[:-1], own])["C2"] == "body"
    assert named(inner)["C2"] == "body.1"


def test_norms_and_layout_alone_end_no_level():
    layout = chain(leaf("norm", 4, passive=True), leaf("permute", 4, passive=True))
    steps = chain(conv("stem", 2), block("stage", 4, 2), layout)
    assert named(steps) == {"C1": "stem", "C2": "stage"}
    head = holder("head", leaf("norm", 4, passive=True), leaf("drop", 4, passive=True))
    assert named([*steps, *head]) == {"C1": "stem", "C2": "stage"}


def test_the_activation_after_a_closing_norm_ends_the_level():
    steps = chain(conv("stem", 2), block("stage", 4, 2), leaf("norm", 4, passive=True), leaf("relu", 4))
    assert named(steps) == {"C1": "stem", "C2": "relu"}


def test_of_two_candidates_the_later_one_is_taken():
    efficientnet = chain(conv("stem", 2, channels=32), block("1", 2), block("2", 4, 2))
    assert named(efficientnet) == {"C1": "1", "C2": "2"}


def closing(kernel=1, channels=1280, stride=4):
    last = holder("last", conv("0", stride, kernel, channels), leaf("1", stride, passive=True), leaf("2", stride))
    return chain(conv("stem", 2), block("stage", 4, 2), last, leaf("pool"), leaf("fc"))


def test_a_closing_pointwise_convolution_that_feeds_the_classifier_is_no_part_of_the_level():
    assert named(closing(), 1280) == {"C1": "stem", "C2": "stage"}


@pytest.mark.parametrize(
    ("steps", "width"),
    [(closing(), 1024), (closing(), None), (closing(kernel=3), 1280), (closing(channels=960), 1280)],
    ids=["a hidden layer follows", "no classifier", "no pointwise one", "other channels"],
)
def test_other_last_convolutions_are(steps, width):
    assert named(steps, width)["C2"] == "last"


def test_a_closing_convolution_that_halves_is_a_level_of_its_own():
    assert named(closing(stride=8), 1280) == {"C1": "stem", "C2": "stage", "C3": "last"}


def test_a_closing_convolution_in_parts_takes_norm_and_activation_with_it():
    parts = chain(conv("conv_head", 4, 1, 1280), leaf("bn2", 4, passive=True), leaf("act2", 4))
    steps = chain(conv("stem", 2), block("stage", 4, 2), parts)
    assert named(steps, 1280) == {"C1": "stem", "C2": "stage"}


def test_a_stage_that_downsamples_at_its_end_gives_its_last_block():
    steps = chain(
        conv("patch", 4),
        holder("stage1", holder("blocks", block("0", 4), block("1", 4), called=False), conv("down", 8, 2)),
        holder("stage2", holder("blocks", block("0", 8), block("1", 8), called=False)),
    )
    assert named(steps) == {"C2": "stage1.blocks.1", "C3": "stage2"}


def test_a_transition_of_operations_is_one_unit():
    transition = holder("t", leaf("norm", 4, passive=True), leaf("relu", 4), conv("conv", 4, 1), leaf("pool", 8))
    steps = chain(conv("stem", 2), block("dense1", 4, 2), transition, block("dense2", 8))
    assert named(steps)["C2"] == "dense1"


def test_a_norm_with_an_activation_is_no_block_of_a_transition():
    norm = [*holder("norm", leaf("drop", 4), leaf("act", 4))]
    transition = holder("t", norm, conv("conv", 4, 1), leaf("pool", 8))
    steps = chain(conv("stem", 2), block("dense1", 4, 2), transition, block("dense2", 8))
    assert named(steps) == {"C1": "stem", "C2": "dense1", "C3": "dense2"}


def test_a_decoder_is_no_part_of_the_levels():
    down = chain(block("e1", 1), block("e2", 2, 1), block("e3", 4, 2), block("e4", 4))
    up = chain(leaf("up1", 2), block("d2", 2), leaf("up2", 1), block("d1", 1))
    assert named([*down, *up]) == {"C0": "e1", "C1": "e2", "C2": "e4"}


def test_adaptive_and_odd_grids_are_none():
    assert named([*resnet()[:-2], *leaf("pool7", 37)]) == named(resnet())


def test_a_network_of_one_odd_stride_has_the_nearest_level():
    assert named(chain(conv("stem", 14), block("0", 14), block("1", 14))) == {"C4": "1"}
    assert [level_of(stride) for stride in (1, 7, 14, 16, 32, 128)] == ["C0", "C3", "C4", "C4", "C5", "C7"]


def without_map(name, steps, **fields):
    """``steps`` where the one of that name gives something else."""
    return [attrs.evolve(step, stride=None, **fields) if step.name == name else step for step in steps]


def test_a_stage_that_gives_no_single_map_has_no_level():
    stage = without_map("stage2", holder("stage2", block("0", 8, 4), block("1", 8)))
    steps = chain(conv("stem", 2), holder("stage1", block("0", 4, 2)), stage)
    assert named(steps) == {"C1": "stem", "C2": "stage1"}
    assert named([*steps, *block("stage3", 16, 8)]) == {"C1": "stem", "C2": "stage1", "C4": "stage3"}
    opaque = [attrs.evolve(step, stride=None) if step.name == "b" else step for step in block("b", 8, 4)]
    assert named(chain(conv("stem", 2), holder("stage1", block("0", 4, 2)), opaque)) == {"C1": "stem", "C2": "stage1"}


def test_an_encoder_that_gives_lists_has_the_levels_of_its_stages():
    stages = [block("a", 2, 1), block("b", 4, 2), block("c", 8, 4)]
    steps = chain(without_map("encoder", holder("encoder", *stages)), block("decoder", 4))
    assert named(steps) == {"C1": "encoder.a", "C2": "encoder.b", "C3": "encoder.c"}


def test_stages_of_several_resolutions_side_by_side_have_no_levels():
    exchange = holder("fuse", conv("0", 4), conv("1", 8), conv("2", 4), called=False)
    stages = [without_map(f"stage{k}", [*below(f"stage{k}", exchange), Step(f"stage{k}")]) for k in (2, 3)]
    steps = chain(conv("stem", 2), block("layer1", 4, 2), conv("down", 8), *stages)
    assert named(steps) == {"C1": "stem"}
    assert named([*steps, *conv("final", 32)]) == {"C1": "stem", "C5": "final"}


def test_a_pyramid_leaves_the_levels_of_its_backbone():
    body = without_map("body", holder("body", block("a", 4, 2), block("b", 8, 4), block("c", 16, 8)))
    pyramid = [*holder("fpn", *(conv(str(stride), stride) for stride in (16, 8, 4)), called=False), Step("fpn")]
    levels = {"C1": "stem", "C2": "body.a", "C3": "body.b", "C4": "body.c"}
    assert named([*conv("stem", 2), *body, *pyramid]) == levels


def test_what_a_head_does_before_it_pools_is_no_level():
    head = without_map("head", holder("head", block("conv", 4), leaf("pool"), leaf("fc")), vector=True)
    steps = chain(conv("stem", 2), block("stage", 4, 2), head)
    assert named(steps, 100) == {"C1": "stem", "C2": "stage"}
    assert find_final(steps) == "head.conv"


def token_stage(name, length):
    blocks = [[*tokens(f"{k}.fc", length, learned=True), *tokens(str(k), length, type="Block")] for k in range(2)]
    return below(name, *blocks)


def test_a_map_whose_positions_go_on_as_tokens_ends_no_level():
    stem = chain(conv("stem.0", 4), conv("stem.1", 8))
    scores = chain(leaf("pool", vector=True), leaf("fc", vector=True, learned=True))
    left = chain(stem, token_stage("stage1", 64), conv("down", 16), token_stage("stage2", 16), scores)
    assert named(left) == {"C2": "stem.0"}
    assert find_final(left) is None
    inside = chain(stem, token_stage("stage1", 64), [Step("stage1", 8, output="back")], scores)
    assert named(inside) == {"C2": "stem.0", "C3": "stage1"}
    assert find_final(inside) == "stage1"


def test_a_pooling_that_attends_leaves_the_level_before_it():
    pool = [*token_stage("pool", 1), Step("pool", vector=True, learned=True)]
    steps = chain(conv("stem", 2), block("stage", 4, 2), pool)
    assert named(steps) == {"C1": "stem", "C2": "stage"}
    assert find_final(steps) == "stage"


def test_nothing_gives_no_levels():
    assert find_levels([]) == []
    assert find_levels([Step("fc")], 10) == []
    assert find_transformer([], (224, 224)) is None


@st.composite
def backbones(draw):
    """A stem, then stages of blocks, each stage at the stride before or at twice it, with its expected levels."""
    stride = draw(st.sampled_from([1, 2, 4]))
    steps, expected = conv("stem", stride), {stride: "stem"}
    for number in range(draw(st.integers(1, 5))):
        before, stride = stride, stride * draw(st.sampled_from([1, 2]))
        name, called = f"stage{number}", draw(st.booleans())
        count = draw(st.integers(1, 3))
        blocks = [block(str(k), stride, before if k == 0 else stride) for k in range(count)]
        steps = [*steps, *holder(name, *blocks, called=called)]
        expected[stride] = name if called else f"{name}.{count - 1}"
        if draw(st.booleans()):
            steps += leaf(f"norm{number}", stride, passive=True)
    return steps, expected


@given(backbones(), st.integers(0, 2), st.booleans())
def test_the_last_block_of_each_stride_whatever_the_nesting(backbone, wrappers, headed):
    steps, expected = backbone
    prefix = ""
    for _ in range(wrappers):
        steps, prefix = holder("net", steps), f"net.{prefix}"
    if headed:
        steps = [*steps, *leaf("pool"), *leaf("fc")]
    found = find_levels(steps, 10)
    assert {level.stride: level.name for level in found} == {s: prefix + name for s, name in expected.items()}
    assert [level.stride for level in found] == sorted(expected)
    assert all(level.level == level_of(level.stride) for level in found)


@given(backbones())
def test_levels_are_whole_modules_or_operations_outside_of_blocks(backbone):
    steps, _ = backbone
    inside = {step.name for step in steps if step.name.rpartition(".")[2] in ("conv1", "norm", "conv2")}
    assert not inside & {level.name for level in find_levels(steps)}


def tokens(name, length, width=192, **fields):
    return [Step(name, tokens=(length, width), output=name, **{"type": "Layer", **fields})]


def vit(depth=4, prefix=1, patch=16, size=(224, 224)):
    length = prefix + (size[0] // patch) * (size[1] // patch)
    blocks = [
        chain(
            tokens(f"blocks.{k}.norm1", length, type="LayerNorm", passive=True),
            tokens(f"blocks.{k}.norm2", length, type="LayerNorm", passive=True),
            tokens(f"blocks.{k}.fc1", length, 768, type="Linear", learned=True),
            tokens(f"blocks.{k}.fc2", length, type="Linear", learned=True),
            tokens(f"blocks.{k}", length, type="Block", learned=True),
        )
        for k in range(depth)
    ]
    return chain(conv("patch_embed", patch), *blocks, tokens("norm", length, type="LayerNorm", passive=True))


@given(st.integers(2, 6), st.integers(0, 5), st.sampled_from([8, 14, 16, 32]), st.integers(1, 3), st.integers(1, 3))
def test_a_plain_transformer_has_blocks_of_one_stride_and_counts_its_prefix(depth, prefix, patch, rows, columns):
    size = (patch * (rows + 1), patch * (columns + 1))
    names = tuple(f"blocks.{k}" for k in range(depth))
    assert find_transformer(vit(depth, prefix, patch, size), size) == Transformer(names, patch, prefix)


def test_a_transformer_that_goes_back_to_a_map_by_layout_alone_is_plain():
    assert find_transformer([*vit(), *leaf("permute", 16, passive=True)], (224, 224)) is not None


def test_the_parts_of_a_lone_block_are_no_blocks():
    scales = chain(tokens("block.scale1", 49, type="Scale"), tokens("block.scale2", 49, type="Scale"))
    parts = chain(tokens("block.fc", 49, learned=True, type="Linear"), scales, tokens("block", 49, type="Block"))
    assert find_transformer([*conv("stem", 32), *parts], (224, 224)) is None


def test_networks_with_tokens_that_are_no_plain_transformers():
    size = (224, 224)
    assert find_transformer(resnet(), size) is None
    assert find_transformer(vit(1), size) is None
    assert find_transformer([*vit(), *conv("neck", 16)], size) is None
    pyramid = chain(vit(), below("s2", vit(patch=32)))
    assert find_transformer(pyramid, size) is None
    mobilevit = chain(conv("stem", 8), below("mv", vit(prefix=0)))
    assert find_transformer(chain(mobilevit, conv("mv.project", 16), block("last", 32, 16)), size) is None
    assert find_transformer(vit()[1:], size) is None


def test_blocks_of_one_resolution_each_that_give_several_tensors_take_no_level_away():
    """CoaT's parallel blocks, which follow the last stage, hold a map at the deepest stride alone."""
    stages = chain(conv("embed1", 4), block("stage1", 4), conv("embed2", 8), block("stage2", 8))
    attention = [
        [Step(f"att{stride}.q", stride, learned=True, tokens=(9, 8)), Step(f"att{stride}", stride, tokens=(9, 8))]
        for stride in (4, 8)
    ]
    parallel = without_map("parallel", [*below("parallel", *attention, leaf("resize", 8)), Step("parallel")])
    assert named([*stages, *parallel]) == {"C2": "stage1", "C3": "stage2"}
