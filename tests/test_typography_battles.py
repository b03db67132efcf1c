"""The three questions each have their judges: who answers what, and whether the judge of aesthetics is a fair one."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scene_captions import drawn
from scene_oracle import satisfying
from scipy import ndimage

import mmdit_jax.data.pipeline as pipeline
import mmdit_jax.evaluation.evaluate as evaluate_module
from experiments.quickstart import study as quickstart
from launch.collect import collect
from launch.execute import describe
from launch.places import Places
from mmdit_jax.config import DataConfig, EvaluationConfig, Run, Study, text_widths
from mmdit_jax.data.scenes import examples as scenes
from mmdit_jax.data.scenes import prompts, render
from mmdit_jax.data.scenes.layout import Draws
from mmdit_jax.data.signs import Sign, word_of
from mmdit_jax.data.signs import examples as signs
from mmdit_jax.data.signs import render as paint
from mmdit_jax.data.signs.captions import caption_and_sign
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.aesthetics import Aesthetics, texture
from mmdit_jax.evaluation.battles import Battle, battles
from mmdit_jax.evaluation.judge import Judge, packaged_judge
from mmdit_jax.evaluation.typography import readers, sign_prompts
from mmdit_jax.files import write_json
from mmdit_jax.models import MMDiTConfig
from scaling.analysis import by_question
from scaling.elo import rate


@pytest.fixture(scope="module")
def judging() -> Judge:
    return packaged_judge()


@pytest.fixture(scope="module", params=["scenes", "signs"])
def real(request: pytest.FixtureRequest, judging: Judge) -> tuple[Aesthetics, np.ndarray]:
    """The judge of aesthetics of a set, and real images it has not seen."""
    make = scenes if request.param == "scenes" else signs
    fitted = Aesthetics.fit(make(0, "validation", 0, 700, 32)[0], judging)
    return fitted, make(9, "train", 0, 120, 32)[0]


def lead(fitted: Aesthetics, images: np.ndarray, worse: np.ndarray) -> np.ndarray:
    return fitted.score(images) - fitted.score(np.clip(np.round(worse), 0, 255).astype(np.uint8))


def test_real_images_are_preferred_to_damaged_ones(real: tuple[Aesthetics, np.ndarray]) -> None:
    fitted, images = real
    noise = np.random.default_rng(0).normal(0, 1, images.shape)
    grain = [lead(fitted, images, images + level * noise) for level in (3, 6, 12, 25, 50)]
    assert all(np.mean(found > fitted.tie) > 0.9 for found in grain)
    means = [found.mean() for found in grain]
    assert means == sorted(means) and means[-1] > means[0] + 1  # the more noise, the worse
    blurred = [
        lead(fitted, images, ndimage.gaussian_filter(images.astype(float), (0, width, width, 0)))
        for width in (0.8, 1.2, 2.0)
    ]
    assert all(np.mean(found > fitted.tie) > 0.9 for found in blurred)
    assert [found.mean() for found in blurred] == sorted(found.mean() for found in blurred)
    flat = np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)
    half = (images.astype(float) + np.roll(images, 1, axis=0)) / 2
    for found in (lead(fitted, images, flat), lead(fitted, images, half)):
        assert np.mean(found > fitted.tie) > 0.7 and np.mean(found < -fitted.tie) < 0.05


def test_two_real_images_tie_or_win_alike(real: tuple[Aesthetics, np.ndarray]) -> None:
    fitted, images = real
    scores = fitted.score(images)
    between = scores[:60] - scores[60:]
    assert 0.3 < np.mean(np.abs(between) <= fitted.tie) < 0.7
    assert abs(np.mean(between > fitted.tie) - np.mean(between < -fitted.tie)) < 0.3
    # An image against itself, or in another company, scores the same.
    assert np.allclose(fitted.score(images[:7]), scores[:7])


def test_texture_by_hand(judging: Judge) -> None:
    flat = np.full((2, 16, 16, 3), 90, np.uint8)
    assert np.allclose(texture(flat), np.log(0.02))
    step = flat.copy()
    step[:, :, 8:] = 190  # one straight edge: a gradient at 1 of 15 places, and nothing on the diagonal
    found = texture(step).reshape(2, 2, 2, 6)  # images, scales, (gradient, second difference), quantiles
    assert np.allclose(found[:, :, 1], np.log(0.02)) and np.allclose(found[:, 0, 0, :4], np.log(0.02))
    assert np.allclose(found[:, 0, 0, 5], np.log(0.02 + 100 / 255))
    assert texture(np.zeros((1, 17, 23, 3), np.uint8)).shape == (1, 24)  # odd sides lose a row
    with pytest.raises(UserError, match="images=20: expected 264"):
        Aesthetics.fit(np.zeros((20, 32, 32, 3), np.uint8), judging)


def test_scenes_are_asked_two_questions(judging: Judge) -> None:
    asked = prompts(4, seed=1)
    images = render([satisfying(p, Draws(np.random.default_rng(i))) for i, p in enumerate(asked)], 32)[:, None]
    noisy = np.clip(images + np.random.default_rng(0).normal(0, 12, images.shape), 0, 255).astype(np.uint8)
    shuffled = np.roll(images, 1, axis=0)
    fitted = Aesthetics.fit(scenes(0, "validation", 0, 400, 32)[0], judging)
    runs = {"true": images, "noisy": noisy, "shuffled": shuffled}
    rows = battles(runs, asked, judging, fitted)
    table = pd.DataFrame([dataclasses.asdict(row) for row in rows])
    kinds = list(dict.fromkeys(zip(table["question"], table["judge"], strict=True)))
    assert kinds == [
        ("prompt following", "contrastive"), ("prompt following", "scorer"), ("aesthetics", "statistics")
    ]  # fmt: skip
    # Those of the first question are what they are without the second.
    assert rows[: 2 * 3 * len(asked)] == battles(runs, asked, judging)
    best = {question: rate(part, draws=0).ratings for question, part in table.groupby("question")}
    # Noise hurts looks and leaves what is shown; the wrong images look as well as the right ones.
    looks = {row.name: row.elo for row in best["aesthetics"]}
    assert looks["noisy"] < min(looks["true"], looks["shuffled"]) - 300
    assert abs(looks["true"] - looks["shuffled"]) < 150
    follows = {row.name: row.elo for row in best["prompt following"]}
    assert follows["shuffled"] < min(follows["true"], follows["noisy"]) - 100
    parts = by_question(table)
    assert list(parts) == ["prompt following", "aesthetics"]
    assert set(parts["prompt following"]["judge"]) == {"contrastive", "scorer"}
    plain = table.drop(columns="question")
    assert by_question(plain)[""] is plain and len(by_question(plain)) == 1


def test_signs_are_asked_for_their_words(judging: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdit_jax.evaluation.typography.ocr_available", lambda: False)
    images, captions = signs(4, "validation", 0, 12, 32)
    asked = sign_prompts(captions)
    runs = {"right": images[:, None], "wrong": np.roll(images, 1, axis=0)[:, None], "same": images[:, None]}
    rows = battles(runs, asked, judging)
    assert list(readers()) == ["template"]
    assert {(row.question, row.judge) for row in rows} == {("typography", "template")}
    outcome = {frozenset((row.left, row.right)): [] for row in rows}
    for row in rows:
        outcome[frozenset((row.left, row.right))].append("tie" if row.outcome == "tie" else vars(row)[row.outcome])
    assert set(outcome[frozenset(("right", "same"))]) == {"tie"}
    assert outcome[frozenset(("right", "wrong"))].count("right") > 9
    parts = by_question(pd.DataFrame([vars(Battle("p", "a", "b", "tie", "typography", "template", 0))]))
    assert list(parts) == ["typography"] and len(parts["typography"]) == 1


@pytest.mark.slow
def test_a_study_of_both_sets_has_all_three_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose images are known (good ones, and noisy ones) through evaluation and into the study's tables."""
    monkeypatch.setattr("mmdit_jax.evaluation.typography.ocr_available", lambda: False)
    places = Places(tmp_path, "questions", tmp_path / "data")
    runs = [run for data in ("scenes", "signs") for run in (tiny(data, "good"), tiny(data, "noisy"))]
    held_out = signs(0, "validation", 0, 12, 32)[1]
    for run in runs:
        pipeline.prepare(run.data.name, places.data, examples=run.data.examples)
        folder = places.run_dir(run)
        folder.mkdir(parents=True)
        monkeypatch.setattr(evaluate_module, "generate", functools.partial(pictures, noise=30 * ("noisy" in run.name)))
        scores = evaluate_module.evaluate(run, None, folder / "samples", held_out)
        known = {"val_loss": 0.5, "val_loss_levels": [0.5] * 8, "curve": []}
        write_json(folder / "result.json", {**describe(run), **known, **scores})
    collect(Study("questions", tuple(runs)), places)

    battled = pd.read_csv(places.study_dir / "battles.csv")
    assert {(row.question, row.left.split()[0], row.right.split()[0]) for row in battled.itertuples()} == {
        ("prompt following", "scenes", "scenes"), ("aesthetics", "scenes", "scenes"),
        ("aesthetics", "signs", "signs"), ("typography", "signs", "signs"),
    }  # fmt: skip
    composed, written = (pd.read_csv(places.study_dir / f"{name}.csv") for name in ("compbench", "typography"))
    assert list(composed.columns) == ["run_id", "name", "task", "n", "value", "low", "high", "chance"]
    assert list(composed["task"]) == ["attribute", "spatial", "numeracy", "overall"] * 2
    assert set(composed["name"]) == {"scenes good", "scenes noisy"} and set(composed["n"]) == {2, 6}
    assert set(written["name"]) == {"signs good", "signs noisy"} and set(written["reader"]) == {"template"}
    results = pd.read_csv(places.study_dir / "results.csv").set_index("name")
    good, best = results.loc["scenes good"], results.loc["signs good"]
    assert good["compbench"] > 0.9 and good["compbench_spatial"] > 0.9 and best["typography"] > 0.9
    assert best[["typography_exact", "typography_seen", "typography_unseen"]].min() > 0.8
    for name in ("scenes", "signs"):
        assert results.loc[f"{name} good", "elo_aesthetics"] > results.loc[f"{name} noisy", "elo_aesthetics"] + 300
    assert pd.isna(best["elo"]) and pd.isna(best["compbench"]) and pd.isna(good["elo_typography"])
    first = battled[battled["question"] == "prompt following"]
    assert results["elo"].dropna().to_dict() == pytest.approx({r.name: r.elo for r in rate(first).ratings})
    tree = places.run_dir(runs[0]) / "samples_compbench"
    assert len(list(tree.glob("*/samples/0000.png"))) == 6
    assert json.loads((tree / "00000" / "metadata.jsonl").read_text())["tag"] == "attribute"


def tiny(data: str, name: str) -> Run:
    encoders = ("words", "tower", "letters") if data == "signs" else ("words", "tower")
    context, pooled = text_widths(encoders)
    model = MMDiTConfig(depth=1, head_size=8, in_channels=3, context_dim=context, pooled_dim=pooled, position_table=16)
    scored = EvaluationConfig(prompts_per_task=2, compbench_prompts=2 * (data == "scenes"))
    return Run(
        name=f"{data} {name}", model=model, data=DataConfig(name=data, examples=8, text_encoders=encoders),
        steps=1, batch=1, evaluation=scored,
    )  # fmt: skip


def pictures(run: Run, params: None, captions: list[str], count: int, *rest: object, noise: float) -> np.ndarray:
    """In the place of sampling: an image that shows what each caption says, with noise on it."""
    rng = np.random.default_rng(0)
    if run.data.name == "scenes":
        images = render([drawn(text, number) for number, text in enumerate(captions)], 32)
    else:
        images = np.concatenate([paint([sign_of(text, number)], 32) for number, text in enumerate(captions)])
    noisy = np.clip(images + rng.normal(0, noise, images.shape), 0, 255).astype(np.uint8)
    return np.repeat(noisy[:, None], count, axis=1)


def sign_of(text: str, seed: int) -> Sign:
    words = text.split()
    made = caption_and_sign(Draws(np.random.default_rng(seed)), word_of(text))[1]
    return dataclasses.replace(made, ink=words[4], plate=words[-2])


@pytest.mark.parametrize(
    ("data", "value", "told"),
    [("signs", 3, "expected 0 with data.name='signs'"), ("scenes", -1, "0 or more"), ("scenes", 1.5, "0 or more")],
)
def test_compbench_prompts_are_for_scenes(data: str, value: float, told: str) -> None:
    run = tiny(data, "x")
    with pytest.raises(UserError, match=told):
        dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, compbench_prompts=value))


def test_runs_from_before_keep_their_ids() -> None:
    """Those of the quickstart are what they were when its results were written down."""
    written = pd.read_csv(Path(__file__).parents[1] / "docs" / "results" / "quickstart" / "results.csv")
    assert {run.name: run.run_id for run in quickstart().runs} == dict(
        zip(written["name"], written["run_id"], strict=True)
    )
