"""Battles with known answers for the tests of ratings."""

from __future__ import annotations

import numpy as np
import pandas as pd


def davidson(first: np.ndarray, second: np.ndarray, ties: float) -> np.ndarray:
    """Win, loss, tie probabilities written straight from Davidson 1970: [..., 3]."""
    p, q = np.exp(first), np.exp(second)
    raised = np.stack([p, q, ties * np.sqrt(p * q)], axis=-1)
    return raised / raised.sum(-1, keepdims=True)


def simulate(strength: np.ndarray, prompts: int, per_prompt: int, ties: float, seed: int, luck: float = 0.0):
    """Battles between random pairs; ``luck`` is the spread of strengths from prompt to prompt."""
    rng = np.random.default_rng(seed)
    count = prompts * per_prompt
    prompt = np.repeat(np.arange(prompts), per_prompt)
    left = rng.integers(len(strength), size=count)
    right = (left + rng.integers(1, len(strength), size=count)) % len(strength)
    local = strength + luck * rng.normal(size=(prompts, len(strength)))
    chance = davidson(local[prompt, left], local[prompt, right], ties)
    outcome = (rng.random(count)[:, None] > chance.cumsum(-1)).sum(-1)
    name = np.array([f"m{i}" for i in range(len(strength))])
    kinds = np.array(["left", "right", "tie"])
    return pd.DataFrame({"prompt": prompt, "left": name[left], "right": name[right], "outcome": kinds[outcome]})


def battles(wins: int, losses: int, ties: int, left: str = "a", right: str = "b") -> pd.DataFrame:
    outcome = ["left"] * wins + ["right"] * losses + ["tie"] * ties
    return pd.DataFrame({"prompt": range(len(outcome)), "left": left, "right": right, "outcome": outcome})
