"""Programs that show a failure to whoever pastes them: what was drawn, the extractor, and an assertion that fails."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping

import attrs

from featreg.pool import Pool
from featreg.spec import ExtractionRequest

__all__ = ["Scene", "comparison", "importing", "opening", "refusal"]


@attrs.define
class Scene:
    """What a check has drawn, by name, and what it has last asked for: the lines that its programs begin with.

    ``doing`` is the code of what it does next, where that is more than a call with what was last drawn.
    """

    drawn: dict[str, str] = attrs.field(factory=dict)
    request: ExtractionRequest | None = None
    doing: str = ""

    def draw(self, name: str, line: str) -> None:
        """Enter what was drawn last."""
        self.drawn.pop(name, None)
        self.drawn[name], self.doing = line, ""

    def last_call(self) -> str:
        """The program of what was last done, for an exception that no check foresaw; empty before a call."""
        doing = self.doing
        if not doing and self.drawn and self.request is not None:
            doing = f"extractor({next(reversed(self.drawn))})"
        return self._program(doing) if doing else ""

    def program(self, code: str) -> str:
        """The program that ends in ``code``, of which it has only what that needs; empty unless the end asserts."""
        return self._program(code) if _asserts(code) else ""

    def _program(self, code: str) -> str:
        lines = [line for name, line in self.drawn.items() if _uses(code, name)]
        if self.request is not None and _uses(code, "extractor"):
            lines.append(f"extractor = {opening(self.request)}")
        own = list(itertools.takewhile(lambda line: line.startswith(("import ", "from ")), code.splitlines()))
        body = "\n".join([*lines, *code.splitlines()[len(own) :]])
        heads = ["import featreg, numpy as np" if _uses(body, "np") else "import featreg"]
        heads += ["from featreg import errors"] if _uses(body, "errors") else []
        return "\n".join([*heads, *own, body])


def _uses(code: str, name: str) -> bool:
    """Whether a program has a name that it does not set itself first."""
    return bool(re.search(rf"(?<![\w.'\"]){name}\b", code)) and not code.startswith(f"{name} = ")


def _asserts(code: str) -> bool:
    """Whether the last statement of a program asserts or raises."""
    try:
        statements = ast.parse(code).body
    except SyntaxError:
        return False
    return bool(statements) and any(isinstance(node, ast.Assert | ast.Raise) for node in ast.walk(statements[-1]))


def opening(request: ExtractionRequest) -> str:
    """The expression that opens a request."""
    defaults = ExtractionRequest(request.model, request.layers)
    names = [field.name for field in attrs.fields(ExtractionRequest)]
    changed = [name for name in names if getattr(request, name) != getattr(defaults, name)]
    fields = "".join(f", {name}={_plain(getattr(request, name))}" for name in changed)
    return f"featreg.create_extractor({request.model!r}, {list(request.layers)}{fields})"


def _plain(value: object) -> str:
    """A field as a caller writes it: options as a dictionary, a pooling as text."""
    if isinstance(value, Mapping):
        return repr(dict(value))
    return repr(str(value) if isinstance(value, Pool) else value)


def comparison(code: str, test: str) -> str:
    """Code whose last line is ``got, wanted``, with a test of these two; empty for code of another form."""
    *before, last = code.splitlines() or [""]
    try:
        pair = ast.parse(last, mode="eval").body
    except SyntaxError:
        return ""
    if not isinstance(pair, ast.Tuple) or len(pair.elts) != 2:
        return ""
    return "\n".join([*before, f"got, wanted = {last}", f"assert {test}"])


def refusal(code: str, kinds: Iterable[str], what: str) -> str:
    """Code whose last line is a call, which must raise one of these errors of featreg."""
    *before, call = code.splitlines() or [""]
    names = [f"errors.{kind}" for kind in kinds]
    caught = names[0] if len(names) == 1 else f"({', '.join(names)})"
    indent = call[: len(call) - len(call.lstrip())]
    lines = ["try:", f"    {call.strip()}", f"except {caught}:", "    pass"]
    lines += ["else:", f"    raise AssertionError({what!r})"]
    return "\n".join([*before, *(indent + line for line in lines)]) if call.strip() else ""


def importing(function: Callable[..., object]) -> str:
    """The line that imports a function under the name that it has; empty where a new process could not."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if module in ("", "__main__") or getattr(sys.modules.get(module), name, None) is not function:
        return ""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return ""
    return f"from {module} import {name}" if found is not None else ""
