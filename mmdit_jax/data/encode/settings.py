"""What a set of pre-encoded examples is made from and how; whoever changes it gets another set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from mmdit_jax.data import duplicates
from mmdit_jax.data.encode.buckets import bucket_list
from mmdit_jax.data.sources import Source, SourceOptions
from mmdit_jax.errors import UserError, unknown

DEDUPE = ("exact", "perceptual", "none")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ScanSettings:
    """What decides which images stay, and where they go; all but the weights."""

    source: str
    options: SourceOptions = dataclasses.field(default_factory=SourceOptions)
    size: int = 256
    """S: buckets have about S² pixels."""
    multiple: int = 16
    """Sides of buckets are multiples of this many pixels."""
    bucket_aspect: float = 2.0
    """Ratio of sides of the widest bucket; 1 is the square alone."""
    min_size: int = 0
    """Least shorter side of an image, pixels."""
    max_aspect: float = 3.0
    """Images whose sides have a larger ratio are dropped."""
    max_upsample: float = 1.25
    """Images that would be enlarged more than this are dropped."""
    min_bucket: int = 1
    """Buckets with fewer images give them to the nearest other one."""
    synthetic_share: float = 0.5
    """Of images with an original and a synthetic caption, those that get the synthetic one."""
    validation: str = "auto"
    """Items ("2000") or share ("0.01", "1.0") of split validation; "auto": a hundredth, at least 1 and at most 2000."""
    dedupe: str = "exact"
    distance: int = duplicates.DISTANCE
    """Bits of 64 that perceptual hashes of near duplicates may differ."""
    seed: int = 0
    shard_examples: int = 1024
    """Examples of a shard at most; also what is lost when a process is killed."""

    def __post_init__(self) -> None:
        if self.dedupe not in DEDUPE:
            unknown("dedupe", self.dedupe, DEDUPE)
        for field, value, least in (
            ("min-size", self.min_size, 0),
            ("max-aspect", self.max_aspect, 1),
            ("max-upsample", self.max_upsample, 0.01),
            ("min-bucket", self.min_bucket, 1),
            ("shard-examples", self.shard_examples, 1),
        ):
            if not value >= least:
                raise UserError(f"{field}={value:g}: expected {least:g} or more")
        duplicates.check_distance(self.distance)
        bucket_list(self.size, self.multiple, self.bucket_aspect)
        if not 0 <= self.synthetic_share <= 1:
            raise UserError(f"synthetic-share={self.synthetic_share:g}: expected 0 to 1")
        self.validation_items(1)

    def validation_items(self, total: int) -> int:
        """How many of ``total`` items are split validation.

        Raises:
            UserError: neither a number of items nor a share.
        """
        text = self.validation
        if text == "auto":
            return min(2000, -(-total // 100)) if total > 1 else 0
        try:
            items = round(float(text) * total) if "." in text else int(text)
            if items < 0 or ("." in text and float(text) > 1):
                raise ValueError
        except (ValueError, OverflowError):
            raise UserError(f"validation={text!r}: expected a number of items (2000), a share (0.01) or auto") from None
        return min(items, total)


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """A text encoder, and where its weights are."""

    name: str
    folder: str | None = None
    """None for the embedded ones."""
    length: int | None = None
    """Tokens of a caption, where it can be chosen (T5)."""
    tokenizer: str | None = None
    """Folder of the tokenizer, of weights that have none beside them."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides an encoded set's bytes."""

    scan: ScanSettings
    vae: str
    """Folder of the autoencoder."""
    encoders: tuple[EncoderSpec, ...]
    batch: int = 32
    """Images that are encoded together. The last bits of latents depend on it."""
    dtype: str = "float32"
    """Of the matrix products of all encoders: float32 or bfloat16."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            unknown("dtype", self.dtype, DTYPES)
        if self.batch < 1:
            raise UserError(f"batch={self.batch}: expected 1 or more")
        names = [spec.name for spec in self.encoders]
        if not names:
            raise UserError("encoders='': expected at least one of --clip-l, --clip-g, --t5 and --encoders words,tower")
        if len(set(names)) < len(names):
            raise UserError(f"encoders={','.join(names)}: each can be there once")

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """What ``to_json`` wrote."""
        value = json.loads(text)
        scan = value["scan"]
        options = SourceOptions(**scan.pop("options"))
        encoders = tuple(EncoderSpec(**spec) for spec in value["encoders"])
        return cls(ScanSettings(options=options, **scan), value["vae"], encoders, value["batch"], value["dtype"])

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(dataclasses.asdict(self))


def scan_identity(settings: ScanSettings, source: Source) -> dict[str, Any]:
    """What decides the plan. Where things lie does not."""
    fields = dataclasses.asdict(settings)
    del fields["options"]
    return {**fields, "source": source.name, "source_fingerprint": source.fingerprint}


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """The first settings in which two identities differ, in words; None where they don't."""
    names = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if not names:
        return None
    told = [f"{name} was {_short(found.get(name))}, is {_short(wanted.get(name))}" for name in names[:3]]
    return "; ".join(told) + (f"; and {len(names) - 3} more" if names[3:] else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}… ({hashlib.blake2b(text.encode(), digest_size=4).hexdigest()})"
