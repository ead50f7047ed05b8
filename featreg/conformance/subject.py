"""What a check is given: a backend with one case, the means to run it, and assertions that write bug reports."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.case import Case
from featreg.conformance.model import Violation
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
    what was held against something: a check that asserts nothing has proved nothing.
    """

    def __init__(self, backend: str, case: Case, registry: Registry) -> None:
        self.backend_name = backend
        self.case = case
        self.registry = registry
        self.asserted = 0
        self._request: ExtractionRequest | None = None
        self._drawn = self._input = ""

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

    def images(self, batch: int = 2, size: Size | None = None, seed: int = 0, kind: str = "noise") -> Floats:
        """Images (N, 3, H, W): float32 ``noise``, ``zeros`` or ``ones`` to be used as they are, or ``uint8``."""
        shape = (batch, self.info.input_rule.channels, *(size or self.case.size))
        generator, seed = "images = np.random.default_rng", self.case.seed + seed
        self._input = "images"
        if kind == "noise":
            self._drawn = f"{generator}({seed}).standard_normal({shape}, dtype=np.float32)"
            return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        if kind == "uint8":
            self._drawn = f"{generator}({seed}).integers(0, 256, {shape}, dtype=np.uint8)"
            return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        self._drawn = f"images = np.{kind}({shape}, np.float32)"
        drawn: Floats = getattr(np, kind)(shape, np.float32)
        return drawn

    def texts(self, *texts: str) -> list[str]:
        """A batch of texts: these, else those of the case."""
        drawn = list(texts or self.case.texts)
        self._input, self._drawn = "texts", f"texts = {drawn!r}"
        return drawn

    def request(self, layers: Sequence[Layer] | Layer | None = None, **fields: Any) -> ExtractionRequest:
        self._request = ExtractionRequest(self.model, self.layers if layers is None else layers, **fields)
        return self._request

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
        code: str | None = None,
    ) -> None:
        """Assert something; ``code`` is the line that shows it, after the inputs are drawn and the extractor opened."""
        self.asserted += 1
        if not holds:
            raise Violation(problem, str(expected), str(got), layer, self.snippet(layer, code))

    def same(self, got: Array, wanted: Array, problem: str, layer: Layer, code: str | None = None) -> None:
        """Assert that two arrays are equal bit for bit, NaN to NaN."""
        one, two = to_numpy(got), to_numpy(wanted)
        alike = one.shape == two.shape and one.dtype == two.dtype and one.tobytes() == two.tobytes()
        self.expect(alike, problem, "the same bits", "" if alike else difference(one, two), layer, code)

    def close(  # noqa: PLR0917  (as expect)
        self,
        got: Array,
        wanted: Array,
        problem: str,
        layer: Layer,
        code: str | None = None,
        rtol: float = RTOL,
        atol: float = ATOL,
    ) -> None:
        """Assert that two arrays are equal but for rounding; ``atol`` is a share of the largest true value.

        Of an absolute one, layers of small values would keep nothing: random weights give some of 1e-8.
        """
        one, two = to_numpy(got), to_numpy(wanted)
        atol *= float(np.abs(two).max(initial=0)) or 1.0
        alike = one.shape == two.shape and np.allclose(one, two, rtol=rtol, atol=atol)
        got = "" if alike else difference(one.astype(np.float64), two.astype(np.float64))
        self.expect(alike, problem, f"equal within rtol {rtol:g} and atol {atol:g}", got, layer, code)

    def raises(
        self, kind: type[FeatregError] | tuple[type[FeatregError], ...], call: Callable[[], Any], what: str, code: str
    ) -> FeatregError:
        """Assert that a call raises an error of featreg, and give it back."""
        names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        caught: Exception | None = None
        try:
            call()
        except Exception as error:  # noqa: BLE001  (whatever a backend raises is what the check is about)
            caught = error
        got = "no error" if caught is None else f"{type(caught).__name__}: {caught}"
        self.expect(isinstance(caught, kind), f"{what} raises no {names}", names, got, code=code)
        assert isinstance(caught, FeatregError)
        return caught

    def snippet(self, layer: Layer | None = None, code: str | None = None) -> str:
        """The shortest program that shows what was last done, with one layer where only one matters."""
        lines = ["import featreg"]
        if self._drawn:
            uses_numpy = "np." in f"{self._drawn}\n{code}"
            lines = ["import featreg, numpy as np" if uses_numpy else "import featreg", self._drawn]
        if self._request is not None:
            layers = list(self._request.layers if layer is None or code is not None else (layer,))
            lines.append(f"extractor = featreg.create_extractor({self.model!r}, {layers}{_fields(self._request)})")
        if code is None and self._request is not None and self._drawn:
            code = f"features = extractor({self._input})" + ("" if layer is None else f"; features[{layer!r}]")
        return "\n".join([*lines, *([code] if code else [])])


def _fields(request: ExtractionRequest) -> str:
    defaults = ExtractionRequest(request.model, request.layers)
    names = [field.name for field in attrs.fields(ExtractionRequest)]
    changed = [name for name in names if getattr(request, name) != getattr(defaults, name)]
    return "".join(f", {name}={getattr(request, name)!r}" for name in changed)


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
