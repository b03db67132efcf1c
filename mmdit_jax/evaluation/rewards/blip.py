"""ImageReward's network in torch: BLIP's vision transformer, BERT with cross-attention to it, a head of five layers.

Attributes are named as the tensors of its checkpoint are. Inference alone: no dropout, and no gradients.
Sources: BLIP (Li et al. 2022, arXiv:2201.12086), ImageReward (Xu et al. 2023, arXiv:2304.05977).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Of the rewards of its training images: what scores are standardised by."""
VISION_HEAD = 64
"""Width of a head in ViT-L-16."""
_HEAD = (1024, 128, 64, 16, 1)
_PLACES = (0, 2, 4, 6, 7)  # in the published list, where layers of dropout stand between them
_VISION_EPSILON = 1e-6


@dataclass(frozen=True)
class BlipConfig:
    """Sizes; the names of text's are those of med_config.json."""

    vision_width: int
    vision_layers: int
    vision_mlp: int
    patch: int
    grid: int
    """Patches a side."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    layer_norm_eps: float


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention over tokens [N, L, D], split into heads; mask bool [N, 1, 1, L], true where there is a token."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class _SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // VISION_HEAD
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(_attend(q, k, v, self.heads))


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class _VisionBlock(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, _VISION_EPSILON), _SelfAttention(width)
        self.norm2, self.mlp = nn.LayerNorm(width, _VISION_EPSILON), _Mlp(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Vision(nn.Module):
    def __init__(self, c: BlipConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.vision_width))
        self.pos_embed = nn.Parameter(torch.zeros(1, c.grid**2 + 1, c.vision_width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, c.vision_width, c.patch, c.patch)})
        self.blocks = nn.ModuleList(_VisionBlock(c.vision_width, c.vision_mlp) for _ in range(c.vision_layers))
        self.norm = nn.LayerNorm(c.vision_width, _VISION_EPSILON)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class _AddNorm(nn.Module):
    """A dense layer, what went around it, and the norm of both."""

    def __init__(self, inputs: int, c: BlipConfig) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, c.hidden_size), nn.LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(self, x: Tensor, around: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + around)


class _TextAttention(nn.Module):
    """Of text to text, or to an image's tokens of width ``other``."""

    def __init__(self, other: int, c: BlipConfig) -> None:
        super().__init__()
        self.heads = c.num_attention_heads
        sides = {"query": c.hidden_size, "key": other, "value": other}
        self.add_module("self", nn.ModuleDict({name: nn.Linear(side, c.hidden_size) for name, side in sides.items()}))
        self.output = _AddNorm(c.hidden_size, c)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
        part = self.get_submodule("self")
        q, k, v = (part.get_submodule(n)(y) for n, y in (("query", x), ("key", other), ("value", other)))
        return self.output(_attend(q, k, v, self.heads, mask), x)


class _TextLayer(nn.Module):
    def __init__(self, c: BlipConfig) -> None:
        super().__init__()
        self.attention, self.crossattention = _TextAttention(c.hidden_size, c), _TextAttention(c.vision_width, c)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(c.hidden_size, c.intermediate_size)})
        self.output = _AddNorm(c.intermediate_size, c)

    def forward(self, x: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        x = self.crossattention(self.attention(x, x, mask), image)
        return self.output(gelu(self.intermediate["dense"](x)), x)


class _Text(nn.Module):
    def __init__(self, c: BlipConfig) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(c.vocab_size, c.hidden_size),
                "position_embeddings": nn.Embedding(c.max_position_embeddings, c.hidden_size),
                "LayerNorm": nn.LayerNorm(c.hidden_size, c.layer_norm_eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_TextLayer(c) for _ in range(c.num_hidden_layers))})

    def forward(self, ids: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        parts: Any = self.embeddings
        layers: Any = self.encoder["layer"]
        positions = parts["position_embeddings"].weight[: ids.shape[1]]
        x = parts["LayerNorm"](parts["word_embeddings"](ids) + positions)
        for layer in layers:
            x = layer(x, image, mask[:, None, None, :])
        return x


class ImageReward(nn.Module):
    """Rewards of images beside prompts, standardised; see ``BlipConfig``."""

    def __init__(self, c: BlipConfig) -> None:
        super().__init__()
        self.blip = nn.ModuleDict({"visual_encoder": _Vision(c), "text_encoder": _Text(c)})
        sides = zip((c.hidden_size, *_HEAD[:-1]), _HEAD, strict=True)
        layers = {str(place): nn.Linear(*pair) for place, pair in zip(_PLACES, sides, strict=True)}
        self.mlp = nn.ModuleDict({"layers": nn.ModuleDict(layers)})

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Rewards float32 [N] of pixels [N, 3, side, side], tokens [N, L], and which of these are no padding, bool.

        The head has no activation between its layers: nor has the published one.
        """
        image = self.blip["visual_encoder"](pixels)
        x = self.blip["text_encoder"](ids, mask, image)[:, 0]
        layers: Any = self.mlp["layers"]
        for layer in layers.values():
            x = layer(x)
        return (x[:, 0] - MEAN) / DEVIATION
