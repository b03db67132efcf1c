"""SD3's three text encoders, tiny and random, as Hugging Face folders in the layout of the SD3 repository; no torch.

`write_encoders(folder)` makes ``text_encoder`` (clip_l), ``text_encoder_2`` (clip_g), ``text_encoder_3`` (t5) with
config.json and model.safetensors, and ``tokenizer``, ``tokenizer_2``, ``tokenizer_3``. Weights come from
`deterministic.weights` by their transformers names, so that everybody has the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from deterministic import values, weights

FOLDERS = {
    "clip_l": ("text_encoder", "tokenizer"),
    "clip_g": ("text_encoder_2", "tokenizer_2"),
    "t5": ("text_encoder_3", "tokenizer_3"),
}
"""Of each encoder: its folder and its tokenizer's in the SD3 repository."""

WORDS = ["a", "the", "photo", "of", "red", "blue", "green", "circle", "square", "cat", "dog", "and", "on", "two"]
"""Words that the tiny tokenizers know whole; others are spelled by bytes (CLIP) or letters (T5)."""

# Like the SD3 repository's: 77 positions, the old eos_token_id 2. Odd head counts; T5's heads are narrower than it.
CONFIGS: dict[str, dict[str, Any]] = {
    "clip_l": {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "hidden_act": "quick_gelu",
        "hidden_size": 24,
        "intermediate_size": 96,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "projection_dim": 24,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "clip_g": {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "hidden_act": "gelu",
        "hidden_size": 40,
        "intermediate_size": 160,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "num_attention_heads": 5,
        "num_hidden_layers": 4,
        "projection_dim": 40,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "t5": {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": 72,
        "d_kv": 16,
        "d_ff": 176,
        "num_heads": 3,
        "num_layers": 3,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-06,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
}
"""config.json of each encoder, all but ``vocab_size``, which is its tokenizer's."""


def config(name: str) -> dict[str, Any]:
    """config.json of ``name``, as `write_encoders` writes it."""
    size = len(t5_vocabulary()) if name == "t5" else len(clip_vocabulary()[0])
    return {**CONFIGS[name], "vocab_size": size}


def clip_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of a CLIPTextModelWithProjection's tensors by transformers' names."""
    d, mlp = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (config["vocab_size"], d),
        "text_model.embeddings.position_embedding.weight": (config["max_position_embeddings"], d),
        "text_model.final_layer_norm.weight": (d,),
        "text_model.final_layer_norm.bias": (d,),
        "text_projection.weight": (config["projection_dim"], d),
    }
    for layer in range(config["num_hidden_layers"]):
        parts = {f"self_attn.{p}_proj": (d, d) for p in ("q", "k", "v", "out")}
        for part, shape in {**parts, "mlp.fc1": (mlp, d), "mlp.fc2": (d, mlp)}.items():
            shapes[f"text_model.encoder.layers.{layer}.{part}.weight"] = shape
            shapes[f"text_model.encoder.layers.{layer}.{part}.bias"] = shape[:1]
        for part in ("layer_norm1", "layer_norm2"):
            shapes[f"text_model.encoder.layers.{layer}.{part}.weight"] = (d,)
            shapes[f"text_model.encoder.layers.{layer}.{part}.bias"] = (d,)
    return shapes


def t5_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of a T5EncoderModel's tensors (v1.1: gated) by transformers' names."""
    d, inner, ff = config["d_model"], config["d_kv"] * config["num_heads"], config["d_ff"]
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes: dict[str, tuple[int, ...]] = {
        "shared.weight": (config["vocab_size"], d),
        "encoder.final_layer_norm.weight": (d,),
        first: (config["relative_attention_num_buckets"], config["num_heads"]),
    }
    for layer in range(config["num_layers"]):
        block = f"encoder.block.{layer}.layer"
        shapes |= {f"{block}.0.SelfAttention.{part}.weight": (inner, d) for part in "qkv"}
        shapes[f"{block}.0.SelfAttention.o.weight"] = (d, inner)
        shapes[f"{block}.0.layer_norm.weight"] = shapes[f"{block}.1.layer_norm.weight"] = (d,)
        shapes |= {f"{block}.1.DenseReluDense.wi_{half}.weight": (ff, d) for half in (0, 1)}
        shapes[f"{block}.1.DenseReluDense.wo.weight"] = (d, ff)
    return shapes


def encoder_weights(name: str, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """float32 weights of an encoder by transformers' names; ``name`` only keeps the two CLIPs apart."""
    shapes = t5_shapes(config) if config["model_type"] == "t5" else clip_shapes(config)
    made = weights({f"{name}/{tensor}": shape for tensor, shape in shapes.items()})
    out = {tensor.removeprefix(f"{name}/"): array for tensor, array in made.items()}
    for tensor, array in out.items():
        if "embedding.weight" in tensor or tensor == "shared.weight":
            # Near 1 rather than 1/√width, so that words show in the states.
            out[tensor] = values(f"{name}/{tensor}", array.shape, 0.5)
    return out


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE in CLIP's order: bytes ("!" is 0), bytes that end a word, merges, start (n - 2), end (n - 1)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = range(256, 256 + 256 - len(printable))
    alphabet = [chr(code) for code in (*printable, *others)]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            parts[:2] = ["".join(pair)]
            if pair not in merges:
                merges.append(pair)
                tokens.append(parts[0])
    tokens = list(dict.fromkeys(tokens))
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def t5_vocabulary() -> list[tuple[str, float]]:
    """A unigram vocabulary with log probabilities: pad 0, eos 1, unknown 2, words, letters."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-"
    pieces = [("▁", -3.0), *((f"▁{word}", -2.0) for word in WORDS), *((letter, -4.0) for letter in letters)]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]


def write_encoders(folder: Path, names: Iterable[str] = ("clip_l", "clip_g", "t5")) -> Path:
    """Write encoders and tokenizers under ``folder``; returns it."""
    for name in names:
        encoder, tokenizer = (folder / part for part in FOLDERS[name])
        write_encoder(encoder, encoder_weights(name, config(name)), config(name))
        if name == "t5":
            write_t5_tokenizer(tokenizer)
        else:
            write_clip_tokenizer(tokenizer, pad="!" if name == "clip_g" else "<|endoftext|>")
    return folder


def write_encoder(folder: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    safetensors.numpy.save_file(dict(arrays), folder / "model.safetensors", {"format": "pt"})


def write_clip_tokenizer(folder: Path, pad: str) -> None:
    """vocab.json, merges.txt and the tokenizer's config, as in ``tokenizer`` and ``tokenizer_2`` of SD3."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    told = {**special, "pad_token": pad, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}))


def write_t5_tokenizer(folder: Path) -> None:
    """tokenizer.json and the tokenizer's config, as in ``tokenizer_3`` of SD3, which has spiece.model besides."""
    from transformers import T5Tokenizer  # slow to import

    T5Tokenizer(vocab=t5_vocabulary(), extra_ids=0, model_max_length=512).save_pretrained(folder)
