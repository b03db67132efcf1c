"""Scores by a CLIP that was trained on preferences: logit scale × cosine of an image and its prompt.

PickScore and HPSv2 are such, ViT-H-14 both. The model is transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.rewards.torch_files import check_vocabulary
from mmdit_jax.evaluation.rewards.trees import Picture

_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_SOURCE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_THREADS = 8


def tokenizer_files(judge: str, folder: Path) -> list[Path]:
    """The files of CLIP's tokenizer in a folder.

    Raises:
        UserError: it has none.
    """
    for group in _TOKENIZERS:
        if all((folder / name).is_file() for name in group):
            return [folder / name for name in group]
    told = ", or ".join(" and ".join(group) for group in _TOKENIZERS)
    raise UserError(f"{judge}={folder}: no tokenizer; copy {told} there, from {_SOURCE}")


def read_tokenizer(judge: str, files: Sequence[Path], vocabulary: int) -> Any:
    """transformers' CLIPTokenizer over the files.

    Args:
        judge: for errors.
        files: see ``tokenizer_files``.
        vocabulary: tokens that the network knows.

    Raises:
        UserError: they are damaged, or another network's.
    """
    from transformers import CLIPTokenizer

    try:
        found = CLIPTokenizer.from_pretrained(str(files[0].parent), local_files_only=True)
    except Exception as error:  # whatever its parsers raise: KeyError, json's, a plain Exception of the Rust side
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{judge}={files[0]}: not readable by transformers ({reason})") from None
    check_vocabulary(judge, files[0], len(found), vocabulary)
    return found


class ClipScores:
    """A ``Scores`` of a transformers CLIPModel in float32.

    Args:
        model: the model.
        tokenizer: transformers' CLIPTokenizer.
        pixels: an image uint8 [H, W, 3] to what the model sees, float32 [3, size, size].
        clean: what is done to a prompt first.
        device: of torch's.
        batch: images, or prompts, at a time.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pixels: Callable[[np.ndarray], np.ndarray],
        clean: Callable[[str], str],
        device: Any,
        batch: int,
    ) -> None:
        self._model = model.to(device).eval()
        self._tokenizer, self._pixels, self._clean, self._device, self._batch = tokenizer, pixels, clean, device, batch
        self._length = model.config.text_config.max_position_embeddings
        self._scale = float(model.logit_scale.detach().double().exp())
        self._texts: dict[str, np.ndarray] = {}
        self._pool = ThreadPoolExecutor(_THREADS)  # Pillow lets go of the interpreter while it resizes

    def __call__(self, images: Sequence[np.ndarray], pictures: Sequence[Picture]) -> np.ndarray:
        """Scores float64 [N]."""
        prompts = [picture.prompt for picture in pictures]
        self._embed_texts([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts])
        texts = np.stack([self._texts[prompt] for prompt in prompts])
        return self._scale * np.sum(self._embed_images(images) * texts, axis=1)

    def _embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float64 [N, projection]."""
        import torch

        parts = []
        for start in range(0, len(images), self._batch):
            part = np.stack(list(self._pool.map(self._pixels, images[start : start + self._batch])))
            padded = np.concatenate([part, np.repeat(part[-1:], self._batch - len(part), axis=0)])
            with torch.inference_mode():
                seen = self._model.vision_model(pixel_values=torch.from_numpy(padded).to(self._device))
                parts.append(self._model.visual_projection(seen.pooler_output)[: len(part)].cpu().numpy())
        return _unit(np.concatenate(parts))

    def _embed_texts(self, prompts: Sequence[str]) -> None:
        import torch

        for start in range(0, len(prompts), self._batch):
            part = list(prompts[start : start + self._batch])
            rows = self._tokenizer(
                [self._clean(prompt) for prompt in part], truncation=True, max_length=self._length, padding=False
            )["input_ids"]
            # What stands behind the end token changes nothing: attention is causal, and the end token's state is taken.
            ids = np.full((self._batch, self._length), self._tokenizer.eos_token_id, np.int64)
            for row, numbers in enumerate(rows):
                ids[row, : len(numbers)] = numbers
            with torch.inference_mode():
                read = self._model.text_model(input_ids=torch.from_numpy(ids).to(self._device))
                vectors = self._model.text_projection(read.pooler_output)[: len(part)].cpu().numpy()
            self._texts |= zip(part, _unit(vectors), strict=True)


def _unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)
