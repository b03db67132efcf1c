"""The shape of an MMDiT, and the arithmetic that follows from it: parameters and FLOPs, with nothing allocated."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

from mmdit_jax.errors import UserError, unknown

REMAT_POLICIES = ("none", "dots", "attention", "full")
ATTENTIONS = ("auto", "xla", "cudnn", "splash")
DTYPES = ("float32", "bfloat16")
PRODUCTS = ("full", "int8", "fp8")
ARCHITECTURES = ("dit", "crossdit", "uvit", "mmdit", "mmdit3")
PARAMETRIZATIONS = ("standard", "mup")
TIME_FEATURES = 256
# Of SD3's position table, see MMDiTConfig.position_base.
POSITION_BASE = 64


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
    """Shape and numerics of one MMDiT; the defaults are SD3's (arXiv 2403.03206, section 5.3: width = 64 x depth).

    Attributes:
      depth: number of blocks, the last (whose context stream has no output) included.
      head_size: channels of one attention head.
      heads: attention heads; None means ``depth``.
      patch_size: side of a square patch, in latent pixels.
      in_channels: latent channels, in and out.
      context_dim: channels of the text tokens.
      pooled_dim: channels of the pooled text vector.
      position_table: side of the fixed sin-cos position table, in patches; smaller inputs see its centre.
      position_base: coordinates that the table spans, from 0; None: 64, or the table's side where that is less. SD3 was
        laid out for 64 x 64 patches (1024 pixels), stretched over a wider table.
      mlp_ratio: hidden width of a block's MLP over the model width.
      qk_norm: RMSNorm of queries and keys over the head size, with a scale per stream.
      dual_attention: leading blocks whose image stream has a second attention of its own (13 in SD3.5-medium).
      remat: what a block keeps for its backward pass: "none" recomputes nothing but casts of weights, "dots" keeps
        matrix products and what attention returns, "attention" only the latter, "full" only the block's input.
      attention: "auto" takes the platform's best (``models.attention``), or "xla", "cudnn", "splash".
      scan: run the blocks with ``jax.lax.scan`` (compile time independent of depth), or unrolled if False (a little
        faster when small, much faster in training on GPUs). None: as ``models.frame.unrolls`` says. The parameters are
        the same either way.
      dtype: of the blocks' arithmetic. Parameters, timesteps, normalisation, softmax and the output stay float32.
      products: how the blocks' dense layers multiply, forward and backward: "full", in ``dtype``, or with both operands
        rounded to eight bits, "int8" or "fp8" (see ``models.products``; needs qwix). Embeddings, conditioning MLPs,
        modulation, the output layer, a UViT's convolutions and attention stay full: at 256 pixels they are
        5 % of an MMDiT's FLOPs, and errors in embeddings and modulation reach every block.
      architecture: which network of SD3's figure 4: "mmdit", or "dit", "crossdit", "uvit", "mmdit3" (see
        ``mmdit_jax.models.architectures``), of which all other fields mean the same.
      text_split: tokens of the first text stream of "mmdit3" (CLIP's 77); the rest of the text is the second's.
      parametrization: how initial weights and learning rates go with width and depth: "standard" (not at all, but for
        Xavier's), or "mup", which lets the best learning rate stay where it is (see ``models.parametrization``).
      base_width, base_depth: under "mup" the shape that the learning rate was tuned at, where both are the same.

    Raises:
      UserError: a field is out of its range; the message names it.
    """

    depth: int = 24
    head_size: int = 64
    heads: int | None = None
    patch_size: int = 2
    in_channels: int = 16
    context_dim: int = 4096
    pooled_dim: int = 2048
    position_table: int = 192
    position_base: int | None = None
    mlp_ratio: int = 4
    qk_norm: bool = False
    dual_attention: int = 0
    remat: str = "none"
    attention: str = "auto"
    scan: bool | None = None
    dtype: str = "float32"
    products: str = "full"
    architecture: str = "mmdit"
    text_split: int = 77
    parametrization: str = "standard"
    base_width: int | None = None
    base_depth: int | None = None

    def __post_init__(self) -> None:
        positive = ("depth", "head_size", "patch_size", "in_channels", "context_dim", "pooled_dim", "position_table")
        for field in (*positive, "mlp_ratio", "text_split"):
            _require_positive(field, getattr(self, field))
        if self.heads is not None:
            _require_positive("heads", self.heads)
        if self.position_base is not None:
            _require_positive("position_base", self.position_base)
        if self.dual_attention != 0:
            _require_positive("dual_attention", self.dual_attention)
        if self.dual_attention > self.depth:
            raise UserError(f"dual_attention={self.dual_attention}: expected at most depth={self.depth}")
        if self.width % 4:
            raise UserError(
                f"head_size={self.head_size}: with heads={self.num_heads} the width is {self.width};"
                " 2-D sin-cos positions need a multiple of 4"
            )
        if self.scan is not None and not isinstance(self.scan, bool):
            raise UserError(f"scan={self.scan!r}: expected True, False or None")
        if self.remat not in REMAT_POLICIES:
            unknown("remat", self.remat, REMAT_POLICIES)
        if self.attention not in ATTENTIONS:
            unknown("attention", self.attention, ATTENTIONS)
        if self.dtype not in DTYPES:
            unknown("dtype", self.dtype, DTYPES)
        if self.products not in PRODUCTS:
            unknown("products", self.products, PRODUCTS)
        if self.architecture not in ARCHITECTURES:
            unknown("architecture", self.architecture, ARCHITECTURES)
        if self.dual_attention and self.architecture != "mmdit":
            raise UserError(f"dual_attention={self.dual_attention}: expected 0 with architecture={self.architecture!r}")
        self._check_parametrization()

    def _check_parametrization(self) -> None:
        if self.parametrization not in PARAMETRIZATIONS:
            unknown("parametrization", self.parametrization, PARAMETRIZATIONS)
        for field, value in (("base_width", self.base_width), ("base_depth", self.base_depth)):
            if self.parametrization == "standard":
                if value is not None:
                    raise UserError(f"{field}={value!r}: expected none with parametrization='standard'; 'mup' has it")
            elif value is None:
                raise UserError(f"{field}=None: parametrization='mup' needs the shape that the learning rate is for")
            else:
                _require_positive(field, value)
        if self.base_width is not None and self.base_width % self.head_size:
            # Heads are what grows: with heads of one size, scores over sqrt(head_size) are the same at any width.
            raise UserError(f"base_width={self.base_width}: expected a multiple of head_size={self.head_size}")
        if self.parametrization == "mup" and self.architecture == "uvit":
            raise UserError("parametrization='mup': no rules for architecture='uvit'; expected 'standard'")

    @classmethod
    def from_depth(cls, depth: int, *, width: int | None = None, **fields: Any) -> MMDiTConfig:
        """The paper's rule: as many heads as blocks. A ``width`` sets the heads instead, and must fit the head size.

        Raises:
          UserError: a field is unknown or out of range, or width, heads and head size contradict each other.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in names:
                unknown("field", name, [*names, "width"])
        if width is not None:
            head_size = fields.get("head_size", cls.head_size)
            heads = fields.get("heads")
            if heads is None:
                _require_positive("head_size", head_size)
                _require_positive("width", width)
                if width % head_size:
                    raise UserError(f"width={width}: expected a multiple of head_size={head_size}")
                fields["heads"] = width // head_size
            elif heads * head_size != width:
                raise UserError(f"width={width}: expected heads x head_size = {heads} x {head_size}")
        return cls(depth=depth, **fields)

    @property
    def num_heads(self) -> int:
        """Attention heads, with the default (one per block) filled in."""
        return self.depth if self.heads is None else self.heads

    @property
    def width(self) -> int:
        """Channels of a token: heads x head size."""
        return self.num_heads * self.head_size

    @property
    def position_span(self) -> int:
        """Coordinates that the position table spans, with the default filled in."""
        return self.position_base or min(POSITION_BASE, self.position_table)

    @property
    def patch_features(self) -> int:
        """Numbers in one patch."""
        return self.patch_size**2 * self.in_channels

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a latent.

        Args:
          height, width: in latent pixels.

        Raises:
          UserError: a side is no multiple of the patch size, or the grid is larger than the position table, or one
            side of a UViT's is odd, which it halves.
        """
        for field, size in (("height", height), ("width", width)):
            if size < 1 or size % self.patch_size:
                raise UserError(f"{field}={size}: expected a positive multiple of patch_size={self.patch_size}")
            if size // self.patch_size > self.position_table:
                largest = self.position_table * self.patch_size
                raise UserError(
                    f"{field}={size}: expected at most {largest} (position_table={self.position_table} patches)"
                )
            if self.architecture == "uvit" and size // self.patch_size % 2:
                raise UserError(f"{field}={size}: a uvit needs a multiple of 2 x patch_size={2 * self.patch_size}")
        return height // self.patch_size, width // self.patch_size

    def num_params(self) -> int:
        """Trainable parameters, in closed form. The position table is fixed and not counted."""
        if self.architecture != "mmdit":
            return _counts().num_params(self)
        d, hidden = self.width, self.mlp_ratio * self.width

        def dense(features_in: int, features_out: int) -> int:
            return features_in * features_out + features_out

        qk_norm = 2 * self.head_size if self.qk_norm else 0
        attended = dense(d, 3 * d) + qk_norm
        stream = dense(d, 6 * d) + attended + dense(d, d) + dense(d, hidden) + dense(hidden, d)
        last_context = dense(d, 2 * d) + attended
        embeddings = (
            dense(self.patch_features, d)
            + dense(self.context_dim, d)
            + dense(TIME_FEATURES, d)
            + dense(self.pooled_dim, d)
            + 2 * dense(d, d)
        )
        final = dense(d, 2 * d) + dense(d, self.patch_features)
        second = dense(d, 3 * d) + attended + dense(d, d)  # three more chunks of modulation, and the attention
        return embeddings + (2 * self.depth - 1) * stream + last_context + self.dual_attention * second + final

    def flops_per_image(self, height: int, width: int, context_tokens: int) -> int:
        """FLOPs of the matrix products of one forward pass of one image, attention included.

        Each token is counted through its own stream only. A multiplication and an addition are two FLOPs.

        Args:
          height, width: of the latent, in latent pixels.
          context_tokens: text tokens.
        """
        if self.architecture != "mmdit":
            return _counts().flops_per_image(self, height, width, context_tokens)
        rows, columns = self.grid(height, width)
        image, text, d = rows * columns, context_tokens, self.width
        per_token = 3 * d * d + d * d + 2 * self.mlp_ratio * d * d  # qkv, output, MLP
        attention = 2 * (image + text) ** 2 * d  # scores and weighted values
        block = (image + text) * per_token + attention + 2 * 6 * d * d  # the modulation is once an image and stream
        # The last block: its context stream makes queries, keys and values, of which the queries are not used.
        last = image * per_token + text * 3 * d * d + 2 * image * (image + text) * d + (6 + 2) * d * d
        embeddings = (
            image * self.patch_features * d
            + text * self.context_dim * d
            + (TIME_FEATURES + self.pooled_dim) * d
            + 2 * d * d
        )
        final = 2 * d * d + image * d * self.patch_features
        second = image * 4 * d * d + 2 * image**2 * d + 3 * d * d  # among image tokens only
        return 2 * (embeddings + (self.depth - 1) * block + last + self.dual_attention * second + final)

    def flops_6nd(self, height: int, width: int, context_tokens: int) -> int:
        """The 6ND convention for a training step of one image: 6 x parameters x tokens of both streams.

        It overcounts an MMDiT about twofold, since a token passes through its own stream only; it is there to compare
        with work that counts so. A training step by the other count is 3 x ``flops_per_image``.
        """
        if self.architecture != "mmdit":
            return 6 * self.num_params() * _counts().sequence(self, height, width, context_tokens)
        rows, columns = self.grid(height, width)
        return 6 * self.num_params() * (rows * columns + context_tokens)


def _counts() -> ModuleType:
    from mmdit_jax.models.architectures import counts  # which needs this module

    return counts


def _require_positive(field: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{field}={value!r}: expected a whole number")
    if value < 1:
        raise UserError(f"{field}={value}: expected 1 or more")
