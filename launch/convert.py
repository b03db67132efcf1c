"""``mmdit convert SRC DST --to diffusers|stability|orbax``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from launch.execute import restore_ema
from launch.places import CONFIG
from mmdit_jax.config import Run
from mmdit_jax.config_values import from_dict
from mmdit_jax.host import return_freed_memory
from mmdit_jax.models.sd3 import Checkpoint, checkpoint_of, convert
from mmdit_jax.models.sd3.convert import TARGETS
from mmdit_jax.models.sd3.infer import describe

EXAMPLE = (
    "example: mmdit convert sd3.5_large.safetensors sd3.5_large/ --to diffusers --shard-bytes 5000000000; "
    "mmdit convert studies/quickstart/RUN_ID mine/ --to diffusers"
)


def add_parsers(commands: Any) -> None:
    """Register ``convert``."""
    text = "an SD3 or SD3.5 checkpoint in another layout, bit for bit; or the EMA weights of a run under public names"
    command = commands.add_parser("convert", help=text, description=text, epilog=EXAMPLE)
    command.add_argument(
        "source",
        metavar="SRC",
        type=Path,
        help="a safetensors file, a folder of shards, what --to orbax wrote, or the folder of a trained run",
    )
    command.add_argument("target", metavar="DST", type=Path, help="a folder, or a *.safetensors file (stability)")
    command.add_argument("--to", required=True, choices=TARGETS, help="layout to write")
    command.add_argument(
        "--shard-bytes", type=int, metavar="N", help="at most so many bytes a file (default: one file)"
    )
    command.add_argument(
        "--head-size", type=int, metavar="N", help="of a model without QK-norm whose heads are not 64 channels wide"
    )
    command.add_argument("--overwrite", action="store_true", help="replace what a conversion left at DST")
    command.add_argument("--json", action="store_true", help="print one JSON object: tensors, parameters, bytes")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    return_freed_memory()
    written = convert(
        _trained(args.source) or args.source,
        args.target,
        args.to,
        shard_bytes=args.shard_bytes,
        head_size=args.head_size,
        overwrite=args.overwrite,
    )
    if args.json:
        print(json.dumps({"tensors": written.tensors, "parameters": written.parameters, "bytes": written.bytes}))
        return 0
    print(
        f"{args.target}: {describe(written.config)}; {written.tensors:,} tensors, "
        f"{written.parameters:,} parameters, {written.bytes:,} bytes"
    )
    return 0


def _trained(folder: Path) -> Checkpoint | None:
    """The EMA weights of a run, by its folder; none where the folder is no run's."""
    try:
        told = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or "run_id" not in told:
        return None
    run: Run = from_dict(Run, told["config"])
    return checkpoint_of(run.model, restore_ema(run, folder))
