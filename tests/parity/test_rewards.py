"""PickScore, HPSv2 and ImageReward beside the programs of their authors, or transformers' classes used as they say."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny_rewards as tiny
import torch
from deterministic import relative_error
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from launch.cli import main
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.rewards import Judge, Options, Picture, hpsv2, open_judge
from mmdit_jax.evaluation.rewards.blip import ImageReward
from mmdit_jax.evaluation.rewards.imagereward import blip_config
from parity.write_rewards import CLEANED, GOLDEN

torch.set_num_threads(1)


def names(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the authors' own model."""
    with np.load(GOLDEN) as golden:
        return {name: tuple(shape) for name, shape in json.loads(str(golden[f"{kind}/names"])).items()}


def write_hpsv2(folder: Path, drop: str = "") -> Path:
    shapes = {name: shape for name, shape in names("hpsv2").items() if name != drop}
    tiny.write_tokenizer(folder)
    tiny.write_checkpoint(folder / "HPS_v2.1_compressed.pt", tiny.tensors("hpsv2", shapes), nested=True)
    return folder


def write_imagereward(folder: Path) -> Path:
    shapes = names("imagereward")
    whole = {name: shapes.pop(name) for name in list(shapes) if name.endswith("position_ids")}
    arrays = tiny.tensors("imagereward", shapes)
    arrays |= {name: np.arange(shape[1])[None] for name, shape in whole.items()}
    tiny.write_bert_vocabulary(folder)
    tiny.write_med(folder)
    tiny.write_checkpoint(folder / "ImageReward.pt", arrays, nested=False)
    return folder


def write_pickscore(folder: Path) -> CLIPModel:
    """The folder as transformers saves it, and the model."""
    vision, text = tiny.CLIP_VISION, tiny.CLIP_TEXT
    config = CLIPConfig(
        vision_config={"hidden_size": vision["width"], "intermediate_size": vision["mlp"], "hidden_act": "gelu",
                       "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 42},
        text_config={"hidden_size": text["width"], "intermediate_size": text["mlp"], "hidden_act": "gelu",
                     "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": tiny.vocabulary(),
                     "eos_token_id": tiny.vocabulary() - 1},
        projection_dim=tiny.PROJECTION,
    )  # fmt: skip
    model = CLIPModel(config)
    arrays = tiny.tensors("pickscore", {name: tuple(t.shape) for name, t in model.named_parameters()})
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, strict=False)
    model.save_pretrained(folder)
    tiny.write_tokenizer(folder)
    return model.eval()


def scores(judge: Judge) -> np.ndarray:
    """Of every prompt and image, in one call: float64 [prompts, images]."""
    asked = [Picture("a", prompt, 0, Path(), "") for prompt in tiny.PROMPTS for _ in tiny.SIDES]
    found = judge.load()(tiny.images() * len(tiny.PROMPTS), asked)
    return found.reshape(len(tiny.PROMPTS), len(tiny.SIDES))


@pytest.mark.parametrize("batch", [3, 16])
@pytest.mark.parametrize(("kind", "write"), [("hpsv2", write_hpsv2), ("imagereward", write_imagereward)])
def test_scores_are_those_of_the_authors_programs(kind: str, write: Any, batch: int, tmp_path: Path) -> None:
    with np.load(GOLDEN) as golden:
        expected = golden[f"{kind}/scores"]
    found = scores(open_judge(f"{kind}={write(tmp_path)}", Options("cpu", batch)))
    assert relative_error(found, expected) < 1e-5
    # The golden tells images and prompts apart by far more than it is equal to.
    assert relative_error(found[::-1], expected) > 1e-2 and relative_error(found[:, ::-1], expected) > 1e-2


def test_pickscore_is_what_its_authors_example_gives(tmp_path: Path) -> None:
    """The example of PickScore's README: processor, normalised features, logit scale."""
    model = write_pickscore(tmp_path)
    see = CLIPImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    read = CLIPTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        shown = [see(Image.fromarray(image), return_tensors="pt").pixel_values for image in tiny.images()]
        image = model.get_image_features(pixel_values=torch.cat(shown)).pooler_output
        words = read(tiny.PROMPTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
        text = model.get_text_features(**words).pooler_output
        image, text = (x / torch.norm(x, dim=-1, keepdim=True) for x in (image, text))
        expected = (model.logit_scale.exp() * text @ image.T).numpy()
    found = scores(open_judge(f"pickscore={tmp_path}", Options("cpu")))
    assert relative_error(found, expected) < 1e-5
    assert relative_error(found[::-1], expected) > 1e-2 and relative_error(found[:, ::-1], expected) > 1e-2


def test_hpsv2_sees_images_and_cleans_prompts_as_open_clip() -> None:
    with np.load(GOLDEN) as golden:
        for image, expected in zip(tiny.images(), golden["hpsv2/pixels"], strict=True):
            assert relative_error(hpsv2.fit(image, tiny.CLIP_VISION["image"]), expected) < 1e-5
        assert [hpsv2.clean(prompt) for prompt in CLEANED] == list(golden["hpsv2/cleaned"])


def test_the_scores_of_an_image_do_not_depend_on_what_is_beside_it(tmp_path: Path) -> None:
    load = open_judge(f"imagereward={write_imagereward(tmp_path)}", Options("cpu", 4)).load()
    asked = [Picture("a", prompt, 0, Path(), "") for prompt in tiny.PROMPTS]
    shown = tiny.images()[: len(asked)]
    together = load(shown, asked)
    alone = [load([image], [picture])[0] for image, picture in zip(shown, asked, strict=True)]
    np.testing.assert_array_equal(together, alone)


def test_tensors_at_full_size() -> None:
    """Published numbers of parameters: 986,109,441 of a CLIP ViT-H-14; ViT-L-16, BERT with cross-attention, head."""
    config = {
        "vision_config": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14,
                          "image_size": 224},
        "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                        "max_position_embeddings": 77, "vocab_size": 49408},
        "projection_dim": 1024,
    }  # fmt: skip
    shapes = hpsv2.open_clip_shapes(config)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 986_109_441
    with torch.device("meta"):
        renamed = hpsv2.transformers_names({name: torch.empty(shape) for name, shape in shapes.items()})
        full = {part: {**config[part], "num_attention_heads": 16} for part in ("vision_config", "text_config")}
        model = CLIPModel(CLIPConfig(**full, projection_dim=1024))
    assert {name: tuple(t.shape) for name, t in renamed.items()} == {
        name: tuple(t.shape) for name, t in model.named_parameters()
    }


def test_imagereward_has_its_authors_tensors(tmp_path: Path) -> None:
    expected = {n: s for n, s in names("imagereward").items() if "_proj." not in n and "position_ids" not in n}
    med = tiny.write_med(tmp_path)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in names("imagereward").items()}
    with torch.device("meta"):
        model = ImageReward(blip_config("imagereward", tmp_path, med, tensors))
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == expected


def test_files_of_other_models_and_old_ones(tmp_path: Path) -> None:
    write_hpsv2(tmp_path / "hps", drop="ln_final.bias")
    write_imagereward(tmp_path / "reward")
    with pytest.raises(UserError, match=r"hpsv2=.*another model's file\? ln_final.bias is missing"):
        open_judge(f"hpsv2={tmp_path / 'hps'}", Options("cpu")).load()
    old = tmp_path / "old" / "ImageReward.pt"
    shutil.copytree(tmp_path / "reward", old.parent)
    torch.save(torch.load(old), old, _use_new_zipfile_serialization=False)  # as before torch 1.6
    found = [scores(open_judge(f"imagereward={tmp_path / name}", Options("cpu"))) for name in ("reward", "old")]
    np.testing.assert_array_equal(*found)
    tiny.write_tokenizer(tmp_path / "reward")  # CLIP's, in the same folder
    np.testing.assert_array_equal(scores(open_judge(f"imagereward={tmp_path / 'reward'}", Options("cpu"))), found[0])
    with (tmp_path / "old" / "vocab.txt").open("a") as file:
        file.write("more\n")
    with pytest.raises(UserError, match=r"imagereward=.*vocab.txt: 49 tokens, and the network knows 48; another"):
        open_judge(f"imagereward={tmp_path / 'old'}", Options("cpu")).load()
    with pytest.raises(UserError, match=r"hpsv2=.*another model's file\? visual.conv1.weight is missing"):
        open_judge(f"hpsv2={tmp_path / 'reward'}", Options("cpu")).load()
    write_pickscore(tmp_path / "pick")
    with pytest.raises(UserError, match=r"hpsv2=.*pick: expected HPS_v2.1_compressed.pt"):
        open_judge(f"hpsv2={tmp_path / 'pick'}", Options("cpu"))
    whole = (tmp_path / "hps" / "HPS_v2.1_compressed.pt").read_bytes()
    (tmp_path / "hps" / "HPS_v2.1_compressed.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"hpsv2=.*: torch can't read it"):
        open_judge(f"hpsv2={tmp_path / 'hps'}", Options("cpu")).load()
    arrays = safetensors.torch.load_file(tmp_path / "pick" / "model.safetensors")
    del arrays["visual_projection.weight"]
    safetensors.torch.save_file(arrays, tmp_path / "pick" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"pickscore=.*another model's file\? visual_projection.weight is missing"):
        open_judge(f"pickscore={tmp_path / 'pick'}", Options("cpu")).load()
    with pytest.raises(UserError, match=r"no config.json to be read; expected the folder of PickScore_v1"):
        open_judge(f"pickscore={tmp_path / 'hps'}", Options("cpu"))


def test_from_folders_to_ratings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All three models, two players: every outcome is what the model's own probability says."""
    writers = {"pickscore": write_pickscore, "hpsv2": write_hpsv2, "imagereward": write_imagereward}
    players = {"one": tiny.images()[:2], "two": tiny.images()[2:4]}
    prompts = [prompt for prompt in tiny.PROMPTS if prompt]
    for name, images in players.items():
        for number, prompt in enumerate(prompts):
            place = tmp_path / name / f"{number:05d}"
            (place / "samples").mkdir(parents=True)
            (place / "metadata.jsonl").write_text(json.dumps({"prompt": prompt}))
            for sample, image in enumerate(images):
                Image.fromarray(image).save(place / "samples" / f"{sample:04d}.png")
    for kind, write in writers.items():
        write(tmp_path / kind)
    judges = [word for kind in writers for word in ("--judge", f"{kind}={tmp_path / kind}")]
    out = str(tmp_path / "battles.csv")
    margin = 0.03  # of either kind there are some
    words = ["battles", str(tmp_path / "one"), str(tmp_path / "two"), *judges, "--tie", str(margin), "--out", out]
    assert main([*words, "--device", "cpu", "--batch", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [judge["scored"] for judge in told["judges"]] == [12, 12, 12]
    with Path(out).open(newline="") as file:
        rows = list(csv.DictReader(file))
    ties = 0
    for kind, slope in (("pickscore", 1.0), ("hpsv2", 1.0), ("imagereward", 1.0333394966054072)):
        found = scores(open_judge(f"{kind}={tmp_path / kind}", Options("cpu")))
        mine = {(row["prompt"], int(row["seed"])): row for row in rows if row["judge"] == kind}
        assert len(mine) == len(prompts) * 2
        for (prompt, sample), row in mine.items():
            one, two = found[tiny.PROMPTS.index(prompt), [sample, sample + 2]]
            chance = 1 / (1 + np.exp(-slope * (one - two)))
            expected = "tie" if abs(chance - 0.5) <= margin else "one" if chance > 0.5 else "two"
            assert (row["outcome"] if row["outcome"] == "tie" else row[row["outcome"]]) == expected
            ties += expected == "tie"
    assert 0 < ties < len(rows)
    assert main([*words, "--append", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [(judge["scored"], judge["known"]) for judge in again["judges"]] == [(0, 12)] * 3
    assert main(["elo", out, "--where", "judge=imagereward", "--bootstrap", "0", "--json"]) == 0
    assert {rating["name"] for rating in json.loads(capsys.readouterr().out)["ratings"]} == {"one", "two"}
