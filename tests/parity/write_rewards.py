"""Scores of the tiny reward models by the programs of HPSv2's and ImageReward's authors: tests/goldens/rewards.npz.

    python -m parity.write_rewards HPSV2 IMAGEREWARD

in tests/, with checkouts of github.com/tgxs002/HPSv2 (866735e) and github.com/THUDM/ImageReward (c1392c6). Their
programs need other versions than ours: transformers 4.36, timm 0.6, torchvision 0.17 or newer, fairscale, ftfy.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import tiny_rewards as tiny
import torch
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "goldens" / "rewards.npz"
CLEANED = ["it’s a “red” cat", "salt &amp;amp; pepper\n\tshaker", " schÃ¶n  ", "plain words"]


def main() -> None:
    """Write the golden."""
    torch.set_num_threads(1)
    arrays: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        arrays |= hpsv2(Path(sys.argv[1]), Path(folder))
        arrays |= imagereward(Path(sys.argv[2]), Path(folder))
    np.savez_compressed(GOLDEN, **arrays)
    print(GOLDEN, GOLDEN.stat().st_size)


def load(model: torch.nn.Module, kind: str) -> str:
    """Give a model its deterministic weights; returns its tensors' names and shapes as JSON."""
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    made = {name: torch.from_numpy(np.array(array)) for name, array in tiny.tensors(kind, found).items()}
    model.load_state_dict(made, strict=False)
    model.eval()
    return json.dumps({name: list(tensor.shape) for name, tensor in model.state_dict().items()})


def hpsv2(checkout: Path, folder: Path) -> dict[str, Any]:
    """Scores [prompts, images], logit scale × cosine; what the model sees of each image; prompts cleaned."""
    sys.path.insert(0, str(checkout))
    package = types.ModuleType("hpsv2")  # its own __init__ downloads
    package.__path__ = [str(checkout / "hpsv2")]
    sys.modules["hpsv2"] = package
    their = importlib.import_module("hpsv2.src.open_clip")
    from transformers import CLIPTokenizer

    vision, text = tiny.CLIP_VISION, tiny.CLIP_TEXT
    model = their.CLIP(
        tiny.PROJECTION,
        {"image_size": vision["image"], "layers": vision["layers"], "width": vision["width"], "head_width": 80,
         "patch_size": vision["patch"], "mlp_ratio": vision["mlp"] / vision["width"]},
        {"context_length": text["positions"], "vocab_size": tiny.vocabulary(), "width": text["width"], "heads": 2,
         "layers": text["layers"]},
    )  # fmt: skip
    for block in model.transformer.resblocks:  # open_clip has no option for it: four times the width
        inner = text["mlp"]
        block.mlp.c_fc, block.mlp.c_proj = torch.nn.Linear(128, inner), torch.nn.Linear(inner, 128)
    names = load(model, "hpsv2")
    see = their.image_transform(vision["image"], is_train=False)
    seen = [see(Image.fromarray(image)) for image in tiny.images()]
    tokenizer = CLIPTokenizer.from_pretrained(tiny.write_tokenizer(folder / "clip"))
    ids = torch.zeros(len(tiny.PROMPTS), text["positions"], dtype=torch.long)  # padded as open_clip does
    for row, prompt in enumerate(tiny.PROMPTS):
        numbers = tokenizer(prompt, truncation=True, max_length=text["positions"])["input_ids"]
        ids[row, : len(numbers)] = torch.tensor(numbers)
    shown, read, scale = model(torch.stack(seen), ids)
    cleaned = [their.tokenizer.whitespace_clean(their.tokenizer.basic_clean(prompt)) for prompt in CLEANED]
    return {
        "hpsv2/scores": (scale * read @ shown.T).numpy(),
        "hpsv2/pixels": torch.stack(seen).numpy(),
        "hpsv2/names": names,
        "hpsv2/cleaned": np.array(cleaned),
    }


def imagereward(checkout: Path, folder: Path) -> dict[str, Any]:
    """Scores [prompts, images] by ``ImageReward.score``."""
    package = types.ModuleType("ImageReward")
    package.__path__ = [str(checkout / "ImageReward")]
    sys.modules["ImageReward"] = package
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    vit = importlib.import_module("ImageReward.models.BLIP.vit")
    their = importlib.import_module("ImageReward.ImageReward")
    from transformers import BertTokenizer

    vision = tiny.BLIP_VISION
    tower = vit.VisionTransformer(
        img_size=vision["image"],
        patch_size=vision["patch"],
        embed_dim=vision["width"],
        depth=vision["layers"],
        num_heads=vision["width"] // 64,
    )
    pretrain.create_vit = lambda *args: (tower, vision["width"])
    pretrain.init_tokenizer = lambda: BertTokenizer.from_pretrained(tiny.write_bert_vocabulary(folder / "bert"))
    head, see = their.MLP, their._transform
    their.MLP = lambda width: head(tiny.MED["hidden_size"])
    their._transform = lambda size: see(vision["image"])
    model = their.ImageReward(str(tiny.write_med(folder / "med")), device="cpu")
    names = load(model, "imagereward")
    shown = [Image.fromarray(image) for image in tiny.images()]
    scores = [[model.score(prompt, image) for image in shown] for prompt in tiny.PROMPTS]
    return {"imagereward/scores": np.array(scores), "imagereward/names": names}


if __name__ == "__main__":
    main()
