"""What the text encoders' parity is tested on: tiny configurations, token numbers, and our side of the comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from deterministic import values
from tiny_encoders import config, encoder_weights

from mmdit_jax.models.text import clip, t5
from mmdit_jax.models.text.folder import stack

CLIP, T5 = (jax.jit(encode, static_argnames=("config", "hidden")) for encode in (clip.encode, t5.encode))


@dataclass(frozen=True)
class Case:
    """One encoder and a batch for it."""

    name: str
    config: dict[str, Any]
    """As config.json."""
    rows: int
    tokens: int

    @property
    def is_t5(self) -> bool:
        return self.config["model_type"] == "t5"

    @property
    def projected(self) -> bool:
        """Whether this is a CLIPTextModelWithProjection, not a CLIPTextModel."""
        return self.config["architectures"] == ["CLIPTextModelWithProjection"]

    def weights(self) -> dict[str, np.ndarray]:
        """By transformers' names."""
        arrays = encoder_weights(self.name, self.config)
        return {name: a for name, a in arrays.items() if self.projected or name != clip.PROJECTION}

    def ids(self) -> np.ndarray:
        """int32 [rows, tokens]: captions of various lengths with start (CLIP) and end, padded with 0.

        With the old rule the end is the highest number; with the new one it is another, which appears twice in row 0.
        """
        vocabulary, eos = self.config["vocab_size"], self.config["eos_token_id"]
        words = values(f"{self.name}/ids", (self.rows, self.tokens))
        ids = (3 + (words / np.sqrt(12) + 0.5) * (vocabulary - 6)).astype(np.int32)
        end = vocabulary - 1 if eos == clip.OLD_EOS else eos
        for row in range(self.rows):
            stop = self.tokens - 1 if row else self.tokens // 3
            ids[row][ids[row] == end] = 3
            ids[row, stop:] = 0
            ids[row, stop] = end
        if not self.is_t5:
            ids[:, 0] = vocabulary - 2
            ids[0, -1] = end
        return ids


_PLAIN = {**config("clip_l"), "architectures": ["CLIPTextModel"], "eos_token_id": 500, "num_attention_heads": 2}
CASES = {
    case.name: case
    for case in (
        Case("clip_l", config("clip_l"), rows=2, tokens=77),
        Case("clip_plain", _PLAIN, rows=2, tokens=20),
        Case("clip_g", config("clip_g"), rows=2, tokens=77),
        Case("clip_wide", {**config("clip_g"), "projection_dim": 56, "eos_token_id": 501}, rows=3, tokens=13),
        Case("t5_77", config("t5"), rows=2, tokens=77),
        Case("t5_256", {**config("t5"), "num_heads": 5, "d_model": 64}, rows=1, tokens=256),
        Case(
            "t5_near",
            {**config("t5"), "relative_attention_num_buckets": 20, "relative_attention_max_distance": 50},
            rows=1,
            tokens=77,
        ),
    )
}


def ours(case: Case, dtype: str = "float32") -> dict[str, np.ndarray]:
    """What our encoder makes of a case: all hidden states ("hidden": [layers + 1, B, L, width]), and the rest."""
    tensors = {name.removeprefix("text_model."): array for name, array in case.weights().items()}
    if case.is_t5:
        t5_config = t5.from_json(case.config, case.name)
        arrays = stack(tensors, t5_config.shapes(), dtype, case.name)
        found = T5(arrays, jnp.asarray(case.ids()), t5_config, hidden=True)
        assert found.hidden is not None
        # transformers puts the final norm on the last of the hidden states.
        return {"last": np.asarray(found.last), "hidden": np.concatenate([found.hidden, found.last[None]])}
    projection = case.config["projection_dim"] if case.projected else None
    clip_config = clip.from_json(case.config, case.name, projection)
    arrays = stack(tensors, clip_config.shapes(), dtype, case.name)
    states = CLIP(arrays, jnp.asarray(case.ids()), clip_config, hidden=True)
    return {name: np.asarray(array) for name, array in states._asdict().items()}
