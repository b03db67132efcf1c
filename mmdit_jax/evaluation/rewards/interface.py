"""What a judge of single images is, how one is named on a command line, and which lead of its score is a tie."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmdit_jax.errors import UserError, unknown
from mmdit_jax.evaluation.rewards.trees import Picture

JUDGES = {
    "pickscore": "mmdit_jax.evaluation.rewards.pickscore",
    "hpsv2": "mmdit_jax.evaluation.rewards.hpsv2",
    "imagereward": "mmdit_jax.evaluation.rewards.imagereward",
    "scorer": "mmdit_jax.evaluation.rewards.local",
    "contrastive": "mmdit_jax.evaluation.rewards.local",
}
"""Modules with a function ``open_judge(name, folder, options)``."""
WITHOUT_FOLDER = ("scorer", "contrastive")

Scores = Callable[[Sequence[np.ndarray], Sequence[Picture]], np.ndarray]
"""A loaded judge: images uint8 [H, W, 3], of any sides, and where they come from, to scores float64 [N]; higher is
better."""


@dataclass(frozen=True)
class Options:
    """How reward models are run; the two that ship along know nothing of it."""

    device: str | None = None
    """A device of torch's; None: a GPU where torch sees one, else the CPU."""
    batch: int = 16
    """Images at a time. Always as many, the last ones repeated, so that a score doesn't depend on what is beside it."""


@dataclass(frozen=True)
class Judge:
    """A judge whose files were found, and whose weights are not loaded yet."""

    name: str
    question: str
    """What it decides: what its battles say under ``question``."""
    fingerprint: str
    """Hash of all that its scores depend on but the images and prompts; 16 hexadecimal digits."""
    load: Callable[[], Scores]
    batch: int
    slope: float | None = None
    """Logits a unit of score: the judge holds that left is preferred with probability 1 / (1 + exp(-slope · lead)).
    None where it holds nothing of that kind."""
    tie: float = 0.0
    """Largest lead that is a tie, where there is no slope."""
    sees: Callable[[Picture], bool] = lambda picture: True
    """Whether it has anything to say of such a prompt."""


def open_judge(spec: str, options: Options) -> Judge:
    """The judge that ``NAME=FOLDER``, ``scorer`` or ``contrastive`` stands for.

    Raises:
        UserError: no such judge, a folder too many or too few, or one that does not hold its files.
    """
    name, _, folder = spec.partition("=")
    if name not in JUDGES:
        unknown("judge", name, JUDGES)
    if name in WITHOUT_FOLDER and folder:
        raise UserError(f"judge={spec!r}: {name} ships with the package; expected no folder")
    if name not in WITHOUT_FOLDER and not folder:
        raise UserError(f"judge={spec!r}: expected {name}=FOLDER, with the model's files in it (docs/judges.md)")
    judge: Judge = importlib.import_module(JUDGES[name]).open_judge(name, folder, options)
    return judge


def probability_margin(margin: float) -> float:
    """``margin`` where it is one: in [0, 0.5). Raises UserError otherwise."""
    if not 0 <= margin < 0.5:
        raise UserError(f"tie={margin}: expected 0 or more, below 0.5: how far from 0.5 a judge's probability is a tie")
    return margin


def tie_lead(judge: Judge, margin: float) -> float:
    """Largest lead of the judge's score that is a tie.

    With a slope: that at which the judge's own probability is 0.5 + ``margin``, ln((1 + 2m) / (1 - 2m)) / slope.
    Without one the judge has a lead of its own, and ``margin`` says nothing.
    """
    if judge.slope is None:
        return judge.tie
    return math.log1p(4 * margin / (1 - 2 * margin)) / judge.slope
