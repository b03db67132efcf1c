"""The ranking protocol's settings: scored on held-out images, resampled alike for all runs, folded into a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.linalg

import mmdit_jax.data.pipeline as pipeline
from launch.settings import DRAWS, FILE, real_scores, score_run, score_table
from launch.studies import load_study
from mmdit_jax.config import SD3_SETTINGS, EvaluationConfig, Run, Study
from mmdit_jax.diffusion import SamplerConfig, formulation
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.judge import packaged_judge
from mmdit_jax.evaluation.sampling import sample_images
from mmdit_jax.models import init_params
from mmdit_jax.models.text import encode_all, text_encoder

SETTINGS = (SamplerConfig(steps=2, guidance=3.0), SamplerConfig(steps=3, guidance=1.0, method="heun"))
IMAGES = 70  # more than a feature's 64 numbers, so that no covariance is singular


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pipeline.prepare("scenes", folder, examples=256)
    return folder


@pytest.fixture
def run(tiny_study: Path) -> Run:
    first = load_study(str(tiny_study)).runs[0]
    return replace(first, evaluation=EvaluationConfig(settings=SETTINGS, settings_images=IMAGES, at="best"))


def weights(run: Run) -> dict:
    def noisy(seed: int):
        params = init_params(run.model, jax.random.key(seed))
        keys = iter(jax.random.split(jax.random.key(seed), 1000))
        return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params)

    return {"ema": noisy(0), "raw": noisy(1)}


def test_scores_are_the_judges_and_their_draws_resample_the_prompts(run: Run, data_dir: Path, tmp_path: Path) -> None:
    given = weights(run)
    rows = score_run(run, given, tmp_path, data_dir)
    assert [(row["weights"], row["sampler"]) for row in rows] == [
        (name, label) for name in ("ema", "raw") for label in ("euler-2-g3", "heun-3-g1")
    ]
    split = pipeline.load("scenes", data_dir, examples=256).split("validation")
    held_out = [split[i] for i in range(len(split))]
    captions = [item["caption"] for item in held_out[:IMAGES]]
    images, lengths = sample_images(
        run.model,
        given["raw"],
        formulation(run.formulation),
        {name: encode_all(text_encoder(name), captions) for name in run.data.text_encoders},
        SETTINGS[1],
        seed=0,
        indices=range(IMAGES),
        resolution=32,
    )
    judge = packaged_judge()
    row = rows[3]
    assert row["clip"] == pytest.approx(float(judge.similarity(images, captions).mean()), abs=1e-5)
    assert row["path_length"] == pytest.approx(float(lengths.mean()), rel=1e-5)
    ours, theirs = judge.embed_images(images), judge.embed_images(np.stack([item["image"] for item in held_out]))
    first, second = np.cov(ours.T.astype(np.float64)), np.cov(theirs.T.astype(np.float64))
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((ours.mean(0) - theirs.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert row["fid"] == pytest.approx(expected, rel=1e-3)

    with np.load(tmp_path / FILE) as file:
        assert file["clip"].shape == file["fid"].shape == (4, DRAWS + 1)
        np.testing.assert_allclose(file["clip"][:, 0], [item["clip"] for item in rows])
        # the bootstrap's deviation of a mean is that of the images over √N
        deviation = file["clip_by_image"][0].std() / np.sqrt(IMAGES)
        assert file["clip"][0, 1:].std() == pytest.approx(deviation, rel=0.2)
        again = score_run(replace(run, name="other", seed=5), given, tmp_path / "other", data_dir)
        assert again == rows
        with np.load(tmp_path / "other" / FILE) as other:
            np.testing.assert_array_equal(other["fid"], file["fid"])  # the same resamples in every run


def test_the_table_has_a_row_a_run_setting_and_draw(run: Run, data_dir: Path, tmp_path: Path) -> None:
    rows = score_run(run, weights(run), tmp_path / "a", data_dir)
    study = Study("s", (run, replace(run, name="b", seed=1)))
    finished = [(item, {"name": item.name, "settings": rows}) for item in study.runs]
    table = score_table(study, finished, {item.run_id: tmp_path / "a" for item in study.runs})
    assert len(table) == 2 * 4 * (DRAWS + 1) and set(table["seed"]) == {0, 1} and set(table["name"]) == {"rf"}
    point = table[(table["draw"] == 0) & (table["seed"] == 0)].set_index("setting")
    assert point.loc["scenes/raw/heun-3-g1", "clip"] == pytest.approx(rows[3]["clip"])
    assert point.loc["scenes/ema/euler-2-g3", ["weights", "method", "steps", "guidance"]].to_list() == [
        "ema", "euler", 2, 3.0,
    ]  # fmt: skip
    deeper = replace(run, name="c", model=replace(run.model, depth=3))
    several = Study("s", (run, deeper))
    table = score_table(several, [(run, {"name": run.name, "settings": rows})], {run.run_id: tmp_path / "a"})
    assert set(table["name"]) == {"d2 rf"} and set(table["formulation"]) == {"rf"}
    with pytest.raises(UserError, match="missing or damaged"):
        score_table(study, finished, {item.run_id: tmp_path for item in study.runs})


def test_real_images_are_the_measure(run: Run, data_dir: Path, tmp_path: Path) -> None:
    """Real images with their own captions: far above noise in both scores; and nothing where there is no data."""
    row = real_scores(Study("s", (run, replace(run, name="b", seed=1))), data_dir).iloc[0]
    assert row["dataset"] == "scenes" and row["images"] == IMAGES
    noise = score_run(run, weights(run), tmp_path / "a", data_dir)
    assert all(row["clip"] > item["clip"] + 0.1 and 0 < row["fid"] < 0.5 * item["fid"] for item in noise)
    assert real_scores(Study("s", (run,)), tmp_path / "nothing").empty
    plain = replace(run, evaluation=replace(run.evaluation, settings=()))
    assert real_scores(Study("s", (plain,)), data_dir).empty


def test_more_prompts_than_are_held_out_are_refused(run: Run, data_dir: Path, tmp_path: Path) -> None:
    many = replace(run, evaluation=replace(run.evaluation, settings_images=5000))
    with pytest.raises(UserError, match=r"settings_images=5000: scenes holds out 1024; use that or fewer"):
        score_run(many, {}, tmp_path, data_dir)


def test_the_protocol_has_24_settings() -> None:
    assert len(SD3_SETTINGS) * len(("ema", "raw")) * len(("imagenet", "cc12m")) == 24
    assert {item.label for item in SD3_SETTINGS} == {
        "euler-50-g1", "euler-50-g2.5", "euler-50-g5", "euler-5-g5", "euler-10-g5", "euler-25-g5",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"evaluation\.settings='euler-24-g4': expected each sampler once"):
        EvaluationConfig(settings=(SamplerConfig(), SamplerConfig()))
    with pytest.raises(UserError, match=r"evaluation\.at='bst': unknown; did you mean 'best'"):
        EvaluationConfig(at="bst")


@pytest.mark.parametrize(
    ("name", "runs"), [("sd3_schedules", 122), ("schedules_small", 80), ("schedules_small_61", 244)]
)
def test_the_studies_of_schedules_plan(mmdit, name: str, runs: int) -> None:
    done = mmdit("study", "plan", name, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["runs"]
    assert len(rows) == runs == len({row["run_id"] for row in rows})
    if name == "sd3_schedules":
        assert {row["batch"] for row in rows} == {1024} and len({row["formulation"] for row in rows}) == 61
        done = mmdit("study", "run", name)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "mmdit data encode" in done.stderr


def test_parquet_keeps_what_rank_needs(run: Run, data_dir: Path, tmp_path: Path) -> None:
    rows = score_run(run, weights(run), tmp_path / "a", data_dir)
    study = Study("s", (run,))
    table = score_table(study, [(run, {"name": run.name, "settings": rows})], {run.run_id: tmp_path / "a"})
    table.to_parquet(tmp_path / "scores.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "scores.parquet"), table)


@pytest.mark.slow
def test_from_runs_to_ranks(mmdit) -> None:
    """A study with settings, through the command: trained, scored at its best step, collected, ranked."""
    text = mmdit.study.read_text()
    text = text.replace(
        "sampler=SamplerConfig(steps=2))",
        'sampler=SamplerConfig(steps=2), at="best", settings_images=70,\n'
        "            settings=(SamplerConfig(steps=2, guidance=3.0), SamplerConfig(steps=4, guidance=3.0)))",
    )
    mmdit.study.write_text(text.replace('"rf": "rf", "log normal"', '"learned": "rf/adaptive(-1)", "log normal"'))
    done = mmdit("study", "run", "tiny.py", "--replicas", "2", "--quiet")
    assert done.returncode == 0, done.stderr
    folder = mmdit.folder / "studies" / "tiny"
    results = {item["name"]: item for item in (json.loads(path.read_text()) for path in folder.glob("*/result.json"))}
    assert results["learned"]["best_step"] in (10, 20, 30, 40) and "learned_formulation" not in results["log normal"]
    masses = results["learned"]["learned_formulation"].removeprefix("rf/histogram(").rstrip(")").split(",")
    assert len(masses) == 32 and len(set(masses)) > 16
    again = mmdit("study", "run", "tiny.py", "--quiet")
    assert again.returncode == 0 and "2 of 2 runs were done already" in again.stderr

    table = pd.read_csv(folder / "scores.csv")
    assert set(table["name"]) == {"rf/adaptive(-1.00)", "rf/lognorm(0.00,1.00)"} and len(table) == 2 * 2 * 2
    ranked = mmdit("rank", str(folder / "scores.parquet"), "--json")
    assert ranked.returncode == 0, ranked.stderr
    found = json.loads(ranked.stdout)
    assert found["resampled"] == "prompts" and len(found["settings"]) == 4
    assert all(1 <= row["low"] <= row["rank"] <= row["high"] <= 2 for row in found["rows"])
    lost = mmdit(
        "efficiency",
        str(folder / "scores.csv"),
        "--where",
        "weights=ema",
        "--group",
        "name",
        "--score",
        "fid",
        "--json",
    )
    assert lost.returncode == 0, lost.stderr

    drawn = mmdit("sample", "tiny.py", "--run", "learned", "a red circle", "--method", "heun", "--interval", "0.1,0.9")
    assert drawn.returncode == 0, drawn.stderr
    wrong = mmdit("sample", "tiny.py", "--run", "learned", "a red circle", "--method", "hein")
    assert wrong.returncode == 2 and "did you mean 'heun'?" in wrong.stderr and wrong.stderr.count("\n") == 1
