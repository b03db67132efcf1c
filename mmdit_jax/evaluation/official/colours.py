"""Which of GenEval's colours an object has: CLIP on its crop, zero-shot, as the public scorer asks it.

The public scorer's CLIP is OpenAI's ViT-L/14.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.official.classes import COLOURS
from mmdit_jax.evaluation.official.detector import read_models
from mmdit_jax.evaluation.official.rules import Found

TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
BACKGROUND = 0x99
"""Grey level of what is not the object's mask."""


def crop(image: np.ndarray, found: Found) -> np.ndarray:
    """The object's box, uint8 [h, w, 3] of uint8 [H, W, 3]; grey around its mask, where it has one.

    A box of no size gives the pixel that it is at.
    """
    if found.mask is not None:
        image = np.where(found.mask[..., None], image, np.uint8(BACKGROUND))
    height, width = image.shape[:2]
    left, top, right, bottom = (round(float(side)) for side in found.box)  # halves to even, as Pillow's crop
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return image[top : max(bottom, top + 1), left : max(right, left + 1)]


class ClipColours:
    """CLIP in torch with the texts of every class it was asked about."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any, device: Any) -> None:
        self._model, self._processor, self._tokenizer, self._device = model, processor, tokenizer, device
        self._texts: dict[str, Any] = {}

    def __call__(self, image: np.ndarray, name: str, found: Sequence[Found]) -> list[str]:
        """Of each object in ``image``, uint8 [H, W, 3], the colour whose texts its crop is nearest to."""
        import torch
        from torch.nn.functional import normalize

        crops = [crop(image, one) for one in found]
        with torch.inference_mode():
            inputs = self._processor(images=crops, return_tensors="pt", input_data_format="channels_last")
            pixels = inputs["pixel_values"].to(self._device)
            embedded = self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)
            nearest = (normalize(embedded, dim=-1) @ self._of_class(name).T).argmax(-1)
        return [COLOURS[i] for i in nearest.tolist()]

    def _of_class(self, name: str) -> Any:
        """A unit vector for each colour, [colours, width]: the mean direction of its texts."""
        from torch.nn.functional import normalize

        if name not in self._texts:
            texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            tokens = self._tokenizer(texts, padding=True, return_tensors="pt").to(self._device)
            states = self._model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            each = normalize(self._model.text_projection(states), dim=-1).reshape(len(COLOURS), len(TEMPLATES), -1)
            self._texts[name] = normalize(each.mean(1), dim=-1)
        return self._texts[name]


def load_clip(folder: Path, device: Any) -> ClipColours:
    """The CLIP in ``folder``, with its tokenizer and preprocessing.

    Raises:
        UserError: it isn't there, or can't be read.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"clip={folder}: no config.json there; expected a folder of transformers' with a CLIP")
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model, processor, tokenizer = read_models(
        "clip",
        folder,
        lambda: (
            CLIPModel.from_pretrained(folder, local_files_only=True),
            AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"),
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
        ),
    )
    return ClipColours(model.eval().to(device), processor, tokenizer, device)
