"""The preprocessing of every pretrained tag, as data, against the transforms that timm builds for evaluation."""

import numpy as np
import timm
from timm.data import create_transform, resolve_data_config
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision.transforms import CenterCrop, Normalize, Resize

from featreg_timm.backend import TimmBackend


def read(transform):
    """What the transforms of one configuration do, in the words of the specification."""
    found = {"fill": (0, 0, 0)}
    for step in transform.transforms:
        if isinstance(step, Resize):
            square = isinstance(step.size, int)
            found |= {"resize": (step.size,) * 2 if square else tuple(step.size)}
            found |= {"resize_mode": "shortest" if square else "exact", "interpolation": step.interpolation.value}
        elif isinstance(step, ResizeKeepRatio):
            assert step.longest == 1
            found |= {"resize": tuple(step.size), "resize_mode": "longest", "interpolation": step.interpolation.value}
        elif isinstance(step, CenterCrop):
            found["crop"] = tuple(step.size)
        elif isinstance(step, CenterCropOrPad):
            found |= {"crop": tuple(step.size), "fill": tuple(step.fill)}
        elif isinstance(step, Normalize):
            found |= {"mean": step.mean.tolist(), "std": step.std.tolist()}
    return found


def test_the_preprocessing_of_every_tag_is_what_timm_builds():
    backend, names = TimmBackend(), timm.list_pretrained()
    assert len(names) > 1500
    for name in names:
        config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        expected = read(create_transform(**config, is_training=False))
        found = backend.preprocess(backend.variant(name))
        assert found.color == "RGB", name
        for field in ("mean", "std"):
            assert np.array_equal(np.float32(getattr(found, field)), np.float32(expected.pop(field))), name
        assert {field: getattr(found, field) for field in expected} == expected, name
        assert backend.native_size(backend.variant(name)) == config["input_size"][1:], name
