"""One tiny run under many names: what is done to each differs, so all must end alike.

The file is imported by the processes that train, so it can slow their steps down (to be hit in the middle), have one of
them hang, or make a loss not finite: the product has no hooks for that.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch import execute
from mmdit_jax.config import (
    DataConfig,
    EvaluationConfig,
    HardwareConfig,
    OptimizerConfig,
    Run,
    Study,
    text_widths,
)
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.evaluation.evaluate import nothing_drawn
from mmdit_jax.models import MMDiTConfig
from mmdit_jax.training.program import Solo

STEPS, EVERY = 60, 10
FAULT_STEP = 34
"""Of what happens inside: between two checkpoints."""
PACES = {
    "untouched": 0.0,
    "untouched, 1 process": 0.0,
    "kill one": 0.1,
    "kill all 'x' \"y\" $(touch pwned)": 0.1,
    "stop one": 0.1,
    "hang": 0.1,
    "slurmd dies": 0.1,
    "preempted": 0.1,
    "time limit": 0.6,
    "flipped bit": 0.4,
    "half written": 0.4,
    "disk full": 0.0,
    "not finite": 0.0,
    "not finite, rewound": 0.0,
    "2, 1, 4 processes": 0.4,
    "array, first": 0.1,
    "array, second": 0.1,
}
"""Seconds that a step of each is slowed down by."""


def study() -> Study:
    data = DataConfig(name="scenes", examples=256, validation_examples=8, text_encoders=("words", "tower"))
    context, pooled = text_widths(data.text_encoders)
    model = MMDiTConfig.from_depth(
        1, head_size=32, patch_size=8, in_channels=3, context_dim=context, pooled_dim=pooled, position_table=8
    )
    run = Run(
        name="untouched",
        model=model,
        data=data,
        batch=8,
        steps=STEPS,
        validate_every=STEPS,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, ema_decay=0.9),
        evaluation=EvaluationConfig(prompts_per_task=1, sampler=SamplerConfig(steps=1)),
        hardware=HardwareConfig(checkpoint_every=EVERY),
    )
    return Study("faults", tuple(replace(run, name=name) for name in PACES))


def begun_path(name: str) -> Path:
    """The file that notes every step which the run begins, a line each, in all its attempts."""
    return Path(os.environ["FAULTS_FOLDER"]) / f"{name} begun"


_step = Solo.step


def _slow(self: Solo, state: Any, batch: Any, shift: int = 0) -> Any:
    done = int(np.asarray(state.step)) + 1
    name = self.runs[0].name
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" and done <= 45:  # what was to happen has happened, else
        time.sleep(PACES[name])
    once = Path(os.environ["FAULTS_FOLDER"]) / f"{name} happened"
    if name == "hang" and done == FAULT_STEP and jax.process_index() == 1 and not once.exists():
        once.touch()
        _for_ever()
    while (Path(os.environ["FAULTS_FOLDER"]) / f"{name} waits").exists():
        time.sleep(0.1)
    if jax.process_index() == 0:
        with begun_path(name).open("a") as begun:
            begun.write(f"{done}\n")
    state, metrics = _step(self, state, batch, shift)
    if name.startswith("not finite") and done == FAULT_STEP and not shift:
        metrics = {**metrics, "loss": metrics["loss"] * np.float32("nan")}
    return state, metrics


def _drawn(run: Run, *rest: Any) -> dict[str, Any]:
    """Images of the untouched runs alone: what they cost is seconds, and says nothing of faults."""
    return _scores(run, *rest) if run.name.startswith("untouched") else nothing_drawn()


def _for_ever() -> None:
    while True:
        time.sleep(1)


Solo.step = _slow  # type: ignore[method-assign]
_scores, execute._scores = execute._scores, _drawn
