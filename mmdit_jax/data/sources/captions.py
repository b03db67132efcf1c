"""Captions as files bring them: text, or JSON with several spellings; and the choice between two of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmdit_jax.data.sources.interface import Unreadable

CAPTION_FIELDS = ("caption", "text", "captions", "TEXT", "prompt")
"""Where a caption is looked for in a record that has fields, in this order."""
SYNTHETIC_FIELDS = ("synthetic", "synthetic_caption", "caption_synthetic", "recaption")
"""Where a synthetic caption is looked for."""


def keyed_share(seed: int, purpose: str, key: str) -> float:
    """A number in [0, 1) that depends on its arguments only: uniform over keys, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{purpose}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def printable(path: str) -> str:
    """A key that UTF-8 can hold: names of files, and of members of tar files, can be any bytes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def clean(value: Any, key: str) -> str | None:
    """A field's value as a caption, or None where there is none; of a list, one is chosen by the item's key.

    Args:
        value: text, bytes in UTF-8, a list or array of these, or {"text": list}, as coco_captions has them.
        key: of the item.

    Raises:
        Unreadable: another kind of value, or bytes that are no UTF-8.
    """
    if isinstance(value, Mapping):
        value = value.get("text")
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")  # some editors put a mark first
        except UnicodeDecodeError:
            raise Unreadable("its caption is not UTF-8") from None
    if isinstance(value, str):
        return value.encode(errors="replace").decode().strip() or None
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Sequence):
        texts = [text for text in (clean(entry, key) for entry in value) if text]
        return texts[int(keyed_share(0, "caption", key) * len(texts))] if texts else None
    raise Unreadable(f"its caption is of type {type(value).__name__}, expected text")


def from_json(data: bytes | str, key: str) -> tuple[str | None, str | None]:
    """Caption and synthetic caption of a JSON object; a text, or a list of texts, is the caption itself.

    Raises:
        Unreadable: it is none of these.
    """
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if isinstance(found, str | list):
        return clean(found, key), None
    if not isinstance(found, dict):
        raise Unreadable("its .json is no JSON object")
    return first(found, CAPTION_FIELDS, key), first(found, SYNTHETIC_FIELDS, key)


def first(record: Mapping[str, Any], fields: Sequence[str], key: str) -> str | None:
    """The caption in the first of ``fields`` in which ``record`` has one; empty ones are passed over."""
    found = (clean(record[field], key) for field in fields if field in record)
    return next((caption for caption in found if caption is not None), None)


def choose(seed: int, key: str, caption: str | None, synthetic: str | None, share: float) -> tuple[str | None, bool]:
    """The caption an item is trained with, and whether it is the synthetic one (SD3 Table 4: half of each).

    An item that has one only gets that one.

    Args:
        seed: of the choice.
        key: of the item.
        caption: the original.
        synthetic: made by a captioning model.
        share: of items with both that get the synthetic one.
    """
    if caption is None or synthetic is None:
        return (synthetic, synthetic is not None) if caption is None else (caption, False)
    chosen = keyed_share(seed, "synthetic", key) < share
    return (synthetic, True) if chosen else (caption, False)
