"""What the zoo's oracle of timm says of raw networks, and the reasons that its list gives for refusals."""

import sys
from math import ceil
from pathlib import Path

import attrs
import pytest

sys.path.append(str(Path(__file__).parent.parent))  # zoo is no part of the distribution; at the end, so that wheels win

pytest.importorskip("timm")

from featreg.spec import FeatureInfo
from zoo.completeness import check_classifier
from zoo.oracles import RawRefusal, open_oracle
from zoo.stricter import pattern_of


def takes(oracle, size):
    """The shape of the last map at a size, None where timm refuses it."""
    last = f"forward_intermediates[{len(oracle.declared()) - 1}]"
    try:
        return oracle.shapes([last], size, thorough=False)[last]
    except RawRefusal:
        return None


def test_the_width_of_pooled_is_timms_own_and_not_that_of_a_layer_inside_the_head():
    survey = open_oracle("timm", "caformer_s18").survey((64, 64))
    assert survey.pooled == (3, 512)
    assert attrs.evolve(survey, pooled=None).pooled_widths == (2048,), "what the last linear layer takes"
    final = FeatureInfo("norm", 512, 32, "map", head="features")
    logits = FeatureInfo("logits", 1000, None, "vector", head="logits")
    for width, found in ((512, []), (2048, ["channels of pooled"])):
        heads = [final, FeatureInfo("pooled", width, None, "vector", head="pooled"), logits]
        assert [finding.what for finding in check_classifier(heads, survey)] == found


def test_an_encoder_is_not_asked_for_what_comes_before_its_classes():
    survey = open_oracle("timm", "qwen3_vit_88m_enc").survey((224, 224))
    assert (survey.classes, survey.pooled, survey.pooled_widths) == (None, None, ())


@pytest.mark.parametrize(
    ("model", "count"),
    [("coat_lite_tiny", 1), ("pit_ti_distilled_224", 2), ("tnt_s_legacy_patch16_224", 1), ("gmixer_12_224", 0)],
)
def test_prefix_tokens_are_counted_without_timms_own_word_too(model, count):
    assert open_oracle("timm", model).prefix_tokens == count


@pytest.mark.parametrize(
    "size", [(24, 224), (224, 24), (24, 24), (25, 25), (8, 121), (8, 120), (9, 57), (1, 225), (1, 57)]
)
def test_nextvit_needs_a_number_of_cells_in_all_as_the_list_of_stricter_models_says(size):
    def cells(stride):
        return ceil(size[0] / stride) * ceil(size[1] / stride)

    oracle = open_oracle("timm", "nextvit_small")
    assert pattern_of("timm:nextvit_small")
    assert (takes(oracle, size) is not None) == (cells(8) >= 16 and cells(16) >= 4)


def test_pit_drops_odd_pixels_as_the_list_of_stricter_models_says():
    oracle = open_oracle("timm", "pit_xs_224")
    assert pattern_of("timm:pit_xs_224")
    whole = takes(oracle, (224, 224))
    assert [takes(oracle, (side, side)) for side in (223, 225, 231, 232)] == [None, whole, whole, None]
