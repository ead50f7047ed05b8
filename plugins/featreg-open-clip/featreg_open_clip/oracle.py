"""True values of the kit's cases: open_clip's own networks, read with plain forward hooks and its own encoders.

Of this plugin's own modules only the one that keeps open_clip's log quiet is used; both are imported when an oracle is
called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["images", "texts"]

Layers = Mapping[str | int, Any]


def images(model: str, module: Any) -> Callable[[Any], Layers]:
    """The image tower of ``local-dir:FOLDER``, with the weights of an extractor's module, as a function of images."""
    import torch

    network = _network(model, module)
    read = next(reader for kind, reader in READERS.items() if kind in type(network.visual).__name__)

    def features(batch: Any) -> Layers:
        with torch.no_grad():
            found: dict[str | int, Any] = read(network, torch.from_numpy(batch))
            found["embedding"] = network.encode_image(torch.from_numpy(batch), normalize=False)
        return {layer: output.numpy() for layer, output in found.items()}

    return features


def texts(model: str, module: Any) -> Callable[[Sequence[str]], Layers]:
    """The same for the text tower and texts, by open_clip's own tokenizer."""
    import open_clip
    import torch

    network, tokenize = _network(model, module), open_clip.get_tokenizer(model)

    def features(batch: Sequence[str]) -> Layers:
        with torch.no_grad():
            found: dict[str | int, Any] = {
                "text_embedding": network.encode_text(tokenize(list(batch)), normalize=False).numpy()
            }
            if hasattr(network, "text"):
                name = "text.transformer.resblocks.0"
                found[name] = _hooked(network, [name], lambda: network.encode_text(tokenize(list(batch))))[name].numpy()
        return found

    return features


def _network(model: str, module: Any) -> Any:
    """The library's network with the module's weights; what the module does not have is NaN, lest it be read."""
    import torch

    from featreg_open_clip.library import muted, open_clip

    with muted():  # it warns of random weights
        network = open_clip.create_model(model, load_weights=False, pretrained_text=False).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(math.nan)
    unknown = network.load_state_dict(module.network.state_dict(), strict=False).unexpected_keys
    assert not unknown, f"weights that open_clip's network does not have: {unknown}"
    return network


def _transformer(network: Any, batch: Any) -> dict[str | int, Any]:
    visual = network.visual
    blocks = [f"visual.transformer.resblocks.{number}" for number in range(len(visual.transformer.resblocks))]
    last = "visual.transformer" if visual.attn_pool is not None else "visual.ln_post"
    outputs = _hooked(network, [*blocks, last], lambda: visual(batch))
    projection, visual.proj = visual.proj, None
    pooled = visual(batch)
    visual.proj = projection
    return {
        **{number: _grid(outputs[name]) for number, name in enumerate(blocks)},
        "C4": _grid(outputs[blocks[-1]]),
        "features": _grid(outputs[last]),
        "tokens": outputs[last],
        "pooled": pooled[0] if isinstance(pooled, tuple) else pooled,
    }


def _resnet(network: Any, batch: Any) -> dict[str | int, Any]:
    names = {"C1": "visual.act3", **{f"C{stage + 1}": f"visual.layer{stage}" for stage in range(1, 5)}}
    outputs = _hooked(network, [*names.values()], lambda: network.visual(batch))
    return {**{level: outputs[name] for level, name in names.items()}, "features": outputs["visual.layer4"]}


def _trunk(network: Any, batch: Any) -> dict[str | int, Any]:
    trunk = network.visual.trunk
    if not hasattr(trunk, "stages"):
        tokens = trunk.forward_features(batch)
        last = f"visual.trunk.blocks.{len(trunk.blocks) - 1}"
        block = _hooked(network, [last], lambda: trunk(batch))[last]
        return {"C4": _grid(block, trunk.num_prefix_tokens), "tokens": tokens, "pooled": trunk(batch)}
    names = {f"C{number + 2}": f"visual.trunk.stages.{number}" for number in range(4)}
    outputs = _hooked(network, [*names.values()], lambda: trunk(batch))
    return {**{level: outputs[name] for level, name in names.items()}, "pooled": trunk(batch)}


READERS = {"VisionTransformer": _transformer, "ModifiedResNet": _resnet, "TimmModel": _trunk}


def _hooked(network: Any, names: Sequence[str], run: Callable[[], Any]) -> dict[str, Any]:
    """Copies of what some modules return while ``run`` runs, made before anything can write into them."""
    found: dict[str, Any] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.__setitem__(name, output.clone())
        )
        for name in names
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _grid(tokens: Any, prefix: int = 1) -> Any:
    """The tokens (N, L, D) of a square image's patches, without those in front, as a map (N, D, H, W)."""
    patches = tokens[:, prefix:]
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).reshape(len(tokens), -1, side, side)
