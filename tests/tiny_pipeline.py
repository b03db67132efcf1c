"""A whole SD3 pipeline, tiny and random, as the folder that diffusers would write; no torch.

transformer/, vae/, text_encoder{,_2,_3}/, tokenizer{,_2,_3}/, scheduler/ and model_index.json. diffusers'
``StableDiffusion3Pipeline.from_pretrained`` reads it, and so do we.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from deterministic import values, weights
from tiny_encoders import CONFIGS, write_encoders

from mmdit_jax.models import MMDiTConfig
from mmdit_jax.models.autoencoder import AutoencoderConfig, KLAutoencoder, save_autoencoder
from mmdit_jax.models.autoencoder.names import shapes as autoencoder_shapes
from mmdit_jax.models.sd3 import table
from mmdit_jax.models.sd3.infer import diffusers_config
from mmdit_jax.models.sd3.names import entries

CONTEXT = CONFIGS["t5"]["d_model"]
POOLED = CONFIGS["clip_l"]["projection_dim"] + CONFIGS["clip_g"]["projection_dim"]
MODEL = MMDiTConfig.from_depth(
    3,
    head_size=16,
    heads=3,
    in_channels=4,
    context_dim=CONTEXT,
    pooled_dim=POOLED,
    position_table=24,
    qk_norm=True,
    dual_attention=1,
)
AUTOENCODER = AutoencoderConfig(channels=4, widths=(8, 8, 16, 16), layers=1, groups=4, shift=0.0609, scale=1.5305)
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
PARTS = {
    "transformer": ("diffusers", "SD3Transformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_3": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "tokenizer_3": ("transformers", "T5TokenizerFast"),
}

CASES: dict[str, dict[str, Any]] = {
    "guided": {"steps": 6, "guidance": 5.0, "height": 128, "width": 64, "t5": True, "t5_length": 77},
    "plain-256": {"steps": 4, "guidance": 1.0, "height": 64, "width": 64, "t5": True, "t5_length": 256},
    "without-t5": {"steps": 5, "guidance": 3.0, "height": 64, "width": 192, "t5": False, "t5_length": 77},
}
PROMPT, NEGATIVE = "a photo of a red circle", ""


def noise(case: str) -> np.ndarray:
    """Where a case starts, float32 [1, h, w, C]."""
    told = CASES[case]
    return values(f"noise {case}", (1, told["height"] // 8, told["width"] // 8, MODEL.in_channels))


def write_pipeline(folder: Path) -> Path:
    """Write all of it; returns the folder."""
    write_encoders(folder)
    shapes = {}
    for entry in entries(MODEL)[1:]:
        shapes |= dict.fromkeys(entry.names("diffusers"), entry.part("diffusers"))
    tensors = weights(shapes) | {"pos_embed.pos_embed": table.whole(MODEL)}
    _write(folder / "transformer", diffusers_config(MODEL), tensors)
    save_autoencoder(folder / "vae", KLAutoencoder.from_tensors(AUTOENCODER, weights(autoencoder_shapes(AUTOENCODER))))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index = {"_class_name": "StableDiffusion3Pipeline", **{name: list(kind) for name, kind in PARTS.items()}}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _write(folder: Path, config: dict, tensors: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
