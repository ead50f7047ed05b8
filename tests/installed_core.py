"""Run by ``nox -s wheels`` in an environment that holds the core's wheel and its dependencies, nothing else."""

import sys
from collections.abc import Callable
from importlib import metadata, util

import numpy as np

import featreg
from featreg.conformance.agreement.architectures import load_architectures

HEAVY = ("torch", "torchvision", "timm", "open_clip", "mindspore", "zarr", "pyarrow", "PIL", "tqdm")


def refused(ask: Callable[[], object]) -> featreg.FeatregError | None:
    """The error that a call ends in."""
    try:
        ask()
    except featreg.FeatregError as error:
        return error
    return None


def main() -> None:
    """Use the core alone; an AssertionError says what is wrong."""
    assert "site-packages" in str(featreg.__file__), featreg.__file__
    assert not [name for name in HEAVY if util.find_spec(name)], "the core brought a framework along"
    names = {path.name for path in metadata.files("featreg") or ()}
    assert {"py.typed", "copier.yml"} <= names, names
    assert len(load_architectures()) > 10, "the tables of architectures are not in the wheel"
    assert featreg.list_backends() == ("numpy",), featreg.list_backends()
    with featreg.create_extractor("numpy:tinynet", ["C5", "pooled"]) as extractor:
        features = extractor(np.zeros((2, 3, 64, 64), np.float32))
    assert features["C5"].shape == (2, 48, 2, 2), features
    for ask, error, hint in (
        (lambda: featreg.create_extractor("timm:resnet50", ["C5"]), "UnknownBackendError", "featreg[timm]"),
        (lambda: featreg.open_store("."), "MissingDependencyError", "featreg[data]"),
    ):
        refusal = refused(ask)
        assert type(refusal).__name__ == error, refusal
        assert f'pip install "{hint}"' in str(refusal), refusal
    sys.stdout.write(f"featreg {featreg.__version__} works alone\n")


if __name__ == "__main__":
    main()
