"""The plugin as a distribution: what its wheel holds, what it needs, and how it fails where that is not there."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit
from urllib.request import url2pathname

import attrs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from featreg import requirements
from featreg.conformance.elsewhere import ask
from featreg.conformance.model import check
from featreg.conformance.subject import Subject
from featreg.discovery import Plugin
from featreg.errors import SpecVersionError
from featreg.hookspecs import PROJECT, BackendSpec
from featreg.spec import SPEC_VERSION

LOCATE = """
import importlib, json, sys
files = {}
for module, attribute in (argument.split(":") for argument in sys.argv[1:]):
    found = importlib.import_module(module)
    assert not attribute or getattr(found, attribute)
    files[module] = found.__file__
print(json.dumps(files))
"""

WITHOUT = """
import json, sys
from importlib import metadata
from importlib.metadata import EntryPoint
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from featreg import registry
from featreg.discovery import Plugin
from featreg.hookspecs import BackendSpec

given = json.loads(sys.argv[1])
plugin, spec = Plugin(**given["plugin"]), BackendSpec(**given["spec"])
version, gone = metadata.version, set()

def installed(name):
    if canonicalize_name(name) in gone:
        raise metadata.PackageNotFoundError(name)
    return version(name)

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in given["modules"]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def said(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error), getattr(error, "remedy", "")]
    return ["", "", ""]

metadata.version = installed
sys.meta_path.insert(0, Blocked())
answer = {"light": said(EntryPoint(plugin.name, plugin.target, "featreg").load), "without": {}}
registry.find_plugins, registry.load_spec = lambda: [plugin], lambda _: spec
for requirement in spec.requirements:
    if not (Requirement(requirement).marker is None or Requirement(requirement).marker.evaluate()):
        continue
    gone = {canonicalize_name(Requirement(requirement).name)}
    known = registry.Registry({})
    asked = said(lambda: known.backend(plugin.name))
    answer["without"][requirement] = [plugin.name in known.names(), plugin.name in known.failures(), *asked]
print(json.dumps(answer))
"""


def _declared(subject: Subject) -> tuple[BackendSpec, Plugin]:
    return subject.registry.spec(subject.backend_name), subject.registry.plugin(subject.backend_name)


@check("plugin.wheel", scope="backend")
def wheel(subject: Subject) -> None:
    """The modules of the entry point and of the factory are files of the distribution that claims the name (its RECORD
    lists them), and can be imported without the working directory. An editable installation is held to the folder of
    its project.

    Why: users have the wheel, and not the folder in which the tests were run.
    Caught: packages that the build leaves out and that the working directory brings in again, so that the tests pass
    and the release does not import.
    Mend: lay the sources under ``src/``, let the build find all packages, and run the kit on the installed wheel.
    """
    spec, plugin = _declared(subject)
    subject.expect(plugin.distribution, "no distribution claims the entry point", "a name and RECORD", "none", code="")
    light = plugin.target.partition(":")[0]
    files = ask(LOCATE, f"{light}:", spec.factory, installed=True)
    for module, file in files.items():
        held = file is not None and _holds(metadata.distribution(plugin.distribution), Path(file).resolve())
        problem = f"{module} does not come from {plugin.distribution}"
        subject.expect(held, problem, f"a file of {plugin.distribution}", file, code=f"import {module}")


def _holds(distribution: metadata.Distribution, file: Path) -> bool:
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return file.is_relative_to(Path(url2pathname(urlsplit(origin["url"]).path)).resolve())
    return any(Path(str(distribution.locate_file(entry))).resolve() == file for entry in distribution.files or ())


@check("plugin.missing_dependency", scope="backend")
def missing_dependency(subject: Subject) -> None:
    """Where one of its requirements is not installed, the backend is listed all the same, as one that failed, and
    asking for it raises MissingDependencyError, which names the requirement and says what to install. The light module
    imports without any of them.

    Why: one line with a remedy, in place of a traceback from deep inside a package that the user never heard of.
    Caught: napari #2114 and the entry points of many a project: one plugin whose import fails takes the whole list
    down.
    Mend: import frameworks in the factory's module alone, name them in BackendSpec.requirements, and let ``install`` be
    a line that installs.
    """
    spec, plugin = _declared(subject)
    given = {"plugin": attrs.asdict(plugin), "spec": attrs.asdict(spec), "modules": _frameworks(spec)}
    answer = ask(WITHOUT, json.dumps(given))
    kind, text, _ = answer["light"]
    light = plugin.target.partition(":")[0]
    subject.expect(not kind, f"{light} needs what it should only declare", "an import", text, code=f"import {light}")
    for requirement, (listed, failed, kind, text, remedy) in answer["without"].items():
        subject.expect(
            listed and failed, f"not listed as failed without {requirement}", True, (listed, failed), code=""
        )
        problem = f"no MissingDependencyError without {requirement}"
        subject.expect(kind == "MissingDependencyError", problem, "MissingDependencyError", text or kind, code="")
        named = Requirement(requirement).name in text
        subject.expect(named, f"{requirement} is not named where it is missing", requirement, text, code="")
        helps = "install" in remedy
        subject.expect(helps, f"no way out without {requirement}", "a line that installs it", repr(remedy), code="")


def _frameworks(spec: BackendSpec) -> list[str]:
    """The modules that a backend's requirements install, but for those that the core itself needs."""
    wanted = {canonicalize_name(Requirement(text).name) for text in spec.requirements} - _closure({PROJECT})
    return [
        module
        for module, owners in metadata.packages_distributions().items()
        if wanted & set(map(canonicalize_name, owners))
    ]


@check("plugin.wrong_spec", scope="backend")
def wrong_spec(subject: Subject) -> None:
    """Under the next major versions of the specification the backend is refused with SpecVersionError.

    Why: a major version changes the contract; what was written for this one would fail in the middle of a call.
    Caught: spatialpandas #89, whose tests broke with a version of another project that it had never declared itself
    for; ranges with a hole (``!=2.0``) where an end was meant.
    Mend: declare ``spec=">=1.0,<2"``.
    """
    spec, plugin = _declared(subject)
    major = int(SPEC_VERSION.partition(".")[0])
    for later in (f"{major + 1}.0", f"{major + 1}.1", f"{major + 2}.0"):
        with mock.patch.object(requirements, "SPEC_VERSION", later):
            subject.raises(
                SpecVersionError,
                partial(requirements.check_requirements, spec, plugin.distribution),
                f"the range {spec.spec!r} under specification {later}",
                code="",
            )


@check("plugin.imports", scope="backend")
def imports(subject: Subject) -> None:
    """Whatever the modules of the entry point and of the factory import at their top comes with the requirements that
    the backend declares, with featreg, or with another plugin that its distribution depends on.

    Why: what is imported and not declared ends in a traceback at the one user who does not have it.
    Caught: a kit that cannot be imported where it was installed (array-api-tests #85, #107), for want of a dependency
    that its authors had anyway.
    Mend: add the distribution to BackendSpec.requirements and to ``[project] dependencies``, or import it where it is
    used, inside ``try``.
    """
    spec, plugin = _declared(subject)
    named = {canonicalize_name(Requirement(text).name) for text in spec.requirements}
    allowed = _closure(named | {PROJECT}) | _runtimes(plugin)
    owners = metadata.packages_distributions()
    for module in (plugin.target.partition(":")[0], spec.factory.partition(":")[0]):
        for name in _imported(module):
            ours = {canonicalize_name(owner) for owner in owners.get(name, [name])}
            holds = name == module.partition(".")[0] or bool(ours & allowed)
            problem = f"{module} imports {name}, which no requirement brings"
            subject.expect(holds, problem, f"something of {', '.join(sorted(named))}", name, code=f"import {module}")
    subject.expect(True, "a module that imports nothing needs nothing")


def _runtimes(plugin: Plugin) -> set[str]:
    """The distributions that a plugin's depends on and that are written for featreg, its own among them."""
    return {name for name in _closure({plugin.distribution}) if PROJECT in _needs(name)}


def own_packages(plugin: Plugin, spec: BackendSpec) -> set[str]:
    """The top-level packages of a plugin and of what it shares with other plugins."""
    runtimes = _runtimes(plugin)
    shared = {
        module
        for module, owners in metadata.packages_distributions().items()
        if runtimes & set(map(canonicalize_name, owners))
    }
    named = {name.replace("-", "_") for name in runtimes}  # those that are installed editable are in no such list
    return {*shared, *named, plugin.target.partition(":")[0].partition(".")[0], spec.factory.partition(".")[0]}


def _imported(module: str) -> Iterator[str]:
    """The packages of others that a module imports whenever it is imported itself; read from its source, not run."""
    found = importlib.util.find_spec(module)
    if found is None or not found.origin or not found.origin.endswith(".py"):
        return
    for statement in ast.parse(Path(found.origin).read_bytes()).body:
        names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
        if isinstance(statement, ast.ImportFrom) and not statement.level:
            names = [statement.module or ""]
        yield from {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def _needs(distribution: str) -> set[str]:
    """What a distribution depends on by itself, without its extras; nothing where it is not installed."""
    try:
        found = [Requirement(text) for text in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        return set()
    return {
        canonicalize_name(need.name) for need in found if need.marker is None or need.marker.evaluate({"extra": ""})
    }


def _closure(distributions: set[str]) -> set[str]:
    """Distributions and all that comes with them."""
    found: set[str] = set()
    waiting: set[str] = {canonicalize_name(name) for name in distributions if name}
    while waiting:
        found |= waiting
        waiting = {need for name in waiting for need in _needs(name)} - found
    return found
