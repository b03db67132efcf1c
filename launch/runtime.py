"""What the commands that run models share: their places, and the options that name them."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Collection
from pathlib import Path

from launch.places import RESULT, Places
from mmdit_jax.config import Run, Study
from mmdit_jax.copies import ENGINES, pull
from mmdit_jax.errors import UserError
from mmdit_jax.remote import location, open_root
from mmdit_jax.training.events import EVENTS

TOLD = (EVENTS, RESULT, ENGINES)
"""The files by which a study's state is told."""
ROOT = Path("studies")
"""Where studies lie unless told otherwise."""


def add_places(parser: argparse.ArgumentParser) -> None:
    """``--root`` and ``--data-dir``."""
    parser.add_argument(
        "--root",
        type=open_root,
        default=ROOT,
        help="folder of all studies, or its URL: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER (default: %(default)s)",
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets (default: ROOT/_data)")


def data_folder(args: argparse.Namespace) -> Path:
    """Where data sets lie, by what ``add_places`` took; it may not be there yet."""
    folder: Path = args.data_dir or args.root / "_data"
    return folder


def add_vae(parser: argparse.ArgumentParser) -> None:
    """``--vae``."""
    parser.add_argument(
        "--vae",
        metavar="FOLDER",
        help="autoencoder of an encoded data set, none to draw nothing (default: where it lay when the set was made)",
    )


def add_handling(parser: argparse.ArgumentParser) -> None:
    """Options of how runs are trained."""
    parser.add_argument("--quiet", action="store_true", help="no progress lines")
    parser.add_argument(
        "--rewinds",
        type=int,
        default=0,
        metavar="N",
        help="after a loss that is not finite, go back to the newest checkpoint and pass over the batches that led "
        "there, up to N times a run (default: %(default)s, the run has diverged)",
    )
    parser.add_argument(
        "--hang-seconds",
        type=float,
        default=1800.0,
        metavar="S",
        help="end a process that takes no step for so long, its stacks written to the run's stacks/ (four times as "
        "long to compile, save and validate; 0: never; default: %(default)g)",
    )


def check_handling(args: argparse.Namespace) -> None:
    """Refuse what ``add_handling`` can't have.

    Raises:
        UserError: a number that is too small.
    """
    if args.rewinds < 0:
        raise UserError(f"rewinds={args.rewinds}: expected 0 or more")
    if not (math.isfinite(args.hang_seconds) and args.hang_seconds >= 0):
        raise UserError(f"hang-seconds={args.hang_seconds:g}: expected 0 (never) or more")


def add_study(parser: argparse.ArgumentParser, *, named: bool = True) -> None:
    """STUDY (where it is ``named``), ``--set``, ``--root`` and ``--data-dir``."""
    if named:
        parser.add_argument("study", metavar="STUDY", help="a name in experiments/, or the path of a study file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="overrides",
        help="change a field of every run, e.g. --set steps=100 --set optimizer.learning_rate=1e-3",
    )
    add_places(parser)


def places_of(args: argparse.Namespace, study: Study, *, fetch: bool = True, only: Collection[str] = ()) -> Places:
    """The folders of a study under --root and --data-dir, and --vae of the commands that have it.

    What others have written at the root's URL is fetched, if it has one and that is wanted; ``only``: as ``pull``.
    """
    vae = vars(args).get("vae")
    places = Places(args.root, study.name, data_folder(args), None if vae is None else str(vae))
    if fetch:
        pull(places.study_dir, only=only)
    return places


def study_options(args: argparse.Namespace) -> str:
    """What ``add_study`` and ``add_vae`` took besides STUDY, as it is typed: for commands that a reader may copy."""
    found: list[str] = []
    if args.root != ROOT:
        found += ["--root", location(args.root)]
    if args.data_dir is not None:
        found += ["--data-dir", str(args.data_dir)]
    for override in args.overrides:
        found += ["--set", override]
    if args.vae is not None:
        found += ["--vae", args.vae]
    return shlex.join(found)


def chosen_runs(args: argparse.Namespace, study: Study) -> list[Run]:
    """Those of ``--only``, each once, or all."""
    return list(dict.fromkeys(study.find(key) for key in args.only)) or list(study.runs)
