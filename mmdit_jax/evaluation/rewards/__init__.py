"""Judges of single images, whose scores make battles: reward models from local folders, and the two that ship along."""

from mmdit_jax.evaluation.rewards.cache import Score, ScoreFile, image_hash
from mmdit_jax.evaluation.rewards.interface import JUDGES, Judge, Options, open_judge, probability_margin, tie_lead
from mmdit_jax.evaluation.rewards.pairing import pair, shown
from mmdit_jax.evaluation.rewards.scoring import Counts, score_pictures
from mmdit_jax.evaluation.rewards.trees import Picture, Tree, find_trees, read_image, read_tree

__all__ = [
    "JUDGES",
    "Counts",
    "Judge",
    "Options",
    "Picture",
    "Score",
    "ScoreFile",
    "Tree",
    "find_trees",
    "image_hash",
    "open_judge",
    "pair",
    "probability_margin",
    "read_image",
    "read_tree",
    "score_pictures",
    "shown",
    "tie_lead",
]
