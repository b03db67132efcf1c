"""HPSv2 and 2.1 (Wu et al. 2023, arXiv:2306.09341): a CLIP ViT-H-14 with open_clip's names, from one torch file.

The authors' own score is the cosine; ours is logit scale × cosine, with a scale of 100 what their tables print. In
logits it is, as PickScore: the model holds that the left of two images is preferred with probability
sigmoid(left - right).
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.rewards import torch_files as files
from mmdit_jax.evaluation.rewards.clip import ClipScores, read_tokenizer, tokenizer_files
from mmdit_jax.evaluation.rewards.interface import Judge, Options, Scores
from mmdit_jax.evaluation.rewards.pixels import DEVIATION, MEAN, corner, resized_sides

QUESTION = "preference"
HEADS = {"vision": 80, "text": 64}
"""Width of a head in ViT-H-14: the shapes of a checkpoint don't tell."""
_VERSION = "hpsv2-1"
_EXPECTED = "HPS_v2.1_compressed.pt or HPS_v2_compressed.pt"


def open_judge(name: str, folder: str, options: Options) -> Judge:
    """The folder of a checkpoint (or the file itself) with CLIP's tokenizer in it.

    Raises:
        UserError: no such folder, no checkpoint or several, or no tokenizer.
    """
    files.need(name, ("torch", "transformers", "ftfy"))
    path, place = files.one_file(name, folder, _EXPECTED)
    tokenizer = tokenizer_files(name, place)
    return Judge(
        name,
        QUESTION,
        files.fingerprint(_VERSION, [path, *tokenizer]),
        lambda: _load(name, path, tokenizer, options),
        options.batch,
        slope=1.0,
    )


def _load(name: str, path: Path, tokenizer: list[Path], options: Options) -> Scores:
    import torch
    from transformers import CLIPConfig, CLIPModel

    device = files.choose_device(name, options.device)
    tensors = files.load_tensors(name, path)
    config = clip_config(name, path, tensors)
    files.check_names(name, path, open_clip_shapes(config), tensors)
    with files.no_bars():
        model = CLIPModel.from_pretrained(
            None, config=CLIPConfig(**config), state_dict=transformers_names(tensors), dtype=torch.float32
        )
    size = config["vision_config"]["image_size"]
    read = read_tokenizer(name, tokenizer, config["text_config"]["vocab_size"])
    return ClipScores(model, read, lambda image: fit(image, size), clean, device, options.batch)


def clean(prompt: str) -> str:
    """A prompt as open_clip's tokenizer cleans it: broken Unicode and curly quotes mended, HTML's entities, spaces."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """An image uint8 [H, W, 3] as float32 [3, size, size], resized after it became float: nothing rounds or clips."""
    import torch

    pixels = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    height, width = resized_sides(image.shape[0], image.shape[1], size)
    pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    top, left = corner(height, size, down=False), corner(width, size, down=False)
    cut = pixels[0, :, top : top + size, left : left + size].numpy()
    out: np.ndarray = (cut - MEAN[:, None, None]) / DEVIATION[:, None, None]
    return out


def clip_config(name: str, path: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' CLIPConfig of a checkpoint, by the shapes of its tensors.

    Raises:
        UserError: a tensor that tells a size is missing.
    """
    sizes = {}
    for tensor in ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "token_embedding.weight",
                   "positional_embedding", "visual.transformer.resblocks.0.mlp.c_fc.weight",
                   "transformer.resblocks.0.mlp.c_fc.weight"):  # fmt: skip
        if tensor not in tensors:
            raise UserError(f"{name}={path}: another model's file? {tensor} is missing")
        sizes[tensor] = tuple(tensors[tensor].shape)
    width, _, patch, _ = sizes["visual.conv1.weight"]
    vocabulary, text_width = sizes["token_embedding.weight"]
    vision = {
        "hidden_size": width,
        "intermediate_size": sizes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _layers(tensors, "visual.transformer.resblocks."),
        "num_attention_heads": width // HEADS["vision"],
        "patch_size": patch,
        "image_size": patch * round((sizes["visual.positional_embedding"][0] - 1) ** 0.5),
        "hidden_act": "gelu",
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": sizes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _layers(tensors, "transformer.resblocks."),
        "num_attention_heads": text_width // HEADS["text"],
        "max_position_embeddings": sizes["positional_embedding"][0],
        "vocab_size": vocabulary,
        "hidden_act": "gelu",
        "eos_token_id": 2,  # transformers' sign for: where the highest token stands first, as in open_clip
    }
    return {"vision_config": vision, "text_config": text, "projection_dim": sizes["visual.proj"][1]}


def _layers(tensors: Mapping[str, Any], prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})


def open_clip_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's tensors by open_clip's names, of transformers' config."""
    vision, text, out = config["vision_config"], config["text_config"], config["projection_dim"]
    width, patch, other = vision["hidden_size"], vision["patch_size"], text["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": ((vision["image_size"] // patch) ** 2 + 1, width),
        "visual.proj": (width, out),
        "token_embedding.weight": (text["vocab_size"], other),
        "positional_embedding": (text["max_position_embeddings"], other),
        "text_projection": (other, out),
    }
    for norm, size in (("visual.ln_pre", width), ("visual.ln_post", width), ("ln_final", other)):
        shapes |= {f"{norm}.weight": (size,), f"{norm}.bias": (size,)}
    for prefix, part in (("visual.transformer", vision), ("transformer", text)):
        d, mlp = part["hidden_size"], part["intermediate_size"]
        block = {"ln_1.weight": (d,), "attn.in_proj_weight": (3 * d, d), "attn.out_proj.weight": (d, d),
                 "ln_2.weight": (d,), "mlp.c_fc.weight": (mlp, d), "mlp.c_proj.weight": (d, mlp)}  # fmt: skip
        for layer in range(part["num_hidden_layers"]):
            for tensor, shape in block.items():
                shapes[f"{prefix}.resblocks.{layer}.{tensor}"] = shape
                shapes[f"{prefix}.resblocks.{layer}.{tensor.removesuffix('weight')}bias"] = shape[:1]
    return shapes


_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
          "mlp.c_proj": "mlp.fc2"}  # fmt: skip
_OTHERS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def transformers_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's tensors under the names of transformers' CLIPModel: renamed, three of a kind taken apart, or
    transposed."""
    out = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        if found is None:
            if name in _TRANSPOSED:
                out[_TRANSPOSED[name]] = tensor.T.contiguous()
            else:
                out[_OTHERS[name]] = tensor
            continue
        tower = "vision_model" if found[1] else "text_model"
        layer = f"{tower}.encoder.layers.{found[2]}"
        if found[3] == "attn.in_proj":
            parts = zip("qkv", tensor.chunk(3), strict=True)
            out |= {f"{layer}.self_attn.{part}_proj.{found[4]}": piece.contiguous() for part, piece in parts}
        else:
            out[f"{layer}.{_BLOCK[found[3]]}.{found[4]}"] = tensor
    return out
