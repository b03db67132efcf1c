"""What an encoded set takes on disk, by encoder, beside the paper's Table 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmdit_jax.data.encode.buckets import Bucket
from mmdit_jax.models.text import TextEncoder

BYTES = 2
"""Of a bfloat16 number."""
PAPER_KB = {"vae": 65.5, "clip_l": 121.3, "clip_g": 202.2, "t5": 630.7}
"""Table 7, kB a sample at 256 px and 77 tokens; its CLIPs' pooled states are in float32, ours in bfloat16."""
SHARD_BYTES = 65_536
"""Of an array_record file beyond its records, about: its header and index."""


def latent_bytes(bucket: Bucket, channels: int, factor: int) -> int:
    """Mean and log variance of an image's latent.

    Args:
        bucket: (h, w), pixels.
        channels, factor: of the autoencoder.
    """
    return 2 * BYTES * (bucket[0] // factor) * (bucket[1] // factor) * channels


def text_bytes(encoder: TextEncoder) -> int:
    """Token and pooled states of a caption."""
    return BYTES * (encoder.length * encoder.width + encoder.pooled_width)


def sample_bytes(
    buckets: Sequence[tuple[Bucket, int, int]], channels: int, factor: int, encoders: Mapping[str, TextEncoder]
) -> dict[str, float]:
    """Mean bytes a sample of each encoder ("vae" first): from shapes, before anything is encoded.

    Args:
        buckets: with their images of both splits.
        channels, factor: of the autoencoder.
        encoders: by name.
    """
    images = sum(train + validation for _, train, validation in buckets)
    total = sum((train + validation) * latent_bytes(b, channels, factor) for b, train, validation in buckets)
    return {"vae": total / max(images, 1), **{name: float(text_bytes(encoder)) for name, encoder in encoders.items()}}


def table(per_sample: Mapping[str, float]) -> str:
    """Lines of a table: kB a sample, GB a million samples, and the paper's kB."""
    lines = [f"{'':10}{'kB a sample':>12}{'GB a million':>14}{'Table 7, kB':>13}"]
    for name, size in sorted(per_sample.items(), key=lambda pair: (pair[0] != "vae", pair[0])):
        paper = f"{PAPER_KB[name]:.1f}" if name in PAPER_KB else "–"
        lines.append(f"{name:10}{size / 1e3:12.1f}{size / 1e3:14.1f}{paper:>13}")
    return "\n".join(lines)
