"""What asking for one level costs, beside the raw network cut there by hand.

``python benchmarks/cut.py`` prints one line of JSON and one to read for each backend: the medians of interleaved
forward passes, their ratio, and the bytes of all parameters held. ResNet-50 cut at C2 is its stem and its first stage.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import nn

import featreg


def cut_resnet(network: Any, activation: str) -> nn.Sequential:
    """The stem and the first stage of a ResNet, all that C2 needs, as one would write it by hand."""
    stem = (network.conv1, network.bn1, getattr(network, activation), network.maxpool)
    return nn.Sequential(*stem, network.layer1).eval()


BY_HAND: dict[str, Callable[[], nn.Module]] = {
    "torchvision": lambda: cut_resnet(torchvision.models.resnet50(), "relu"),
    "timm": lambda: cut_resnet(timm.create_model("resnet50"), "act1"),
}


def parameter_bytes(module: nn.Module) -> int:
    """The bytes of a module's parameters, each once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def measure(backend: str, batch: int, rounds: int) -> dict[str, Any]:
    """Medians in seconds of a forward pass to C2 through featreg and by hand, on the same images."""
    images = torch.rand(batch, 3, 224, 224)
    extractor = featreg.create_extractor(f"{backend}:resnet50", ["C2"], array="native")
    by_hand = BY_HAND[backend]()
    whole = featreg.create_extractor(f"{backend}:resnet50", ["logits"]).module
    times: dict[str, list[float]] = {"featreg": [], "by_hand": []}
    with torch.no_grad():
        for number in range(rounds + 1):
            for name, forward in (("featreg", extractor), ("by_hand", by_hand)):
                start = time.perf_counter()
                forward(images)
                if number:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "backend": backend,
        "batch": batch,
        "rounds": rounds,
        "load": round(os.getloadavg()[0], 2),
        "featreg_s": round(medians["featreg"], 4),
        "by_hand_s": round(medians["by_hand"], 4),
        "ratio": round(medians["featreg"] / medians["by_hand"], 3),
        "featreg_bytes": parameter_bytes(extractor.module),
        "by_hand_bytes": parameter_bytes(by_hand),
        "whole_bytes": parameter_bytes(whole),
    }


def main() -> None:
    """Measure every backend and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    for backend in BY_HAND:
        result = measure(backend, arguments.batch, arguments.rounds)
        print(json.dumps(result))
        print(
            f"{backend}: {result['ratio']:.2f} times the hand-cut network's time, "
            f"{result['featreg_bytes']:,} bytes of parameters against {result['by_hand_bytes']:,} "
            f"({result['whole_bytes']:,} in the whole network)"
        )


if __name__ == "__main__":
    main()
