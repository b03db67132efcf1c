"""A density over t that training learns: ∝ (loss at t)^p, from a moving average of the losses by bin of t.

p = −1 is the balance that EDM2's learned uncertainty has at its optimum, where every noise level adds as much to the
loss (Karras et al. 2024, arXiv 2312.02696), reached by drawing times instead of by weights; p = 1 goes where the loss
is high; p = 0 is uniform.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mmdit_jax.diffusion.densities import KINDS, MAX_BINS
from mmdit_jax.diffusion.formulation import Formulation

BINS = 32
MEMORY = 1000.0
"""Steps over which losses are remembered: each step weighs e⁻¹ of the present after so many."""
FLOOR = 0.1
"""Share of uniform times, so that every bin goes on being measured."""
PRIOR = 4.0
"""Examples at the mean loss that every bin is thought to have seen: an empty one is drawn as often as the average."""


def bin_members(t: Array, bins: int) -> Array:
    """Which of ``bins`` equal parts of [0, 1] each time lies in: t [B] -> bool [bins, B]."""
    return jnp.clip((t * bins).astype(jnp.int32), 0, bins - 1)[None, :] == jnp.arange(bins)[:, None]


class LossByTime(NamedTuple):
    """Discounted sum and number of losses in 32 equal bins of t, float32 [32] each; a pytree, saved with the run."""

    total: Array
    number: Array

    @classmethod
    def empty(cls) -> LossByTime:
        """What is known before the first step."""
        return cls(jnp.zeros(BINS, jnp.float32), jnp.zeros(BINS, jnp.float32))

    def add(self, losses: Array, t: Array) -> LossByTime:
        """Take in a step's losses [B] at times t [B]. What is not finite is left out."""
        members = bin_members(t, BINS) & jnp.isfinite(losses)[None, :]
        keep = 1.0 - 1.0 / MEMORY
        return LossByTime(
            keep * self.total + jnp.sum(jnp.where(members, losses[None, :], 0.0), axis=1),
            keep * self.number + jnp.sum(members, axis=1, dtype=jnp.float32),
        )

    def masses(self, power: ArrayLike) -> Array:
        """Relative masses float32 [32] of the density ∝ loss^power; all equal while nothing is known."""
        mean = jnp.sum(self.total) / jnp.maximum(jnp.sum(self.number), 1e-6)
        loss = (self.total + PRIOR * mean) / (self.number + PRIOR)
        # relative to the mean, so that powers neither overflow nor vanish
        raised = jnp.where(mean > 0, jnp.maximum(loss / jnp.maximum(mean, 1e-30), 1e-6), 1.0) ** power
        return (1.0 - FLOOR) * raised / jnp.mean(raised) + FLOOR


def learned_name(f: Formulation, known: LossByTime) -> str:
    """The density that an adaptive formulation has come to, as the name of a fixed one: ``rf/histogram(…)``.

    Four significant digits a mass; whatever else ``f`` has (shift, min-SNR) stays. Host only.
    """
    found = learned(f, known)
    masses = np.array([float(f"{mass:.4g}") for mass in np.asarray(found.masses)], np.float32)
    return dataclasses.replace(found, kind=np.int32(KINDS.index("histogram")), masses=masses).name


def learned(f: Formulation, known: LossByTime) -> Formulation:
    """``f`` with the density learned so far, where it has an adaptive one; else with the masses it had."""
    masses = jnp.pad(known.masses(f.s), (0, MAX_BINS - BINS))
    return dataclasses.replace(
        f, masses=jnp.where(f.adaptive, masses, f.masses), bins=jnp.where(f.adaptive, BINS, f.bins)
    )
