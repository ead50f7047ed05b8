"""The towers of open_clip's networks: where their features leave them, and how they run.

open_clip has three kinds of image towers: its own vision transformer, OpenAI's modified ResNet, and timm networks with
a projection on top. Their ``forward_intermediates`` is not used: hooks on the same modules give the same tensors in one
pass together with the heads, and the ResNet's ``stop_early`` is inverted (open_clip 3.3.0).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from featreg_torch.declared import declared_outlets, level_of
from featreg_torch.taps import Outlet, Stored

__all__ = ["ENCODE_IMAGE", "ENCODE_TEXT", "LOGITS", "Run", "Tower", "find_tower", "is_text"]

ENCODE_IMAGE = "encode_image"
ENCODE_TEXT = "encode_text"
LOGITS = "get_logits"
POOLED = "visual(proj=None)"
TRUNK_FEATURES = "visual.trunk.forward_features"
TRUNK_POOLED = "visual.trunk.forward_head(pre_logits=True)"


_TEXT_PARTS = frozenset(
    (
        ENCODE_TEXT,
        "attn_mask",
        "ln_final",
        "positional_embedding",
        "text",
        "text_decoder",
        "text_projection",
        "token_embedding",
        "transformer",
    )
)
"""What a network has beside its image tower, as CLIP has it at its top and as the others have it."""


def is_text(name: str) -> bool:
    """Whether a module, a tensor or an output belongs to the text tower."""
    return name.partition(".")[0] in _TEXT_PARTS


class Tower:
    """Any image tower: its one output is the embedding, not normalised."""

    prefix_tokens = 0
    """How many tokens stand before the patch tokens."""

    sources: tuple[str, ...] = ()
    """Names of outputs that are no module's, besides the embedding."""

    stored: Stored | None = None
    """How all its maps are laid out; None where each one's shapes must tell."""

    queries: tuple[str, ...] = ()
    """Modules whose output is laid out like tokens but has no place in the image."""

    def __init__(self, network: nn.Module) -> None:
        self.network: Any = network
        self.visual: Any = network.visual

    def outlets(self) -> list[Outlet]:
        """The levels, indices and heads other than the embedding."""
        return []

    def run(self, images: torch.Tensor, wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Run the tower and yield the outputs that are no module's."""
        yield ENCODE_IMAGE, self.network.encode_image(images, normalize=False)


class TransformerTower(Tower):
    """open_clip's vision transformer.

    Indices are the residual blocks; the last block is the level of the patch size (C5 for 32 pixels, C4 for 16 and 14).
    ``features`` and ``tokens`` are the last sequence before it is pooled, after the final norm where that comes first:
    the output of ``visual.ln_post``, or of ``visual.transformer`` where pooling comes before the norm (CLIPA, and the
    attentional pool of CoCa, whose outputs are queries and no longer patches). ``pooled`` is what ``visual.proj``
    multiplies.
    """

    prefix_tokens = 1
    sources = (POOLED,)

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        if self.visual.attn_pool is None:
            self._norms_first = not self.visual.final_ln_after_pool
        else:
            self._norms_first = self.visual.attn_pool_contrastive is not None
            self.queries = ("visual.attn_pool", *(() if self._norms_first else ("visual.ln_post",)))

    def outlets(self) -> list[Outlet]:
        patch = int(self.visual.patch_size[0])
        blocks = self.visual.transformer
        count = len(blocks.resblocks)
        taps = [
            Outlet(
                f"visual.transformer.resblocks.{index}",
                level=level_of(patch) if index == count - 1 else None,
                index=index,
                kind="map",
                prefix_tokens=self.prefix_tokens,
                reduction=patch,
                stored="nld" if blocks.batch_first else "lnd",
            )
            for index in range(count)
        ]
        source = "visual.ln_post" if self._norms_first else "visual.transformer"
        features = Outlet(source, head="features", kind="map", prefix_tokens=self.prefix_tokens, reduction=patch)
        tokens = attrs.evolve(features, head="tokens", kind="tokens")
        return [*taps, features, tokens, Outlet(POOLED, head="pooled")]

    def run(self, images: torch.Tensor, wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        if POOLED not in wanted:
            yield from super().run(images, wanted)
            return
        normed: list[torch.Tensor] = []
        handle = self.visual.ln_post.register_forward_hook(lambda _, __, output: normed.append(output))
        try:
            embedding = self.network.encode_image(images, normalize=False)
        finally:
            handle.remove()
        yield POOLED, self._pool(normed[-1])
        yield ENCODE_IMAGE, embedding

    def _pool(self, normed: torch.Tensor) -> torch.Tensor:
        """What the tower projects, from the output of its final norm."""
        if normed.ndim == 2:  # pooled before the norm
            return normed
        return normed[:, self.prefix_tokens :].mean(dim=1) if self.visual.pool_type == "avg" else normed[:, 0]


class ResNetTower(Tower):
    """OpenAI's modified ResNet.

    Indices are open_clip's own: 0 is the stem after its average pool, at stride 4, and 1 to 4 are the stages. C1 is the
    stem before that pool. There is no ``pooled``: the attention pool is itself the projection into the embedding. At
    its one size the shapes do not always tell the layout: RN50x16's index 0 has 96 channels, rows and columns.
    """

    stored: Stored | None = "nchw"

    def outlets(self) -> list[Outlet]:
        stem = [Outlet("visual.act3", level="C1"), Outlet("visual.avgpool", index=0)]
        stages = [Outlet(f"visual.layer{stage}", level=f"C{stage + 1}", index=stage) for stage in range(1, 5)]
        outlets = [*stem, *stages, Outlet("visual.layer4", head="features")]
        return [attrs.evolve(outlet, stored=self.stored) for outlet in outlets]


class TrunkTower(Tower):
    """A timm network under a projection; levels and indices are those that timm declares for it.

    The projection is ``visual.head`` or timm's own classifier; ``pooled`` is what goes into it. Where timm's pooling is
    replaced by an attention pool that projects as well, there is no ``pooled``.
    """

    sources = (TRUNK_FEATURES, TRUNK_POOLED)

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.trunk: Any = self.visual.trunk
        self.prefix_tokens = int(getattr(self.trunk, "num_prefix_tokens", 0))

    def outlets(self) -> list[Outlet]:
        return [*declared_outlets(self.trunk, TRUNK_FEATURES, prefix="visual.trunk."), *self._pooled()]

    def _pooled(self) -> list[Outlet]:
        head = [name for name, _ in self.visual.head.named_children() if name != "drop"]
        if head[:1] == ["pool"]:
            return [Outlet("visual.head.pool", head="pooled")] if len(head) > 1 else []
        return [Outlet("visual.trunk" if head else TRUNK_POOLED, head="pooled")]

    def run(self, images: torch.Tensor, wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        # timm's networks and TimmModel are run in their own two steps, so the modules around these are yielded here
        features = self.trunk.forward_features(images)
        yield TRUNK_FEATURES, features
        if TRUNK_POOLED in wanted:
            yield TRUNK_POOLED, self.trunk.forward_head(features, pre_logits=True)
        output = self.trunk.forward_head(features)
        yield "visual.trunk", output
        embedding = self.visual.head(output)
        yield "visual", embedding
        yield ENCODE_IMAGE, embedding


def find_tower(network: nn.Module) -> Tower:
    """The image tower of an open_clip network; one with the embedding alone where its kind is not known."""
    kinds = {VisionTransformer: TransformerTower, ModifiedResNet: ResNetTower, TimmModel: TrunkTower}
    return kinds.get(type(network.visual), Tower)(network)


class Run:
    """Runs the tower that the inputs are for: images are floating point, tokens whole numbers.

    On the meta device both run, so that one run finds the shapes of both. With ``normalize`` embeddings have unit
    length. Logits are those of the images and of the network's buffer ``prompts``, embeddings of unit length.
    """

    def __init__(self, context_length: int, normalize: bool) -> None:
        self.context_length = context_length
        self.normalize = normalize

    def __call__(
        self, network: Any, inputs: torch.Tensor, wanted: frozenset[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        texts = frozenset(filter(is_text, wanted))
        if not inputs.is_floating_point():
            yield ENCODE_TEXT, network.encode_text(inputs, normalize=self.normalize)
            return
        if texts and inputs.is_meta:
            tokens = torch.empty(len(inputs), self.context_length, dtype=torch.long, device="meta")
            yield ENCODE_TEXT, network.encode_text(tokens, normalize=self.normalize)
        if wanted - texts:
            yield from self._images(network, inputs, wanted)

    def _images(self, network: Any, images: torch.Tensor, wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for source, output in find_tower(network).run(images, wanted):
            if source != ENCODE_IMAGE:
                yield source, output
                continue
            unit = functional.normalize(output, dim=-1) if self.normalize or LOGITS in wanted else output
            yield source, unit if self.normalize else output
            if LOGITS in wanted:
                logits = network.logit_scale.exp() * unit @ network.prompts.T
                yield LOGITS, logits if network.logit_bias is None else logits + network.logit_bias
