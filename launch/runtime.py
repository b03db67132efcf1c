"""What has to be set before JAX meets its devices."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmdit_jax.training.xla_flags import tune_xla_for_host


def start_runtime(args: argparse.Namespace) -> None:
    """XLA's flags for this platform, and the folder of compiled programs that a restarted run finds again."""
    tune_xla_for_host()
    if "root" not in vars(args):
        return
    import jax

    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or args.root / "_cache" / "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def add_places(parser: argparse.ArgumentParser) -> None:
    """``--root`` and ``--data-dir``."""
    parser.add_argument(
        "--root", type=Path, default=Path("studies"), help="folder of all studies (default: %(default)s)"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets (default: ROOT/_data)")


def add_study(parser: argparse.ArgumentParser) -> None:
    """STUDY, ``--set``, ``--root`` and ``--data-dir``."""
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
