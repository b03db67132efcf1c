"""The two CLIP encoders of SD3 by their shapes (arXiv 2403.03206 §C): their states come with pre-encoded data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mmdit_jax.errors import UserError
from mmdit_jax.models.text.interface import TextStates


@dataclass(frozen=True)
class PreEncoded:
    """A text encoder whose states a data set brings along: shapes, and no weights."""

    name: str
    checkpoint: str
    """Public name of its weights."""
    length: int
    width: int
    pooled_width: int

    @property
    def fingerprint(self) -> str:
        """Hash of what it is."""
        return hashlib.sha256(f"{self.checkpoint}:{self.length}:{self.width}".encode()).hexdigest()[:16]

    def encode(self, captions: Sequence[str]) -> TextStates:
        """Refused: there are no weights here."""
        raise UserError(
            f"text_encoder={self.name!r}: its states come with pre-encoded data; captions can be encoded by "
            "'words' and 'tower'"
        )


PRE_ENCODED = {
    item.name: item
    for item in (
        PreEncoded("clip_l", "openai/clip-vit-large-patch14", length=77, width=768, pooled_width=768),
        PreEncoded("clip_g", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", length=77, width=1280, pooled_width=1280),
    )
}
"""By name; side by side they are 2048 channels wide, pooled and token by token."""
