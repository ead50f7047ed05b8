"""Asking an author's oracle, which must not run the code that it judges."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

from featreg.arrays import Array
from featreg.conformance.snippets import importing
from featreg.conformance.subject import Subject
from featreg.errors import RequestError
from featreg.extractor import Extractor
from featreg.registry import default_registry
from featreg.spec import Layer

__all__ = ["ask_oracle", "oracle_code"]

Truth = Callable[[Any], Mapping[Layer, Array]]


def ask_oracle(subject: Subject, oracle: Callable[[str, Any], Truth], module: Any) -> Truth:
    """An oracle as a function of a batch; it raises RequestError where it runs the backend under test."""
    with _alone(subject):
        truth = oracle(subject.case.model, module)

    def layers(batch: Any) -> Mapping[Layer, Array]:
        with _alone(subject):
            return truth(batch)

    return layers


def oracle_code(subject: Subject, layer: Layer, *, texts: bool = False) -> str:
    """The code that holds a layer against the oracle, by its import path where it has one, else by that of its case."""
    kind, batch = ("text_oracle", "texts") if texts else ("oracle", "images")
    line, name = importing(getattr(subject.case, kind)), subject.case.name
    called = line.rpartition(" ")[2]
    if not line:
        found = f"for case in default_registry().cases({subject.backend_name!r}) if case.name == {name!r}"
        line, called = f"from featreg.registry import default_registry\n(case,) = [case {found}]", f"case.{kind}"
    wanted = f"{called}({subject.case.model!r}, extractor.module)({batch})[{layer!r}]"
    return f"{line}\nextractor({batch})[{layer!r}], {wanted}"


@contextlib.contextmanager
def _alone(subject: Subject) -> Iterator[None]:
    """Within, the backend of a subject opens no model, and no extractor of its runs."""
    call = Extractor.__call__

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise RequestError(
            f"the oracle runs the backend {subject.backend_name!r}, which it is there to judge",
            "the library's own network, and the weights of the module alone",
            remedy="build the network with the library itself, and read its layers by means of your own",
        )

    def guarded(extractor: Extractor, inputs: Any) -> Any:
        return refuse() if extractor.info.backend == subject.backend_name else call(extractor, inputs)

    registries = (subject.registry, default_registry())
    kinds = {type(one.backend(subject.backend_name)) for one in registries if subject.backend_name in one.names()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Extractor, "__call__", guarded))
        for kind in kinds:
            stack.enter_context(mock.patch.object(kind, "open", refuse))
        yield
