"""``mmdit data autoencoder NAME``: small autoencoders trained on a data set and measured in Table 3's columns."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.autoencoder_small import CHANNELS, recipe
from launch.runtime import add_places, data_folder
from launch.tables import check_out
from mmdit_jax.data import pipeline
from mmdit_jax.data.store import BUILDERS
from mmdit_jax.errors import UserError, unknown
from mmdit_jax.evaluation.grids import grid_png
from mmdit_jax.evaluation.judge import packaged_judge
from mmdit_jax.evaluation.reconstruction import psnr, ssim
from mmdit_jax.files import write_atomic, write_json
from mmdit_jax.host import sigterm_noted
from mmdit_jax.models.autoencoder import KLAutoencoder, load_autoencoder, save_autoencoder
from mmdit_jax.training.autoencoder import AutoencoderRecipe, reconstruct, train
from scaling.reconstructions import THOUSAND, Measured, reconstruction_rows

EXAMPLE = "example: mmdit data autoencoder emoji --channels 4 8 16 --seeds 3 --out studies/autoencoder_small"
RESAMPLES = 300
JUDGED = 32
MOST_PSNR = 99.0
"""In dB: what an image that comes back without any difference counts."""
_SHOWN = 10


def add_autoencoder(actions: Any) -> None:
    """Register the action."""
    text = "train small autoencoders (factor 4) and compare their reconstructions; finished trainings are kept"
    action = actions.add_parser("autoencoder", help=text, description=text, epilog=EXAMPLE)
    action.add_argument("name", metavar="NAME", help="scenes or emoji")
    action.add_argument("--out", type=Path, required=True, help="folder for autoencoders, table and picture")
    action.add_argument("--resolution", type=int, default=32)
    action.add_argument("--channels", type=int, nargs="+", default=list(CHANNELS), help="of the latents")
    action.add_argument("--seeds", type=int, default=2, help="trainings of each number of channels (%(default)s)")
    action.add_argument("--steps", type=int, default=400, help="of a training (%(default)s)")
    action.add_argument("--json", action="store_true", help="print the result as one JSON object")
    add_places(action)
    action.set_defaults(run=autoencoder)


def autoencoder(args: argparse.Namespace) -> int:
    """Train what is not there, measure all, write table.csv, reconstructions.png and result.json.

    OUT/d16-s0 and the like are then autoencoders for ``--vae``, and diffusers' folders too.
    """
    if args.name not in BUILDERS:
        unknown("data", args.name, BUILDERS)
    if args.resolution < 1 or args.resolution % JUDGED:
        raise UserError(f"resolution={args.resolution}: expected a multiple of {JUDGED}, which the judge needs")
    check_out(args.out)
    if args.seeds < 1:
        raise UserError(f"seeds={args.seeds}: expected 1 or more")
    if len(set(args.channels)) < len(args.channels):
        raise UserError(f"channels={args.channels}: one is there twice")
    wanted = {
        (number, seed): recipe(number, seed, args.resolution, args.steps)
        for seed in range(args.seeds)
        for number in args.channels
    }
    folder = data_folder(args)
    pipeline.prepare(args.name, folder, resolution=args.resolution)
    data = pipeline.load(args.name, folder, resolution=args.resolution)
    split, held = data.split("train"), data.split("validation").images
    features = packaged_judge().embed_images(held)
    with sigterm_noted() as stop:
        made = {
            place: trained(own, split.images, split.fingerprint, args.out / "d{}-s{}".format(*place), stop)
            for place, own in wanted.items()
        }
    result = compared(made, held, features, args.out)
    if args.json:
        print(json.dumps(result))
    else:
        for row in result["rows"]:
            print(f"{row['what']:>8}  {row['column']:10}  {row['value']:8.3f}  ({row['low']:.3f} to {row['high']:.3f})")
    return 0


def trained(
    wanted: AutoencoderRecipe, images: np.ndarray, data: str, folder: Path, stop: Callable[[], bool]
) -> KLAutoencoder:
    """The autoencoder in ``folder`` if this recipe and these images made it; else it is trained, and then written.

    A training that is stopped leaves nothing and starts anew: it takes minutes. training.json is written last.
    """
    told, record = {"recipe": wanted.to_json(), "data": data}, folder / "training.json"
    if record.is_file():
        with contextlib.suppress(json.JSONDecodeError):  # a damaged record is of a training to do again
            if told.items() <= json.loads(record.read_text()).items():
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


def compared(
    made: dict[tuple[int, int], KLAutoencoder], held: np.ndarray, features: np.ndarray, out: Path
) -> dict[str, Any]:
    """Scores of (channels, seed)'s autoencoders on ``held`` uint8 [N, R, R, 3], written to ``out`` and returned.

    ``features``: the judge's of ``held``, float32 [N, 64].
    """
    measured: dict[str, list[Measured]] = {}
    pictures, runs = {"original": held[:_SHOWN]}, []
    for (number, seed), own in sorted(made.items()):
        others = reconstruct(own, held)
        measured.setdefault(str(number), []).append(measure(held, features, others))
        means = {name: float(array.mean()) for name, array in measured[str(number)][-1].images.items()}
        runs.append({"channels": number, "seed": seed, "shift": own.shift, "scale": own.scale, **means})
        pictures.setdefault(f"{number} channels", others[:_SHOWN])
    rows = reconstruction_rows(measured, features, RESAMPLES)
    write_atomic(out / "table.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.5g"))
    shown = np.stack(list(pictures.values()))
    grid_png(shown, list(pictures), [""] * shown.shape[1], out / "reconstructions.png")
    result = {"images": len(held), "seeds": len({seed for _, seed in made}), "rows": rows, "runs": runs}
    write_json(out / "result.json", result)
    return result


def measure(images: np.ndarray, features: np.ndarray, others: np.ndarray) -> Measured:
    """Scores of reconstructions ``others`` of ``images``, both uint8 [N, R, R, 3]; ``features`` [N, 64] of images."""
    found = packaged_judge().embed_images(others)
    distance = THOUSAND * ((found - features).astype(np.float64) ** 2).sum(axis=1)
    return Measured(
        {"perceptual": distance, "ssim": ssim(images, others), "psnr": np.minimum(psnr(images, others), MOST_PSNR)},
        found,
    )
