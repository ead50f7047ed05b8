"""featreg.extract beside a loop written by hand with the raw library, over the same photos.

``python benchmarks/raw_loop.py [backend ...]`` prints a row of a table for each backend: how far the rows of the two
are apart (as a part of the largest value), and the medians of interleaved rounds: images per second, their ratio, and
the CPU time of an image. The loop by hand reads with the library's own transform, in as many processes as featreg has
threads where it is torch's, and keeps what it extracts in memory until a last ``numpy.savez``; it has no receipts, no
checksums and no fsync, and it stops at the first bad image. Of featreg the time counts from the first image to the
finished store: both have their model open before.

The photos are seeded crops of those in ``photos/``, of 400 to 512 pixels a side, as JPEG. Weights are random, the same
for both by way of a file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

import featreg

PHOTOS = Path(__file__).parent.parent / "photos"
Rows: TypeAlias = dict[str, np.ndarray[Any, Any]]
Loop: TypeAlias = Callable[[Sequence[Path]], Rows]


def make_photos(folder: Path, count: int) -> list[Path]:
    """Crops of the sample photos, each another one, in natural order."""
    generator = np.random.default_rng(0)
    photos = sorted(path for path in PHOTOS.rglob("*") if path.suffix in (".jpg", ".png"))
    paths = []
    for number in range(count):
        with Image.open(photos[number % len(photos)]) as photo:
            image = photo.convert("RGB").resize((512, 512))
        side = int(generator.integers(400, 513))
        left, top = generator.integers(0, 513 - side, 2)
        paths.append(folder / f"{number:05}.jpg")
        image.crop((left, top, left + side, top + side)).save(paths[-1], quality=92)
    return paths


def torch_loop(transform: Any, forward: Callable[[Any], Rows], batch: int, workers: int) -> Loop:
    """The usual loop: a DataLoader whose processes decode, a forward pass, a list of arrays."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Photos(Dataset):  # type: ignore[type-arg]
        def __init__(self, paths: Sequence[Path]) -> None:
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, place: int) -> Any:
            return transform(Image.open(self.paths[place]).convert("RGB"))

    def loop(paths: Sequence[Path]) -> Rows:
        parts: dict[str, list[Any]] = {}
        with torch.no_grad():
            for images in DataLoader(Photos(paths), batch_size=batch, num_workers=workers):
                for layer, output in forward(images).items():
                    parts.setdefault(layer, []).append(output)
        return {layer: np.concatenate(arrays) for layer, arrays in parts.items()}

    return loop


def torchvision_loop(weights: Path, batch: int, workers: int) -> tuple[str, Loop]:
    """ResNet-18 by ``create_feature_extractor`` and the transform of its weights."""
    import torch
    from torchvision.models import ResNet18_Weights, resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    network = resnet18().eval()
    torch.save(network.state_dict(), weights)
    extractor = create_feature_extractor(network, {"layer4": "C5", "flatten": "pooled"})
    forward = lambda images: {layer: output.numpy() for layer, output in extractor(images).items()}  # noqa: E731
    return "torchvision:resnet18", torch_loop(ResNet18_Weights.DEFAULT.transforms(), forward, batch, workers)


def timm_loop(weights: Path, batch: int, workers: int) -> tuple[str, Loop]:
    """ViT-Ti/16 by ``forward_features`` and ``forward_head``, with timm's data configuration."""
    import timm
    import torch
    from timm.data import create_transform, resolve_model_data_config

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224").eval()
    torch.save(network.state_dict(), weights)
    transform = create_transform(**resolve_model_data_config(network), is_training=False)

    def forward(images: Any) -> Rows:
        tokens = network.forward_features(images)
        return {"tokens": tokens.numpy(), "pooled": network.forward_head(tokens, pre_logits=True).numpy()}

    return "timm:vit_tiny_patch16_224", torch_loop(transform, forward, batch, workers)


def open_clip_loop(weights: Path, batch: int, workers: int) -> tuple[str, Loop]:
    """The image tower of ViT-B-32 by ``encode_image``, with its own preprocessing."""
    import open_clip
    import torch

    torch.manual_seed(0)
    network, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    torch.save(network.state_dict(), weights)
    network.eval()
    forward = lambda images: {"embedding": network.encode_image(images).numpy()}  # noqa: E731
    return "open_clip:ViT-B-32", torch_loop(preprocess, forward, batch, workers)


def mindspore_loop(weights: Path, batch: int, workers: int) -> tuple[str, Loop]:
    """ResNet-18 of mindcv, with MindSpore's transforms for Pillow's images, in this one process."""
    import mindcv
    import mindspore
    from mindspore.dataset import vision

    import featreg_mindspore.libraries  # noqa: F401  (caps the library that is slow otherwise, for both)

    mindspore.set_seed(0)
    network = mindcv.create_model("resnet18").set_train(False)
    mindspore.save_checkpoint(network, str(weights.with_suffix(".ckpt")))
    constants = mindcv.data.constants
    resize = vision.Resize(int(224 / constants.DEFAULT_CROP_PCT), vision.Inter.BILINEAR)
    crop, normalize = (
        vision.CenterCrop(224),
        vision.Normalize(constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD),
    )

    def transform(path: Path) -> Any:
        return normalize(np.asarray(crop(resize(Image.open(path).convert("RGB"))))).transpose(2, 0, 1)

    def loop(paths: Sequence[Path]) -> Rows:
        parts: dict[str, list[Any]] = {"features": [], "pooled": []}
        for start in range(0, len(paths), batch):
            images = np.stack([transform(path) for path in paths[start : start + batch]])
            features = network.forward_features(mindspore.Tensor(images))
            parts["features"].append(features.asnumpy())
            parts["pooled"].append(network.pool(features).asnumpy())
        return {layer: np.concatenate(arrays) for layer, arrays in parts.items()}

    return "mindspore:resnet18", loop


LOOPS = {
    "torchvision": torchvision_loop,
    "timm": timm_loop,
    "open_clip": open_clip_loop,
    "mindspore": mindspore_loop,
}


def cpu_seconds() -> float:
    """What this process and its ended children have computed: the measure that other work disturbs least."""
    return sum(os.times()[:4])


def compare(backend: str, folder: Path, paths: Sequence[Path], batch: int, workers: int, rounds: int) -> str:
    """One row of the table."""
    weights = folder / f"{backend}.pth"
    model, loop = LOOPS[backend](weights, batch, workers)
    weights = weights if weights.exists() else weights.with_suffix(".ckpt")
    took: dict[str, list[float]] = {"by hand": [], "featreg": [], "by hand, CPU": [], "featreg, CPU": []}
    apart = 0.0
    for number in range(rounds + 1):
        started, computed = time.perf_counter(), cpu_seconds()
        rows = loop(paths)
        np.savez(folder / "by_hand.npz", **rows)
        by_hand = time.perf_counter() - started, cpu_seconds() - computed
        with featreg.create_extractor(model, list(rows), weights=weights) as extractor:
            computed = cpu_seconds()
            store = featreg.extract(
                paths[0].parent, folder / "store", extractor, batch_size=batch, num_workers=workers, overwrite=True
            )
            ours = store.summary.seconds or 0.0, cpu_seconds() - computed
        if number:  # the first round warms up
            for name, values in (("by hand", by_hand), ("featreg", ours)):
                took[name].append(values[0])
                took[f"{name}, CPU"].append(values[1])
        for layer, expected in rows.items():
            apart = max(apart, float(np.abs(store[layer][:] - expected).max() / np.abs(expected).max()))
    medians = {name: statistics.median(values) for name, values in took.items()}
    rates = {name: len(paths) / medians[name] for name in ("by hand", "featreg")}
    computed_ms = {name: 1000 * medians[f"{name}, CPU"] / len(paths) for name in rates}
    cells = [f"`{model}`", f"{apart:.1e}", *(f"{rate:.1f}" for rate in rates.values())]
    cells += [f"{rates['featreg'] / rates['by hand']:.2f}", *(f"{ms:.0f}" for ms in computed_ms.values())]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("backends", nargs="*", choices=[[], *LOOPS], default=[])
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    columns = [
        "model",
        "apart",
        "by hand, images/s",
        "featreg, images/s",
        "ratio",
        "by hand, CPU ms",
        "featreg, CPU ms",
    ]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        paths = make_photos(folder / "photos", given.images)
        for backend in given.backends or LOOPS:
            row = compare(backend, folder, paths, given.batch, given.workers, given.rounds)
            print(f"{row} (load {os.getloadavg()[0]:.1f})", flush=True)


if __name__ == "__main__":
    main()
