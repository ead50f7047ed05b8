"""Mutants whose distribution does not hold, bring or declare what it should."""

from __future__ import annotations

import attrs

from featreg.conformance.mutants.base import Double, mutant
from featreg.discovery import Plugin
from featreg.hookspecs import BackendSpec

GREEDY = "featreg.conformance.mutants.greedy"
"""A module that imports pytest, which no backend declares."""

NOISY = "featreg.conformance.mutants.noisy"
"""A module that changes the process when it is imported."""


@mutant("plugin.wheel")
class BorrowedFactory(Double):
    """Names a factory that its distribution does not hold."""

    @staticmethod
    def declare(spec: BackendSpec) -> BackendSpec:
        return attrs.evolve(spec, factory="json.decoder:JSONDecoder")


@mutant("plugin.wheel")
class BorrowedEntryPoint(Double):
    """Has an entry point in a module that its distribution does not hold."""

    @staticmethod
    def move(plugin: Plugin, spec: BackendSpec) -> Plugin:
        return attrs.evolve(plugin, target="json")


@mutant("plugin.missing_dependency")
class NeedsToDeclare(Double):
    """Imports what it needs to declare that it needs it."""

    @staticmethod
    def declare(spec: BackendSpec) -> BackendSpec:
        return attrs.evolve(spec, requirements=(*spec.requirements, "pytest"))

    @staticmethod
    def move(plugin: Plugin, spec: BackendSpec) -> Plugin:
        return attrs.evolve(plugin, target=GREEDY)


@mutant("plugin.missing_dependency")
class UselessRemedy(Double):
    """Tells who lacks a requirement to look elsewhere."""

    @staticmethod
    def declare(spec: BackendSpec) -> BackendSpec:
        return attrs.evolve(spec, requirements=(*spec.requirements, "attrs"), install="see the handbook")


@mutant("plugin.wrong_spec")
class OneVersionLess(Double):
    """Refuses the first version of the next specification alone."""

    @staticmethod
    def declare(spec: BackendSpec) -> BackendSpec:
        return attrs.evolve(spec, spec=">=1.0,!=2.0")


@mutant("plugin.imports")
class UndeclaredImport(Double):
    """Has a factory whose module imports what no requirement names."""

    @staticmethod
    def declare(spec: BackendSpec) -> BackendSpec:
        return attrs.evolve(spec, factory=f"{GREEDY}:Backend")


@mutant("state.importing")
class ChangesAtImport(Double):
    """Sets a filter of warnings and a handler of logging when its factory is imported."""

    @staticmethod
    def declare(spec: BackendSpec) -> BackendSpec:
        return attrs.evolve(spec, factory=f"{NOISY}:Backend")
