"""Scores of a finished run: images for fixed prompts and noise, written as a tree, then judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mmdit_jax.config import Run
from mmdit_jax.data.scenes.compositions import compositions
from mmdit_jax.data.scenes.prompts import Prompt, prompts
from mmdit_jax.data.signs import SIGNS
from mmdit_jax.diffusion import SamplerConfig, formulation
from mmdit_jax.evaluation.compbench import compbench
from mmdit_jax.evaluation.geneval import geneval, write_geneval_tree
from mmdit_jax.evaluation.judge import Judge, packaged_judge
from mmdit_jax.evaluation.latent import Latent, for_judge
from mmdit_jax.evaluation.sampling import sample_images
from mmdit_jax.evaluation.typography import sign_prompts, typography
from mmdit_jax.models.text import TextStates, encode_all, text_encoder
from mmdit_jax.processes import is_first

DISTRACTORS = 9
"""Other captions that an image's own caption must beat in ``judge_match``: chance is 1 in 10."""


def evaluation_prompts(run: Run, held_out: Sequence[str]) -> list[Prompt]:
    """What the run is asked to draw: the six GenEval tasks on scenes, else held-out captions of its data set (of signs:
    half of them spell words that training never showed)."""
    count = run.evaluation.prompts_per_task
    if run.data.name == "scenes":
        return prompts(count, seed=run.evaluation.seed)
    if run.data.name in SIGNS:
        return sign_prompts(held_out[: 6 * count])
    return [Prompt(task="caption", include=(), prompt=text) for text in held_out[: 6 * count]]


def states(run: Run, captions: Sequence[str], latent: Latent | None = None) -> Mapping[str, TextStates]:
    """The states of ``captions`` under each of the run's encoders."""
    if latent is not None:
        return latent.states(captions)
    return {name: encode_all(text_encoder(name), captions) for name in run.data.text_encoders}


def draw(
    run: Run,
    params: Any,
    text: Mapping[str, TextStates],
    sampler: SamplerConfig,
    drop: tuple[str, ...] = (),
    latent: Latent | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """An image for each row of ``text``, and its path's length; noise depends on evaluation seed and position only."""
    drawn, lengths = sample_images(
        run.model,
        params,
        formulation(run.formulation),
        text,
        sampler,
        seed=run.evaluation.seed,
        indices=np.arange(len(next(iter(text.values())).tokens)),
        resolution=run.data.resolution,
        channels=run.model.in_channels,
        drop=drop,
        layout=run.data.text_layout,
        sides=None if latent is None else latent.sides,
        mesh=_shared_mesh(params),
    )
    return (drawn if latent is None else latent.decode(drawn)), lengths


def _shared_mesh(params: Any) -> Mesh | None:
    """The mesh of weights that several processes share, over which they draw together; None: one process has them."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            assert isinstance(leaf.sharding, NamedSharding)
            return leaf.sharding.mesh  # type: ignore[return-value]
    return None


def generate(
    run: Run,
    params: Any,
    captions: Sequence[str],
    images_per_caption: int,
    drop: tuple[str, ...] = (),
    latent: Latent | None = None,
) -> np.ndarray:
    """Images uint8 [captions, images_per_caption, H, W, 3]; noise depends on the evaluation seed and position only.

    ``latent`` says how a run on latents draws.
    """
    repeated = [caption for caption in captions for _ in range(images_per_caption)]
    images, _ = draw(run, params, states(run, repeated, latent), run.evaluation.sampler, drop, latent)
    return images.reshape(len(captions), images_per_caption, *images.shape[1:])


def evaluate(
    run: Run,
    params: Any,
    folder: Path,
    held_out: Sequence[str],
    drop: tuple[str, ...] = (),
    latent: Latent | None = None,
) -> dict[str, Any]:
    """Sample, write the image tree to ``folder``, and score it: all processes that share the weights; one writes.

    Returns plain values: ``geneval`` (a list of rows, one a task and one overall; empty for sets without tasks),
    ``judge_match`` (share of images whose own caption the contrastive judge puts first of ten) and its chance; of
    signs ``typography`` (rows by reader and task); where the run asks for them, ``compbench`` (rows, of images in
    FOLDER_compbench).
    """
    asked = evaluation_prompts(run, held_out)
    images = generate(run, params, [item.prompt for item in asked], run.evaluation.images_per_prompt, drop, latent)
    if is_first():
        write_geneval_tree(images, asked, folder)
    rows = geneval(images, asked) if run.data.name == "scenes" else []
    match = judge_match(images, [item.prompt for item in asked], packaged_judge())
    scores: dict[str, Any] = {"geneval": rows, "judge_match": match, "judge_match_chance": 1 / (DISTRACTORS + 1)}
    if run.data.name in SIGNS:
        scores["typography"] = typography(images, asked, fixed=run.data.name == "signs_fixed")
    if run.evaluation.compbench_prompts:
        composed = compositions(run.evaluation.compbench_prompts, run.evaluation.seed)
        captions = [item.prompt for item in composed]
        images = generate(run, params, captions, run.evaluation.images_per_prompt, drop, latent)
        if is_first():
            write_geneval_tree(images, composed, folder.with_name(f"{folder.name}_compbench"))
        scores["compbench"] = compbench(images, composed)
    return scores


def nothing_drawn() -> dict[str, Any]:
    """What ``evaluate`` returns, of a run on latents whose autoencoder is not at hand."""
    return {"geneval": [], "judge_match": None, "judge_match_chance": None}


def judge_match(images: np.ndarray, captions: Sequence[str], judge: Judge) -> float:
    """Share of images [P, K, H, W, 3] for which the own caption is more similar than nine others of the list."""
    count = len(captions)
    taken = for_judge(images[:, 0])
    own = judge.similarity(taken, captions)
    beaten = np.ones(count, bool)
    rng = np.random.default_rng(0)
    for _ in range(DISTRACTORS):
        shift = rng.integers(1, count, size=count) if count > 1 else np.zeros(count, int)
        others = [captions[(i + int(shift[i])) % count] for i in range(count)]
        same = np.array([a == b for a, b in zip(captions, others, strict=True)])
        beaten &= (own > judge.similarity(taken, others)) | same
    return float(beaten.mean())
