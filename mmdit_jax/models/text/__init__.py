"""Frozen text encoders behind one interface. Three are embedded and need no download: `words`, `tower` and `letters`.

SD3's `clip_l`, `clip_g` and `t5` are known by their shapes, which is what a study needs to be planned; with their
weights from a local folder, `load_text_encoder` makes encoders of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from mmdit_jax.errors import unknown
from mmdit_jax.models.text.interface import (
    LAYOUTS,
    TextEncoder,
    TextShape,
    TextStates,
    assemble,
    context_shape,
    encode_all,
    encoder_order,
    shapes_of,
)
from mmdit_jax.models.text.letters import LettersEncoder
from mmdit_jax.models.text.pre_encoded import PRE_ENCODED
from mmdit_jax.models.text.pretrained import PretrainedEncoder, load_text_encoder
from mmdit_jax.models.text.tower import TowerEncoder
from mmdit_jax.models.text.words import WordsEncoder

__all__ = [
    "ENCODERS",
    "LAYOUTS",
    "PretrainedEncoder",
    "TextEncoder",
    "TextShape",
    "TextStates",
    "assemble",
    "context_shape",
    "encode_all",
    "encoder_order",
    "load_text_encoder",
    "shapes_of",
    "text_encoder",
]

ENCODERS: dict[str, Callable[[], TextEncoder]] = {
    "words": WordsEncoder,
    "tower": TowerEncoder.load,
    "letters": LettersEncoder,
}
"""Every encoder that can encode, by name; the value makes it (and reads its weights, where it has any)."""


@functools.cache
def text_encoder(name: str) -> TextEncoder:
    """The encoder of that name, made once a process.

    Raises:
        UserError: no such encoder (the nearest name is offered), or its weights are missing or damaged.
    """
    if name in PRE_ENCODED:
        return PRE_ENCODED[name]
    if name not in ENCODERS:
        unknown("text_encoder", name, [*ENCODERS, *PRE_ENCODED])
    return ENCODERS[name]()
