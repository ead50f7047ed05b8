"""What torch says where memory does not suffice, and what becomes of it."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import featreg
from featreg import errors
from featreg.sources import Sample, Source
from featreg_torch.extractor import TorchExtractor


@pytest.fixture
def extractor():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with featreg.from_module(network, ["0", "3"], input_size=(32, 32)) as opened:
        yield opened


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)


def too_much(*_arguments, **_options):
    return torch.empty(1 << 60)


def test_a_failed_allocation_is_an_error_of_its_own(extractor, images, monkeypatch):
    monkeypatch.setattr("torch.nn.functional.conv2d", too_much)
    with pytest.raises(errors.OutOfMemoryError, match="memory does not suffice") as caught:
        extractor(images)
    assert isinstance(caught.value, errors.BackendError)
    assert "can't allocate memory" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_a_lack_of_memory(error, expected):
    assert TorchExtractor.is_out_of_memory(None, error) is expected


def test_a_run_goes_on_with_smaller_batches(extractor, images, monkeypatch, tmp_path):
    class Images(Source):
        kind, uri = "images", "images:"
        samples = tuple(Sample(str(row), str(row)) for row in range(len(images)))

        def read(self, sample):
            return images[int(sample.key)].transpose(1, 2, 0)

    convolve, sizes = nn.functional.conv2d, []

    def greedy(x, *arguments, **options):
        sizes.append(len(x))
        return too_much() if len(x) > 3 else convolve(x, *arguments, **options)

    expected = [extractor(images[start : start + 2]) for start in range(0, len(images), 2)]
    monkeypatch.setattr("torch.nn.functional.conv2d", greedy)
    with pytest.warns(UserWarning, match="batches of 5: going on with 2"):
        store = featreg.extract(Images(), tmp_path / "store", extractor, batch_size=5)
    assert sizes[-4:] == [5, 2, 2, 1]
    assert store.summary.failed == 0
    for layer in ("0", "3"):
        rows = np.concatenate([features[layer] for features in expected])
        np.testing.assert_array_equal(store[layer][:], rows)


def test_timing_the_transfers_changes_no_bit(extractor, images):
    copies = []

    @contextmanager
    def transfers():
        copies.append("begun")
        yield
        copies.append("done")

    features = extractor(images, transfers=transfers)
    assert copies == ["begun", "done"] * 2
    for layer, array in extractor(images).items():
        np.testing.assert_array_equal(features[layer], array)
        assert isinstance(features[layer], np.ndarray)
