"""The checks of text towers, on a small backend in NumPy with two; and cases that are for some checks alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import pytest

from featreg import errors
from featreg.case import Case
from featreg.conformance import make_plan, run_plan, self_test
from featreg.conformance.model import all_checks
from featreg.conformance.mutants.base import all_mutants
from featreg.conformance.planning import Plan
from featreg.hookspecs import BackendSpec
from featreg.plugin import Backend, BackendExtractor
from featreg.reference.backend import PREPROCESS
from featreg.registry import Registry
from featreg.spec import ExtractionRequest, FeatureInfo, Layer, ModelInfo, Size

WIDTH, CONTEXT = 8, 20
SCALE, BIAS = 5.0, -1.0
CAPABILITIES = ("native_array", "text")
HEADS = [FeatureInfo(head, WIDTH, None, "vector", head=head) for head in ("embedding", "text_embedding")]
CHECKS = [check.id for check in all_checks() if check.id.startswith("text.")]
MUTANTS = [mutant for mutant in all_mutants() if mutant.killed_by in CHECKS]


def embed_texts(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """The sum over the words, each a vector that its letters seed, weighted by its place."""
    rows = [
        sum(
            np.random.default_rng(zlib.crc32(word.encode())).standard_normal(WIDTH) / (1 + place)
            for place, word in enumerate(text.split(), start=1)
        )
        + np.full(WIDTH, 0.1)
        for text in texts
    ]
    return np.asarray(rows, np.float32)


def embed_images(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    matrix = np.random.default_rng(0).standard_normal((images[0].size, WIDTH))
    return (images.reshape(len(images), -1) @ matrix).astype(np.float32)


def unit(embeddings: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    length: np.ndarray[Any, Any] = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return embeddings / length


class Towers(Backend):
    """One model; its options are those that the specification names for texts."""

    def models(self) -> Sequence[str]:
        return ("towers",)

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        return ModelInfo("towers", model, input_size or (8, 8), HEADS, PREPROCESS, capabilities=CAPABILITIES)

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        unknown = set(request.options) - {"normalize", "texts", "truncate"}
        if unknown:
            raise errors.CapabilityError("no such option", got=str(unknown))
        info = self.info(request.model)
        if request.layers == ("logits",) and "texts" in request.options:
            logits = FeatureInfo("logits", len(request.options["texts"]), None, "vector", head="logits")
            return Opened(info, (logits,), request.options)
        return Opened(info, tuple(map(info.resolve, request.layers)), request.options)


class Opened(BackendExtractor):
    def __init__(self, info: ModelInfo, features: tuple[FeatureInfo, ...], options: Mapping[str, Any]) -> None:
        self.info, self.features, self.options = info, features, options

    def forward(self, batch: Any) -> list[np.ndarray[Any, Any]]:
        found = embed_texts(self.fitted(batch)) if self.takes_text else embed_images(batch)
        if self.features[0].head == "logits":
            return [(SCALE * unit(found) @ unit(embed_texts(self.options["texts"])).T + BIAS).astype(np.float32)]
        return [unit(found) if self.options.get("normalize") else found.copy() for _ in self.features]

    def fitted(self, texts: list[str]) -> list[str]:
        for text in texts:
            if len(text.split()) > CONTEXT and not self.options.get("truncate"):
                raise errors.InputError("the text is too long", f"{CONTEXT} words")
        return [" ".join(text.split()[:CONTEXT]) for text in texts]


def oracle(model: str, module: Any) -> Callable[[Sequence[str]], dict[Layer, Any]]:
    return lambda texts: {"text_embedding": embed_texts(texts)}


class Towered(Registry):
    """The backend above under the name of the reference one, of which it has the entry point."""

    def __init__(self, *cases: Case) -> None:
        super().__init__({})
        self.given = cases or (
            Case("towers", ["embedding"], (8, 8), text_oracle=oracle, logit_scale=(SCALE, BIAS), name="two"),
        )
        self.towers = Towers()

    def spec(self, name: str) -> BackendSpec:
        return attrs.evolve(super().spec(name), capabilities=CAPABILITIES)

    def backend(self, name: str) -> Backend:
        return self.towers

    def cases(self, name: str) -> tuple[Case, ...]:
        return self.given


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan("numpy", registry=Towered(), checks=CHECKS)


def test_two_sound_towers_pass(plan: Plan) -> None:
    report = run_plan(plan)
    assert [outcome.message for outcome in report.outcomes if outcome.status != "passed"] == []
    assert [outcome.check.id for outcome in report.outcomes] == CHECKS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_of_texts_is_killed_by_the_check_that_names_it(mutant: Any, plan: Plan) -> None:
    (verdict,) = self_test(plan, mutants=[mutant])
    assert verdict.fate == "killed"
    assert verdict.message.startswith(mutant.killed_by)
    assert "Traceback" not in verdict.message or mutant.name == "BareMixture"


def test_a_failure_with_texts_is_a_bug_report_whose_snippet_runs_on_texts(plan: Plan) -> None:
    (verdict,) = self_test(plan, mutants=[mutant for mutant in MUTANTS if mutant.name == "NormalisedTexts"])
    lines = [line.strip() for line in verdict.message.partition("reproduce:\n")[2].splitlines()]
    assert lines[0] == "import featreg, numpy as np"
    assert lines[2:4] == [
        "texts = ['a cat', 'two dogs on a sofa', 'the sea']",
        "extractor = featreg.create_extractor('numpy:towers', ['text_embedding'])",
    ]
    assert "assert np.allclose(got, wanted" in verdict.message


def test_without_an_oracle_and_a_scale_their_checks_do_not_apply() -> None:
    plan = make_plan("numpy", registry=Towered(Case("towers", ["embedding"], (8, 8))), checks=CHECKS)
    assert {left.check.id for left in plan.left} == {"text.values", "text.logits"}
    assert not any(left.skipped for left in plan.left)


def test_a_case_without_an_oracle_of_texts_is_told_and_fails_nothing() -> None:
    plan = make_plan("numpy", registry=Towered(Case("towers", ["embedding"], (8, 8))), checks=["text.has_oracle"])
    report = run_plan(plan)
    assert report.is_green
    assert [outcome.check.id for outcome in report.warnings] == ["text.has_oracle"]


@pytest.mark.parametrize(
    "fields",
    [
        {"texts": "a cat"},
        {"texts": ["one", "two"]},
        {"texts": ["one", "two", "two"]},
        {"texts": ["one", "two", 3]},
        {"text_layers": []},
        {"text_oracle": "towers"},
        {"logit_scale": 5.0},
        {"logit_scale": (5, "1")},
        {"checks": "values.*"},
        {"checks": [1]},
    ],
)
def test_cases_with_other_texts_and_checks_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises((errors.SpecError, errors.LayerError)):
        Case("towers", ["embedding"], (8, 8), **fields)


# --- cases that are for some checks alone -----------------------------------------------------------------------------


def test_a_case_is_for_the_checks_that_it_names() -> None:
    case = Case("towers", ["embedding"], (8, 8), name="whole")
    some = attrs.evolve(case, name="some", checks=("text.*", "values.repeat"))
    plan = make_plan("numpy", registry=Towered(case, some))
    found = {item.check.id for item in plan.items if item.case == "some"}
    assert found == {"values.repeat", *CHECKS} - {"text.values", "text.logits"}
    reasons = {left.reason for left in plan.left if left.case == "some" and left.check.id == "values.batch"}
    assert reasons == {"the case is for other checks"}
    assert not any(left.skipped for left in plan.left if left.case == "some" and left.check.id == "values.batch")


def test_checks_of_the_whole_backend_run_whatever_its_first_case_is_for() -> None:
    case = Case("towers", ["embedding"], (8, 8), name="whole")
    some = attrs.evolve(case, name="some", checks=("values.repeat",))
    plan = make_plan("numpy", registry=Towered(some, case))
    assert {"plugin.models", "plugin.range"} <= {item.check.id for item in plan.items}


def test_cases_that_are_all_for_some_checks_alone_are_refused() -> None:
    some = Case("towers", ["embedding"], (8, 8), checks=["values.*"])
    with pytest.raises(errors.SpecError, match="some checks alone"):
        make_plan("numpy", registry=Towered(some))


def test_a_pattern_that_no_check_has_is_refused() -> None:
    case = Case("towers", ["embedding"], (8, 8), name="whole")
    with pytest.raises(errors.SpecError, match="do not exist"):
        make_plan("numpy", registry=Towered(case, attrs.evolve(case, name="some", checks=("valeus.*",))))


def test_a_case_is_found_by_its_name_too() -> None:
    assert {item.case for item in make_plan("numpy", registry=Towered(), models="tw*").items} == {"two", "backend"}
