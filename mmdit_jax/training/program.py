"""What the loop drives: a compiled step with its batches, for one run here, for several in ``replicas``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from mmdit_jax.config import HardwareConfig, Run
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import UserError
from mmdit_jax.parameter_sharding import state_shardings
from mmdit_jax.sharding import batch_parts, make_mesh
from mmdit_jax.training.meter import Values
from mmdit_jax.training.state import TrainState
from mmdit_jax.training.step import Batch, Metrics, TrainStep, make_train_step

if TYPE_CHECKING:  # the step needs none of what reads data sets
    from mmdit_jax.training.data import TrainingData


_OTHER_SEED = 0x9E3779B1
"""Odd, so that no two shifts below 2³² give one run the same seed."""


class Program(Protocol):
    """Runs that train in one compiled step. ``state`` below is of all of them together, ``index`` says which one."""

    runs: tuple[Run, ...]
    mesh: Mesh
    """Over all devices, where validation runs."""
    homes: tuple[Mesh, ...]
    """The mesh that each run's own state lies on when it is restored or made: see ``join``."""

    def join(self, states: Sequence[TrainState]) -> TrainState:
        """The runs' own states, which are given away, as the state that steps take."""

    def batches(self, data: TrainingData, start_step: int) -> Iterator[Batch]:
        """The batches of all runs, from ``start_step`` on."""

    def step(self, state: TrainState, batch: Batch, shift: int = 0) -> tuple[TrainState, Metrics]:
        """The next state, and metrics of the weights before the update. ``state`` is given away.

        ``shift`` is 0, or of a run that was rewound (see ``rewinds``), and gives the step other noise.
        """

    def metrics_of(self, index: int, values: Values) -> Values:
        """One run's part of a step's metrics."""

    def state_of(self, index: int, state: TrainState) -> TrainState:
        """One run's own state, as a run alone would have it."""

    def ema_of(self, index: int, state: TrainState) -> Any:
        """One run's moving average, on all devices of ``mesh``: in their memory, wherever the state keeps it."""


def mesh_of(run: Run, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices of all processes, or those given, along the axes of the run's hardware."""
    hardware = run.hardware
    return make_mesh(fsdp=hardware.fsdp, sequence=hardware.sequence, tensor=hardware.tensor, devices=devices)


def step_of(run: Run, mesh: Mesh) -> TrainStep:
    """The run's compiled step over ``mesh``; runs that differ in formulation or seed get the same back."""
    data, hardware = run.data, run.hardware
    return make_train_step(
        run.model,
        run.optimizer,
        run.steps,
        data.text_drop,
        mesh,
        onednn=hardware.onednn,
        layout=data.text_layout,
        accumulation=hardware.accumulation,
        offload=hardware.offload,
    )


def ema_on_devices(run: Run, state: TrainState, mesh: Mesh) -> Any:
    """The moving average in the memory of the devices of ``mesh``: a copy where the run offloads it, else itself."""
    if "ema" not in run.hardware.offload:
        return state.ema
    return jax.device_put(state.ema, state_shardings(state.ema, mesh))


def _check_parts(run: Run, mesh: Mesh) -> None:
    """Refuse a batch or heads that don't divide over ``mesh``."""
    parts = batch_parts(mesh) * run.hardware.accumulation
    if run.batch % parts:
        raise UserError(f"batch={run.batch}: expected a multiple of {parts}, {_parts(mesh, run.hardware)}")
    heads, tensor = run.model.num_heads, mesh.shape["tensor"]
    if heads % tensor:
        left = mesh.size // (mesh.shape["fsdp"] * mesh.shape["sequence"])
        works = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == left % n == 0)
        raise UserError(f"hardware.tensor={tensor}: expected a divisor of the model's {heads} heads ({works})")


def _parts(mesh: Mesh, hardware: HardwareConfig) -> str:
    devices = f"data x fsdp = {batch_parts(mesh)} devices"
    return devices if hardware.accumulation == 1 else f"{devices} x accumulation = {hardware.accumulation}"


class Solo:
    """One run, its batch over all devices. Nothing stands between the loop and ``make_train_step``."""

    def __init__(self, run: Run, mesh: Mesh) -> None:
        _check_parts(run, mesh)
        self.runs: tuple[Run, ...] = (run,)
        self.mesh = mesh
        self.homes: tuple[Mesh, ...] = (mesh,)
        self._run, self._formulation = run, formulation(run.formulation)
        self._step = step_of(run, mesh)

    def join(self, states: Sequence[TrainState]) -> TrainState:
        (state,) = states
        return state

    def batches(self, data: TrainingData, start_step: int) -> Iterator[Batch]:
        from mmdit_jax.training.data import global_batches

        return global_batches(self._run, data, start_step, self.mesh)

    def step(self, state: TrainState, batch: Batch, shift: int = 0) -> tuple[TrainState, Metrics]:
        seed = (self._run.seed + shift * _OTHER_SEED) % 2**32
        return self._step(state, batch, self._formulation, np.uint32(seed))

    def metrics_of(self, index: int, values: Values) -> Values:
        return values

    def state_of(self, index: int, state: TrainState) -> TrainState:
        return state

    def ema_of(self, index: int, state: TrainState) -> Any:
        return ema_on_devices(self._run, state, self.mesh)
