"""`scenes`: procedural images of colourful shapes, captions for training, prompts and an exact scorer for evaluation.

Nothing here needs a download or a detector. The TFDS builder is in ``builder`` (it imports tensorflow_datasets).
"""

from mmdit_jax.data.scenes.captions import example, examples
from mmdit_jax.data.scenes.prompts import TASKS, Prompt, Requirement, all_prompts, prompts
from mmdit_jax.data.scenes.renderer import Scene, render
from mmdit_jax.data.scenes.scorer import Score, score, score_all

__all__ = [
    "TASKS",
    "Prompt",
    "Requirement",
    "Scene",
    "Score",
    "all_prompts",
    "example",
    "examples",
    "prompts",
    "render",
    "score",
    "score_all",
]
