"""PickScore, HPSv2 and ImageReward, tiny and random, as the folders that `mmdit battles --judge` takes; needs no torch
until a folder is written.

Weights come from `deterministic.values` by the names that the published checkpoints have, so that the golden of
`parity.write_rewards`, made by the authors' own programs, need not hold them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from deterministic import values, weights
from tiny_encoders import clip_vocabulary, write_clip_tokenizer

PROMPTS = ["a photo of a red circle", "two dogs and a cat on the square", "", "the green cat " * 12]
SIDES = [(32, 32), (64, 64), (40, 62), (59, 46), (57, 46)]
"""Of the images: enlarged and reduced, square, wide and high. The last three leave a rest whose half is rounded down by
one library and up by the other: of a side of 42 px the first two (23, 11), of 48 px the last (11)."""

# Widths of heads can't be told from shapes: they are ViT-H-14's here, 80 and 64, two of each.
CLIP_VISION = {"width": 160, "layers": 2, "mlp": 320, "patch": 14, "image": 42}
CLIP_TEXT = {"width": 128, "layers": 2, "mlp": 256, "positions": 77}
PROJECTION = 48
LOGIT_SCALE = 4.25

BLIP_VISION = {"width": 128, "layers": 2, "mlp": 512, "patch": 16, "image": 48}
MED = {
    "hidden_act": "gelu",
    "hidden_size": 96,
    "intermediate_size": 160,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "add_cross_attention": True,
}
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "aeost"),
              "the", "photo", "of", "red", "green", "circle", "square", "cat", "dogs", "and", "on", "two"]  # fmt: skip


def images() -> list[np.ndarray]:
    """One image uint8 [H, W, 3] for each of ``SIDES``: coarse blocks of colour, with noise."""
    made = []
    for number, (height, width) in enumerate(SIDES):
        coarse = values(f"image{number}", (5, 5, 3), 60.0)
        rows, columns = np.arange(height) * 5 // height, np.arange(width) * 5 // width
        noise = values(f"noise{number}", (height, width, 3), 15.0)
        made.append(np.clip(128 + coarse[rows][:, columns] + noise, 0, 255).astype(np.uint8))
    return made


def tensors(kind: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """float32 weights by name; ``kind`` only keeps the models apart."""
    made = weights({f"{kind}/{name}": shape for name, shape in shapes.items()})
    out = {name.removeprefix(f"{kind}/"): array for name, array in made.items()}
    for name, array in out.items():
        if name == "logit_scale":
            out[name] = np.array(LOGIT_SCALE, np.float32)
        elif "embed" in name and "norm" not in name.lower() and "proj" not in name and "patch" not in name:
            out[name] = values(f"{kind}/{name}", array.shape, 0.5)  # so that words and places show
    return out


def write_tokenizer(folder: Path) -> Path:
    """CLIP's, tiny."""
    write_clip_tokenizer(folder, pad="<|endoftext|>")
    return folder


def vocabulary() -> int:
    """Tokens of the tiny CLIP's."""
    return len(clip_vocabulary()[0])


def write_bert_vocabulary(folder: Path) -> Path:
    """vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
    return folder


def write_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], *, nested: bool) -> Path:
    """A torch file of tensors, as HPSv2's within "state_dict" or as ImageReward's at the top."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    torch.save({"state_dict": state} if nested else state, path)
    return path


def write_med(folder: Path) -> Path:
    """med_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "med_config.json"
    path.write_text(json.dumps({**MED, "vocab_size": len(BERT_WORDS), "encoder_width": 768}))
    return path
