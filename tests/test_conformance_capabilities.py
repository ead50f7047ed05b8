"""Each capability is tried both ways; devices, number formats and threads on doubles of the reference backend."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest

from featreg.conformance import make_plan, run_plan, self_test
from featreg.conformance.checks import native
from featreg.conformance.checks.importing import IMPORT
from featreg.conformance.checks.requests import FIELDS
from featreg.conformance.elsewhere import ask
from featreg.conformance.model import all_checks
from featreg.conformance.mutants.base import Double, DoubleExtractor, all_mutants
from featreg.conformance.planning import Plan
from featreg.errors import WeightsError
from featreg.hookspecs import BackendSpec
from featreg.plugin import Backend, BackendExtractor, compare, is_path, read_npz, reading_weights, watch_path
from featreg.registry import Registry
from featreg.spec import CAPABILITIES, ExtractionRequest, ModelInfo, Size

MUTANTS = {mutant.name: mutant for mutant in all_mutants()}


class Changed(Registry):
    """The installed backends, of which the reference one declares other capabilities."""

    def __init__(self, capabilities: Sequence[str], kind: Callable[..., BackendExtractor]) -> None:
        super().__init__({})
        self.capabilities, self.kind = tuple(capabilities), kind

    def spec(self, name: str) -> BackendSpec:
        return attrs.evolve(super().spec(name), capabilities=self.capabilities)

    def backend(self, name: str) -> Backend:
        registry, inner = self, super().backend(name)

        class Opens(Double):
            def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
                return attrs.evolve(self.inner.info(model, input_size), capabilities=registry.capabilities)

            def open(self, request: ExtractionRequest) -> BackendExtractor:
                opened = registry.kind(self.inner.open(request), request)
                opened.info = attrs.evolve(opened.info, capabilities=registry.capabilities)
                return opened

        return Opens(inner)


def planned(check: str, capabilities: Sequence[str], kind: Callable[..., BackendExtractor] = DoubleExtractor) -> Plan:
    return make_plan("numpy", registry=Changed(capabilities, kind), checks=[check])


def statuses(plan: Plan) -> list[str]:
    return [outcome.status for outcome in run_plan(plan).outcomes]


def fate(plan: Plan, mutant: str) -> str:
    return self_test(plan, mutants=[MUTANTS[mutant]])[0].fate


# --- both ways --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_check_tries_each_capability_that_is_declared(capability: str) -> None:
    assert [check.id for check in all_checks() if capability in check.needs]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_capability_that_is_not_declared_is_tried(capability: str) -> None:
    probed = {*FIELDS, "text", "native_names"}
    assert capability in probed or capability == "thread_safe"  # which capabilities.one_thread tries


@pytest.mark.parametrize("capability", sorted({*CAPABILITIES} - {"weights", "thread_safe"}))
def test_a_mutant_hides_each_capability(capability: str) -> None:
    name = f"Hides{capability.title().replace('_', '')}"
    assert MUTANTS[name].killed_by == "capabilities.undeclared"


# --- threads ----------------------------------------------------------------------------------------------------------


def test_an_extractor_for_one_thread_refuses_others() -> None:
    plan = planned("capabilities.one_thread", ["native_array"])
    assert statuses(plan) == ["passed"]
    assert fate(plan, "ClaimsThreads") == "killed"
    assert not planned("capabilities.thread_safe", ["native_array"]).items


# --- devices ----------------------------------------------------------------------------------------------------------


class OnCuda:
    """A NumPy array that says that it lies on a CUDA device."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __array__(self, *arguments: Any, **fields: Any) -> Any:
        return np.asarray(self.array)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


class Gpu(DoubleExtractor):
    def forward(self, batch: Any) -> Sequence[Any]:
        return [OnCuda(array) if self.request.device == "cuda" else array for array in self.inner.forward(batch)]


def on_cuda(inner: BackendExtractor, request: ExtractionRequest) -> BackendExtractor:
    return Gpu(inner, request)


class Anywhere(Changed):
    """The reference backend takes every device."""

    def backend(self, name: str) -> Backend:
        class Takes(Double):
            def open(self, request: ExtractionRequest) -> BackendExtractor:
                opened = self.inner.open(attrs.evolve(request, device="cpu"))
                opened.request = request  # type: ignore[attr-defined]
                return opened

        return Takes(super().backend(name))


CUDA = ["cuda", "native_array"]


def test_a_cuda_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_may_have_cuda", lambda: False)
    monkeypatch.setattr(native, "_torch_has_cuda", lambda: False)
    plan = planned("capabilities.cuda", CUDA)
    assert statuses(plan) == ["passed"], "the reference backend knows no such device"
    assert fate(plan, "RunsOnTheCpu") == "killed"


def test_a_cuda_device_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_may_have_cuda", lambda: True)
    monkeypatch.setattr(native, "_torch_has_cuda", lambda: True)
    assert statuses(planned("capabilities.cuda", CUDA)) == ["failed"], "it is refused"
    plan = make_plan("numpy", registry=Anywhere(CUDA, on_cuda), checks=["capabilities.cuda", "arrays.device"])
    assert statuses(plan) == ["passed", "passed"]
    assert fate(plan, "RunsOnTheCpu") == "killed"


# --- number formats ---------------------------------------------------------------------------------------------------


class Halves(DoubleExtractor):
    """Rounds to the number format that was asked for, as a framework without bfloat16 would."""

    def forward(self, batch: Any) -> Sequence[Any]:
        outputs = self.inner.forward(batch)
        if self.request.dtype == "float16":
            return [array.astype(np.float16) for array in outputs]
        if self.request.dtype == "bfloat16":
            return [(array.view(np.uint32) & 0xFFFF0000).view(np.float32) for array in outputs]
        return outputs


def test_number_formats_are_those_asked_for() -> None:
    plan = planned("arrays.bfloat16_values", ["bfloat16"], Halves)
    assert statuses(plan) == ["passed"]
    assert fate(plan, "IgnoresBfloat16") == "killed"
    plan = planned("arrays.native_dtype", ["float16", "native_array"], Halves)
    assert statuses(plan) == ["passed"]
    assert fate(plan, "IgnoresNativeDtype") == "killed"


# --- files of weights -------------------------------------------------------------------------------------------------

WEIGHTS = ("weights.loads", "weights.missing", "weights.identity", "weights.default")


class Table:
    """A module of two weights, of which the outputs depend on the second."""

    def __init__(self) -> None:
        self.arrays = {"idle.weight": np.ones((2, 2), np.float32), "gain.weight": np.full((1, 1), 1.5, np.float32)}

    def state_dict(self) -> dict[str, Any]:
        return self.arrays


class Loads(DoubleExtractor):
    """The reference network, whose outputs are multiplied by a weight that files can hold."""

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        super().__init__(inner, request)
        self.table = Table()
        self.identify: Callable[[], str | None] = lambda: None
        if request.weights is not None:
            if not is_path(request.weights):
                raise WeightsError("no such tag")
            with reading_weights(request.weights) as file:
                if file.suffix != ".npz":
                    raise WeightsError("no such format")
                self.load(read_npz(file))
            self.identify = watch_path(request.weights)

    def load(self, given: dict[str, Any]) -> None:
        if wrong := compare(self.table.arrays, given):
            raise WeightsError("the weights do not fit", got=str(wrong))
        self.table.arrays |= given

    @property
    def module(self) -> Any:
        return self.table

    def weights_identity(self) -> str | None:
        return self.identify()

    def forward(self, batch: Any) -> Sequence[Any]:
        return [array * self.table.arrays["gain.weight"][0, 0] for array in self.inner.forward(batch)]


class Forgets(Loads):
    def load(self, given: dict[str, Any]) -> None:
        super().load(given)
        self.table = Table()


class Rescales(Loads):
    def load(self, given: dict[str, Any]) -> None:
        super().load(given)
        self.table.arrays["gain.weight"] *= 1.1


class Lax(Loads):
    def load(self, given: dict[str, Any]) -> None:
        self.table.arrays |= given


class Terse(Loads):
    def load(self, given: dict[str, Any]) -> None:
        if compare(self.table.arrays, given):
            raise WeightsError("the weights do not fit")
        super().load(given)


class RandomByDefault(Loads):
    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        known = attrs.evolve(request, weights=None if request.weights == "default" else request.weights)
        super().__init__(inner, known)


class ByName(Loads):
    def weights_identity(self) -> str | None:
        return self.request.weights


class Refuses(Loads):
    def load(self, given: dict[str, Any]) -> None:
        raise WeightsError("not today")


def test_files_of_weights_are_loaded() -> None:
    for check in WEIGHTS:
        plan = planned(check, ["weights"], Loads)
        assert statuses(plan) == ["passed"]
        killers = [mutant for mutant in all_mutants() if mutant.killed_by == check]
        assert {verdict.fate for verdict in self_test(plan, mutants=killers)} == {"killed"}


def test_arrays_are_not_saved_by_a_framework_that_is_not_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise TypeError("not a tensor")

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(save=refuse))
    monkeypatch.setitem(sys.modules, "mindspore", SimpleNamespace(save_checkpoint=refuse))
    assert statuses(planned("weights.identity", ["weights"], Loads)) == ["passed"]


@pytest.mark.parametrize(
    ("kind", "check", "said"),
    [
        (Forgets, "weights.loads", "a file of other weights changes nothing in 'C1'"),
        (Rescales, "weights.loads", "'C1' is not that of the weights in the file"),
        (Refuses, "weights.loads", "no file of the network's own weights is taken"),
        (Lax, "weights.missing", "a file without 'gain.weight' raises no WeightsError"),
        (Terse, "weights.missing", "the message does not name the weight that is missing"),
        (RandomByDefault, "weights.default", "weights='default' gives random weights"),
        (ByName, "weights.identity", "a file of other weights has the same identity"),
    ],
)
def test_files_of_weights_that_are_not(kind: type[Loads], check: str, said: str) -> None:
    (outcome,) = run_plan(planned(check, ["weights"], kind)).outcomes
    assert outcome.status == "failed"
    assert said in outcome.message.splitlines()[0]


def test_a_module_without_weights_by_name_has_no_files() -> None:
    assert not planned("weights.loads", ["weights"]).items


# --- gradients --------------------------------------------------------------------------------------------------------


def test_gradients_of_another_framework_are_told_to_be_unjudged() -> None:
    report = run_plan(planned("grad.judged", ["grad", "native_array"]))
    assert [outcome.status for outcome in report.outcomes] == ["failed"]
    assert report.is_green, "a SHOULD"
    for check in ("grad.input", "grad.same_values", "grad.apart"):
        assert not planned(check, ["grad", "native_array"]).items


# --- the process ------------------------------------------------------------------------------------------------------


def test_what_a_framework_does_when_it_is_imported_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud_framework.py").write_text(
        "import warnings\nwarnings.filterwarnings('ignore', module='nothing')\n"
    )
    sound = "import loud_framework\nclass Backend: pass\n"
    (tmp_path / "sound_plugin.py").write_text(sound)
    (tmp_path / "loud_plugin.py").write_text(f"{sound}import os\nos.environ['LOUD'] = '1'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert ask(IMPORT, "sound_plugin:Backend", "sound_plugin") == []
    assert ask(IMPORT, "loud_plugin:Backend", "loud_plugin") == ["environment"]
    assert ask(IMPORT, "loud_plugin:Backend", "loud_plugin", "loud_framework") == ["environment", "warning filters"]
