"""The settings of the ranking protocol: scored once a run, with their bootstrap over prompts, folded into one table."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import mmdit_jax.data.pipeline as pipeline
from mmdit_jax.config import DataConfig, Run, Study
from mmdit_jax.data.encoded import EncodedSet
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.contrastive import TextTower
from mmdit_jax.evaluation.judge import packaged_judge
from mmdit_jax.evaluation.latent import Latent, decode, for_judge, no_autoencoder, open_autoencoder
from mmdit_jax.evaluation.settings import score_settings
from mmdit_jax.files import write_atomic
from mmdit_jax.processes import is_first
from mmdit_jax.training.held_out import held_out_latents
from scaling.frechet import distances, fit_gaussian
from scaling.resample import group_counts

FILE = "settings.npz"
DRAWS = 200
"""Bootstrap resamples of the prompts; the same for every run that has as many prompts."""
_SEED = 403_03206
_CHUNK = 64


def score_run(
    run: Run,
    weights: dict[str, Any],
    run_dir: Path,
    data_dir: Path,
    latent: Latent | None = None,
    vae: str | None = None,
) -> list[dict[str, Any]]:
    """Score ``weights`` (by name: ema, raw) in the run's settings; a row each, of plain values.

    Writes settings.npz: per setting and image the judge's features, CLIP score and path length, and per setting and
    draw (the first is all prompts, the others resample them) clip, fid and path_length. The reference of the Fréchet
    distance is the whole held-out split; its captions, from the first on, are the prompts. Of a run on latents
    ``latent`` says how it draws, and the reference is what the autoencoder (``vae``) makes of the held-out latents.

    Raises:
        UserError: the held-out split has fewer captions than ``settings_images``.
    """
    count = run.evaluation.settings_images
    captions, real = held_out(run.data, data_dir, vae)
    if count > len(captions):
        raise UserError(
            f"evaluation.settings_images={count}: {run.data.name} holds out {len(captions)}; use that or fewer"
        )
    reference = fit_gaussian(real)
    counts = np.concatenate([np.ones((1, count)), group_counts(DRAWS, count, np.random.default_rng([_SEED, count]))])
    rows: list[dict[str, Any]] = []
    arrays: list[dict[str, np.ndarray]] = []
    for scores in score_settings(run, weights, captions[:count], packaged_judge(), latent):
        drawn = {
            "clip": counts @ scores.clip.astype(np.float64) / count,
            "fid": distances(scores.features, counts, reference),
            "path_length": counts @ scores.path_length.astype(np.float64) / count,
        }
        sampler = scores.sampler
        known: dict[str, Any] = {"weights": scores.weights, "sampler": sampler.label, "method": sampler.method}
        known |= {"steps": sampler.steps, "guidance": sampler.guidance}
        rows.append({**known, **{name: float(values[0]) for name, values in drawn.items()}})
        per_image = {"features": scores.features, "clip_by_image": scores.clip, "path_by_image": scores.path_length}
        arrays.append({**per_image, **drawn})
    buffer = io.BytesIO()
    stacked: dict[str, Any] = {name: np.stack([item[name] for item in arrays]) for name in arrays[0]}
    np.savez_compressed(buffer, **stacked)
    if is_first():
        write_atomic(run_dir / FILE, buffer.getvalue())
    return rows


@functools.lru_cache(maxsize=4)
def held_out(config: DataConfig, data_dir: Path, vae: str | None = None) -> tuple[list[str], np.ndarray]:
    """Captions of the held-out split, and the judge's features of its images ``[N, 64]``: once for all runs on it.

    Of an encoded set its autoencoder (``vae``, or where the set knows it) makes the images.
    """
    source = pipeline.open_encoded(config.name, data_dir)
    if source is not None:
        return _decoded(source, vae)
    data = pipeline.load(config.name, data_dir, resolution=config.resolution, examples=config.examples)
    split = data.split("validation")
    held_out = [split[i] for i in range(len(split))]
    features = packaged_judge().embed_images(np.stack([item["image"] for item in held_out]))
    return [item["caption"] for item in held_out], features


def _decoded(source: EncodedSet, vae: str | None) -> tuple[list[str], np.ndarray]:
    """Captions and features of an encoded set's held-out split, in the order that runs draw them in."""
    autoencoder = open_autoencoder(source, vae)
    if autoencoder is None:
        raise no_autoencoder(source)
    space, split = source.latents, source.split("validation", ())
    captions, features = np.empty(len(split), object), np.empty((len(split), TextTower.embedding), np.float32)
    for part in held_out_latents(split, space, len(split)):
        for start in range(0, len(part.index), _CHUNK):
            index = part.index[start : start + _CHUNK]
            found = split.take(part.bucket, part.rows[start : start + _CHUNK])
            images = decode(autoencoder, (found.mean.astype(np.float32) - space.shift) * space.scale)
            captions[index], features[index] = found.captions, packaged_judge().embed_images(for_judge(images))
    return captions.tolist(), features


def real_scores(study: Study, data_dir: Path, vae: str | None = None) -> pd.DataFrame:
    """What real images score where models' do: a row a data set of the runs with settings; empty without data.

    As many held-out images as the runs generate (of a small data set half of them), chosen at random, with their own
    captions, against the other held-out images: what a perfect model would score, so few images being what they are.
    """
    asked = {(run.data, run.evaluation.settings_images): None for run in study.runs if run.evaluation.settings}
    rows = []
    for data, count in asked:
        try:
            captions, features = held_out(data, data_dir, vae)
        except UserError:
            continue  # tables collected elsewhere, without the data
        order = np.random.default_rng(_SEED).permutation(len(captions))
        taken = min(count, len(captions) // 2)
        chosen, others = order[:taken], order[taken:]
        clip = np.sum(features[chosen] * packaged_judge().embed_texts([captions[i] for i in chosen]), axis=1)
        fid = distances(features[chosen], np.ones((1, taken)), fit_gaussian(features[others]))[0]
        rows.append({"dataset": data.name, "images": taken, "clip": float(clip.mean()), "fid": float(fid)})
    return pd.DataFrame(rows)


def score_table(study: Study, finished: list[tuple[Run, dict[str, Any]]], folders: dict[str, Path]) -> pd.DataFrame:
    """A row a run, setting and draw, as ``mmdit rank`` and ``mmdit efficiency`` read it; empty without settings.

    ``name`` is what is ranked: the formulation, with the depth before it where the study has several.

    Args:
        study: the study.
        finished: its finished runs and their results.
        folders: run directory by run id.
    """
    several = len({run.model.depth for run in study.runs}) > 1
    frames = []
    for run, result in finished:
        if not result.get("settings"):
            continue
        drawn = _drawn(folders[run.run_id] / FILE)
        for i, row in enumerate(result["settings"]):
            name = f"d{run.model.depth} {run.formulation}" if several else run.formulation
            setting = f"{run.data.name}/{row['weights']}/{row['sampler']}"
            known: dict[str, Any] = {"name": name, "formulation": run.formulation, "setting": setting}
            known |= {"dataset": run.data.name, "depth": run.model.depth}
            known |= {key: row[key] for key in ("weights", "method", "steps", "guidance")}
            values = {key: drawn[key][i] for key in ("clip", "fid", "path_length")}
            draws = np.arange(len(values["clip"]))
            frames.append(pd.DataFrame({**known, "seed": run.seed, "run": result["name"], "draw": draws, **values}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _drawn(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in ("clip", "fid", "path_length")}
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"settings={path}: missing or damaged; delete result.json beside it, and the run is evaluated again"
        ) from error
