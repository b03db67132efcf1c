"""Encoders removed at inference: who wins is counted right, intervals cover, real images look real, all of it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Mmdit

from experiments.text_encoders_small import study
from mmdit_jax.config import DataConfig
from mmdit_jax.data.scenes import examples
from mmdit_jax.data.scenes.prompts import Prompt, prompts
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.judge import packaged_judge
from mmdit_jax.evaluation.realism import Realism
from mmdit_jax.evaluation.removal import AESTHETICS, ALL, PROMPT, compare
from scaling.errors import TableError
from scaling.removal_section import removal_section
from scaling.win_rates import win_rates


def battles(rates: np.ndarray, prompts: int, rng: np.random.Generator) -> pd.DataFrame:
    """One battle a prompt for each training, won by "a" against "b" at that training's rate; sides at random."""
    rows = []
    for training, rate in enumerate(rates):
        for prompt, (won, left) in enumerate(zip(rng.random(prompts) < rate, rng.random(prompts) < 0.5, strict=True)):
            names = ("a", "b") if left else ("b", "a")
            rows.append((f"r{training}", f"p{prompt}", *names, "left" if won == left else "right"))
    return pd.DataFrame(rows, columns=["run", "prompt", "left", "right", "outcome"])


def test_rates_by_hand() -> None:
    table = pd.DataFrame(
        [
            ("x", "p", "a", "b", "left"),
            ("x", "p", "b", "a", "left"),
            ("x", "q", "a", "b", "tie"),
            ("y", "p", "a", "b", "left"),
            ("y", "q", "b", "a", "right"),
            ("y", "q", "c", "a", "right"),  # not against b
        ],
        columns=["run", "prompt", "left", "right", "outcome"],
    )
    (row,) = win_rates(table, "b", trainings="run", draws=0).rows
    # x: prompt p one win of two, q a tie; y: both won.
    assert (row.name, row.battles) == ("a", 5) and row.rate == pytest.approx((0.5 + 1.0) / 2)
    assert np.isnan(row.low)
    (from_other_side,) = win_rates(table[:5], "a", trainings="run", draws=0).rows
    assert from_other_side.rate == pytest.approx(1 - row.rate)


def test_intervals_cover_the_true_rate() -> None:
    """Trainings whose own rates vary about .45: the interval is for the mean of all such trainings."""
    rng, covered, repeats = np.random.default_rng(1), 0, 200
    for _ in range(repeats):
        table = battles(np.clip(rng.normal(0.45, 0.06, size=3), 0, 1), 120, rng)
        (row,) = win_rates(table, "b", trainings="run", draws=200, seed=int(rng.integers(1 << 30))).rows
        covered += row.low <= 0.45 <= row.high
    assert covered / repeats > 0.9


def test_bad_tables_are_told() -> None:
    table = battles(np.array([0.5, 0.5]), 3, np.random.default_rng(0))
    with pytest.raises(TableError, match="against='c'"):
        win_rates(table, "c")
    with pytest.raises(TableError, match="'r1': other prompts than 'r0'"):
        win_rates(table[:-1], "b", trainings="run")
    with pytest.raises(TableError, match=r"outcome=.*won"):
        win_rates(table.assign(outcome="won"), "b")


def test_real_images_look_real() -> None:
    judge = packaged_judge()
    known, _ = examples(0, "validation", 0, 512, 32)
    fresh, _ = examples(0, "train", 0, 128, 32)
    realism = Realism.fit(judge.embed_images(known))
    noise = np.random.default_rng(0).normal(size=fresh.shape)
    score = lambda images: realism.score(judge.embed_images(images.astype(np.uint8)))  # noqa: E731
    real = score(fresh)
    for least, other in (
        (0.95, np.clip(fresh + 100 * noise, 0, 255)),
        (0.75, (fresh.astype(float) + fresh[::-1]) / 2),  # two scenes on top of each other
        (0.95, 255 * (noise > 0)),
    ):
        assert np.mean(real[:, None] > score(other)[None]) > least
    again, _ = examples(0, "train", 128, 256, 32)
    assert abs(np.mean(real[:, None] > score(again)[None]) - 0.5) < 0.1
    with pytest.raises(UserError, match="images=64"):
        Realism.fit(np.zeros((64, 64)))


def test_comparison_knows_right_from_wrong() -> None:
    """Real scenes that show their prompt beat scenes of other prompts on prompt following, and tie with themselves."""
    images, captions = examples(3, "train", 0, 96, 32)
    judge = packaged_judge()
    realism = Realism.fit(judge.embed_images(examples(0, "validation", 0, 256, 32)[0]))
    # captions are no tasks of the scorer, so the contrastive judge decides alone
    asked = [Prompt(task="caption", include=(), prompt=caption) for caption in captions]
    drawn = {"without x": images[::-1, None], "same": images[:, None]}
    rows = compare("r", images[:, None], drawn, asked, judge, realism)
    frame = pd.DataFrame([vars(row) for row in rows])
    assert set(frame["judge"]) == {"realism", "contrastive"}
    assert (frame[frame["left"] == "same"]["outcome"] == "tie").all()
    other = frame[frame["left"] == "without x"]
    following = other[other["question"] == PROMPT]["outcome"]
    assert (following == "right").mean() > 0.75 and (following == "left").mean() < 0.1
    looks = (other[other["question"] == AESTHETICS]["outcome"] == "left").mean()
    assert abs(looks - 0.5) < 0.05  # the same images in another order


def test_the_scorer_decides_where_it_can() -> None:
    asked = prompts(2, seed=0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(len(asked), 1, 32, 32, 3), dtype=np.uint8)
    judge = packaged_judge()
    realism = Realism.fit(judge.embed_images(examples(0, "validation", 0, 128, 32)[0]))
    rows = compare("r", images, {"without x": images}, asked, judge, realism)
    assert {row.judge for row in rows} == {"realism", "contrastive", "scorer"}
    assert {row.task for row in rows} == {prompt.task for prompt in asked}


def test_config_names_encoders_that_are_there() -> None:
    run = study().runs[0]
    assert run.evaluation.without == (("words",), ("tower",), ("tower", "words"))
    with pytest.raises(UserError, match=r"evaluation.without.*did you mean 'words'"):
        replace(run, evaluation=replace(run.evaluation, without=(("word",),)))
    with pytest.raises(UserError, match="each group once"):
        replace(run.evaluation, without=("words", ("words",)))
    assert DataConfig().text_layout == "channels"


@pytest.mark.slow
def test_a_study_with_removed_encoders(mmdit: Mmdit, tmp_path: Path) -> None:
    """From training to the tables, the command and the report's section."""
    settings = ["--set", "evaluation.without=(('words',), ('tower',))", "--set", "evaluation.images_per_prompt=2"]
    settings += ["--set", "steps=10"]
    text = mmdit.study.read_text().replace('"tower"))', '"tower"), text_layout="sd3")')
    mmdit.study.write_text(text.replace("text_widths(data.text_encoders)", "text_widths(data.text_encoders, 'sd3')"))
    done = mmdit("study", "run", str(mmdit.study), *settings)
    assert done.returncode == 0, done.stderr
    folder = mmdit.folder / "studies" / "tiny"
    scores, table = pd.read_csv(folder / "without.csv"), folder / "without_battles.csv"
    assert set(scores["without"].fillna("")) == {"", "words", "tower"}
    told = mmdit("winrate", str(table), "--against", ALL, "--by", "question,judge", "--trainings", "run", "--json")
    assert told.returncode == 0, told.stderr
    rows = json.loads(told.stdout)["rows"]
    assert len(rows) == 2 * 3 and all(0 <= row["low"] <= row["rate"] <= row["high"] <= 1 for row in rows)
    assert {row["battles"] for row in rows} == {2 * 12 * 2}  # trainings, prompts, images a prompt
    assert "Without some text encoders" in (folder / "report.html").read_text()
    (part,) = removal_section(pd.read_csv(table), scores, None, draws=50, seed=0)
    assert len(part.tables) == 2 and part.findings
    wrong = mmdit("winrate", str(table), "--against", "nobody")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1
