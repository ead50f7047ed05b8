"""The checked extractor: backends that lie are found out, inputs of every wrong kind are refused."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
import pytest

import featreg
from featreg import errors
from featreg.plugin import Backend, BackendExtractor, BackendSpec
from featreg.registry import Registry
from featreg.spec import CAPABILITIES, ExtractionRequest, FeatureInfo, InputRule, MeasuredGrid, ModelInfo, Preprocess

INFO = ModelInfo(
    "fake",
    "net",
    (8, 8),
    (
        FeatureInfo("stem", 4, 2, "map", level="C1", index=0),
        FeatureInfo("stage", 6, 4, "map", level="C2", index=1),
        FeatureInfo("odd", 5, 4, "map", index=2, rounding="measured", measured=[MeasuredGrid((8, 8), (3, 3))]),
        FeatureInfo("norm", 7, 4, "tokens", head="tokens", prefix_tokens=1, class_token=True),
        FeatureInfo("pool", 6, None, "vector", head="pooled"),
        FeatureInfo("text", 6, None, "vector", head="text_embedding"),
    ),
    Preprocess(None, None, (0, 0, 0), (1, 1, 1)),
    InputRule(multiple_of=4, minimum=(8, 8)),
    CAPABILITIES,
)
GRIDS = {"odd": (3, 3)}


class Honest(BackendExtractor):
    """Zeros of the shapes that were promised."""

    def __init__(self, info: ModelInfo, features: tuple[FeatureInfo, ...]) -> None:
        self.info = info
        self.features = features
        self.closed = 0

    def forward(self, batch: Any) -> Sequence[Any]:
        return [np.zeros(self.shape(info, batch), np.float32) for info in self.features]

    def shape(self, info: FeatureInfo, batch: Any) -> tuple[int, ...]:
        if info.kind == "vector":
            return (len(batch), info.channels)
        if info.name in GRIDS:
            return (len(batch), info.channels, *GRIDS[info.name])
        return info.shape(len(batch), *batch.shape[2:])

    def close(self) -> None:
        self.closed += 1


class OneBackend(Backend):
    def __init__(self, kind: Callable[..., BackendExtractor] = Honest, info: ModelInfo = INFO) -> None:
        self.kind = kind
        self.described = info
        self.opened: Any = None

    def models(self) -> Sequence[str]:
        return ("net",)

    def info(self, model: str, input_size: Any = None) -> ModelInfo:
        return self.described

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        self.request = request
        self.opened = self.kind(self.described, tuple(map(self.described.resolve, request.layers)))
        return self.opened  # type: ignore[no-any-return]


class OneRegistry(Registry):
    """A registry that holds one backend, ``fake``."""

    def __init__(self, backend: Backend, capabilities: Sequence[str] = CAPABILITIES) -> None:
        super().__init__({"FEATREG_ONLY": "fake"})
        self.only = backend
        self.declares = BackendSpec("fake", "a:B", capabilities=tuple(capabilities))

    def names(self) -> tuple[str, ...]:
        return ("fake",)

    def spec(self, name: str) -> BackendSpec:
        return self.declares

    def backend(self, name: str) -> Backend:
        return self.only


def open_net(layers: Any, kind: Callable[..., BackendExtractor] = Honest, **fields: Any) -> featreg.Extractor:
    return featreg.create_extractor("fake:net", layers, registry=OneRegistry(OneBackend(kind)), **fields)


def images(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape or (2, 3, 8, 8), np.float32)


# --- an honest backend ------------------------------------------------------------------------------------------------


def test_keys_are_the_requests() -> None:
    features = open_net(["pooled", -1, "C2", "stem", "tokens"])(images())
    assert {key: array.shape for key, array in features.items()} == {
        "pooled": (2, 6),
        -1: (2, 5, 3, 3),
        "C2": (2, 6, 2, 2),
        "stem": (2, 4, 4, 4),
        "tokens": (2, 5, 7),
    }
    assert list(features) == ["pooled", -1, "C2", "stem", "tokens"]


def test_output_shapes() -> None:
    numpy_shape: Any = np.array([5, 3, 12, 16])
    extractor = open_net(["C1", "C2", "pooled"])
    assert extractor.output_shapes((5, 3, 12, 16)) == {"C1": (5, 4, 6, 8), "C2": (5, 6, 3, 4), "pooled": (5, 6)}
    assert extractor.output_shapes(numpy_shape)["C1"] == (5, 4, 6, 8)
    assert open_net(["C1"], pool="max").output_shapes((5, 3, 12, 16)) == {"C1": (5, 4)}


@pytest.mark.parametrize(
    "shape",
    [
        (3, 8, 8),
        (1, 3, 8, 8, 1),
        (1, 4, 8, 8),
        (1, 3, 6, 8),
        (0, 3, 8, 8),
        (1, 3, 8.0, 8),
        (True, 3, 8, 8),
        8,
        None,
        "abcd",
    ],
)
def test_output_shapes_of_what_does_not_fit(shape: Any) -> None:
    with pytest.raises(errors.InputError):
        open_net(["C1"]).output_shapes(shape)


def test_pool() -> None:
    extractor = open_net(["C1", "tokens", "pooled"], pool="avg")
    features = extractor(images())
    assert [array.shape for array in features.values()] == [(2, 4), (2, 7), (2, 6)]
    assert {info.kind for info in extractor.feature_info.values()} == {"vector"}
    assert open_net(["tokens"], pool="cls")(images())["tokens"].shape == (2, 7)


def test_class_token_is_asked_for_where_there_is_none() -> None:
    with pytest.raises(errors.CapabilityError, match="class token"):
        open_net(["tokens", "C1"], pool="cls")


def test_pool_by_layer() -> None:
    extractor = open_net(["C1", -3, "tokens", "pooled"], pool={"C1": "maxpool=2,2,0", "tokens": "cls"})
    features = extractor(images(2, 3, 12, 16))
    assert [array.shape for array in features.values()] == [(2, 4, 3, 4), (2, 4, 6, 8), (2, 7), (2, 6)]
    assert {key: array.shape for key, array in features.items()} == extractor.output_shapes((2, 3, 12, 16))
    assert features.info["C1"].shape(2, 12, 16) == (2, 4, 3, 4)
    assert [info.kind for info in extractor.feature_info.values()] == ["map", "map", "vector", "vector"]


def test_flatten_after_pooling() -> None:
    extractor = open_net(["C1", "odd", "tokens", "pooled"], pool={"C1": "avgpool=3,1,0"}, flatten=True)
    features = extractor(images())
    assert [array.shape for array in features.values()] == [(2, 4 * 2 * 2), (2, 5 * 3 * 3), (2, 5 * 7), (2, 6)]
    for infos in (features.info, extractor.feature_info, extractor.describe((8, 8))):
        assert {key: info.shape(2, 8, 8) for key, info in infos.items()} == {
            key: array.shape for key, array in features.items()
        }
    assert extractor.output_shapes((2, 3, 8, 8))["C1"] == (2, 16)
    only = open_net("C1", pool="avgpool=3,1,0", flatten=True)
    assert only(images(1, 3, 12, 8))["C1"].shape == (1, 32) == only.describe((12, 8))["C1"].shape(1, 12, 8)
    with pytest.raises(errors.InputError, match="was not measured at 12x8"):
        extractor.feature_info["C1"].shape(1, 12, 8)


def test_flattened_rows_are_row_major() -> None:
    class Counting(Honest):
        def forward(self, batch: Any) -> Sequence[Any]:
            shapes = [self.shape(info, batch) for info in self.features]
            return [np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for shape in shapes]

    assert open_net("C2", Counting, flatten=True)(images())["C2"].ravel().tolist() == list(range(2 * 6 * 2 * 2))


def test_a_model_whose_own_size_is_too_small_for_the_pooling() -> None:
    extractor = open_net(["C2"], pool="avgpool=3,3,0", flatten=True)
    assert extractor(images(1, 3, 12, 12))["C2"].shape == (1, 6)
    assert extractor.output_shapes((1, 3, 12, 12)) == {"C2": (1, 6)}
    for use in (
        lambda: extractor.feature_info,
        lambda: extractor(images()),
        lambda: extractor.output_shapes((1, 3, 8, 8)),
    ):
        with pytest.raises(errors.InputError, match="2x2 is too small for the pooling avgpool=3,3,0"):
            use()


def test_a_grid_that_is_not_described_is_measured_for_the_pooling() -> None:
    class Measuring(Honest):
        def measure(self, height: int, width: int) -> tuple[FeatureInfo, ...]:
            grid = MeasuredGrid((height, width), GRIDS["odd"])
            return tuple(attrs.evolve(info, measured=[grid]) for info in self.features)

    blank = attrs.evolve(INFO, features=[attrs.evolve(INFO.resolve("odd"), measured=())])
    backend = OneBackend(Measuring, blank)
    extractor = featreg.create_extractor("fake:net", "odd", registry=OneRegistry(backend), flatten=True)
    assert extractor.feature_info["odd"].shape(1, 8, 8) == (1, 45)
    assert extractor.output_shapes((1, 3, 16, 20)) == {"odd": (1, 45)}


@pytest.mark.parametrize("pool", ["avgpool=2", {"pooled": "maxpool=2"}, {"tokens": "adaptive_avgpool=2"}])
def test_grids_of_what_has_none_are_refused_when_the_model_is_opened(pool: Any) -> None:
    with pytest.raises(errors.CapabilityError, match="no grid"):
        open_net(["C1", "tokens", "pooled"], pool=pool)


def test_a_framework_that_fails_in_pooling() -> None:
    class Stuck(Honest):
        def pool(self, array: Any, info: FeatureInfo, pool: Any) -> Any:
            raise RuntimeError("device lost")

    with pytest.raises(errors.BackendError, match="failed in pool"):
        open_net("C1", Stuck, pool="avg")(images())


@pytest.mark.parametrize(
    ("layers", "shapes"),
    [
        ([0, "C1", -3, "stem"], [(2, 4, 4, 4)] * 4),
        ([1, -2], [(2, 6, 2, 2)] * 2),
        ([-1, 2, "odd"], [(2, 5, 3, 3)] * 3),
    ],
)
def test_every_name_of_one_layer_is_a_key_of_its_own(layers: Any, shapes: list[tuple[int, ...]]) -> None:
    features = open_net(layers)(images())
    assert list(features) == layers
    assert [array.shape for array in features.values()] == shapes


@pytest.mark.parametrize("layers", [[3], [-4], [0, 0], [-1, -1], ["C1", "C1"], [0, True]])
def test_indices_that_are_not_there_or_there_twice(layers: Any) -> None:
    with pytest.raises(errors.LayerError):
        open_net(layers)


def test_closing() -> None:
    backend = OneBackend()
    with featreg.create_extractor("fake:net", "C1", registry=OneRegistry(backend)) as extractor:
        extractor(images())
    extractor.close()
    assert backend.opened.closed == 1
    assert "closed" in repr(extractor)
    for use in (lambda: extractor(images()), extractor.__enter__, lambda: extractor.output_shapes((1, 3, 8, 8))):
        with pytest.raises(errors.RequestError, match="closed"):
            use()


def test_bare_name_and_whole_request() -> None:
    backend = OneBackend()
    request = ExtractionRequest("net", ["C1"], options={"a": [1]})
    extractor = featreg.create_extractor(request, registry=OneRegistry(backend))
    assert extractor.request == attrs.evolve(request, model="fake:net")
    assert backend.request == request, "the backend gets the name without its own"
    for fields in ({"layers": ["C1"]}, {"device": "cpu"}):
        with pytest.raises(errors.SpecError, match="whole"):
            featreg.create_extractor(request, registry=OneRegistry(backend), **fields)


@pytest.mark.parametrize("layers", [None, [], ["C9"], ["C1", "C1"], [7], "stages"])
def test_layers_refused(layers: Any) -> None:
    with pytest.raises(errors.LayerError):
        open_net(layers)


def test_unknown_argument() -> None:
    with pytest.raises(errors.SpecError, match="no such argument: batch_size"):
        open_net(["C1"], batch_size=3)


ASKED: dict[str, dict[str, Any]] = {
    "grad": {"grad": True, "array": "native"},
    "native_array": {"array": "native"},
    "output_stride": {"output_stride": 8},
    "weights": {"weights": "default"},
    "synthetic_weights": {"weights": "synthetic:0"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "cuda": {"device": "cuda:1"},
}


@pytest.mark.parametrize("capability", ASKED)
def test_capability_of_the_backend_and_of_the_model(capability: str) -> None:
    without = tuple(name for name in CAPABILITIES if name != capability)
    fields = ASKED[capability]
    backend = OneBackend()
    with pytest.raises(errors.CapabilityError, match=f"fake does not support {capability}"):
        featreg.create_extractor("fake:net", "C1", registry=OneRegistry(backend, without), **fields)
    assert backend.opened is None, "nothing is opened for a request that is refused"
    backend = OneBackend(info=attrs.evolve(INFO, capabilities=without))
    with pytest.raises(errors.CapabilityError, match=f"fake:net does not support {capability}"):
        featreg.create_extractor("fake:net", "C1", registry=OneRegistry(backend), **fields)
    assert backend.opened.closed == 1, "what was opened is closed again"
    assert featreg.create_extractor("fake:net", "C1", registry=OneRegistry(OneBackend()), **fields)


class Waiting(Honest):
    """Stays in its first call until it is let go."""

    entered: threading.Event
    let_go: threading.Event

    def forward(self, batch: Any) -> Sequence[Any]:
        if not self.entered.is_set():
            self.entered.set()
            assert self.let_go.wait(60)
        return super().forward(batch)


@pytest.mark.parametrize("declared", [True, False])
def test_calls_from_several_threads_at_once_are_a_capability(declared: bool) -> None:
    capabilities = tuple(name for name in CAPABILITIES if declared or name != "thread_safe")
    kind: Any = type("Fresh", (Waiting,), {"entered": threading.Event(), "let_go": threading.Event()})
    registry = OneRegistry(OneBackend(kind, attrs.evolve(INFO, capabilities=capabilities)), capabilities)
    extractor = featreg.create_extractor("fake:net", "C1", registry=registry)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(extractor, images())
        assert kind.entered.wait(60)
        try:
            if declared:
                assert extractor(images())["C1"].shape == (2, 4, 4, 4)
            else:
                with pytest.raises(errors.CapabilityError, match="in use by another thread"):
                    extractor(images())
        finally:
            kind.let_go.set()
        assert first.result()["C1"].shape == (2, 4, 4, 4)
    assert extractor(images())["C1"].shape == (2, 4, 4, 4)


def test_a_call_that_failed_holds_no_later_one_up() -> None:
    capabilities = tuple(name for name in CAPABILITIES if name != "thread_safe")
    registry = OneRegistry(OneBackend(info=attrs.evolve(INFO, capabilities=capabilities)), capabilities)
    extractor = featreg.create_extractor("fake:net", "C1", registry=registry)
    with pytest.raises(errors.InputError):
        extractor(images(2, 2, 8, 8))
    assert extractor(images())["C1"].shape == (2, 4, 4, 4)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts() -> None:
    extractor = open_net("text_embedding")
    assert extractor(["a dog", "a cat", "a cow"])["text_embedding"].shape == (3, 6)
    assert extractor(("a dog",))["text_embedding"].shape == (1, 6)
    for wrong in ("a dog", [], [1], images(), None, [b"a dog"], {"a dog": 1}):
        with pytest.raises(errors.InputError):
            extractor(wrong)


def test_texts_and_images_do_not_mix() -> None:
    with pytest.raises(errors.LayerError, match="text and image"):
        open_net(["C1", "text_embedding"])


# --- wrong inputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (images(3, 8, 8), "(N, 3, H, W)"),
        (images(1, 1, 3, 8, 8), "(N, 3, H, W)"),
        (np.float32(0), "(N, 3, H, W)"),
        (images(1, 1, 8, 8), "(N, 3, H, W)"),
        (images(1, 8, 8, 3), "transpose(0, 3, 1, 2)"),
        (images(0, 3, 8, 8), "(N, 3, H, W)"),
        (images(1, 3, 4, 8), "at least 8x8"),
        (images(1, 3, 9, 8), "multiples of 4"),
        (images().astype(np.int64), "uint8 RGB"),
        (images().astype(bool), "uint8 RGB"),
        (images().astype(np.complex64), "uint8 RGB"),
        (images().astype(np.int8), "uint8 RGB"),
        (images().astype(object), "an array"),
        (np.full((1, 3, 8, 8), "x"), "an array"),
        ([[1, 2], [3]], "an array"),
        ("photo.jpg", "an array"),
        (b"JFIF", "an array"),
        (None, "an array"),
        ({"images": images()}, "an array"),
        (object(), "an array"),
    ],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__)),
)
def test_wrong_images(batch: Any, expected: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        open_net("C1")(batch)
    assert expected in caught.value.expected
    assert caught.value.got


class Recorder(Honest):
    def forward(self, batch: Any) -> Sequence[Any]:
        self.seen = batch
        return super().forward(batch)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "uint8"])
def test_images_taken(dtype: str) -> None:
    backend = OneBackend(Recorder)
    values = (np.arange(2 * 3 * 64) % 200).reshape(2, 3, 8, 8).astype(dtype)
    featreg.create_extractor("fake:net", "C1", registry=OneRegistry(backend))(values)
    assert backend.opened.seen.tolist() == values.tolist()
    assert backend.opened.seen.dtype.isnative
    assert backend.opened.seen.dtype == np.dtype(dtype).newbyteorder("=")


def test_lists_of_numbers_are_images() -> None:
    assert open_net("C1")(images().tolist())["C1"].shape == (2, 4, 4, 4)


def test_tensors_of_another_framework_are_images() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        assert open_net("C1")(torch.zeros(2, 3, 8, 8, dtype=dtype))["C1"].shape == (2, 4, 4, 4)
    assert open_net("C1")(torch.zeros(2, 3, 8, 8, requires_grad=True))["C1"].shape == (2, 4, 4, 4)


# --- backends that lie ------------------------------------------------------------------------------------------------


def liar(change: Callable[[list[Any]], Any]) -> Callable[..., BackendExtractor]:
    class Liar(Honest):
        def forward(self, batch: Any) -> Any:
            return change(list(super().forward(batch)))

    return Liar


LIES: dict[str, Callable[[list[Any]], Any]] = {
    "one too few": lambda out: out[:-1],
    "one too many": lambda out: [*out, out[0]],
    "none at all": lambda out: [],
    "other order": lambda out: out[::-1],
    "batch cut": lambda out: [array[:1] for array in out],
    "batch doubled": lambda out: [np.concatenate([array, array]) for array in out],
    "channels cut": lambda out: [array[:, :2] for array in out],
    "channels last": lambda out: [array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for array in out],
    "grid cut": lambda out: [array[:, :, 1:] if array.ndim == 4 else array for array in out],
    "flattened": lambda out: [array.reshape(len(array), -1) for array in out],
    "one vector": lambda out: [array.ravel() for array in out],
    "scalars": lambda out: [np.float32(0) for _ in out],
    "nothing": lambda out: [None for _ in out],
    "lists": lambda out: [array.tolist() for array in out],
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_about_outputs(lie: str) -> None:
    with pytest.raises(errors.BackendError, match="fake:net broke its contract") as caught:
        open_net(["C1", "C2", "pooled"], liar(LIES[lie]))(images())
    assert caught.value.expected
    assert "authors" in caught.value.remedy


@pytest.mark.parametrize("layer", ["tokens", "odd"])
@pytest.mark.parametrize(
    "change", [lambda out: [array[:, :-1] for array in out], lambda out: [array[..., :-1] for array in out]]
)
def test_lie_about_tokens_and_measured_maps(layer: str, change: Callable[[list[Any]], Any]) -> None:
    with pytest.raises(errors.BackendError, match="broke its contract"):
        open_net(layer, liar(change))(images())


def test_grid_that_was_not_measured_is_not_judged() -> None:
    assert open_net("odd")(images(1, 3, 12, 12))["odd"].shape == (1, 5, 3, 3)


@pytest.mark.parametrize("forward", [lambda out: None, lambda out: 7, lambda out: 1 / 0])
def test_forward_that_fails(forward: Callable[[list[Any]], Any]) -> None:
    with pytest.raises(errors.BackendError, match="fake:net failed in forward") as caught:
        open_net("C1", liar(forward))(images())
    assert isinstance(caught.value.__cause__, TypeError | ZeroDivisionError)


def test_forward_that_is_a_generator_and_fails() -> None:
    def generate(out: list[Any]) -> Any:
        yield out[0]
        raise MemoryError("no more")

    with pytest.raises(errors.BackendError, match="failed in forward") as caught:
        open_net(["C1", "C2"], liar(generate))(images())
    assert isinstance(caught.value.__cause__, MemoryError)


def test_error_of_the_backends_own_passes() -> None:
    def refuse(out: list[Any]) -> Any:
        raise errors.InputError("too dark")

    with pytest.raises(errors.InputError, match="too dark"):
        open_net("C1", liar(refuse))(images())


@pytest.mark.parametrize(
    ("measured", "raised", "message"),
    [
        (errors.InputError("windows of 7 do not fit"), errors.InputError, "windows"),
        (errors.BackendError("cannot measure"), errors.BackendError, "failed in forward"),
        (RuntimeError("cannot measure"), errors.BackendError, "failed in forward"),
    ],
)
def test_failing_forward_is_put_down_to_the_size_where_measuring_says_so(
    measured: Exception, raised: type[Exception], message: str
) -> None:
    class Failing(Honest):
        def forward(self, batch: Any) -> Sequence[Any]:
            raise RuntimeError("shape mismatch in matmul")

        def measure(self, height: int, width: int) -> tuple[FeatureInfo, ...]:
            raise measured

    with pytest.raises(raised, match=message):
        open_net("C1", Failing)(images())


def test_to_numpy_that_fails() -> None:
    class Stuck(Honest):
        def to_numpy(self, array: Any) -> Any:
            raise RuntimeError("device lost")

    with pytest.raises(errors.BackendError, match="failed in to_numpy"):
        open_net("C1", Stuck)(images())


@pytest.mark.parametrize(
    "features",
    [
        INFO.features[:1],
        INFO.features[:3],
        (INFO.features[1], INFO.features[0]),
        (INFO.features[0], INFO.features[4]),
        (INFO.features[3], INFO.features[1]),
        (),
    ],
)
def test_lie_about_descriptions(features: tuple[FeatureInfo, ...]) -> None:
    backend = OneBackend(lambda info, _: Honest(info, features))
    with pytest.raises(errors.BackendError, match="broke its contract"):
        featreg.create_extractor("fake:net", ["C1", "C2"], registry=OneRegistry(backend))
    assert backend.opened.closed == 1


@pytest.mark.parametrize("opened", [None, 7, "extractor", object()])
def test_open_that_gives_something_else(opened: Any) -> None:
    with pytest.raises(errors.BackendError, match="broke its contract") as caught:
        open_net("C1", lambda *_: opened)
    assert caught.value.got == type(opened).__name__


def test_open_that_fails() -> None:
    def fail(*_: Any) -> BackendExtractor:
        raise OSError("no space left")

    with pytest.raises(errors.BackendError, match="failed in open") as caught:
        open_net("C1", fail)
    assert isinstance(caught.value.__cause__, OSError)


# --- catalogue --------------------------------------------------------------------------------------------------------


@pytest.fixture
def only_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featreg.extractor.default_registry", lambda: OneRegistry(OneBackend()))


@pytest.mark.usefixtures("only_fake")
def test_describe_and_list() -> None:
    assert featreg.list_models("fake", "n*") == ("net",)
    assert featreg.list_models("fake", "N*") == ()
    numpy_size: Any = (np.int64(12), 8)
    assert featreg.describe("fake:net", numpy_size) is INFO


@pytest.mark.usefixtures("only_fake")
def test_describe_as_it_would_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.CapabilityError, match="by its name alone") as caught:
        featreg.describe("fake:net", options={"img_size": 256})
    assert "create_extractor" in caught.value.remedy
    with pytest.raises(errors.SpecError, match="no such argument: dtype"):
        featreg.describe("fake:net", dtype="float16")
    asked = []

    def info_for(self: Backend, request: ExtractionRequest, size: Any) -> ModelInfo:
        asked.append((request.model, request.weights, request.output_stride, dict(request.options), size))
        return INFO

    monkeypatch.setattr(OneBackend, "info_for", info_for)
    assert featreg.describe("fake:net", (8, 8), weights="tag", output_stride=8, options={"a": 1}) is INFO
    assert asked == [("net", "tag", 8, {"a": 1}, (8, 8))]
    with pytest.raises(errors.InputError):
        featreg.describe("fake:net", (9, 8), options={"a": 1})


@pytest.mark.usefixtures("only_fake")
@pytest.mark.parametrize("size", [(0, 8), (8,), (8, 8, 3), (8.0, 8), (True, 8), 8, "88", (9, 8), (4, 4)])
def test_describe_at_a_size_that_does_not_fit(size: Any) -> None:
    with pytest.raises(errors.InputError):
        featreg.describe("fake:net", size)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_extractor_is_not_copied_and_its_request_is(copied: Callable[[Any], Any]) -> None:
    with open_net("C1") as extractor:
        with pytest.raises(errors.CapabilityError, match="neither copied nor pickled") as caught:
            copied(extractor)
        assert "create_extractor(extractor.request)" in caught.value.remedy
        assert copied(extractor.request)
        assert extractor(images())


def test_extractor_is_released() -> None:
    import weakref

    backend = OneBackend()
    extractor = featreg.create_extractor("fake:net", "C1", registry=OneRegistry(backend))
    opened = weakref.ref(backend.opened)
    backend.opened = None
    extractor.close()
    gc.collect()
    assert opened() is None


@pytest.mark.parametrize("model", [None, 5, b"numpy:tinynet"])
def test_models_are_named_by_strings(model: Any) -> None:
    for call in (featreg.describe, featreg.list_models, featreg.list_nodes):
        with pytest.raises(errors.SpecError):
            call(model)
    with pytest.raises(errors.SpecError):
        featreg.list_models("numpy", model)


@pytest.mark.parametrize("field", ["info", "features"])
def test_an_extractor_without_a_description_breaks_the_contract(field: str) -> None:
    def nameless(info: ModelInfo, features: tuple[FeatureInfo, ...]) -> BackendExtractor:
        opened = Honest(info, features)
        setattr(opened, field, None)
        return opened

    with pytest.raises(errors.BackendError, match="broke its contract"):
        open_net(["C1"], nameless)


def test_a_backend_that_exits_does_not_take_the_caller_along() -> None:
    class Exits(Honest):
        def forward(self, batch: Any) -> Sequence[Any]:
            raise SystemExit(3)

    with pytest.raises(errors.BackendError, match="SystemExit: 3"):
        open_net(["C1"], Exits)(images())


@pytest.mark.parametrize("names", [None, [1, 2], "net"])
def test_models_are_a_sequence_of_names(names: Any) -> None:
    class Odd(OneBackend):
        def models(self) -> Sequence[str]:
            return names  # type: ignore[no-any-return]

    with pytest.raises(errors.BackendError, match="broke its contract"):
        OneRegistry(Odd()).models("fake")
