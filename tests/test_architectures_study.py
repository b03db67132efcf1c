"""The study of architectures: equal FLOPs; other networks than the MMDiT go through a study."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from experiments.architectures_small import SEEDS, study
from launch.execute import describe
from mmdit_jax.models.config import ARCHITECTURES


def test_runs_cost_the_same_and_look_at_the_same_points() -> None:
    runs = study().runs
    told = [describe(run) for run in runs]
    assert {item["architecture"] for item in told} == set(ARCHITECTURES)
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
    """Side by side, validated, checkpointed, evaluated, in the tables; then compared."""
    (tmp_path / "two.py").write_text(STUDY)
    done = mmdit("study", "run", "two.py", "--replicas", "2", "--quiet")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "studies" / "two" / "results.csv")
    assert list(table["architecture"]) == ["uvit", "uvit", "mmdit3", "mmdit3"]
    assert np.isfinite(table[["val_loss", "geneval_graded"]]).all(axis=None)
    assert table["params_sha256"].nunique() == len(table)
    points = pd.read_csv(tmp_path / "studies" / "two" / "curves.csv")
    assert set(points["architecture"]) == {"uvit", "mmdit3"} and set(points["seed"]) == {0, 1}
    done = mmdit("compare", "studies/two/results.csv", "--by", "architecture", "--baseline", "uvit", "--json")
    rows = json.loads(done.stdout)["rows"]
    assert {(row["score"], row["name"], row["pairs"]) for row in rows} == {
        (score, name, 2) for score in ("val_loss", "geneval_graded") for name in ("uvit", "mmdit3")
    }
    alone = mmdit("train", "two.py", "--run", "mmdit3 s0", "--set", "model.text_split=32", "--quiet")
    assert alone.returncode == 2
    assert (
        alone.stderr.strip()
        .splitlines()[-1]
        .endswith("text_split=32: the text has 32 tokens; mmdit3 needs some after the split")
    )
