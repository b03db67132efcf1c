"""Images without some of the text encoders beside those with all: SD3's comparison of flexible text encoders (§5.3.2).

Whatever is removed, prompts and noise are the same, so that image stands against image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.config import Run
from mmdit_jax.data.scenes.prompts import Prompt
from mmdit_jax.evaluation.battles import graded, verdict
from mmdit_jax.evaluation.evaluate import evaluation_prompts, generate
from mmdit_jax.evaluation.geneval import geneval, write_geneval_tree
from mmdit_jax.evaluation.judge import Judge
from mmdit_jax.evaluation.latent import Latent, for_judge
from mmdit_jax.evaluation.realism import Realism
from mmdit_jax.processes import is_first

ALL = "all encoders"
AESTHETICS, PROMPT = "aesthetics (realism)", "prompt following"
"""Two of SD3's three questions; nothing is spelled out in scenes, so there is no typography."""


def label(group: Sequence[str]) -> str:
    """What tables call the images without these encoders: "without tower + words"."""
    return "without " + " + ".join(sorted(group))


def tree(run_dir: Path, group: Sequence[str]) -> Path:
    """Where the images without these encoders lie, in GenEval's tree."""
    return run_dir / "samples_without" / "+".join(sorted(group))


def draw_without(
    run: Run, params: Any, run_dir: Path, held_out: Sequence[str], latent: Latent | None = None
) -> list[dict[str, Any]]:
    """Draw and write the images of ``evaluation.without``; scores as ``geneval`` gives them, with "without" beside."""
    asked = evaluation_prompts(run, held_out)
    rows = []
    for group in run.evaluation.without:
        captions = [item.prompt for item in asked]
        images = generate(run, params, captions, run.evaluation.images_per_prompt, group, latent)
        if is_first():
            write_geneval_tree(images, asked, tree(run_dir, group))
        if run.data.name == "scenes":
            rows += [{"without": "+".join(sorted(group)), **row} for row in geneval(images, asked)]
    return rows


@dataclass(frozen=True)
class Comparison:
    """One image without some encoders against its twin with all, as a row of without_battles.csv."""

    run: str
    prompt: str
    task: str
    left: str
    """``label`` of what was removed."""
    right: str
    """``ALL``."""
    outcome: str
    """Which won: "left", "right" or "tie"."""
    question: str
    judge: str
    """ "realism", "contrastive" or "scorer"."""
    seed: int
    """Which of a prompt's images."""


def compare(
    run: str,
    whole: np.ndarray,
    without: Mapping[str, np.ndarray],
    prompts: Sequence[Prompt],
    judge: Judge,
    realism: Realism,
) -> list[Comparison]:
    """Every image without some encoders against its twin with all of them.

    Args:
        run: name of the training.
        whole: images with all encoders, uint8 [P, K, H, W, 3].
        without: by ``label``, images of the same prompts and noise.
        prompts: P prompts. The scorer decides only where all of them ask for something it knows.
        judge: for prompt following; a tie where the difference is within what two right images differ by.
        realism: for aesthetics.
    """
    count = whole.shape[1]
    asked = [prompt for prompt in prompts for _ in range(count)]
    texts = judge.embed_texts([prompt.prompt for prompt in asked])

    def scores(images: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        flat = images.reshape(-1, *images.shape[2:])
        features = judge.embed_images(for_judge(flat))
        found = {
            (AESTHETICS, "realism"): realism.score(features),
            (PROMPT, "contrastive"): np.sum(features * texts, axis=1),
        }
        if all(prompt.include for prompt in prompts):
            found[PROMPT, "scorer"] = graded(images, prompts).reshape(-1)
        return found

    reference = scores(whole)
    rows = []
    for name, images in without.items():
        for (question, by), own in scores(images).items():
            margin = judge.tie if by == "contrastive" else 0.0
            for number, lead in enumerate(own - reference[question, by]):
                outcome = verdict(lead, margin)
                place, seed = divmod(number, count)
                prompt = prompts[place]
                rows.append(Comparison(run, prompt.prompt, prompt.task, name, ALL, outcome, question, by, seed))
    return rows
