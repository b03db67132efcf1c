"""What every text encoder offers, and how the states of several become one conditioning (SD3, arXiv 2403.03206 §C)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mmdit_jax.errors import UserError, unknown


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


class TextShape(NamedTuple):
    """What one encoder's states of a caption look like."""

    length: int
    width: int
    pooled_width: int


def shapes_of(states: Mapping[str, tuple[Any, Any]]) -> dict[str, TextShape]:
    """The shape of each encoder's states, given as arrays tokens [B, L, width] and pooled [B, pooled_width]."""
    return {
        name: TextShape(tokens.shape[1], tokens.shape[2], pooled.shape[1]) for name, (tokens, pooled) in states.items()
    }


LAYOUTS = ("channels", "sd3")
"""How the states of several encoders lie in one context; see ``assemble``."""
# SD3 concatenates CLIP-L before CLIP-G; other names follow in the order of the alphabet.
_FIRST = ("clip_l", "clip_g")


def encoder_order(names: Iterable[str]) -> list[str]:
    """The order in which encoders are joined, whatever order they are given in (jax sorts the keys of dictionaries)."""
    return sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def context_shape(shapes: Mapping[str, TextShape], layout: str = "channels") -> TextShape:
    """Length and channels of the context, and channels of the pooled vector, that ``assemble`` makes of such states.

    Raises:
        UserError: the layout is unknown, or encoders that would lie side by side have other lengths.
    """
    if layout not in LAYOUTS:
        unknown("text_layout", layout, LAYOUTS)
    beside, behind = _places(shapes, layout)
    lengths = {shapes[name].length for name in beside}
    if len(lengths) > 1:
        told = ", ".join(f"{name} {shapes[name].length}" for name in beside)
        instead = "; use text_layout='sd3'" if layout == "channels" else ""
        raise UserError(f"text={beside}: token states of different lengths can't lie side by side ({told}){instead}")
    width = max([sum(shapes[name].width for name in beside), *(shapes[name].width for name in behind)])
    length = sum(lengths) + sum(shapes[name].length for name in behind)
    return TextShape(length, width, sum(shape.pooled_width for shape in shapes.values()))


def assemble(
    text: Mapping[str, tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]],
    keep: Mapping[str, jax.typing.ArrayLike] | None = None,
    expected: Mapping[str, TextShape] | None = None,
    layout: str = "channels",
) -> tuple[jax.Array, jax.Array]:
    """One context and one pooled vector from several encoders' states; pure, float32, fine inside jit.

    Layouts: ``channels`` lays all token states side by side. ``sd3`` (arXiv 2403.03206, section 4) lays those of
    encoders with a pooled state (the CLIPs) side by side, those without (T5) behind them along the sequence, and fills
    channels with zeros up to the widest. Pooled states are side by side in both. Encoders come in ``encoder_order``.
    One that is dropped for a row, or missing, contributes zeros.

    Args:
        text: per encoder name, ``tokens`` [B, L, width] and ``pooled`` [B, pooled_width] (a ``TextStates`` will do).
        keep: per encoder name, bool [B]: False drops the encoder for that row. Names left out are kept.
        expected: per encoder name, the shape of the states that the model was trained with. Those that ``text`` lacks
            become zeros, so any encoder can be removed at inference. Default: those of ``text``.
        layout: one of ``LAYOUTS``.

    Returns:
        context [B, length, width] and pooled [B, pooled_width], with the numbers of ``context_shape``.

    Raises:
        UserError: ``text`` is empty, has an encoder or a shape that ``expected`` lacks, or lengths differ where states
            lie side by side.
    """
    if not text:
        raise UserError("text={}: expected the states of at least one encoder")
    states = {name: (jnp.asarray(tokens), jnp.asarray(pooled)) for name, (tokens, pooled) in text.items()}
    found = {
        name: TextShape(tokens.shape[1], tokens.shape[2], pooled.shape[1]) for name, (tokens, pooled) in states.items()
    }
    shapes = found if expected is None else dict(expected)
    for name, shape in found.items():
        if shapes.get(name) != shape:
            raise UserError(
                f"text[{name!r}]={tuple(shape)}: expected {shapes.get(name, 'no such encoder')} of {shapes}"
            )
    counts = {len(array) for pair in states.values() for array in pair}
    if len(counts) > 1:
        raise UserError(f"text={sorted(states)}: states of {sorted(counts)} captions; expected one number")
    (rows,) = counts
    whole = context_shape(shapes, layout)

    def filled(name: str) -> tuple[jax.Array, jax.Array]:
        length, width, pooled_width = shapes[name]
        if name not in states:
            return jnp.zeros((rows, length, width)), jnp.zeros((rows, pooled_width))
        tokens, pooled = (array.astype(jnp.float32) for array in states[name])
        if keep is not None and name in keep:
            kept = jnp.asarray(keep[name])
            tokens, pooled = jnp.where(kept[:, None, None], tokens, 0.0), jnp.where(kept[:, None], pooled, 0.0)
        return tokens, pooled

    ready = {name: filled(name) for name in encoder_order(shapes)}
    beside, behind = _places(shapes, layout)
    parts = [jnp.concatenate([ready[name][0] for name in beside], axis=-1)] if beside else []
    parts += [ready[name][0] for name in behind]
    padded = [jnp.pad(part, ((0, 0), (0, 0), (0, whole.width - part.shape[-1]))) for part in parts]
    return jnp.concatenate(padded, axis=1), jnp.concatenate([pooled for _, pooled in ready.values()], axis=-1)


def _places(shapes: Mapping[str, TextShape], layout: str) -> tuple[list[str], list[str]]:
    """Encoders whose token states lie side by side, and those that follow along the sequence, in order."""
    names = encoder_order(shapes)
    behind = [name for name in names if layout == "sd3" and not shapes[name].pooled_width]
    return [name for name in names if name not in behind], behind
