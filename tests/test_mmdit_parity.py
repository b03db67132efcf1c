"""The MMDiT beside diffusers' SD3Transformer2DModel, by the golden that `python -m parity.mmdit` wrote.

Weights enter by diffusers' names and gradients come back by them, through the tables that convert checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from deterministic import relative_error, sketch, weights
from mmdit_cases import CASES, COMMITTED, TABLE, gradient_errors, ours

from mmdit_jax.models.sd3.table import whole

GOLDEN = Path(__file__).parent / "goldens" / "mmdit.npz"


@pytest.mark.parametrize("name", COMMITTED)
def test_forward_and_gradients(name) -> None:
    case = CASES[name]
    with np.load(GOLDEN) as golden:
        shapes = json.loads(str(golden[f"{name}/shapes"]))
        out, sketches, table = (golden[f"{name}/{part}"] for part in ("out", "gradients", "table"))
    tensors = weights({key: shape for key, shape in shapes.items() if key != TABLE})
    tensors[TABLE] = whole(case.config())
    assert relative_error(sketch(TABLE, tensors[TABLE]), table) < 1e-5
    prediction, gradients = ours(case, name, tensors)
    assert relative_error(prediction, out) < 1e-5
    mine = {key: sketch(key, gradients[key]) for key in sorted(gradients)}
    theirs = dict(zip(sorted(gradients), sketches, strict=True))
    assert sorted(gradients) == sorted([*(shapes.keys() - {TABLE}), "latents", "context", "pooled"])
    errors = gradient_errors(case, mine, theirs)
    assert max(errors.values()) < 1e-5, max(errors, key=lambda key: errors[key])
