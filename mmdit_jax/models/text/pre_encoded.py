"""SD3's three text encoders by their shapes (arXiv 2403.03206 §C): their states come with pre-encoded data."""

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
            f"'words' and 'tower', or by load_text_encoder({self.name!r}, FOLDER) with its weights"
        )


PRE_ENCODED = {
    item.name: item
    for item in (
        PreEncoded("clip_l", "openai/clip-vit-large-patch14", length=77, width=768, pooled_width=768),
        PreEncoded("clip_g", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", length=77, width=1280, pooled_width=1280),
        PreEncoded("t5", "google/t5-v1_1-xxl", length=77, width=4096, pooled_width=0),
    )
}
"""By name. The CLIPs side by side are 2048 channels wide, pooled and token by token; T5 has no pooled state."""
