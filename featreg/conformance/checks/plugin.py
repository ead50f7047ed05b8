"""The plugin itself: its entry point, what it declares, what importing it costs."""

from __future__ import annotations

import random
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from featreg.conformance.elsewhere import ask
from featreg.conformance.model import check
from featreg.conformance.planning import range_faults
from featreg.conformance.subject import Subject
from featreg.errors import CapabilityError
from featreg.extractor import describe
from featreg.hookspecs import BackendSpec
from featreg.spec import SPEC_VERSION

SAMPLE = 8
"""How many models ``plugin.models`` describes, drawn with a fixed seed."""

LOADED_BY_DECLARING = """
import json, sys
from importlib.metadata import EntryPoint
from featreg.registry import Registry
import featreg.extractor
before = set(sys.modules)
Registry().names()
listing = sorted(set(sys.modules) - before)
EntryPoint("any", sys.argv[1], "featreg").load()
print(json.dumps([sorted(set(sys.modules) - before), listing]))
"""


def _spec(subject: Subject) -> BackendSpec:
    return subject.registry.spec(subject.backend_name)


@check("plugin.entry_point", scope="backend")
def entry_point(subject: Subject) -> None:
    """The entry point's name is the backend's name, one distribution claims it, and every model says that it is of that
    backend.

    Why: the name is all that a caller writes.
    Caught: two plugins of one name, of which the order of the entry points chose one; a copied backend that still calls
    itself by the name of the first.
    Mend: ``[project.entry-points.featreg]`` with the name that BackendSpec and ModelInfo have.
    """
    name = subject.backend_name
    spec, info = _spec(subject), subject.describe()
    subject.expect(spec.name == name, "the declaration has another name", name, spec.name, code="")
    got = (info.backend, info.model)
    subject.expect(got == (name, subject.case.model), "a model is of another name", (name, subject.case.model), got)


@check("plugin.range", scope="backend")
def version_range(subject: Subject) -> None:
    """The declared range of specification versions begins with one that exists and ends before the next major one.

    Why: a backend is judged by the version that it declares; an open end promises what nobody can know.
    Caught: spatialpandas #89: new checks of another project's kit that broke it downstream.
    Mend: declare ``spec=">=1.0,<2"``.
    """
    declared = SpecifierSet(_spec(subject).spec)
    major = int(SPEC_VERSION.partition(".")[0])
    wanted, faults = f">={SPEC_VERSION},<{major + 1}", range_faults(str(declared))
    subject.expect(not faults, "the range does not begin with a version that exists", wanted, declared, code="")
    ends = f"{major + 1}.0" not in declared
    subject.expect(ends, "the range takes the next major version in", f"<{major + 1}", declared, code="")


@check("plugin.requirements", scope="backend")
def requirements(subject: Subject) -> None:
    """Each requirement that the backend declares is one (PEP 508), is installed, and comes with its distribution.

    Why: the declaration is how a user without the framework gets a pip line in place of a traceback.
    Caught: thingsvision's pin of torchvision 0.15.2, which its users could not install; a kit that cannot be installed
    (array-api-tests #85, #107).
    Mend: keep BackendSpec.requirements and ``[project] dependencies`` alike.
    """
    spec, distribution = _spec(subject), subject.registry.plugin(subject.backend_name).distribution
    try:
        names = {canonicalize_name(Requirement(text).name) for text in spec.requirements}
    except InvalidRequirement as error:
        names = set()
        subject.expect(False, "a requirement is none", "PEP 508", error, code="")
    absent = sorted(name for name in names if _requires(name) is None)
    subject.expect(not absent, "a requirement is not installed", "all of them", ", ".join(absent), code="")
    unlisted = sorted(names - _closure(distribution)) if distribution else []
    problem = f"{distribution} does not depend on what its backend imports"
    subject.expect(not unlisted, problem, "dependencies of the distribution", ", ".join(unlisted), code="")


def _requires(name: str) -> set[str] | None:
    """The distributions that one needs by itself, without its extras; None where it is not installed."""
    try:
        found = [Requirement(text) for text in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        return None
    return {
        canonicalize_name(need.name) for need in found if need.marker is None or need.marker.evaluate({"extra": ""})
    }


def _closure(distribution: str) -> set[str]:
    """All distributions that come with one."""
    found: set[str] = set()
    waiting: list[str] = [canonicalize_name(distribution)]
    while waiting:
        fresh = (_requires(waiting.pop()) or set()) - found
        found |= fresh
        waiting += fresh
    return found


@check("plugin.import_gate", scope="backend")
def import_gate(subject: Subject) -> None:
    """Listing backends runs none of the plugin's code, and its light module imports neither its factory's module nor
    any package that its requirements install.

    Why: ``featreg backends`` must not take seconds, nor fail where one framework is broken.
    Caught: llm #949 and #732, from 1.3 s to 10.7 s; napari #2114, why it left importing to discover. torch takes 1.4 s,
    torchvision 2.6, timm 3.2.
    Mend: keep the hooks in the package's ``__init__`` or a module of their own, and name the factory as a string.
    """
    spec, plugin = _spec(subject), subject.registry.plugin(subject.backend_name)
    loaded, listed = ask(LOADED_BY_DECLARING, plugin.target)
    light, factory = plugin.target.partition(":")[0], spec.factory.partition(":")[0]
    subject.expect(
        light not in listed, "listing imports the plugin", f"not {light}", light, code="featreg.list_backends()"
    )
    frameworks = set(_packages(spec)) - {light.partition(".")[0]}
    heavy = sorted({name.partition(".")[0] for name in loaded} & frameworks)
    subject.expect(not heavy, "declaring imports a framework", "none", ", ".join(heavy), code=f"import {light}")
    if factory != light:
        subject.expect(
            factory not in loaded, "declaring imports the factory", f"not {factory}", factory, code=f"import {light}"
        )


def _packages(spec: BackendSpec) -> list[str]:
    """The top-level modules that the requirements of a backend install."""
    names = {canonicalize_name(Requirement(text).name) for text in spec.requirements}
    return [
        module
        for module, owners in metadata.packages_distributions().items()
        if names & {canonicalize_name(owner) for owner in owners}
    ]


@check("plugin.models", scope="backend")
def models(subject: Subject) -> None:
    """``models()`` lists names once each and the same names every time; ``has`` knows them; those of a sample, and the
    model of a case, which need not be listed, are described under their own names, or refused with CapabilityError.

    Why: tools go through the list.
    Caught: of mindcv's 275 models, coat, edgenext and repmlp return logits where features were asked for, and pvt, volo
    and rexnet do not run at all; timm's coat, convit and visformer have no ``features_only``.
    Mend: list what works; refuse the rest with its reason (``refused.toml``, ``featreg.plugin.check_refused``).
    """
    backend = subject.backend
    names = list(backend.models())
    subject.expect(names == list(backend.models()), "another list the second time", names[:5], code="")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(names) < 5000 else []
    subject.expect(not twice, "a model is listed twice", "each once", ", ".join(twice[:5]), code="")
    sample = random.Random(0).sample(names, min(SAMPLE, len(names)))
    for name in dict.fromkeys([*sample, subject.case.model]):
        code = f"featreg.describe('{subject.backend_name}:{name}')"
        subject.expect(backend.has(name), f"has() does not know {name!r}", True, False, code=code)
        try:
            info = describe(f"{subject.backend_name}:{name}", registry=subject.registry)
        except CapabilityError:
            continue
        subject.expect(info.model == name, "a model is described under another name", name, info.model, code=code)


@check("plugin.documented", level="SHOULD", scope="backend")
def documented(subject: Subject) -> None:
    """The declaration has a summary in one line.

    Why: ``featreg backends`` shows it, and it is what a user chooses by.
    Caught: lists of plugins that are a column of names.
    Mend: set ``summary`` in BackendSpec, in under a hundred letters.
    """
    summary = _spec(subject).summary
    fits = 0 < len(summary) <= 100 and "\n" not in summary
    subject.expect(fits, "no summary in one line", "up to 100 letters", repr(summary), code="")
