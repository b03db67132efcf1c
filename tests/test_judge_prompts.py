"""Which prompts the small judge has learned to look at: its battles on others come with a warning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.cli import main
from mmdit_jax.data.emoji import assets
from mmdit_jax.data.scenes import prompts
from mmdit_jax.data.scenes.captions import example
from mmdit_jax.data.scenes.compositions import COMPOSITIONS, ROUND, compositions
from mmdit_jax.evaluation.judge import knows

FOREIGN = (
    "a photo of an astronaut riding a horse on mars",
    "a photo of a bench",
    "Two giraffes standing next to each other in a zoo enclosure.",
    "cinematic landscape number 3",
    "a red vase",
    'the word "STOP" in red on a white sign',
    "…",
)


def test_captions_of_its_sets_are_known_and_no_others() -> None:
    own = [row.caption() for row in assets.load()[0]] + [row.label for row in assets.load()[0]]
    own += [example(1, split, index)[0] for split in ("train", "validation") for index in range(500)]
    own += [prompt.prompt for prompt in [*prompts(50), *compositions(ROUND)]]
    assert len(own) > 6000 + 1000 + 6 * 50 + len(COMPOSITIONS)
    assert [caption for caption in own if not knows(caption)] == []
    assert [caption for caption in FOREIGN if knows(caption)] == []


def test_battles_on_other_prompts_come_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for number, prompt in enumerate(("a red circle", "grinning face", *FOREIGN[:2])):
            place = tmp_path / name / f"{number:05d}"
            (place / "samples").mkdir(parents=True)
            (place / "metadata.jsonl").write_text(json.dumps({"prompt": prompt}))
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(place / "samples" / "0000.png")
    words = ["battles", str(tmp_path / "a"), str(tmp_path / "b"), "--judge", "contrastive", "--quiet", "--out"]
    assert main([*words, str(tmp_path / "one.csv")]) == 0
    assert "warning: 2 prompts are no captions of scenes or emoji" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "two.csv"), "--json"]) == 0
    (judge,) = json.loads(capsys.readouterr().out)["judges"]
    assert judge["battles"] == 4 and judge["foreign_prompts"] == 2
    for number in (2, 3):
        for name in ("a", "b"):
            (tmp_path / name / f"{number:05d}" / "metadata.jsonl").write_text('{"prompt": "two blue stars"}')
    assert main([*words, str(tmp_path / "three.csv")]) == 0
    assert "warning" not in capsys.readouterr().out
