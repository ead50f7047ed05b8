"""What a check is given: a backend with one case, the means to run it, and assertions that write bug reports."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.case import Case
from featreg.conformance.model import Violation
from featreg.conformance.snippets import Scene, comparison, opening, refusal
from featreg.errors import FeatregError
from featreg.extractor import Extractor, create_extractor, describe
from featreg.featureset import FeatureSet
from featreg.plugin import Backend
from featreg.registry import Registry
from featreg.spec import ExtractionRequest, FeatureInfo, Layer, ModelInfo, Size

__all__ = ["Floats", "Subject", "difference"]

Floats: TypeAlias = np.ndarray[Any, Any]

RTOL, ATOL = 1e-4, 1e-5
"""How far float32 may be from the truth: ``|got - true| <= ATOL * max(|true|) + RTOL * |true|``."""


class Subject:
    """One case of one backend, as the checks see it.

    Everything goes through what callers use (``create_extractor``, ``describe``) on ``registry``. ``asserted`` counts
    what was held against something: a check that asserts nothing has proved nothing. ``size`` is that of the images
    that were last drawn, and ``scene`` what the program of a bug report begins with.
    """

    def __init__(self, backend: str, case: Case, registry: Registry) -> None:
        self.backend_name = backend
        self.case = case
        self.registry = registry
        self.asserted = 0
        self.scene = Scene()
        self.size = case.size

    # --- what is under test -------------------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The model id."""
        return f"{self.backend_name}:{self.case.model}"

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.case.layers

    @property
    def backend(self) -> Backend:
        return self.registry.backend(self.backend_name)

    @functools.cached_property
    def info(self) -> ModelInfo:
        """The model at the size of the case."""
        return self.describe(self.case.size)

    @functools.cached_property
    def features(self) -> dict[Layer, FeatureInfo]:
        """The layers of the case that the model declares: levels, heads, indices and blocks.

        Native names are none of them: they stand for what the library makes, as the tokens of a block whose level is a
        map (specs/levels.md).
        """
        declared = [
            one for one in self.layers if isinstance(one, int) or one in self.info.keys or self.info.is_block(one)
        ]
        return {layer: self.info.resolve(layer) for layer in declared}

    def describe(self, size: Size | None = None) -> ModelInfo:
        return describe(self.model, size, registry=self.registry)

    def images(
        self, batch: int = 2, size: Size | None = None, seed: int = 0, kind: str = "noise", name: str = "images"
    ) -> Floats:
        """Images (N, 3, H, W): float32 ``noise``, ``zeros`` or ``ones`` to be used as they are, or ``uint8``.

        ``name`` is what the code of an assertion calls them.
        """
        self.size = size or self.case.size
        shape = (batch, self.info.input_rule.channels, *self.size)
        generator, seed = f"{name} = np.random.default_rng", self.case.seed + seed
        if kind == "noise":
            self.scene.draw(name, f"{generator}({seed}).standard_normal({shape}, dtype=np.float32)")
            return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        if kind == "uint8":
            self.scene.draw(name, f"{generator}({seed}).integers(0, 256, {shape}, dtype=np.uint8)")
            return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        self.scene.draw(name, f"{name} = np.{kind}({shape}, np.float32)")
        drawn: Floats = getattr(np, kind)(shape, np.float32)
        return drawn

    def texts(self, *texts: str, name: str = "texts") -> list[str]:
        """A batch of texts: these, else those of the case."""
        drawn = list(texts or self.case.texts)
        self.scene.draw(name, f"{name} = {drawn!r}")
        return drawn

    def request(self, layers: Sequence[Layer] | Layer | None = None, **fields: Any) -> ExtractionRequest:
        self.scene.request = ExtractionRequest(self.model, self.layers if layers is None else layers, **fields)
        return self.scene.request

    @contextlib.contextmanager
    def open(self, layers: Sequence[Layer] | Layer | None = None, **fields: Any) -> Iterator[Extractor]:
        with create_extractor(self.request(layers, **fields), registry=self.registry) as extractor:
            yield extractor

    def run(
        self, images: Floats | list[str], layers: Sequence[Layer] | Layer | None = None, **fields: Any
    ) -> FeatureSet:
        """One call of an extractor that is opened and closed for it."""
        with self.open(layers, **fields) as extractor:
            return extractor(images)

    # --- assertions ---------------------------------------------------------------------------------------------------

    def expect(  # noqa: PLR0917  (in the order of the bug report)
        self,
        holds: Any,
        problem: str,
        expected: Any = "",
        got: Any = "",
        layer: Layer | None = None,
        code: str = "",
    ) -> None:
        """Assert something; ``code`` asserts it too, of ``images`` and ``texts`` as drawn and of ``extractor``.

        Code without an assertion at its end shows nothing, and is left out of the bug report.
        """
        self.asserted += 1
        if not holds:
            raise Violation(problem, str(expected), str(got), layer, self.scene.program(code))

    def same(self, got: Array, wanted: Array, problem: str, layer: Layer, code: str = "") -> None:
        """Assert that two arrays are equal bit for bit, NaN to NaN; the last line of ``code`` is ``got, wanted``."""
        one, two = to_numpy(got), to_numpy(wanted)
        alike = one.shape == two.shape and one.dtype == two.dtype and one.tobytes() == two.tobytes()
        shown = "" if alike else comparison(code, "np.array_equal(got, wanted, equal_nan=True)")
        self.expect(alike, problem, "the same bits", "" if alike else difference(one, two), layer, shown)

    def close(  # noqa: PLR0917  (as expect)
        self,
        got: Array,
        wanted: Array,
        problem: str,
        layer: Layer,
        code: str = "",
        rtol: float = RTOL,
        atol: float = ATOL,
    ) -> None:
        """Assert that two arrays are equal but for rounding; ``atol`` is a share of the largest true value.

        Of an absolute one, layers of small values would keep nothing: random weights give some of 1e-8. The last line
        of ``code`` is ``got, wanted``.
        """
        one, two = to_numpy(got), to_numpy(wanted)
        atol *= float(np.abs(two).max(initial=0)) or 1.0
        alike = one.shape == two.shape and np.allclose(one, two, rtol=rtol, atol=atol)
        got = "" if alike else difference(one.astype(np.float64), two.astype(np.float64))
        shown = "" if alike else comparison(code, f"np.allclose(got, wanted, rtol={rtol:g}, atol={atol:g})")
        self.expect(alike, problem, f"equal within rtol {rtol:g} and atol {atol:g}", got, layer, shown)

    def raises(
        self, kind: type[FeatregError] | tuple[type[FeatregError], ...], call: Callable[[], Any], what: str, code: str
    ) -> FeatregError:
        """Assert that a call raises an error of featreg, and give it back; the last line of ``code`` is the call."""
        kinds = [one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,))]
        names = " or ".join(kinds)
        caught: Exception | None = None
        try:
            call()
        except Exception as error:  # noqa: BLE001  (whatever a backend raises is what the check is about)
            caught = error
        got = "no error" if caught is None else f"{type(caught).__name__}: {caught}"
        problem = f"{what} raises no {names}"
        self.expect(isinstance(caught, kind), problem, names, got, code=refusal(code, kinds, problem))
        assert isinstance(caught, FeatregError)
        return caught

    def opening(self, layers: Sequence[Layer] | Layer | None = None, **fields: Any) -> str:
        """The expression that opens an extractor as ``open`` does, for the code of an assertion."""
        return opening(ExtractionRequest(self.model, self.layers if layers is None else layers, **fields))


def difference(one: Floats, two: Floats) -> str:
    """How two arrays differ, in a line."""
    if one.shape != two.shape:
        return f"shapes {one.shape} and {two.shape}"
    if one.dtype != two.dtype:
        return f"types {one.dtype} and {two.dtype}"
    apart = np.abs(one.astype(np.float64) - two.astype(np.float64))
    if not apart.size or np.isnan(apart).all():
        return "nothing but NaN" if apart.size else "empty arrays"
    worst = tuple(map(int, np.unravel_index(int(np.nanargmax(apart)), apart.shape)))
    return (
        f"{np.count_nonzero(apart != 0)} of {apart.size} values differ, most at {worst}: {one[worst]:.8g} for "
        f"{two[worst]:.8g}"
    )
