"""A Mask2Former, a DETR and a CLIP, tiny and random, in folders as transformers writes them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_encoders import write_clip_tokenizer
from transformers import (
    CLIPConfig,
    CLIPModel,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from mmdit_jax.evaluation.official.classes import OBJECTS

_OF_COCO = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
COCO = {number: _OF_COCO.get(name, name) for number, name in enumerate(OBJECTS)}
"""Labels as most detectors have them: "mouse", not "computer mouse"."""
_SIDES = {"shortest_edge": 64, "longest_edge": 128}


def _write(folder: Path, model: Any, processor: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():  # far enough from zero that scores, masks and embeddings differ
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_mask2former(folder: Path, labels: Mapping[int, str] = COCO) -> Path:
    """A Mask2Former of 116,000 parameters; 12 queries, images of 64 px and more."""
    torch.manual_seed(0)
    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_features=stages
    )
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=12,
        id2label=dict(labels),
    )  # fmt: skip
    return _write(folder, Mask2FormerForUniversalSegmentation(config), Mask2FormerImageProcessorPil(size=_SIDES))


def write_detr(folder: Path, labels: Mapping[int, str] = COCO) -> Path:
    """A DETR of 13,000 parameters and 9 queries."""
    torch.manual_seed(1)
    resnet = ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=resnet, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=9, id2label=dict(labels),
    )  # fmt: skip
    return _write(folder, DetrForObjectDetection(config), DetrImageProcessorPil(size=_SIDES))


def write_clip(folder: Path) -> Path:
    """A CLIP for images of 32 px, with the tiny tokenizer."""
    torch.manual_seed(2)
    write_clip_tokenizer(folder, "<|endoftext|>")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **common, "vocab_size": len(tokenizer), "projection_dim": 8, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**common, "image_size": 32, "patch_size": 8, "projection_dim": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _write(folder, CLIPModel(config), processor)


def write_all(folder: Path) -> dict[str, Path]:
    """All three, by name."""
    writers = {"mask2former": write_mask2former, "detr": write_detr, "clip": write_clip}
    return {name: functools.partial(write, folder / name)() for name, write in writers.items()}
