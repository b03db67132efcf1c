"""ImageReward (Xu et al. 2023, arXiv:2304.05977): BLIP with a head that was trained on rankings of images.

Its score is the reward, standardised. In training, of two images' rewards before that, the model held the left one
better with probability sigmoid(left - right): a unit of score is 1.033 logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.rewards import torch_files as files
from mmdit_jax.evaluation.rewards.interface import Judge, Options, Scores
from mmdit_jax.evaluation.rewards.pixels import fit, normalise
from mmdit_jax.evaluation.rewards.trees import Picture

if TYPE_CHECKING:
    from mmdit_jax.evaluation.rewards.blip import BlipConfig

QUESTION = "preference"
TOKENS = 35
"""That a prompt is cut or padded to."""
_VERSION = "imagereward-1"
_MED, _WORDS = "med_config.json", "vocab.txt"
_EXPECTED = f"ImageReward.pt, {_MED} and the {_WORDS} of bert-base-uncased"
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
_SPARE = 2  # tokens of BLIP's that bert-base-uncased has not, and a prompt neither
_THREADS = 8


def open_judge(name: str, folder: str, options: Options) -> Judge:
    """The folder of ImageReward.pt (or the file itself) with med_config.json and BERT's vocabulary in it.

    Raises:
        UserError: no such folder, or a file is missing.
    """
    files.need(name, ("torch", "transformers"))
    path, place = files.one_file(name, folder, _EXPECTED)
    for file in (_MED, _WORDS):
        if not (place / file).is_file():
            raise UserError(f"{name}={folder}: {file} is missing; expected {_EXPECTED} in it")
    from mmdit_jax.evaluation.rewards.blip import DEVIATION

    return Judge(
        name,
        QUESTION,
        files.fingerprint(_VERSION, [path, place / _MED, place / _WORDS]),
        lambda: _load(name, path, place, options),
        options.batch,
        slope=DEVIATION,
    )


def _load(name: str, path: Path, folder: Path, options: Options) -> Scores:
    import torch

    from mmdit_jax.evaluation.rewards.blip import ImageReward

    device = files.choose_device(name, options.device)
    tensors = files.load_tensors(name, path)
    config = blip_config(name, path, folder / _MED, tensors)
    with torch.device("meta"):
        model = ImageReward(config)
    files.check_names(name, path, {n: t.shape for n, t in model.state_dict().items()}, tensors, _UNUSED)
    used = {n: tensor.float() for n, tensor in tensors.items() if not n.startswith(_UNUSED)}
    model.load_state_dict(used, assign=True)
    read = _tokenizer(name, folder / _WORDS, config.vocab_size)
    return _reward_scores(model.to(device).eval(), read, config.patch * config.grid, device, options.batch)


def _tokenizer(name: str, path: Path, vocabulary: int) -> Any:
    """BERT's, lower case, over a list of words; the folder's other files may be another tokenizer's.

    Raises UserError where the words are not those that the network knows.
    """
    from transformers import BertTokenizer

    words = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    files.check_vocabulary(name, path, len(words), vocabulary, _SPARE)
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def blip_config(name: str, path: Path, med: Path, tensors: Mapping[str, Any]) -> BlipConfig:
    """Sizes of the network: the image's side by the shapes of tensors, the text's by med_config.json.

    Raises:
        UserError: a tensor that tells a size is missing, or a number in med_config.json.
    """
    from mmdit_jax.evaluation.rewards.blip import BlipConfig

    vision = "blip.visual_encoder."
    sizes = {}
    for tensor in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if vision + tensor not in tensors:
            raise UserError(f"{name}={path}: another model's file? {vision + tensor} is missing")
        sizes[tensor] = tuple(tensors[vision + tensor].shape)
    width, _, patch, _ = sizes["patch_embed.proj.weight"]
    numbers = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
               "max_position_embeddings", "layer_norm_eps")  # fmt: skip
    try:
        told = json.loads(med.read_text())
        text = {key: told[key] for key in numbers}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}={med}: can't be read ({error}); expected {', '.join(numbers)}") from None
    begins = vision + "blocks."
    return BlipConfig(
        vision_width=width,
        vision_layers=len({n[len(begins) :].partition(".")[0] for n in tensors if n.startswith(begins)}),
        vision_mlp=sizes["blocks.0.mlp.fc1.weight"][0],
        patch=patch,
        grid=round((sizes["pos_embed"][1] - 1) ** 0.5),
        **text,
    )


def _reward_scores(model: Any, tokenizer: Any, size: int, device: Any, batch: int) -> Callable[..., np.ndarray]:
    """A ``Scores`` of the network.

    Args:
        model: ``blip.ImageReward`` on the device.
        tokenizer: transformers' BertTokenizer.
        size: an image's side in pixels.
        device: of torch's.
        batch: images at a time.
    """
    import torch

    pool = ThreadPoolExecutor(_THREADS)  # Pillow lets go of the interpreter while it resizes

    def pixels(image: np.ndarray) -> np.ndarray:
        return normalise(fit(image, size, down=False))

    def scores(images: Sequence[np.ndarray], pictures: Sequence[Picture]) -> np.ndarray:
        parts = []
        for start in range(0, len(images), batch):
            shown = np.stack(list(pool.map(pixels, images[start : start + batch])))
            texts = [picture.prompt for picture in pictures[start : start + batch]]
            count = len(texts)
            texts += texts[-1:] * (batch - count)
            shown = np.concatenate([shown, np.repeat(shown[-1:], batch - count, axis=0)])
            words = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
            with torch.inference_mode():
                found = model(
                    torch.from_numpy(shown).to(device),
                    words["input_ids"].to(device),
                    words["attention_mask"].bool().to(device),
                )
            parts.append(found[:count].double().cpu().numpy())
        return np.concatenate(parts)

    return scores
