"""A plugin refuses a model by a list that says why."""

import sys

import pytest

from featreg.plugin import check_refused, errors, read_refused


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """A package with a refused.toml of the given text."""
    name = f"refusing_{abs(hash(request.node.name))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (folder / "refused.toml").write_text(text, "utf-8")
        return name

    yield write
    sys.modules.pop(name, None)


def test_a_refused_model_raises_with_its_reason(package):
    name = package('[models]\n"net_3d" = "its features have a time axis"\n')
    assert dict(read_refused(name)) == {"net_3d": "its features have a time axis"}
    with pytest.raises(errors.CapabilityError, match="net_3d is not supported: its features have a time axis"):
        check_refused(name, "net_3d")
    check_refused(name, "net")


@pytest.mark.parametrize("text", ['models = ["a"]', '[models]\na = ""', "[models]\na = 1"])
def test_a_list_without_reasons_is_an_error(package, text):
    with pytest.raises(errors.SpecError, match="another form"):
        read_refused(package(text))
