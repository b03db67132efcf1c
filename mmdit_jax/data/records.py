"""One encoded example as bytes: latents and text states in bfloat16, in the safetensors format.

What `mmdit data encode` writes and training reads. Every shard of an encoded set holds examples of one bucket, that is
of one latent shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from mmdit_jax.models.text.interface import TextStates

FORMAT = "mmdit-encoded-1"
"""Of manifest.json; another version of this layout gets another name."""


@dataclass(frozen=True)
class Encoded:
    """One example: what an autoencoder and the text encoders made of an image and its caption."""

    mean: np.ndarray
    """Of the latent's posterior, bfloat16 [h, w, C], before shift and scale."""
    logvar: np.ndarray
    """Log variance of the posterior, bfloat16 [h, w, C]."""
    text: Mapping[str, TextStates]
    """By encoder: tokens bfloat16 [L, width] and pooled bfloat16 [pooled_width], of this one caption."""
    caption: str
    key: str
    """Where it came from: unique in its set."""


def pack(example: Encoded) -> bytes:
    """The example as bytes; arrays are rounded to bfloat16. The same example gives the same bytes.

    Written here, since the library puts metadata in an order that changes from process to process.
    """
    arrays = {"mean": example.mean, "logvar": example.logvar}
    for name, states in example.text.items():
        arrays[f"{name}.tokens"], arrays[f"{name}.pooled"] = states.tokens, states.pooled
    header: dict[str, Any] = {"__metadata__": {"caption": example.caption, "key": example.key}}
    data: list[bytes] = []
    end = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], ml_dtypes.bfloat16)
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        data.append(array.tobytes())
        end += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *data])


def unpack(data: bytes) -> Encoded:
    """The example that ``pack`` wrote."""
    # safetensors.numpy does not read bfloat16.
    arrays = {
        name: np.frombuffer(item["data"], ml_dtypes.bfloat16).reshape(item["shape"])
        for name, item in safetensors.deserialize(data)
    }
    length = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + length])["__metadata__"]
    names = [name.removesuffix(".tokens") for name in arrays if name.endswith(".tokens")]
    text = {name: TextStates(arrays[f"{name}.tokens"], arrays[f"{name}.pooled"]) for name in names}
    return Encoded(arrays["mean"], arrays["logvar"], text, told["caption"], told["key"])
