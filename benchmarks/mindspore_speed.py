"""How fast MindSpore runs ResNet-50 on the CPU beside torch, in one process and one run.

``python benchmarks/mindspore_speed.py`` prints one line of JSON and one to read. The two are timed in turn, round by
round; the ratio is that of the medians. Torch goes through featreg's backend ``torchvision`` where that works, else
through the plain torchvision model. The aim is a ratio of at most 5.

A busy machine slows the two unevenly: with other work on two cores, torch was seen to take three times as long on two
threads as on one, and MindSpore hardly changed. The JSON therefore holds the load, and ``--torch-threads`` keeps torch
off the cores that others use; trust a figure taken at a load well below the number of CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch

import featreg
from featreg.plugin import errors

LAYERS = ["C5", "logits"]
AIM = 5.0

Forward = Callable[[np.ndarray[Any, Any]], object]


def torch_forward(model: str) -> tuple[str, Forward]:
    """A forward pass of torch, and what it goes through."""
    try:
        return f"torchvision:{model}", featreg.create_extractor(f"torchvision:{model}", LAYERS)
    except errors.FeatregError as problem:
        from torchvision.models import get_model

        network = get_model(model).eval()

        def forward(images: np.ndarray[Any, Any]) -> object:
            with torch.inference_mode():
                return network(torch.from_numpy(images)).numpy()

        return f"torchvision {model} itself ({type(problem).__name__} from its backend)", forward


def seconds(forward: Forward, images: np.ndarray[Any, Any]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    forward(images)
    return time.perf_counter() - start


def measure(model: str, batch: int, size: int, rounds: int, torch_threads: int | None) -> dict[str, Any]:
    """Both medians, in seconds per batch, and their ratio; ``load`` is that of the minute before."""
    load = os.getloadavg()[0]
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)
    mindspore = featreg.create_extractor(f"mindspore:{model}", LAYERS)
    through, torch_call = torch_forward(model)
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    times: dict[str, list[float]] = {"mindspore": [], "torch": []}
    for number in range(rounds + 1):
        for name, forward in (("mindspore", mindspore), ("torch", torch_call)):
            elapsed = seconds(forward, images)
            if number:  # the first round warms up
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "model": model,
        "batch": batch,
        "size": size,
        "rounds": rounds,
        "cpus": os.cpu_count(),
        "mindspore_s": round(medians["mindspore"], 4),
        "torch_s": round(medians["torch"], 4),
        "mindspore_best_s": round(min(times["mindspore"]), 4),
        "torch_best_s": round(min(times["torch"]), 4),
        "ratio": round(medians["mindspore"] / medians["torch"], 3),
        "aim": AIM,
        "load": round(load, 2),
        "torch_threads": torch.get_num_threads(),
        "torch_through": through,
        "versions": {name: metadata.version(name) for name in ("mindspore", "mindcv", "torch", "torchvision")},
    }


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50", help="a name that mindcv and torchvision share")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch-threads", type=int, help="torch's own choice where not given")
    arguments = parser.parse_args()
    result = measure(arguments.model, arguments.batch, arguments.size, arguments.rounds, arguments.torch_threads)
    print(json.dumps(result))
    verdict = "within" if result["ratio"] <= AIM else "outside"
    print(
        f"{result['model']}, batch {result['batch']} at {result['size']}: mindspore {result['mindspore_s']:.2f} s, "
        f"torch {result['torch_s']:.2f} s, ratio {result['ratio']:.2f} ({verdict} the aim of {AIM:g})"
    )


if __name__ == "__main__":
    main()
