"""A trained run under public names: its EMA weights, bit for bit, and refused where there are no such names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import Mmdit

from launch.execute import restore_ema
from launch.studies import load_study
from mmdit_jax.config import Run
from mmdit_jax.config_values import from_dict, to_dict
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, init_params
from mmdit_jax.models.sd3 import checkpoint_of, load_sd3


def test_a_config_comes_back_from_its_values(tiny_study: Path) -> None:
    for run in load_study(str(tiny_study), []).runs:
        assert from_dict(Run, json.loads(json.dumps(to_dict(run)))) == run
    older = to_dict(run)
    del older["model"]["architecture"]
    assert from_dict(Run, older) == run
    with pytest.raises(UserError, match=r"MMDiTConfig\.depths: unknown field"):
        from_dict(Run, {**older, "model": {**older["model"], "depths": 3}})


def test_architectures_without_public_names_are_refused() -> None:
    config = MMDiTConfig.from_depth(2, head_size=8, in_channels=3, context_dim=8, pooled_dim=4, position_table=8)
    params = init_params(config, jax.random.key(0))
    with pytest.raises(UserError, match="architecture='dit'"):
        checkpoint_of(replace(config, architecture="dit"), params)
    with pytest.raises(UserError, match="mlp_ratio=2"):
        checkpoint_of(replace(config, mlp_ratio=2), params)


@pytest.mark.slow
def test_a_run_goes_out_and_comes_back(mmdit: Mmdit) -> None:
    done = mmdit("train", str(mmdit.study), "--run", "rf", "--set", "steps=10", "--quiet")
    assert done.returncode == 0, done.stderr
    run_dir = (mmdit.folder / done.stdout.strip()).parent
    run = load_study(str(mmdit.study), ["steps=10"]).find("rf")
    ema = restore_ema(run, run_dir)
    for to in ("diffusers", "stability", "orbax"):
        told = mmdit("convert", str(run_dir), to, "--to", to, "--json")
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["parameters"] == run.model.num_params()
        back = load_sd3(mmdit.folder / to, head_size=run.model.head_size)
        assert (back.config.depth, back.config.patch_size) == (run.model.depth, run.model.patch_size)
        jax.tree.map(np.testing.assert_array_equal, back.params, ema)
