"""What decides the values: the weights by content, and the versions of all that computes."""

import hashlib
from importlib import metadata

import attrs
import pytest

import featreg
from featreg.engine.planning.fingerprint import fingerprint
from featreg.errors import RequestError
from featreg.extractor import Extractor
from featreg.hookspecs import BackendSpec
from featreg.reference.backend import NumpyBackend
from featreg.registry import Plugin, default_registry
from featreg.spec import ExtractionRequest


class Origins(NumpyBackend):
    """The reference, whose weights have an identity."""

    def __init__(self, identity):
        self.identity = identity

    def extractor(self, weights=None):
        request = ExtractionRequest("numpy:tinynet", "C1")
        opened = self.open(attrs.evolve(request, model="tinynet"))
        opened.weights_identity = lambda: self.identity
        # the reference takes no weights, and what is asked here is what becomes of their name
        opened.info = attrs.evolve(opened.info, capabilities=(*opened.info.capabilities, "weights"))
        return Extractor(attrs.evolve(request, weights=weights), opened)


def weights_of(extractor):
    return fingerprint(extractor, default_registry())["weights"]


def test_what_the_backend_says_of_its_weights_is_taken():
    assert weights_of(Origins("state sha256:1").extractor()) == "state sha256:1"
    assert weights_of(Origins("x@rev").extractor("hf-hub:x")) == "x@rev"
    assert weights_of(Origins(None).extractor()) == "none: seeded random init"
    assert weights_of(Origins(None).extractor("a1_in1k")) == "tag: a1_in1k"


def test_a_file_is_hashed_wherever_its_path_leads(tmp_path, monkeypatch):
    """Also where the backend says nothing: its path is none of a tag's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for content in (b"one", b"two"):
        (tmp_path / "w.pth").write_bytes(content)
        found = weights_of(Origins(None).extractor("~/w.pth"))
        assert found == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_a_closed_extractor_does_not_say():
    extractor = Origins(None).extractor()
    extractor.close()
    with pytest.raises(RequestError, match="closed"):
        extractor.weights_identity()


REQUIRED = {
    "featreg-mine": [
        "featreg>=0.1",
        "featreg-base",
        "Some_Zoo>=2",
        "absent; python_version < '3'",
        "tower; extra == 'x'",
        "featreg-mine[x]; extra == 'all'",
    ],
    "featreg-base": ["featreg>=0.1", "engine"],
    "engine": ["far-away"],
    "some-zoo": ["far-away"],
}


class OneBackend:
    """A registry of one plugin."""

    def plugin(self, name):
        return Plugin(name, "mine", "featreg-mine", "1.2")

    def spec(self, name):
        return BackendSpec(name, "mine:Mine", requirements=("declared>=1", "Some_Zoo>=2"))


def test_versions_are_those_of_all_that_the_distribution_requires(monkeypatch):
    versions = {"featreg-mine": "1.2", "featreg-base": "0.3", "engine": "7", "some-zoo": "2.1", "tower": "5"}
    versions |= {"declared": "1.0", "far-away": "9"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    def requires(name):
        version(name)
        return REQUIRED.get(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", requires)
    assert fingerprint(Origins(None).extractor(), OneBackend())["versions"] == {
        "featreg": featreg.__version__,
        "featreg-mine": "1.2",
        "featreg-base": "0.3",
        "engine": "7",
        "some-zoo": "2.1",
        "tower": "5",
        "declared": "1.0",
    }
