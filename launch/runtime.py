"""What the commands that run models share: their places, and the options that name them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_places(parser: argparse.ArgumentParser) -> None:
    """``--root`` and ``--data-dir``."""
    parser.add_argument(
        "--root", type=Path, default=Path("studies"), help="folder of all studies (default: %(default)s)"
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
