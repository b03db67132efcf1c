"""What the weights of a run are known by, wherever their parts lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from mmdit_jax.pauses import pause

_PIECE = 2**28
"""Bytes of an array that are gathered at a time."""


def on_host(leaf: Any) -> np.ndarray:
    """The whole array, wherever its parts are; to be called by every process that has some."""
    elsewhere = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return np.asarray(process_allgather(leaf, tiled=True) if elsewhere else jax.device_get(leaf))


def digest(tree: Any) -> str:
    """SHA-256 over names, shapes and bytes of a parameter tree; to be called by every process that has parts of it.

    Of an array that several processes share no more than a piece is gathered at a time.
    """
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}\n".encode())
        pieces: Iterable[Any] = [leaf]
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and leaf.nbytes > _PIECE:
            pieces = (leaf[row] for row in range(leaf.shape[0]))  # in the order of the bytes
        for piece in pieces:
            sha.update(np.ascontiguousarray(on_host(piece)).tobytes())
            pause()
    return sha.hexdigest()
