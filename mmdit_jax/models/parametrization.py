"""How initial weights and learning rates go with width and depth: muP, with the depth rule of CompleteP.

Under "mup" a model is initialised and updated so that the learning rate tuned at one shape, ``base_width`` and
``base_depth``, serves another: after as many steps, no activation has moved further for more channels or blocks. Width
is by Yang et al. 2022 (Tensor Programs V, arXiv 2203.03466, table 8, Adam), which Zheng et al. 2025 (arXiv 2505.15270)
show to hold for the MMDiT; depth by Dey et al. 2025 (CompleteP, arXiv 2505.01618, table 1 with alpha = 1).

Both multiply the output of some layers: that of the last layer by 1/width, that of every residual branch by 1/depth.
All these layers (the output layer, the gates, the CrossDiT's output) start at zero here, where a multiplier and a
learning rate are the same thing under Adam (Tensor Programs V, lemma J.1). So the network is the standard one,
which checkpoints convert to and from as ever; what differs are the numbers below (docs/parametrization.md).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from mmdit_jax.models.config import MMDiTConfig

# Kernels from a number of inputs that does not grow with the model.
INPUTS = (("patch",), ("context",), ("second_context",), ("time", "up"), ("pooled", "up"))
BLOCKS = ("dual", "blocks", "last")
# Of the equal parts of a modulation, those that gate a residual branch: attention, MLP, second attention.
GATES = (2, 5, 8)
ENDING_PARTS = 2
"""Parts of the modulation of a stream that ends: it has no branches."""


class Rule(NamedTuple):
    """How one parameter is updated. All are 1 at the base shape and under "standard"."""

    multiplier: float | np.ndarray
    """That the layer's output would have. The gradient is multiplied by it before clipping, the update after."""
    rate: float
    """Of the learning rate. Weight decay is left as it is: what a step takes away does not depend on the shape."""
    gradient: float
    """Size of the gradient, with the multiplier, that Adam's epsilon is measured by."""


def width_ratio(config: MMDiTConfig) -> float:
    """Width over that of the base; 1 under "standard"."""
    return 1.0 if config.base_width is None else config.width / config.base_width


def depth_ratio(config: MMDiTConfig) -> float:
    """Depth over that of the base; 1 under "standard"."""
    return 1.0 if config.base_depth is None else config.depth / config.base_depth


def input_scale(config: MMDiTConfig, features: int) -> float:
    """What initial kernels [features, width] are multiplied by, of "xavier", whose variance is 2 / (in + out).

    The variance of the base, which for a fixed number of features does not go with the width. (Kernels from width to
    width need nothing: their variance is 1/width anyway.)
    """
    return math.sqrt((features + config.width) / (features + config.width / width_ratio(config)))


def condition_scale(config: MMDiTConfig) -> float:
    """What initial kernels [width, width] of a fixed standard deviation are multiplied by, for one of width^-1/2."""
    return width_ratio(config) ** -0.5


def rule(config: MMDiTConfig, names: tuple[str, ...], size: int) -> Rule:
    """Of the parameter at the path ``names`` of the tree of ``init_params``, of ``size`` along its last axis.

    ``multiplier`` is float32 [size] where it differs within the parameter, as it does of gates.
    """
    *layer, leaf = names
    wide, deep = width_ratio(config), depth_ratio(config)
    if tuple(layer) == ("final",):
        return Rule(1 / wide, 1.0, 1 / wide) if leaf == "kernel" else Rule(1.0, 1.0, 1.0)
    rate = 1 / wide if leaf == "kernel" and tuple(layer) not in INPUTS else 1.0
    if not set(BLOCKS) & set(names):
        return Rule(1.0, rate, 1 / wide)
    if leaf == "scale":  # one for all heads, whose number grows as their gradients shrink
        return Rule(1.0, rate, 1 / deep)
    multiplier: float | np.ndarray = 1.0
    if layer[-1] == "cross_out":
        multiplier = 1 / deep
    elif layer[-1] == "modulation" and size != ENDING_PARTS * config.width:
        gates = np.isin(np.arange(size) // config.width, GATES)
        multiplier = np.where(gates, 1 / deep, 1.0).astype(np.float32)
    return Rule(multiplier, rate, 1 / (wide * deep))


def rules(config: MMDiTConfig, params: Any) -> Any:
    """A tree with the ``Rule`` of each parameter in its place; ``params`` as of ``init_params``, or its shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: rule(config, tuple(entry.key for entry in path), leaf.shape[-1]), params
    )
