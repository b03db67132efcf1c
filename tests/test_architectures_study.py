"""The study of architectures: equal FLOPs; its figure and ranking from tables made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.architectures_figure import TITLES, main
from experiments.architectures_small import SEEDS, study
from launch.execute import describe
from mmdit_jax.models.config import ARCHITECTURES
from scaling.errors import TableError
from scaling.groups import curves, interval, ranking

MEANS = {"mmdit": 0.10, "mmdit3": 0.099, "crossdit": 0.11, "uvit": 0.12, "dit": 0.13}


def results(noise: float = 0.002) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    luck = rng.normal(size=4) * 0.02  # of a seed, the same in all: pairs cancel it
    return pd.DataFrame(
        [
            {
                "run_id": f"{name}-{seed}",
                "architecture": name,
                "seed": seed,
                "params": 1000,
                "steps": 800,
                "train_flops": 5e12,
                "val_loss": mean + luck[seed] + noise * rng.normal(),
                "geneval_graded": 1 - mean + 0.01 * rng.normal(),
            }
            for name, mean in MEANS.items()
            for seed in range(4)
        ]
    )


def test_runs_cost_the_same_and_look_at_the_same_points() -> None:
    runs = study().runs
    told = [describe(run) for run in runs]
    assert {item["architecture"] for item in told} == set(ARCHITECTURES) == set(TITLES)
    assert len(runs) == len(ARCHITECTURES) * len(SEEDS)
    costs = np.array([item["train_flops"] for item in told])
    assert costs.max() / costs.min() < 1.01
    assert {run.steps / run.validate_every for run in runs} == {8.0}
    an_image = [run.train_flops(1) / run.batch for run in runs]
    assert max(an_image) / min(an_image) < 1.2  # near, as the docstring says
    assert len({run.formulation for run in runs}) == 1


STUDY = '''
"""Two architectures with two seeds, for the tests."""
from dataclasses import replace
from mmdit_jax.config import *
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.models import MMDiTConfig

def study():
    data = DataConfig(name="scenes", examples=256, validation_examples=8, text_layout="sd3")
    context, pooled = text_widths(data.text_encoders, data.text_layout)
    model = MMDiTConfig.from_depth(
        2, head_size=16, patch_size=8, in_channels=3, context_dim=context, pooled_dim=pooled, position_table=8,
        text_split=16,
    )
    base = Run(
        name="base", model=model, data=data, batch=8, steps=4, validate_every=2,
        optimizer=OptimizerConfig(name="muon", learning_rate=1e-2, warmup_steps=1, ema_decay=0.9),
        evaluation=EvaluationConfig(prompts_per_task=1, sampler=SamplerConfig(steps=1)),
        hardware=HardwareConfig(checkpoint_every=2),
    )
    return Study("two", tuple(
        replace(base, name=f"{name} s{seed}", model=replace(model, architecture=name), seed=seed)
        for name in ("uvit", "mmdit3") for seed in (0, 1)
    ))
'''


@pytest.mark.slow
def test_others_go_through_a_study(mmdit, tmp_path) -> None:
    """Side by side, validated, checkpointed, evaluated, in the tables; then the figure of it."""
    (tmp_path / "two.py").write_text(STUDY)
    done = mmdit("study", "run", "two.py", "--replicas", "2", "--quiet")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "studies" / "two" / "results.csv")
    assert list(table["architecture"]) == ["uvit", "uvit", "mmdit3", "mmdit3"]
    assert np.isfinite(table[["val_loss", "geneval_graded"]]).all(axis=None)
    assert table["params_sha256"].nunique() == len(table)
    points = pd.read_csv(tmp_path / "studies" / "two" / "curves.csv")
    assert set(points["architecture"]) == {"uvit", "mmdit3"} and set(points["seed"]) == {0, 1}
    assert main([str(tmp_path / "studies" / "two"), "--baseline", "uvit"]) == 0
    alone = mmdit("train", "two.py", "--run", "mmdit3 s0", "--set", "model.text_split=32", "--quiet")
    assert alone.returncode == 2
    assert (
        alone.stderr.strip()
        .splitlines()[-1]
        .endswith("text_split=32: the text has 32 tokens; mmdit3 needs some after the split")
    )


def test_ranking_pairs_seeds() -> None:
    table = results()
    places = ranking(table, "architecture", "val_loss", "mmdit")
    assert [place.name for place in places] == ["mmdit3", "mmdit", "crossdit", "uvit", "dit"]
    wide = table.pivot(index="seed", columns="architecture", values="val_loss")
    for place in places:
        if place.name == "mmdit":
            assert place.difference == place.low == place.high == 0
            continue
        oracle = stats.ttest_rel(wide[place.name], wide["mmdit"]).confidence_interval(0.95)
        assert (place.low, place.high) == pytest.approx((oracle.low, oracle.high))
        assert place.high - place.low < 0.02  # the seeds' own spread, 0.02, is not in it
    shuffled = ranking(table.sample(frac=1, random_state=1), "architecture", "val_loss", "mmdit")
    assert shuffled == places


def test_what_can_not_be_ranked_is_named() -> None:
    table = results()
    with pytest.raises(TableError, match="baseline='unet': no such architecture; the table has crossdit, dit"):
        ranking(table, "architecture", "val_loss", "unet")
    with pytest.raises(TableError, match="architecture='mmdit': seed 0 is there twice"):
        ranking(pd.concat([table, table[:1]]), "architecture", "val_loss", "mmdit")
    with pytest.raises(TableError, match="architecture='dit': 1 seeds in common with mmdit; expected 2 or more"):
        ranking(table[:-3], "architecture", "val_loss", "mmdit")


def curve_rows(table: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {**row, "train_flops": flops, "val_loss": row["val_loss"] + 1e11 / flops}
        for row in table.to_dict("records")
        for flops in (1e12, 2e12, 5e12)
    ]
    return pd.DataFrame(rows)


def test_curves_have_the_interval_of_their_seeds() -> None:
    table = results()
    found = curves(curve_rows(table), "architecture", "train_flops", "val_loss")
    own = table[table["architecture"] == "uvit"]["val_loss"].to_numpy()
    curve = found["uvit"]
    np.testing.assert_array_equal(curve.x, [1e12, 2e12, 5e12])
    assert curve.mean[2] == pytest.approx(own.mean() + 0.02)
    assert (curve.low[2], curve.high[2]) == pytest.approx(tuple(end + 0.02 for end in interval(own)))
    assert len(curve.runs) == 4
    with pytest.raises(TableError, match="architecture='mmdit': its runs have different train_flops"):
        curves(curve_rows(table)[1:], "architecture", "train_flops", "val_loss")


def test_figure_and_table_are_written_and_repeat(tmp_path, capsys) -> None:
    table = results()
    table.to_csv(tmp_path / "results.csv", index=False)
    curve_rows(table).to_csv(tmp_path / "curves.csv", index=False)
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "figures" / "ranking.md").read_text()
    assert capsys.readouterr().out == text
    lines = text.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        f"| {TITLES[name]}" for name in ("mmdit3", "mmdit", "crossdit", "uvit", "dit")
    ]
    assert "| 0 |" in lines[3] and "−0." in lines[2]
    first = (tmp_path / "figures" / "architectures.png").read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n" and main([str(tmp_path), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "architectures.png").read_bytes() == first
    capsys.readouterr()
    assert main([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "no such file" in error and error.count("\n") == 1
