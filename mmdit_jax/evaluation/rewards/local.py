"""The two judges that ship with the package: the analytic scorer of scenes, and the small contrastive model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from mmdit_jax.data.scenes.prompts import Prompt
from mmdit_jax.data.scenes.scorer import score_all
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.battles import QUESTION
from mmdit_jax.evaluation.rewards.interface import Judge, Options, Scores
from mmdit_jax.evaluation.rewards.trees import Picture

_BATCH = 128
_SCORER_VERSION = "scorer-1".ljust(16, "0")


def open_judge(name: str, folder: str, options: Options) -> Judge:
    """``scorer`` or ``contrastive``; neither has a folder nor asks for torch."""
    if name == "scorer":
        return Judge(name, QUESTION, _SCORER_VERSION, lambda: _each_shape(_graded), _BATCH, sees=_is_scene)
    from mmdit_jax.evaluation.judge import packaged_judge
    from mmdit_jax.evaluation.latent import for_judge

    judge = packaged_judge()

    def similarity(images: np.ndarray, pictures: Sequence[Picture]) -> np.ndarray:
        return judge.similarity(for_judge(images), [picture.prompt for picture in pictures])

    return Judge(name, QUESTION, judge.fingerprint, lambda: _each_shape(similarity), _BATCH, tie=judge.tie)


def _is_scene(picture: Picture) -> bool:
    """Whether GenEval's metadata asks for something: captions of other sets than `scenes` ask for nothing."""
    return bool(json.loads(picture.metadata).get("include"))


def _graded(images: np.ndarray, pictures: Sequence[Picture]) -> np.ndarray:
    if images.shape[1] != images.shape[2]:
        raise UserError(f"judge=scorer: {pictures[0].path} has {images.shape[1:3]} px; expected a square")
    prompts = [Prompt.from_json(picture.metadata) for picture in pictures]
    return np.array([score.graded for score in score_all(images, prompts)])


def _each_shape(score: Callable[[np.ndarray, Sequence[Picture]], np.ndarray]) -> Scores:
    """Of a function of images of one shape, one of images of any."""

    def scores(images: Sequence[np.ndarray], pictures: Sequence[Picture]) -> np.ndarray:
        out = np.zeros(len(images))
        for shape in dict.fromkeys(image.shape for image in images):
            rows = [i for i, image in enumerate(images) if image.shape == shape]
            out[rows] = score(np.stack([images[i] for i in rows]), [pictures[i] for i in rows])
        return out

    return scores
