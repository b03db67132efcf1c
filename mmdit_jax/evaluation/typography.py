"""Is the word that a caption spells in the image? Reading by template and by OCR, letter for letter, beside chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from scipy.special import stdtrit

from mmdit_jax.data.scenes.prompts import Prompt
from mmdit_jax.data.signs.captions import example, word_of
from mmdit_jax.data.signs.words import HELD_OUT
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.geneval import CHANCE_SCENES, CHANCE_SEED, FEWEST, mean_interval, wilson
from mmdit_jax.evaluation.typography_ocr import ocr_available, read_ocr
from mmdit_jax.evaluation.typography_template import read_templates

Reader = Callable[[np.ndarray], list[str]]
SEEN, UNSEEN = "seen", "unseen"
TASKS: Final = (SEEN, UNSEEN)
"""Whether training showed the word."""


def readers() -> dict[str, Reader]:
    """Readers by name: "template" always, "ocr" where its package is installed."""
    found: dict[str, Reader] = {"template": read_templates}
    return found | {"ocr": read_ocr} if ocr_available() else found


def sign_prompts(captions: Sequence[str]) -> list[Prompt]:
    """A prompt for each caption of `signs`, its task whether training showed the word.

    Raises:
        UserError: a caption that spells nothing.
    """
    for text in captions:
        if not word_of(text):
            raise UserError(f'caption={text!r}: expected a word in quotation marks, as the word "STOP"')
    return [Prompt(UNSEEN if word_of(text) in HELD_OUT else SEEN, (), text) for text in captions]


def letter_accuracy(read: str, word: str) -> float:
    """1 minus the edit distance over the length of the longer one, in [0, 1]."""
    return 1 - edit_distance(read, word) / max(len(read), len(word), 1)


def edit_distance(first: str, second: str) -> int:
    """Least number of letters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def letter_scores(images: np.ndarray, prompts: Sequence[Prompt], reader: Reader) -> np.ndarray:
    """``letter_accuracy`` of each image [P, K, H, W, 3] against its prompt's word: float64 [P, K]."""
    count = images.shape[1]
    read = reader(images.reshape(-1, *images.shape[2:]))
    words = [word_of(prompt.prompt) for prompt in prompts for _ in range(count)]
    return np.array([letter_accuracy(a, b) for a, b in zip(read, words, strict=True)]).reshape(len(prompts), count)


def typography(
    images: np.ndarray, prompts: Sequence[Prompt], *, seed: int = 0, fixed: bool = False
) -> list[dict[str, Any]]:
    """For every reader a row a task in the order of ``TASKS``, then "overall": the mean of the tasks' values.

    Columns as of ``geneval``, and "reader". ``rate``: share of images whose word is read exactly; ``graded``: mean
    ``letter_accuracy``. Both with 95 % intervals (``word_interval``: of other words of the kind), and beside what signs
    with random words of the set would score if they were read without error.

    Args:
        images: uint8 [P, K, H, W, 3], K samples of each prompt.
        prompts: P prompts, as of ``sign_prompts``.
        seed: of the words that chance is measured with.
        fixed: whether the set is `signs_fixed`, of short words alone.

    Raises:
        UserError: images of another shape, or no prompt.
    """
    if images.ndim != 5 or not len(prompts) or len(images) != len(prompts):
        raise UserError(
            f"images.shape={images.shape}: expected [P, K, H, W, 3] with P={len(prompts)} prompts, 1 or more"
        )
    by_chance = chance(prompts, seed, fixed=fixed)
    words = np.array([word_of(prompt.prompt) for prompt in prompts])
    rows: list[dict[str, Any]] = []
    for name, reader in readers().items():
        scores = letter_scores(images, prompts, reader)
        own = []
        for task in TASKS:
            member = np.array([prompt.task == task for prompt in prompts])
            if member.any():
                own.append({"reader": name, "task": task, **_row(scores[member], words[member], by_chance[member])})
        rows += [*own, {"reader": name, "task": "overall", **_overall(own, scores.size)}]
    return rows


def word_interval(scores: np.ndarray, words: Sequence[str] | np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean score of images whose words come several times, some more often than others.

    Images of one word are alike, so their number says little of other words. Wilson's interval on the effective number
    of images by the spread of the words' totals (Korn and Graubard's adjustment, with Student's t for the number of
    words; no more than independent images would be). Where fewer than FEWEST words have a score above 0, or below 1,
    they can't tell it: a word's images then count as one; and where all scores are 0, or 1, as many as there are words.

    Args:
        scores: in [0, 1] [P, K], K images of each of P prompts.
        words: P words, a prompt's each.
    """
    _, which = np.unique(words, return_inverse=True)
    totals = np.bincount(which, scores.sum(axis=1))
    sizes = np.bincount(which) * scores.shape[1]
    count, images, mean = len(sizes), scores.size, float(totals.sum() / scores.size)
    if mean in (0, 1):
        return wilson(mean * count, count)
    n = images**2 / float((sizes**2).sum())
    if min((totals > 0).sum(), (totals < sizes).sum()) >= FEWEST:
        spread = count / (count - 1) * float(((totals - mean * sizes) ** 2).sum()) / images**2
        variance = max(spread, float(scores.var()) / images)
        most = max(images, count**2)  # of scores that hardly vary
        n = mean * (1 - mean) / max(variance, mean * (1 - mean) / most)
    n *= (stdtrit(np.inf, 0.975) / stdtrit(max(count - 1, 1), 0.975)) ** 2
    return wilson(mean * n, n)


def chance(prompts: Sequence[Prompt], seed: int = 0, *, fixed: bool = False) -> np.ndarray:
    """(exact, letters) that random words of the set score against each prompt's: float64 [P, 2], by simulation."""
    others = [example(CHANCE_SEED + seed, "validation", i, fixed=fixed)[1].word for i in range(CHANCE_SCENES)]
    found = []
    for prompt in prompts:
        scores = np.array([letter_accuracy(other, word_of(prompt.prompt)) for other in others])
        found.append((np.mean(scores == 1), scores.mean()))
    return np.array(found)


def _row(scores: np.ndarray, words: np.ndarray, by_chance: np.ndarray) -> dict[str, Any]:
    exact = (scores == 1).astype(float)
    low, high = word_interval(exact, words)
    graded_low, graded_high = word_interval(scores, words)
    chance_exact, chance_letters = by_chance.mean(axis=0)
    return {
        "n": scores.size,
        "rate": float(exact.mean()),
        "low": low,
        "high": high,
        "graded": float(scores.mean()),
        "graded_low": graded_low,
        "graded_high": graded_high,
        "chance": float(chance_exact),
        "chance_graded": float(chance_letters),
    }


def _overall(rows: Sequence[dict[str, Any]], n: int) -> dict[str, Any]:
    row: dict[str, Any] = {"n": n}
    for value, low, high in (("rate", "low", "high"), ("graded", "graded_low", "graded_high")):
        row[value] = float(np.mean([item[value] for item in rows]))
        row[low], row[high] = mean_interval([r[value] for r in rows], [(r[low], r[high]) for r in rows])
    return {**row, **{key: float(np.mean([item[key] for item in rows])) for key in ("chance", "chance_graded")}}
