"""Whether a plugin fits what is installed: the specification's version, its requirements, featreg's own extras.

Everything here reads metadata only; nothing is imported.
"""

from __future__ import annotations

import functools
from importlib import metadata

import attrs
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion

from featreg.errors import MissingDependencyError, PluginHookError, SpecVersionError
from featreg.hookspecs import PROJECT, BackendSpec
from featreg.spec import SPEC_VERSION

__all__ = ["FEATURES", "RequirementStatus", "check_requirements", "examine_requirement", "extras"]

FEATURES = ("conformance", "data", "new_plugin")
"""The extras of featreg that install no backend."""


@attrs.frozen
class RequirementStatus:
    """A requirement, the version of it that is installed (None where it is not), and whether that will do."""

    requirement: str
    installed: str | None
    satisfied: bool


def check_requirements(spec: BackendSpec, distribution: str) -> None:
    """Raise SpecVersionError or MissingDependencyError unless a backend can work here.

    Raises PluginHookError where the backend declares ranges that are none. ``distribution`` is the name to upgrade.
    """
    try:
        written_for = SpecifierSet(spec.spec)
        missing = [requirement for requirement in map(Requirement, spec.requirements) if not _fits(requirement)]
    except (InvalidSpecifier, InvalidRequirement, TypeError) as error:
        raise PluginHookError(
            f"the backend {spec.name!r} ({distribution}) declares a range that is none",
            "spec as in PEP 440, requirements as in PEP 508",
            str(error),
            remedy=f"report it to the authors of {distribution}, or set FEATREG_DISABLE={spec.name}",
        ) from error
    if SPEC_VERSION not in written_for:
        raise SpecVersionError(
            f"the backend {spec.name!r} ({distribution}) was written for another version of the specification",
            f"a range that holds {SPEC_VERSION}",
            spec.spec,
            remedy=f"pip install --upgrade {PROJECT} {distribution}".rstrip(),
        )
    if missing:
        raise MissingDependencyError(
            f"the backend {spec.name!r} needs {', '.join(map(str, missing))}",
            ", ".join(map(str, missing)),
            ", ".join(_installed(requirement.name) for requirement in missing),
            remedy=spec.install or "pip install " + " ".join(f'"{requirement}"' for requirement in missing),
        )


def examine_requirement(requirement: str) -> RequirementStatus:
    """What is installed of a PEP 508 requirement; one whose marker does not apply is satisfied.

    Raises ValueError for a text that is no requirement.
    """
    parsed = Requirement(requirement)
    return RequirementStatus(requirement, _version(parsed.name), _fits(parsed))


@functools.cache
def extras() -> dict[str, tuple[str, ...]]:
    """The extras of featreg and the requirements of each; one that installs a backend is named as the backend is.

    ``all``, which bundles the others, is left out.
    """
    try:
        own = metadata.metadata(PROJECT)
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(text) for text in own.get_all("Requires-Dist") or ()]
    found = {
        extra: tuple(_bare(requirement) for requirement in requirements if _is_of(requirement, extra))
        for extra in own.get_all("Provides-Extra") or ()
    }
    return {_as_backend(extra): wanted for extra, wanted in found.items() if extra != "all"}


def _as_backend(extra: str) -> str:
    """Metadata normalises ``open_clip`` to ``open-clip`` (PEP 685); backends are named with the underscore."""
    return extra.replace("-", "_")


def _is_of(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None or requirement.name == PROJECT:
        return False
    return requirement.marker.evaluate({"extra": extra}) and not requirement.marker.evaluate({"extra": ""})


def _bare(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _fits(requirement: Requirement) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    version = _version(requirement.name)
    try:
        return version is not None and requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _installed(name: str) -> str:
    version = _version(name)
    return f"no {name}" if version is None else f"{name} {version}"


def _version(distribution: str) -> str | None:
    """None where a distribution is not installed, or where its metadata cannot be read."""
    try:
        version: str | None = metadata.version(distribution)
    except Exception:  # noqa: BLE001  (a leftover .dist-info folder fails in many ways, all of which mean the same)
        return None
    return version
