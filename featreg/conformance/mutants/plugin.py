"""Mutants that say something wrong of themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence

import attrs

from featreg.conformance.mutants import heavy
from featreg.conformance.mutants.base import Double, mutant
from featreg.discovery import Plugin
from featreg.hookspecs import BackendSpec
from featreg.spec import ModelInfo, Size


@mutant("plugin.entry_point")
class OtherName(Double):
    """Calls its models those of another backend."""

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        return attrs.evolve(self.inner.info(model, input_size), backend="another")


@mutant("plugin.range")
class OpenRange(Double):
    """Takes every later version of the specification."""

    @staticmethod
    def declare(spec: BackendSpec) -> BackendSpec:
        return attrs.evolve(spec, spec=">=1.0")


@mutant("plugin.requirements")
class UnlistedRequirement(Double):
    """Needs a distribution that its own does not depend on."""

    @staticmethod
    def declare(spec: BackendSpec) -> BackendSpec:
        return attrs.evolve(spec, requirements=(*spec.requirements, "pytest"))


@mutant("plugin.requirements")
class AbsentRequirement(Double):
    """Needs a distribution that is not there."""

    @staticmethod
    def declare(spec: BackendSpec) -> BackendSpec:
        return attrs.evolve(spec, requirements=(*spec.requirements, "featreg-no-such-distribution"))


@mutant("plugin.import_gate")
class HeavyDeclaration(Double):
    """Imports the factory, and with it the framework, to declare itself."""

    @staticmethod
    def move(plugin: Plugin, spec: BackendSpec) -> Plugin:
        os.environ[heavy.FACTORY] = spec.factory.partition(":")[0]
        return attrs.evolve(plugin, target=heavy.__name__)


@mutant("plugin.models")
class ListsTwice(Double):
    """Lists its models twice; one that is made up, where the list is empty."""

    def models(self) -> Sequence[str]:
        return [*self.inner.models(), *self.inner.models()] or ["made-up"] * 2


@mutant("plugin.models")
class DescribesAnother(Double):
    """Describes a model under another's name."""

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        return attrs.evolve(self.inner.info(model, input_size), model=f"{model}_other")


@mutant("plugin.documented")
class NoSummary(Double):
    """Does not say what it is."""

    @staticmethod
    def declare(spec: BackendSpec) -> BackendSpec:
        return attrs.evolve(spec, summary="")
