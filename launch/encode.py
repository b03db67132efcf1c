"""``mmdit data encode SOURCE``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.runtime import add_places, data_folder
from mmdit_jax.data.encode.plan import Plan, make_plan
from mmdit_jax.data.encode.progress import Progress
from mmdit_jax.data.encode.settings import DEDUPE, DTYPES, EncoderSpec, ScanSettings, Settings
from mmdit_jax.data.encode.sizes import sample_bytes, table
from mmdit_jax.data.sources import SourceOptions
from mmdit_jax.data.store import BUILDERS
from mmdit_jax.errors import UserError
from mmdit_jax.models.text import ENCODERS
from mmdit_jax.models.text.tokenizer import given_tokenizer

EXAMPLE = (
    "example: mmdit data encode 'shards/{000..099}.tar' --name cc --size 256 --vae sd3 --clip-l sd3 --clip-g sd3 "
    "--t5 sd3 --dry-run"
)
SOURCES = "a folder of images, a tar file, glob or {000..099} range, tfds:NAME[/CONFIG], or imagenet:FOLDER"
_DEFAULT = ScanSettings("")


def add_encode(actions: Any) -> None:
    """Register ``encode``."""
    text = "encode captioned images once: latents and text states in array_record shards"
    action = actions.add_parser("encode", help=text, description=text, epilog=EXAMPLE)
    action.add_argument("source", metavar="SOURCE", help=SOURCES)
    action.add_argument("--name", required=True, help="of the set: a folder in the data folder")
    add_places(action)
    add_source(action)
    models = action.add_argument_group("models")
    models.add_argument("--vae", required=True, metavar="FOLDER", help="autoencoder (diffusers folder or safetensors)")
    for name in ("clip-l", "clip-g", "t5"):
        models.add_argument(
            f"--{name}", metavar="PATH", help="Hugging Face folder, SD3 repository, or Stability's file"
        )
    models.add_argument(
        "--tokenizers",
        type=Path,
        metavar="FOLDER",
        help="with tokenizer, tokenizer_2, tokenizer_3: those that it has are taken",
    )
    models.add_argument("--t5-length", type=int, default=77, help="tokens of a caption (default: %(default)s)")
    models.add_argument("--encoders", default="", metavar="NAMES", help=f"embedded ones: {','.join(sorted(ENCODERS))}")
    models.add_argument("--dtype", choices=DTYPES, default="float32", help="of matrix products (default: %(default)s)")
    images = action.add_argument_group("images")
    images.add_argument("--size", type=int, default=_DEFAULT.size, help="S: buckets have about S² pixels (256)")
    images.add_argument("--multiple", type=int, default=_DEFAULT.multiple, help="of pixels, for sides of buckets (16)")
    images.add_argument(
        "--bucket-aspect", type=float, default=_DEFAULT.bucket_aspect, help="of the widest bucket; 1: squares only (2)"
    )
    images.add_argument("--min-size", type=int, default=_DEFAULT.min_size, help="least shorter side of an image (0)")
    images.add_argument("--max-aspect", type=float, default=_DEFAULT.max_aspect, help="largest ratio of sides (3)")
    images.add_argument("--max-upsample", type=float, default=_DEFAULT.max_upsample, help="largest enlargement (1.25)")
    images.add_argument("--min-bucket", type=int, default=_DEFAULT.min_bucket, help="fewest images of a bucket (1)")
    images.add_argument("--dedupe", choices=DEDUPE, default=_DEFAULT.dedupe, help="(default: %(default)s)")
    images.add_argument("--distance", type=int, default=_DEFAULT.distance, help="bits that near duplicates may differ")
    rest = action.add_argument_group("captions, splits, shards")
    rest.add_argument(
        "--synthetic-share", type=float, default=_DEFAULT.synthetic_share, help="where there are both (0.5)"
    )
    rest.add_argument(
        "--validation",
        default=_DEFAULT.validation,
        help="items (2000) or share (0.01) that are held out (default: a hundredth, at most 2000)",
    )
    rest.add_argument("--seed", type=int, default=_DEFAULT.seed, help="of both choices above (default: %(default)s)")
    rest.add_argument("--shard-examples", type=int, default=_DEFAULT.shard_examples, help="at most (1024)")
    work = action.add_argument_group("work")
    work.add_argument("--processes", type=int, default=1, help="on this host; one a GPU (default: %(default)s)")
    work.add_argument(
        "--process-index", type=int, default=0, help="of this host among those that share the data folder"
    )
    work.add_argument("--process-count", type=int, default=1, help="hosts that share the data folder")
    work.add_argument(
        "--batch", type=int, default=Settings.batch, help="images encoded together (default: %(default)s)"
    )
    work.add_argument("--dry-run", action="store_true", help="scan, print the plan and its gigabytes, encode nothing")
    work.add_argument("--quiet", action="store_true", help="no progress on stderr")
    work.add_argument("--json", action="store_true", help="print one JSON object")
    action.set_defaults(run=encode)


def add_source(action: argparse.ArgumentParser) -> None:
    """What some sources need to be told."""
    group = action.add_argument_group("source")
    options = SourceOptions()
    group.add_argument("--tfds-dir", default=options.tfds_dir, help="folder of TFDS sets (default: %(default)s)")
    group.add_argument("--tfds-split", default=options.tfds_split, help="(default: %(default)s)")
    for name in ("image", "caption", "synthetic"):
        group.add_argument(f"--{name}-field", metavar="FEATURE", help="of a TFDS set; guessed where not given")
    group.add_argument("--class-names", metavar="FILE", help="of ImageNet (default: LOC_synset_mapping.txt, …)")


def source_options(args: argparse.Namespace) -> SourceOptions:
    """What ``add_source`` took."""
    return SourceOptions(
        str(Path(args.tfds_dir).expanduser().absolute()),
        args.tfds_split,
        args.image_field,
        args.caption_field,
        args.synthetic_field,
        args.class_names,
    )


def _settings(args: argparse.Namespace) -> Settings:
    scan = ScanSettings(
        args.source,
        source_options(args),
        args.size,
        args.multiple,
        args.bucket_aspect,
        args.min_size,
        args.max_aspect,
        args.max_upsample,
        args.min_bucket,
        args.synthetic_share,
        args.validation,
        args.dedupe,
        args.distance,
        args.seed,
        args.shard_examples,
    )
    folders = (("clip_l", args.clip_l, None), ("clip_g", args.clip_g, None), ("t5", args.t5, args.t5_length))
    given = [
        EncoderSpec(name, folder, length, _text(given_tokenizer(args.tokenizers, name)))
        for name, folder, length in folders
        if folder
    ]
    embedded = [EncoderSpec(name.strip()) for name in args.encoders.split(",") if name.strip()]
    return Settings(scan, args.vae, tuple(given + embedded), args.batch, args.dtype)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def data_dir_of(args: argparse.Namespace) -> Path:
    """The folder of data sets, made if need be."""
    folder = data_folder(args)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data-dir={folder}: cannot be made ({error.strerror}); choose another place") from None
    return folder


def encode(args: argparse.Namespace) -> int:
    """Encode a set, or say what that would take."""
    from mmdit_jax.host import sigterm_noted

    if not args.name or "/" in args.name or args.name[0] in "._" or args.name in BUILDERS:
        raise UserError(
            f"name={args.name!r}: expected the name of a folder to make in the data folder, without . or _ in front, "
            f"and not {' or '.join(BUILDERS)}"
        )
    if args.processes < 1:
        raise UserError(f"processes={args.processes}: expected 1 or more")
    if args.process_count < 1 or not 0 <= args.process_index < args.process_count:
        raise UserError(f"process-index={args.process_index}: expected 0 to {max(args.process_count, 1) - 1}")
    settings = _settings(args)
    folder = data_dir_of(args) / args.name
    progress = Progress(args.quiet)
    with sigterm_noted() as stop:
        if args.dry_run:
            return _dry_run(settings, folder, args.json, stop, progress)
        return _encode(args, settings, folder, stop, progress)


def _encode(
    args: argparse.Namespace, settings: Settings, folder: Path, stop: Callable[[], bool], progress: Progress
) -> int:
    """Encode in as many processes as asked for, and tell what came of it."""
    from mmdit_jax.data.encode.job import Place
    from mmdit_jax.data.encode.workers import WorkerDied, encode_here, encode_in_processes, threads_each

    begun = time.monotonic()
    place = Place(args.process_index, args.process_count, threads_each(args.processes))
    try:
        if args.processes == 1:
            encode_here(settings, folder, place, stop, progress.report)
        else:
            encode_in_processes(settings, folder, args.processes, place, stop, progress.report)
    except WorkerDied as error:
        print(f"mmdit: {error}", file=sys.stderr)
        return error.code
    finally:
        progress.close()
    _tell(folder, args.json, progress, time.monotonic() - begun)
    return 0


def _dry_run(settings: Settings, folder: Path, as_json: bool, stop: Callable[[], bool], progress: Progress) -> int:
    """Scan (kept for the real run), plan, and print."""
    from mmdit_jax.data.encode.job import Job, Place
    from mmdit_jax.data.encode.models import load_models
    from mmdit_jax.data.encode.workers import threads_each
    from mmdit_jax.data.sources import open_source

    models = load_models(settings)
    source = open_source(settings.scan.source, settings.scan.options)
    job = Job(folder, source, Place(threads=threads_each(1)), stop, progress.report)
    plan = make_plan(job.scan(), settings.scan)
    sizes = sample_bytes(plan.buckets, models.vae.channels, models.vae.factor, models.text)
    images = sum(plan.examples.values())
    told = {
        "folder": str(folder),
        "examples": plan.examples,
        "buckets": [
            {"pixels": list(bucket), "train": train, "validation": held} for bucket, train, held in plan.buckets
        ],
        "dropped": plan.reasons,
        "shards": len(plan.units),
        "bytes_per_sample": sizes,
        "gigabytes": sum(sizes.values()) * images / 1e9,
    }
    print(
        json.dumps(told)
        if as_json
        else f"{_plan_lines(plan)}\n{table(sizes)}\n{told['gigabytes']:.3f} GB in {len(plan.units):,} shards"
    )
    return 0


def _plan_lines(plan: Plan) -> str:
    return _lines(plan.examples, [(list(b), train, held) for b, train, held in plan.buckets], plan.reasons)


def _lines(examples: dict[str, int], buckets: list[tuple[list[int], int, int]], reasons: dict[str, int]) -> str:
    lines = [", ".join(f"{split} {count:,}" for split, count in examples.items()) + " images"]
    lines += [f"  {h}x{w}: {train:,} train, {held:,} validation" for (h, w), train, held in buckets]
    lines += [f"dropped {count:,}: {reason}" for reason, count in reasons.items()]
    return "\n".join(lines)


def account(folder: Path, manifest: dict[str, Any]) -> str:
    """What a finished set is, measured from its files: lines of text."""
    examples = manifest["examples"]
    total = _bytes(manifest)
    buckets = [(bucket["pixels"], bucket["train"], bucket["validation"]) for bucket in manifest["buckets"]]
    return "\n".join(
        (
            _lines(examples, buckets, manifest["dropped"]),
            table(manifest["bytes_per_sample"]),
            f"on disk: {total / 1e9:.3f} GB, {total / sum(examples.values()) / 1e3:.1f} kB a sample",
            str(folder),
        )
    )


def _bytes(manifest: dict[str, Any]) -> int:
    return sum(shard["bytes"] for shards in manifest["splits"].values() for shard in shards)


def _tell(folder: Path, as_json: bool, progress: Progress, seconds: float) -> None:
    """Print what a set is, now that it is finished."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if not as_json:
        print(account(folder, manifest))
        return
    total, per_sample = _bytes(manifest), manifest["bytes_per_sample"]
    told = {
        "folder": str(folder),
        **{name: manifest[name] for name in ("examples", "buckets", "dropped", "synthetic_captions")},
        "bytes": total,
        "bytes_per_sample": per_sample,
        "gb_per_million": {name: size / 1e3 for name, size in per_sample.items()},
        "gb_per_million_on_disk": total / sum(manifest["examples"].values()) / 1e3,
        "encoded_now": progress.encoded,
        "images_per_second": progress.rate,
        "seconds": seconds,
    }
    print(json.dumps(told))
