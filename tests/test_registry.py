"""Discovery and isolation, against distributions that are really installed and really broken."""

from __future__ import annotations

import gc
import subprocess
import sys
import traceback
import weakref
from typing import Any

import pytest

from featreg import errors
from featreg.registry import Registry, guarded

GOOD = """
    from collections.abc import Sequence
    from featreg.plugin import Backend, BackendSpec, hookimpl

    class Good(Backend):
        def models(self): return ["net-b", "net-a"]
        def info(self, model, input_size=None): raise NotImplementedError
        def open(self, request): raise NotImplementedError

    @hookimpl
    def featreg_backends():
        yield BackendSpec("{name}", "fake_{name}:Good")
"""
SPEC = """
    from featreg.plugin import BackendSpec, hookimpl

    @hookimpl
    def featreg_backends():
        return [BackendSpec({fields})]
"""


def spec(fields: str) -> str:
    return SPEC.format(fields=fields)


LIGHT_MODULE_FAULTS = {
    "raises": ("raise OSError('no such library: libfoo.so')", errors.PluginImportError, "libfoo.so"),
    "exits": ("import sys; sys.exit(3)", errors.PluginImportError, "SystemExit: 3"),
    "syntax": ("def broken(:", errors.PluginImportError, "SyntaxError"),
    "needs_absent": ("import absent_module_of_a_plugin", errors.PluginImportError, "absent_module_of_a_plugin"),
    "signature": (
        "from featreg.plugin import hookimpl\n@hookimpl\ndef featreg_backends(one_too_many): return []",
        errors.PluginHookError,
        "one_too_many",
    ),
    "misspelt": (
        "from featreg.plugin import hookimpl\n@hookimpl\ndef featreg_backend(): return []",
        errors.PluginHookError,
        "unknown hook 'featreg_backend'",
    ),
    "no_hook": ("x = 1", errors.PluginHookError, "nothing"),
    "no_hookimpl": ("def featreg_backends(): return []", errors.PluginHookError, "nothing"),
    "hook_raises": (
        "from featreg.plugin import hookimpl\n@hookimpl\ndef featreg_backends(): raise KeyError('oops')",
        errors.PluginHookError,
        "oops",
    ),
    "hook_exits": (
        "from featreg.plugin import hookimpl\n@hookimpl\ndef featreg_backends(): raise SystemExit('bye')",
        errors.PluginHookError,
        "bye",
    ),
    "hook_gives_number": (
        "from featreg.plugin import hookimpl\n@hookimpl\ndef featreg_backends(): return 7",
        errors.PluginHookError,
        "not iterable",
    ),
    "hook_gives_none": (
        "from featreg.plugin import hookimpl\n@hookimpl\ndef featreg_backends(): return None",
        errors.PluginHookError,
        "nothing",
    ),
    "hook_yields_rubbish": (
        "from featreg.plugin import hookimpl\n@hookimpl\ndef featreg_backends(): yield 'rubbish'; yield 3",
        errors.PluginHookError,
        "'rubbish', 3",
    ),
    "other_name": (spec("'another', 'fake_other_name:X'"), errors.PluginHookError, "'another'"),
    "bad_factory": (spec("'bad_factory', 'no_colon'"), errors.PluginHookError, "no_colon"),
    "bad_capability": (spec("'bad_capability', 'a:B', capabilities=['tpu']"), errors.PluginHookError, "tpu"),
    "lone_requirement": (spec("'lone_requirement', 'a:B', requirements='numpy'"), errors.PluginHookError, "numpy"),
    "bad_requirement": (
        spec("'bad_requirement', 'a:B', requirements=['not a requirement!']"),
        errors.PluginHookError,
        "!",
    ),
    "bad_range": (spec("'bad_range', 'a:B', spec='one or two'"), errors.PluginHookError, "one or two"),
    "too_new": (spec("'too_new', 'a:B', spec='>=2'"), errors.SpecVersionError, ">=2"),
    "too_old": (spec("'too_old', 'a:B', spec='<1'"), errors.SpecVersionError, "<1"),
    "lacks": (
        spec("'lacks', 'a:B', requirements=['absent-distribution>=2']"),
        errors.MissingDependencyError,
        "no absent-dist",
    ),
    "outdated": (
        spec("'outdated', 'a:B', requirements=['numpy>=99', 'attrs']"),
        errors.MissingDependencyError,
        "numpy ",
    ),
}
FACTORY_FAULTS = {
    "no_module": (
        spec("'no_module', 'absent_module_of_a_plugin:B'"),
        errors.PluginImportError,
        "absent_module_of_a_plugin",
    ),
    "no_class": (spec("'no_class', 'fake_no_class:Absent'"), errors.PluginImportError, "Absent"),
    "init_raises": (
        spec("'init_raises', 'fake_init_raises:make'") + "\n    def make(): raise RuntimeError('driver too old')",
        errors.PluginImportError,
        "driver too old",
    ),
    "init_exits": (
        spec("'init_exits', 'fake_init_exits:make'") + "\n    def make(): raise SystemExit(1)",
        errors.PluginImportError,
        "SystemExit",
    ),
    "no_backend": (spec("'no_backend', 'builtins:dict'"), errors.PluginHookError, "dict"),
}


def registry(**environment: str) -> Registry:
    return Registry(environment)


def check_failure(failure: errors.FeatregError, kind: type[errors.FeatregError], name: str, got: str) -> None:
    assert type(failure) is kind
    assert name in failure.problem
    assert got in failure.got
    assert failure.expected
    assert failure.remedy


@pytest.mark.parametrize("fault", LIGHT_MODULE_FAULTS)
def test_broken_light_module(plugins: Any, fault: str) -> None:
    source, kind, got = LIGHT_MODULE_FAULTS[fault]
    plugins.backend(fault, source)
    plugins.backend("sound", GOOD.format(name="sound"))
    backends = registry()
    assert fault in backends.names()
    for ask in (backends.spec, backends.backend, backends.models):
        with pytest.raises(errors.PluginError) as caught:
            ask(fault)
        check_failure(caught.value, kind, fault, got)
    check_failure(backends.failures()[fault], kind, fault, got)
    assert backends.models("sound") == ("net-a", "net-b")
    assert backends.resolve("sound:net-a") == ("sound", "net-a")
    assert "sound" not in backends.failures()


@pytest.mark.parametrize("fault", FACTORY_FAULTS)
def test_broken_factory(plugins: Any, fault: str) -> None:
    source, kind, got = FACTORY_FAULTS[fault]
    plugins.backend(fault, source)
    plugins.backend("sound", GOOD.format(name="sound"))
    backends = registry()
    assert fault not in backends.failures(), "nothing is known to be wrong before the factory is imported"
    with pytest.raises(errors.PluginError) as caught:
        backends.backend(fault)
    check_failure(caught.value, kind, fault, got)
    check_failure(backends.failures()[fault], kind, fault, got)
    assert backends.declared(fault) is not None
    assert backends.models("sound") == ("net-a", "net-b")


def test_missing_requirement_still_says_what_the_backend_is(plugins: Any) -> None:
    plugins.backend("lacks", spec("'lacks', 'a:B', requirements=['absent-one'], install='conda install one'"))
    backends = registry()
    declared = backends.declared("lacks")
    assert declared is not None
    assert declared.requirements == ("absent-one",)
    assert backends.failures()["lacks"].remedy == "conda install one"


def test_requirement_with_a_marker_that_does_not_apply(plugins: Any) -> None:
    plugins.backend("elsewhere", spec("'elsewhere', 'a:B', requirements=[\"absent-one; sys_platform == 'vms'\"]"))
    assert "elsewhere" not in registry().failures()


def test_duplicate_name(plugins: Any) -> None:
    plugins.backend("twin", GOOD.format(name="twin"), distribution="first-twin")
    plugins.install("second-twin", {"twin": "fake_twin"})
    plugins.backend("sound", GOOD.format(name="sound"))
    backends = registry()
    assert backends.names().count("twin") == 1
    with pytest.raises(errors.DuplicateBackendError) as caught:
        backends.backend("twin")
    check_failure(caught.value, errors.DuplicateBackendError, "twin", "fake_twin")
    assert "first-twin" in caught.value.problem
    assert "second-twin" in caught.value.problem
    assert "fake_twin" not in sys.modules, "neither claim is loaded"
    assert backends.models("sound")


def test_one_module_with_two_backends(plugins: Any) -> None:
    plugins.module(
        "fake_pair",
        """
        from featreg.plugin import BackendSpec, hookimpl

        @hookimpl
        def featreg_backends():
            yield BackendSpec("left", "fake_pair:Left")
            yield BackendSpec("right", "fake_pair:Right")
        """,
    )
    plugins.install("fake-pair", {"left": "fake_pair", "right": "fake_pair"})
    backends = registry()
    assert backends.spec("left").factory == "fake_pair:Left"
    assert backends.spec("right").factory == "fake_pair:Right"


def test_two_names_of_one_broken_module_fail_alike(plugins: Any) -> None:
    source, kind, got = LIGHT_MODULE_FAULTS["signature"]
    plugins.module("fake_pair", source)
    plugins.install("fake-pair", {"left": "fake_pair", "right": "fake_pair"})
    failures = registry().failures()
    check_failure(failures["left"], kind, "left", got)
    check_failure(failures["right"], kind, "right", got)


def test_leftover_dist_info_takes_nothing_down(plugins: Any) -> None:
    plugins.module("fake_left", GOOD.format(name="left"))
    plugins.install("fake-left", {"left": "fake_left"}, metadata=None)
    backends = registry()
    assert {"left", "numpy"} <= set(backends.names())
    assert backends.plugin("left").distribution == ""
    assert backends.models("left") == ("net-a", "net-b")


def test_a_hook_of_a_later_specification_may_be_optional(plugins: Any) -> None:
    later = "\n    @hookimpl(optionalhook=True)\n    def featreg_hook_of_tomorrow(): return 1"
    plugins.backend("modern", GOOD.format(name="modern") + later)
    assert registry().models("modern") == ("net-a", "net-b")


def test_failure_is_raised_afresh(plugins: Any) -> None:
    """One instance raised again and again would grow its traceback and keep every caller's frame alive."""
    plugins.backend("raises", "raise OSError('the cause')")
    backends = registry()
    seen = []
    for _ in range(4):
        with pytest.raises(errors.PluginImportError) as caught:
            backends.spec("raises")
        seen.append(caught.value)
    assert len({id(error) for error in seen}) == 4
    assert len({error.args for error in seen}) == 1
    assert all(isinstance(error.__cause__, OSError) and str(error.__cause__) == "the cause" for error in seen)
    depths = [len(traceback.extract_tb(error.__traceback__)) for error in seen[1:]]
    assert len(set(depths)) == 1
    assert all(failure.__traceback__ is None for failure in backends.failures().values())


def test_error_of_the_plugins_own_is_kept_as_it_is(plugins: Any) -> None:
    plugins.backend(
        "own",
        spec("'own', 'fake_own:make'")
        + """
    from featreg.plugin import errors

    class LicenceError(errors.PluginError):
        def __init__(self, *, seats): super().__init__(f"only {seats} seats", remedy="buy more")

    def make(): raise LicenceError(seats=3)
    """,
    )
    backends = registry()
    for _ in range(2):
        with pytest.raises(errors.PluginError, match="only 3 seats") as caught:
            backends.backend("own")
        assert type(caught.value).__name__ == "LicenceError"
        assert caught.value.remedy == "buy more"


def test_failure_keeps_no_frame_alive(plugins: Any) -> None:
    class Images:
        pass

    plugins.backend("raises", "raise OSError('the cause')")
    backends = registry()
    backends.failures()

    def work() -> weakref.ref[Images]:
        images = Images()
        try:
            backends.spec("raises")
        except errors.PluginImportError:
            return weakref.ref(images)
        raise AssertionError

    kept = work()
    gc.collect()
    assert kept() is None


# --- names ------------------------------------------------------------------------------------------------------------


def test_unknown_backend() -> None:
    with pytest.raises(errors.UnknownBackendError) as caught:
        registry().backend("nunpy")
    assert caught.value.matches == ("numpy",)
    assert "featreg backends" in caught.value.remedy


@pytest.mark.parametrize("name", ["open_clip", "timm"])
def test_backend_of_an_extra_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featreg.registry.find_plugins", list)
    with pytest.raises(errors.UnknownBackendError) as caught:
        registry().backend(name)
    assert caught.value.remedy == f'pip install "featreg[{name}]"'


def test_listing_runs_no_plugin_code(plugins: Any) -> None:
    plugins.backend("raises", "raise OSError")
    assert "raises" in registry().names()
    assert "raises" in [plugin.name for plugin in registry().plugins()]
    assert "fake_raises" not in sys.modules


# --- modules of the caller's own -----


def test_a_module_goes_to_the_backend_of_its_nearest_class(plugins: Any) -> None:
    ours = f"{__name__}.{Module.__qualname__}"
    plugins.backend("general", spec(f"'general', 'absent:B', wraps=['{ours}']"))
    plugins.backend("special", spec(f"'special', 'absent:B', wraps=['{ours[: -len('Module')]}Special']"))
    plugins.backend("raises", "raise OSError")
    backends = registry()
    assert backends.wrapper(Module()) == "general"
    assert backends.wrapper(Special()) == "special"
    assert "absent" not in sys.modules


def test_what_no_backend_wraps() -> None:
    with pytest.raises(errors.CapabilityError, match="Module") as caught:
        registry(FEATREG_ONLY="numpy").wrapper(Module())
    assert "featreg doctor" in caught.value.remedy


class Module:
    """A framework's base class, as far as the registry can see."""


class Special(Module):
    """A framework built on top of another."""


# --- environment ------------------------------------------------------------------------------------------------------


def test_only() -> None:
    with pytest.warns(UserWarning, match="no installed backend: absent"):
        assert registry(FEATREG_ONLY=" numpy , absent ").names() == ("numpy",)


def test_disable(plugins: Any) -> None:
    plugins.backend("raises", "raise OSError")
    backends = registry(FEATREG_DISABLE="raises,numpy")
    assert not {"raises", "numpy"} & set(backends.names())
    with pytest.raises(errors.UnknownBackendError, match="switched off") as caught:
        backends.spec("numpy")
    assert "FEATREG_DISABLE" in caught.value.remedy


def test_disable_wins_over_only() -> None:
    assert registry(FEATREG_ONLY="numpy", FEATREG_DISABLE="numpy").names() == ()


@pytest.mark.parametrize("value", ["1", "true", " ON "])
def test_strict_raises_whatever_is_asked_for(plugins: Any, value: str) -> None:
    plugins.backend("raises", "raise OSError('the cause')")
    backends = registry(FEATREG_STRICT=value, FEATREG_ONLY="numpy,raises")
    for ask in (backends.names, lambda: backends.spec("numpy"), lambda: backends.resolve("tinynet")):
        with pytest.raises(errors.PluginImportError, match="raises"):
            ask()
    assert list(backends.failures()) == ["raises"], "reporting never raises"
    assert [plugin.name for plugin in backends.plugins()] == ["numpy", "raises"]


@pytest.mark.parametrize("value", ["", "0", "no"])
def test_not_strict(plugins: Any, value: str) -> None:
    plugins.backend("raises", "raise OSError('the cause')")
    assert "raises" in registry(FEATREG_STRICT=value).names()


def test_strict_and_disabled(plugins: Any) -> None:
    plugins.backend("raises", "raise OSError('the cause')")
    assert registry(FEATREG_STRICT="1", FEATREG_ONLY="numpy,raises", FEATREG_DISABLE="raises").names() == ("numpy",)


def test_variables_are_read_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATREG_ONLY", "numpy")
    assert Registry().names() == ("numpy",)


# --- model ids --------------------------------------------------------------------------------------------------------


def test_resolve() -> None:
    backends = registry(FEATREG_ONLY="numpy")
    assert backends.resolve("numpy:tinynet") == ("numpy", "tinynet")
    assert backends.resolve("tinynet") == ("numpy", "tinynet")


@pytest.mark.parametrize("model", ["numpy:tinynat", "numpy:", "numpy:numpy:tinynet"])
def test_unknown_model(model: str) -> None:
    with pytest.raises(errors.UnknownModelError) as caught:
        registry(FEATREG_ONLY="numpy").resolve(model)
    assert "featreg models numpy" in caught.value.remedy
    assert caught.value.matches == (("tinynet",) if model == "numpy:tinynat" else caught.value.matches)


def test_a_backend_says_what_to_do_about_an_unknown_model(plugins: Any) -> None:
    """One that takes more than it lists, such as files."""
    suggesting = 'def suggest(self, model): return (model + ".net",), "give a path"'
    plugins.backend("files", GOOD.format(name="files").replace("def open", f"{suggesting}\n        def open"))
    with pytest.raises(errors.UnknownModelError) as caught:
        registry(FEATREG_ONLY="files").resolve("files:mine")
    assert (caught.value.matches, caught.value.remedy) == (("mine.net",), "give a path")


def test_unknown_bare_model() -> None:
    with pytest.raises(errors.UnknownModelError) as caught:
        registry(FEATREG_ONLY="numpy").resolve("tinynat")
    assert caught.value.matches == ("numpy:tinynet",)


def test_ambiguous_bare_model(plugins: Any) -> None:
    plugins.backend("one", GOOD.format(name="one"))
    plugins.backend("two", GOOD.format(name="two"))
    with pytest.raises(errors.AmbiguousModelError) as caught:
        registry(FEATREG_ONLY="one,two,numpy").resolve("net-a")
    assert caught.value.matches == ("one:net-a", "two:net-a")


def test_bare_model_in_spite_of_broken_backends(plugins: Any) -> None:
    """Also of one that loads and then fails when it is asked for its models."""
    failing = GOOD.replace('return ["net-b", "net-a"]', 'raise RuntimeError("no index")')
    plugins.backend("raises", "raise OSError")
    plugins.backend("failing", failing.format(name="failing"))
    plugins.backend("sound", GOOD.format(name="sound"))
    backends = registry(FEATREG_ONLY="raises,failing,sound")
    assert backends.resolve("net-a") == ("sound", "net-a")
    with pytest.raises(errors.UnknownModelError, match="not looked in: failing, raises") as caught:
        backends.resolve("net-c")
    assert set(caught.value.matches) == {"sound:net-a", "sound:net-b"}


# --- guarded ----------------------------------------------------------------------------------------------------------


def test_guarded_maps_and_chains() -> None:
    def divide() -> float:
        return 1 / 0

    with pytest.raises(errors.BackendError, match="timm failed in divide") as caught:
        guarded("timm", divide)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.got == "ZeroDivisionError: division by zero"


def test_guarded_lets_own_errors_and_interrupts_pass() -> None:
    def refuse() -> None:
        raise errors.LayerError("no")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(errors.LayerError):
        guarded("timm", refuse)
    with pytest.raises(KeyboardInterrupt):
        guarded("timm", interrupt)


def test_guarded_takes_callables_without_a_name() -> None:
    import functools

    with pytest.raises(errors.BackendError):
        guarded("timm", functools.partial(int, "x"))


def test_real_plugins_declare_themselves_without_a_framework() -> None:
    code = (
        "import sys; from featreg.registry import Registry; r = Registry({}); r.failures(); print(sorted(sys.modules))"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'featreg_timm'" in modules
    assert not {f"'{name}'" for name in ("torch", "torchvision", "timm", "open_clip", "mindspore")} & set(
        modules.strip("[]\n").split(", ")
    )


def test_a_hook_of_another_signature_is_told_its_own(plugins: Any) -> None:
    plugins.backend(
        "acme",
        """
        from featreg.plugin import BackendSpec, hookimpl

        @hookimpl
        def featreg_backends():
            yield BackendSpec("acme", "a:B")

        @hookimpl
        def featreg_conformance_cases(backend, size):
            return []
        """,
    )
    with pytest.raises(errors.PluginHookError) as caught:
        Registry({}).spec("acme")
    assert caught.value.expected.startswith("@hookimpl def featreg_conformance_cases(backend) that yields")
    assert "size" in caught.value.got
