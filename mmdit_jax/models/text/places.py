"""Where a text encoder is, in a folder or a file that may hold all three of SD3's."""

from __future__ import annotations

from pathlib import Path

from mmdit_jax.models.tensors import read_header
from mmdit_jax.models.text.tokenizer import SD3_FOLDERS

STEMS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5xxl"}
"""What Stability calls them, in names of files and of tensors."""
BUNDLES = {name: f"text_encoders.{stem}.transformer." for name, stem in STEMS.items()}
"""What precedes an encoder's tensors in a checkpoint of Stability's that holds everything."""


def find_encoder(name: str, whole: Path) -> Path | None:
    """The folder or file of one of SD3's encoders; none where ``whole`` does not hold it.

    Args:
        name: "clip_l", "clip_g" or "t5".
        whole: a folder with ``text_encoder``, ``_2``, ``_3`` as SD3's repositories have it; one with Stability's files
            (``clip_l.safetensors``, …), or ``text_encoders/`` with them, where 8-bit ones come last; or a checkpoint
            that includes encoders.

    Raises:
        UserError: the checkpoint is damaged.
    """
    if whole.is_file():
        return whole if name in bundled(whole) else None
    inside = whole / SD3_FOLDERS[name][0]
    if inside.is_dir():
        return inside
    for folder in (whole / "text_encoders", whole):
        files = folder.glob(f"{STEMS[name]}*.safetensors")
        if found := sorted(files, key=lambda file: ("fp8" in file.name, file.name)):
            return found[0]
    return None


def bundled(file: Path) -> list[str]:
    """The encoders that a checkpoint includes.

    Raises:
        UserError: it is damaged.
    """
    if file.suffix != ".safetensors":
        return []
    tensors, _ = read_header(file, "text_encoder")
    return [name for name, bundle in BUNDLES.items() if any(tensor.startswith(bundle) for tensor in tensors)]
