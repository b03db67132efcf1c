"""What the loop drives: a compiled step with its batches, for one run here, for several in ``replicas``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from mmdit_jax.config import Run
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import UserError
from mmdit_jax.training.data import TrainingData, global_batches
from mmdit_jax.training.meter import Values
from mmdit_jax.training.state import TrainState
from mmdit_jax.training.step import Batch, Metrics, make_train_step


class Program(Protocol):
    """Runs that train in one compiled step. ``state`` below is of all of them together, ``index`` says which one."""

    runs: tuple[Run, ...]
    mesh: Mesh
    """("data", "fsdp") over all devices, where validation runs."""
    homes: tuple[Mesh, ...]
    """The mesh that each run's own state lies on when it is restored or made: see ``join``."""

    def join(self, states: Sequence[TrainState]) -> TrainState:
        """The runs' own states, which are given away, as the state that steps take."""

    def batches(self, data: TrainingData, start_step: int) -> Iterator[Batch]:
        """The batches of all runs, from ``start_step`` on."""

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The next state, and metrics of the weights before the update. ``state`` is given away."""

    def metrics_of(self, index: int, values: Values) -> Values:
        """One run's part of a step's metrics."""

    def state_of(self, index: int, state: TrainState) -> TrainState:
        """One run's own state, as a run alone would have it."""

    def ema_of(self, index: int, state: TrainState) -> Any:
        """One run's moving average, on all of ``mesh``."""


class Solo:
    """One run, its batch over all devices. Nothing stands between the loop and ``make_train_step``."""

    def __init__(self, run: Run, mesh: Mesh) -> None:
        if run.batch % mesh.size:
            raise UserError(f"batch={run.batch}: expected a multiple of the {mesh.size} devices")
        self.runs: tuple[Run, ...] = (run,)
        self.mesh = mesh
        self.homes: tuple[Mesh, ...] = (mesh,)
        self._run, self._formulation = run, formulation(run.formulation)
        data, onednn = run.data, run.hardware.onednn
        self._step = make_train_step(
            run.model, run.optimizer, run.steps, data.text_drop, mesh, onednn=onednn, layout=data.text_layout
        )

    def join(self, states: Sequence[TrainState]) -> TrainState:
        (state,) = states
        return state

    def batches(self, data: TrainingData, start_step: int) -> Iterator[Batch]:
        return global_batches(self._run, data, start_step, self.mesh)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return self._step(state, batch, self._formulation, np.uint32(self._run.seed))

    def metrics_of(self, index: int, values: Values) -> Values:
        return values

    def state_of(self, index: int, state: TrainState) -> TrainState:
        return state

    def ema_of(self, index: int, state: TrainState) -> Any:
        return state.ema
