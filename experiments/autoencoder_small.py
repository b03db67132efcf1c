"""What more latent channels buy: Table 3's question with small autoencoders (factor 4) on emoji of 32 px.

python -m experiments.autoencoder_small --out studies/autoencoder_small

Two seeds of 4, 8 and 16 channels, trained by L1 and a little KL, without an adversary; measured on the validation
split, which no training sees. Each takes about two minutes on two cores. Expected, as in the paper: every column better
with more channels. OUT/d16-s0 and the like are then autoencoders for `load_autoencoder`, and diffusers' folders too.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.data.pipeline import load, prepare
from mmdit_jax.errors import EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_OK, EXIT_PREEMPTED, Diverged, Preempted, UserError
from mmdit_jax.evaluation.grids import grid_png
from mmdit_jax.evaluation.judge import packaged_judge
from mmdit_jax.evaluation.reconstruction import psnr, ssim
from mmdit_jax.files import write_atomic, write_json
from mmdit_jax.host import prepare_host, stop_on_sigterm
from mmdit_jax.models.autoencoder import AutoencoderConfig, KLAutoencoder, load_autoencoder, save_autoencoder
from mmdit_jax.training.autoencoder import AutoencoderRecipe, reconstruct, train
from scaling import frechet

CHANNELS = (4, 8, 16)
RESOLUTION = 32
RESAMPLES = 300
COLUMNS = ("frechet", "perceptual", "ssim", "psnr")
"""Fréchet distance of the judge's features in place of FID; mean squared distance of an image's features from those of
its reconstruction in place of the paper's perceptual similarity; both 1000-fold, lower is better. SSIM, PSNR in dB."""
_THOUSAND = 1000.0
_SHOWN = 10


def recipe(channels: int, seed: int, steps: int | None = None) -> AutoencoderRecipe:
    """An autoencoder with factor 4: 8 × 8 latents of 32 px images."""
    config = AutoencoderConfig(
        channels=channels, widths=(16, 32, 64), layers=1, groups=8, shift=0.0, scale=1.0, image_size=RESOLUTION
    )
    made = AutoencoderRecipe(config, seed=seed)
    return made if steps is None else dataclasses.replace(made, steps=steps)


def trained(
    wanted: AutoencoderRecipe, images: np.ndarray, data: str, folder: Path, stop: Callable[[], bool]
) -> KLAutoencoder:
    """The autoencoder in ``folder`` if this recipe and these images made it; else it is trained, and then written.

    A training that is stopped leaves nothing and starts anew: it takes minutes. training.json is written last.
    """
    told, record = {"recipe": wanted.to_json(), "data": data}, folder / "training.json"
    if record.is_file() and told.items() <= json.loads(record.read_text()).items():
        return load_autoencoder(folder)
    start, name = time.perf_counter(), folder.name

    def report(step: int, parts: dict[str, float]) -> None:
        seconds = time.perf_counter() - start
        print(f"{name}  step {step}  l1 {parts['l1']:.4f}  kl {parts['kl']:.2f}  {seconds:.0f} s", file=sys.stderr)

    made = train(wanted, images, report, stop)
    record.unlink(missing_ok=True)
    save_autoencoder(folder, made)
    write_json(record, {**told, "seconds": round(time.perf_counter() - start, 1)})
    return load_autoencoder(folder)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one autoencoder's reconstructions of N validation images scored."""

    images: Mapping[str, np.ndarray]
    """Columns that each image has a value of, float64 [N]."""
    features: np.ndarray
    """The judge's, of reconstructions, [N, 64]."""


def measure(images: np.ndarray, features: np.ndarray, others: np.ndarray) -> Measured:
    """Scores of reconstructions ``others`` of ``images``, both uint8 [N, R, R, 3]; ``features`` [N, 64] of images."""
    found = packaged_judge().embed_images(others)
    distance = _THOUSAND * ((found - features).astype(np.float64) ** 2).sum(axis=1)
    return Measured({"perceptual": distance, "ssim": ssim(images, others), "psnr": psnr(images, others)}, found)


def resampled(
    measured: Sequence[Measured], features: np.ndarray, resamples: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Each column of one number of channels: the value, then one a resample of images and of trainings.

    Args:
        measured: of each seed.
        features: of the originals, resampled with their reconstructions.
        resamples: how many.
        rng: the same state for each number of channels, so that their resamples are of the same images.

    Returns:
        float64 [1 + resamples] by column.
    """
    count = len(features)
    rows = np.concatenate([np.arange(count)[None], rng.integers(count, size=(resamples, count))])
    seeds = np.concatenate(
        [np.arange(len(measured))[None], rng.integers(len(measured), size=(resamples, len(measured)))]
    )
    by_seed = {name: np.stack([one.images[name][rows].mean(axis=1) for one in measured]) for name in measured[0].images}
    references = [frechet.fit_gaussian(features[chosen]) for chosen in rows]
    by_seed["frechet"] = _THOUSAND * np.array(
        [
            [
                frechet.distance(one.features[chosen], reference)
                for chosen, reference in zip(rows, references, strict=True)
            ]
            for one in measured
        ]
    )
    return {name: np.take_along_axis(values.T, seeds, axis=1).mean(axis=1) for name, values in by_seed.items()}


def rows_of(values: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Table rows (what, column, value, low, high) with 95 % intervals from ``resampled`` values by label."""
    return [
        {
            "what": label,
            "column": column,
            "value": float(found[column][0]),
            "low": float(np.quantile(found[column][1:], 0.025)),
            "high": float(np.quantile(found[column][1:], 0.975)),
        }
        for label, found in values.items()
        for column in COLUMNS
    ]


def run(
    out: Path, data_dir: Path, channels: Sequence[int], seeds: int, steps: int | None, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Train what is not there, measure all, write table.csv, reconstructions.png and result.json, which is returned."""
    prepare("emoji", data_dir, resolution=RESOLUTION)
    data = load("emoji", data_dir, resolution=RESOLUTION)
    split, held = data.split("train"), data.split("validation").images
    features = packaged_judge().embed_images(held)
    # One of each number of channels first.
    made_by = {
        (number, seed): trained(
            recipe(number, seed, steps), split.images, split.fingerprint, out / f"d{number}-s{seed}", stop
        )
        for seed in range(seeds)
        for number in channels
    }
    values, pictures, runs = {}, [held[:_SHOWN]], []
    for number in channels:
        measured = []
        for seed in range(seeds):
            made = made_by[number, seed]
            others = reconstruct(made, held)
            measured.append(measure(held, features, others))
            means = {name: float(array.mean()) for name, array in measured[-1].images.items()}
            runs.append({"channels": number, "seed": seed, "shift": made.shift, "scale": made.scale, **means})
            if seed == 0:
                pictures.append(others[:_SHOWN])
        values[f"{number}"] = resampled(measured, features, RESAMPLES, np.random.default_rng(0))
    for less, more in itertools.pairwise(channels):
        values[f"{more} - {less}"] = {name: values[f"{more}"][name] - values[f"{less}"][name] for name in COLUMNS}
    rows = rows_of(values)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])
    write_atomic(out / "table.csv", table.getvalue())
    grid_png(
        np.stack(pictures),
        ["original", *(f"{number} channels" for number in channels)],
        [""] * len(pictures[0]),
        out / "reconstructions.png",
    )
    result = {"images": len(held), "seeds": seeds, "rows": rows, "runs": runs}
    write_json(out / "result.json", result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 for bad input, 3 where training diverged, 75 after SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for autoencoders, table and picture")
    parser.add_argument("--data-dir", type=Path, default=Path("studies/_data"), help="where data sets live")
    parser.add_argument("--channels", type=int, nargs="+", default=list(CHANNELS))
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each number of channels")
    parser.add_argument("--steps", type=int, help="of a training, in place of the recipe's")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    arguments = parser.parse_args(argv)

    stop = stop_on_sigterm()
    prepare_host()
    try:
        if arguments.seeds < 1:
            raise UserError(f"seeds={arguments.seeds}: expected 1 or more")
        result = run(arguments.out, arguments.data_dir, arguments.channels, arguments.seeds, arguments.steps, stop)
    except Preempted as error:
        print(f"{error}; finished trainings are kept", file=sys.stderr)
        return EXIT_PREEMPTED
    except (UserError, Diverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DIVERGED if isinstance(error, Diverged) else EXIT_BAD_INPUT
    if arguments.json:
        print(json.dumps(result))
    else:
        for row in result["rows"]:
            print(f"{row['what']:>8}  {row['column']:10}  {row['value']:8.3f}  ({row['low']:.3f} to {row['high']:.3f})")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
