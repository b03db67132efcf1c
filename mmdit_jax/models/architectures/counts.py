"""Parameters and FLOPs of the architectures beside the MMDiT, in closed form. Nothing here needs an accelerator.

All follow the conventions of ``MMDiTConfig``: the position table is fixed and not counted, FLOPs are those of matrix
products (attention included) of one forward pass of one image, a multiplication and an addition are two.
"""

from __future__ import annotations

from mmdit_jax.errors import UserError
from mmdit_jax.models.config import TIME_FEATURES, MMDiTConfig

UVIT_BLOCKS = 2
"""Convolutional blocks of a UViT before its transformer, and as many after it."""


def num_params(config: MMDiTConfig) -> int:
    """Trainable parameters of ``config.architecture``, one of those but ``mmdit``."""
    return _PARAMS[config.architecture](config)


def flops_per_image(config: MMDiTConfig, height: int, width: int, context_tokens: int) -> int:
    """FLOPs of one forward pass of one image. Sizes as of ``MMDiTConfig.flops_per_image``.

    Raises:
      UserError: the latent does not fit the patches, or the text is too short for two streams.
    """
    rows, columns = config.grid(height, width)
    if config.architecture == "mmdit3":
        split_text(config, context_tokens)
    return 2 * _PRODUCTS[config.architecture](config, rows * columns, context_tokens)


def sequence(config: MMDiTConfig, height: int, width: int, context_tokens: int) -> int:
    """Tokens that pass through the transformer's blocks: the D of the 6ND convention.

    A CrossDiT's text passes through none; a UViT's sequence has a quarter of its patches, and the text.
    """
    rows, columns = config.grid(height, width)
    image = rows * columns // (4 if config.architecture == "uvit" else 1)
    return image if config.architecture == "crossdit" else image + context_tokens


def split_text(config: MMDiTConfig, context_tokens: int) -> tuple[int, int]:
    """Tokens of the first and the second text stream.

    Raises:
      UserError: nothing is left for the second.
    """
    if context_tokens <= config.text_split:
        raise UserError(
            f"text_split={config.text_split}: the text has {context_tokens} tokens; mmdit3 needs some after the split"
        )
    return config.text_split, context_tokens - config.text_split


def _dense(features_in: int, features_out: int) -> int:
    return features_in * features_out + features_out


def _stream(config: MMDiTConfig) -> int:
    """Parameters of one set of weights in a block: modulation, attention, MLP."""
    d, hidden = config.width, config.mlp_ratio * config.width
    return _dense(d, 6 * d) + _attended(config) + _dense(d, d) + _dense(d, hidden) + _dense(hidden, d)


def _attended(config: MMDiTConfig) -> int:
    return _dense(config.width, 3 * config.width) + (2 * config.head_size if config.qk_norm else 0)


def _ends(config: MMDiTConfig, patches: int) -> int:
    """Parameters before and after the blocks; ``patches`` is the width of a patch's token."""
    d = config.width
    embeddings = _dense(config.patch_features, patches) + _dense(config.context_dim, d)
    condition = _dense(TIME_FEATURES, d) + _dense(config.pooled_dim, d) + 2 * _dense(d, d)
    return embeddings + condition + _dense(d, 2 * patches) + _dense(patches, config.patch_features)


def _dit_params(config: MMDiTConfig) -> int:
    return _ends(config, config.width) + config.depth * _stream(config)


def _crossdit_params(config: MMDiTConfig) -> int:
    d = config.width
    cross = _dense(d, d) + _dense(d, 2 * d) + _dense(d, d) + (2 * config.head_size if config.qk_norm else 0)
    return _ends(config, d) + config.depth * (_stream(config) + cross)


def _mmdit3_params(config: MMDiTConfig) -> int:
    d = config.width
    last_text = _dense(d, 2 * d) + _attended(config)
    second_embedding = _dense(config.context_dim, d)
    return _ends(config, d) + second_embedding + (3 * config.depth - 2) * _stream(config) + 2 * last_text


def _uvit_params(config: MMDiTConfig) -> int:
    d, c = config.width, config.width // 2
    modulation, conv = _dense(d, 3 * c), _dense(9 * c, c)
    before = modulation + 2 * conv
    after = modulation + _dense(18 * c, c) + conv + _dense(2 * c, c)
    resampling = _dense(4 * c, d) + _dense(d, 4 * c)
    return _ends(config, c) + UVIT_BLOCKS * (before + after) + resampling + config.depth * _stream(config)


def _end_products(config: MMDiTConfig, patches: int, text: int, width: int) -> int:
    """Multiplications before and after the blocks, for ``patches`` tokens of ``width``."""
    d, features = config.width, config.patch_features
    condition = (TIME_FEATURES + config.pooled_dim) * d + 2 * d * d
    return 2 * patches * features * width + text * config.context_dim * d + condition + 2 * d * width


def _joint_products(config: MMDiTConfig, image: int, text: int, streams: int) -> int:
    """All blocks of tokens that attend to each other; in the last, text only makes queries, keys and values.

    ``streams`` sets of weights: they change nothing but how often the condition is made into modulations, in the last
    block two instead of six for a text stream.
    """
    d, tokens = config.width, image + text
    per_token = (4 + 2 * config.mlp_ratio) * d * d
    block = tokens * per_token + 2 * tokens**2 * d + streams * 6 * d * d
    last = image * per_token + text * 3 * d * d + 2 * image * tokens * d + (6 + 2 * (streams - 1)) * d * d
    return (config.depth - 1) * block + last


def _dit_products(config: MMDiTConfig, image: int, text: int) -> int:
    return _end_products(config, image, text, config.width) + _joint_products(config, image, text, 1)


def _mmdit3_products(config: MMDiTConfig, image: int, text: int) -> int:
    return _end_products(config, image, text, config.width) + _joint_products(config, image, text, 3)


def _crossdit_products(config: MMDiTConfig, image: int, text: int) -> int:
    d = config.width
    per_token = (4 + 2 * config.mlp_ratio + 2) * d * d  # the two: queries and output of the cross-attention
    attention = 2 * image * (image + text) * d
    block = image * per_token + text * 2 * d * d + attention + 6 * d * d
    return _end_products(config, image, text, d) + config.depth * block


def _uvit_products(config: MMDiTConfig, image: int, text: int) -> int:
    d, c = config.width, config.width // 2
    before = image * 2 * 9 * c * c + d * 3 * c
    after = image * (18 + 9 + 2) * c * c + d * 3 * c
    resampling = 2 * (image // 4) * 4 * c * d
    middle = _joint_products(config, image // 4, text, 1)
    return _end_products(config, image, text, c) + UVIT_BLOCKS * (before + after) + resampling + middle


_PARAMS = {"dit": _dit_params, "crossdit": _crossdit_params, "uvit": _uvit_params, "mmdit3": _mmdit3_params}
_PRODUCTS = {"dit": _dit_products, "crossdit": _crossdit_products, "uvit": _uvit_products, "mmdit3": _mmdit3_products}
