"""PickScore (Kirstain et al. 2023, arXiv:2305.01569): a CLIP ViT-H-14 that tells which image people picked.

Its score is in logits: the model holds that the left of two images is picked with probability sigmoid(left - right).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.rewards import torch_files as files
from mmdit_jax.evaluation.rewards.clip import ClipScores, read_tokenizer, tokenizer_files
from mmdit_jax.evaluation.rewards.interface import Judge, Options, Scores
from mmdit_jax.evaluation.rewards.pixels import fit, normalise
from mmdit_jax.models.tensors import weight_files

QUESTION = "preference"
_VERSION = "pickscore-1"


def open_judge(name: str, folder: str, options: Options) -> Judge:
    """PickScore_v1's folder: config.json, model.safetensors, and CLIP's tokenizer.

    Raises:
        UserError: the folder is not there, lacks a file, or holds another kind of model.
    """
    files.need(name, ("torch", "transformers"))
    place = Path(folder).expanduser()
    config = place / "config.json"
    try:
        kind = json.loads(config.read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{name}={folder}: no config.json to be read; expected the folder of PickScore_v1") from None
    if kind != "clip":
        raise UserError(f"{name}={folder}: config.json tells of model_type {kind!r}; expected 'clip'")
    weights = weight_files(place, "model", name)
    tokenizer = tokenizer_files(name, place)
    return Judge(
        name,
        QUESTION,
        files.fingerprint(_VERSION, [config, *weights, *tokenizer]),
        lambda: _load(name, place, tokenizer, options),
        options.batch,
        slope=1.0,
    )


def _load(name: str, folder: Path, tokenizer: list[Path], options: Options) -> Scores:
    import torch
    from transformers import CLIPModel

    device = files.choose_device(name, options.device)
    try:
        with files.no_bars():
            found: Any = CLIPModel.from_pretrained(
                str(folder), local_files_only=True, dtype=torch.float32, output_loading_info=True, use_safetensors=True
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{name}={folder}: transformers can't read it ({str(error).splitlines()[0][:160]})") from None
    model, told = found
    if missing := sorted(told["missing_keys"]):
        raise UserError(f"{name}={folder}: another model's file? {missing[0]} is missing; {len(missing)} in all")
    size = model.config.vision_config.image_size

    def pixels(image: np.ndarray) -> np.ndarray:
        return normalise(fit(image, size, down=True))

    read = read_tokenizer(name, tokenizer, model.config.text_config.vocab_size)
    return ClipScores(model, read, pixels, lambda prompt: prompt, device, options.batch)
