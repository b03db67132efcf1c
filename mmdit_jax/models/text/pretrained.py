"""SD3's frozen text encoders from local weights: CLIP-L, CLIP-G and T5 v1.1 (arXiv 2403.03206 §C)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmdit_jax.errors import UserError, unknown
from mmdit_jax.models.tensors import Tensor
from mmdit_jax.models.text import clip, t5
from mmdit_jax.models.text.folder import WHAT, Source, content_hash, read, stack
from mmdit_jax.models.text.interface import TextStates
from mmdit_jax.models.text.places import BUNDLES, find_encoder
from mmdit_jax.models.text.tokenizer import SD3_FOLDERS, Tokenizer, find_tokenizer

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16")
_VERSION = "pretrained-1"
_ROWS = {"clip_l": 32, "clip_g": 32, "t5": 8}
_LENGTH = 77
"""Of T5, whose captions may be longer; CLIP's are as long as its position table."""
_ACTIVATIONS = {"clip_l": "quick_gelu", "clip_g": "gelu"}


class PretrainedEncoder:
    """A text encoder with weights from disk: what SD3 takes of it, token by token and pooled.

    CLIPs give the hidden state before their last layer, without a norm, and the pooled state of the end token; T5 gives
    its last state after its norm, and nothing pooled. Padding has states as words have: SD3 attends to it.
    """

    def __init__(
        self, name: str, config: clip.CLIPConfig | t5.T5Config, source: Source, tokenizer: Tokenizer, length: int,
        dtype: str, rows: int,
    ) -> None:  # fmt: skip
        self.name, self.config, self.length, self.dtype, self.rows = name, config, length, dtype, rows
        self.folder = str(source.path)
        self.width = config.width
        self.pooled_width = 0 if isinstance(config, t5.T5Config) else config.projection or config.width
        self._tensors, self._tokenizer = source.tensors, tokenizer
        self._weights = stack(source.tensors, config.shapes(), dtype, f"{WHAT}={source.path}")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of weights, tokenizer, length and dtype; 16 hexadecimal digits. Reads all weights when first asked."""
        told = (_VERSION, self.name, self.config, self.length, self.dtype, self._tokenizer.fingerprint)
        return hashlib.sha256(f"{told} {content_hash(self._tensors)}".encode()).hexdigest()[:16]

    def encode(self, captions: Sequence[str]) -> TextStates:
        """States of captions: tokens float32 [N, length, width], pooled float32 [N, pooled_width]."""
        ids = self._tokenizer.ids(captions, self.length)
        tokens = np.empty((len(ids), self.length, self.width), np.float32)
        pooled = np.empty((len(ids), self.pooled_width), np.float32)
        for start in range(0, len(ids), self.rows):
            part = ids[start : start + self.rows]
            # Always the same shape: one compilation, and a row's bits don't depend on how many stand beside it.
            padded = np.pad(part, ((0, self.rows - len(part)), (0, 0)), constant_values=self._tokenizer.pad)
            new_tokens, new_pooled = _states(self._weights, jnp.asarray(padded), self.config)
            tokens[start : start + len(part)] = np.asarray(new_tokens)[: len(part)]
            pooled[start : start + len(part)] = np.asarray(new_pooled)[: len(part)]
        return TextStates(tokens, pooled)


@functools.partial(jax.jit, static_argnames="config")
def _states(
    weights: Mapping[str, jax.Array], ids: jax.Array, config: clip.CLIPConfig | t5.T5Config
) -> tuple[jax.Array, jax.Array]:
    """What SD3 takes. Weights are arguments: as constants they would make the program as large as they are."""
    if isinstance(config, t5.T5Config):
        return t5.encode(weights, ids, config).last, jnp.zeros((len(ids), 0))
    states = clip.encode(weights, ids, config)
    return states.penultimate, states.pooled


def load_text_encoder(
    name: str,
    folder: str | Path,
    *,
    length: int | None = None,
    dtype: str = "float32",
    tokenizer: str | Path | None = None,
    projected: bool | None = None,
    rows: int | None = None,
) -> PretrainedEncoder:
    """A `TextEncoder` with weights from a local folder.

    Args:
        name: "clip_l", "clip_g" or "t5".
        folder: a Hugging Face folder (config.json and safetensors, sharded or not, or their fp16 or bf16 variant), an
            SD3 repository (its part is taken: ``text_encoder`` is clip_l, ``_2`` clip_g, ``_3`` t5), a folder of
            Stability's files, or one of these (clip_l, clip_g, t5xxl, or a checkpoint that includes them).
        length: tokens of an encoded caption; CLIP: all that it has positions for (77), T5: 77 (diffusers takes 256).
        dtype: "float32" or "bfloat16", of the weights and of what enters a matrix product; states are float32.
        tokenizer: folder of the tokenizer; by default the encoder's own, or the one beside it as in SD3's repositories.
        projected: whether CLIP's pooled state goes through ``text_projection``. SD3 takes CLIP-L's unprojected and
            CLIP-G's projected. Default: so, but for a CLIP-L folder that is a CLIPTextModelWithProjection, whose
            projection is taken as diffusers does (which writes an identity there for SD3).
        rows: captions that are encoded at once (and what fewer are padded to); 32 for CLIP, 8 for T5.

    Raises:
        UserError: no such encoder, or its folder, its weights or its tokenizer are missing, damaged or of another kind.
    """
    if name not in SD3_FOLDERS:
        unknown("text_encoder", name, SD3_FOLDERS)
    if dtype not in DTYPES:
        unknown("dtype", dtype, DTYPES)
    path = Path(folder).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        path = find_encoder(name, path) or path
    source = read(path)
    config, source = _configure(name, source, projected)
    if length is None:
        length = _LENGTH if isinstance(config, t5.T5Config) else config.positions
    longest = None if isinstance(config, t5.T5Config) else config.positions
    if length < 2 or (longest is not None and length > longest):
        raise UserError(f"length={length}: expected 2 {'or more' if longest is None else f'to {longest}'} tokens")
    rows = _ROWS[name] if rows is None else rows
    if rows < 1:
        raise UserError(f"rows={rows}: expected 1 or more")
    words = Tokenizer(name, find_tokenizer(name, path) if tokenizer is None else Path(tokenizer).expanduser())
    _check_tokenizer(name, words, config, path)
    return PretrainedEncoder(name, config, source, words, length, dtype, rows)


def _configure(name: str, source: Source, projected: bool | None) -> tuple[clip.CLIPConfig | t5.T5Config, Source]:
    """The configuration, and the source with the encoder's own tensors under the names that the models know."""
    kind = None if source.config is None else source.config.get("model_type")
    kinds = ("t5",) if name == "t5" else ("clip_text_model", "clip")
    if source.config is not None and kind not in kinds:
        needs = " or ".join(map(repr, kinds))
        raise UserError(f"text encoder {source.path}: model_type={kind!r} in config.json; {name} needs {needs}")
    bundle = BUNDLES[name]
    bundled = {key.removeprefix(bundle): array for key, array in source.tensors.items() if key.startswith(bundle)}
    if not bundled and (others := [key for key in BUNDLES if any(t.startswith(BUNDLES[key]) for t in source.tensors)]):
        raise UserError(f"{WHAT}={source.path}: no {name} in it; it includes {', '.join(others)}")
    source = dataclasses.replace(source, tensors=bundled or source.tensors)
    return _configure_t5(source) if name == "t5" else _configure_clip(name, source, projected)


def _configure_t5(source: Source) -> tuple[t5.T5Config, Source]:
    tensors = _without(source.tensors, "decoder.", "lm_head.", "spiece_model")
    tied = tensors.pop("encoder.embed_tokens.weight", None)
    if tied is not None:
        tensors.setdefault("shared.weight", tied)
    where = f"{WHAT}={source.path}"
    if source.config is None:
        config = t5.from_shapes({key: array.shape for key, array in tensors.items()}, where)
    else:
        config = t5.from_json(source.config, f"{where}: config.json")
    return config, dataclasses.replace(source, tensors=tensors)


def _configure_clip(name: str, source: Source, projected: bool | None) -> tuple[clip.CLIPConfig, Source]:
    where, told = f"{WHAT}={source.path}", source.config
    tensors = {key.removeprefix("text_model."): array for key, array in source.tensors.items()}
    tensors = _without(tensors, "vision_model.", "visual_projection.", "logit_scale", "embeddings.position_ids")
    matrix = tensors.pop(clip.PROJECTION, None)
    if projected is None:
        text_only = told is not None and told.get("model_type") == "clip_text_model"
        projected = name == "clip_g" or (text_only and matrix is not None)
    projection = None
    if projected:
        if matrix is None or len(matrix.shape) != 2:
            found = "missing" if matrix is None else f"{list(matrix.shape)}"
            raise UserError(
                f"{where}: {clip.PROJECTION} is {found}; expected that of a CLIPTextModelWithProjection, "
                "or projected=False"
            )
        tensors[clip.PROJECTION], projection = matrix, matrix.shape[0]
    if told is None:
        shapes = {key: array.shape for key, array in tensors.items()}
        config = clip.from_shapes(shapes, _ACTIVATIONS[name], where, projection)
    else:
        config = clip.from_json(told, f"{where}: config.json", projection)
    return config, dataclasses.replace(source, tensors=tensors)


def _without(tensors: Mapping[str, Tensor], *beginnings: str) -> dict[str, Tensor]:
    return {key: array for key, array in tensors.items() if not key.startswith(beginnings)}


def _check_tokenizer(name: str, words: Tokenizer, config: clip.CLIPConfig | t5.T5Config, path: Path) -> None:
    """A tokenizer of another model gives numbers without an embedding, or an end token that nothing pools."""
    highest = max(words.vocabulary.values())
    if highest >= config.vocabulary:
        raise UserError(
            f"{WHAT}={path}: its tokenizer has a token {highest}, its vocab_size is {config.vocabulary}; "
            f"expected the tokenizer of the same {name}"
        )
    if isinstance(config, clip.CLIPConfig):
        pooled = highest if config.eos == clip.OLD_EOS else config.eos
        if pooled != words.end:
            log.warning(
                f"{name}: eos_token_id={config.eos} in {path}/config.json pools token {pooled}, but its tokenizer "
                f"ends captions with {words.end}"
            )
