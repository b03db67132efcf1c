"""What every text encoder offers, and how the states of several become one conditioning (SD3, arXiv 2403.03206 §C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mmdit_jax.errors import UserError


class TextStates(NamedTuple):
    """Encoded captions: ``tokens`` [N, L, width] and ``pooled`` [N, pooled_width], float16 or float32.

    Padding is explicit: token states past the last word are zeros. A tuple, therefore a pytree.
    """

    tokens: np.ndarray
    pooled: np.ndarray


class TextEncoder(Protocol):
    """A frozen text encoder. Equal fingerprints mean equal states, so the fingerprint may key a cache."""

    @property
    def name(self) -> str:
        """The name in the registry."""

    @property
    def length(self) -> int:
        """Tokens of an encoded caption, L."""

    @property
    def width(self) -> int:
        """Channels of a token state."""

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled state; 0 where the encoder has none, as T5."""

    @property
    def fingerprint(self) -> str:
        """Hash of the algorithm's version and the weights."""

    def encode(self, captions: Sequence[str]) -> TextStates:
        """States of captions, row by row: a row depends on its own caption only."""


def encode_all(encoder: TextEncoder, captions: Sequence[str]) -> TextStates:
    """States of all captions of a data set: each distinct caption is encoded once, the rows are then copied."""
    distinct, rows = np.unique(np.asarray(list(captions), dtype=object).astype(str), return_inverse=True)
    states = encoder.encode([str(caption) for caption in distinct])
    return TextStates(states.tokens[rows], states.pooled[rows])


def assemble(
    text: Mapping[str, tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]],
    keep: Mapping[str, jax.typing.ArrayLike] | None = None,
    widths: Mapping[str, tuple[int, int]] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One context and one pooled vector from several encoders' states; pure, float32, fine inside jit.

    Channels are concatenated, as SD3 does with its two CLIPs, in the alphabetical order of encoder names (jax sorts
    dictionaries too). An encoder that is dropped for a row, or missing, contributes zeros.

    Args:
        text: per encoder name, ``tokens`` [B, L, width] and ``pooled`` [B, pooled_width] (a ``TextStates`` will do).
        keep: per encoder name, bool [B]: False drops the encoder for that row. Names left out are kept.
        widths: per encoder name, (width, pooled_width) of the encoders the model was trained with. Those that
            ``text`` lacks become zeros, so either encoder can be removed at inference. Default: those of ``text``.

    Returns:
        context [B, L, sum of widths] and pooled [B, sum of pooled widths].

    Raises:
        UserError: ``text`` is empty, or has an encoder or a width that ``widths`` lacks, or lengths differ.
    """
    if not text:
        raise UserError("text={}: expected the states of at least one encoder")
    states = {name: (jnp.asarray(tokens), jnp.asarray(pooled)) for name, (tokens, pooled) in text.items()}
    found = {name: (tokens.shape[-1], pooled.shape[-1]) for name, (tokens, pooled) in states.items()}
    expected = found if widths is None else dict(widths)
    wrong = [name for name, width in found.items() if expected.get(name) != width]
    if wrong:
        raise UserError(f"text={wrong}: widths {[found[n] for n in wrong]}; the model expects {expected}")
    shapes = {tokens.shape[:2] for tokens, _ in states.values()}
    if len(shapes) > 1:
        raise UserError(f"text={sorted(states)}: states have [B, L] {sorted(shapes)}; expected one [B, L]")
    ((rows, length),) = shapes

    contexts, pools = [], []
    for name in sorted(expected):
        width, pooled_width = expected[name]
        if name in states:
            tokens, pooled = (x.astype(jnp.float32) for x in states[name])
        else:
            tokens, pooled = jnp.zeros((rows, length, width)), jnp.zeros((rows, pooled_width))
        if keep is not None and name in keep:
            kept = jnp.asarray(keep[name])
            tokens = jnp.where(kept[:, None, None], tokens, 0.0)
            pooled = jnp.where(kept[:, None], pooled, 0.0)
        contexts.append(tokens)
        pools.append(pooled)
    return jnp.concatenate(contexts, axis=-1), jnp.concatenate(pools, axis=-1)
