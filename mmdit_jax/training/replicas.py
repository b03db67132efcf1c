"""Several runs in one program: the training step over a leading axis of runs, which are spread over the devices.

A small model leaves most of an accelerator idle, and a study has dozens of runs that differ in formulation or seed
alone. Here they take their steps side by side: each device holds whole runs, as many as any other, and nothing passes
between them. Losses and weights are those of the runs alone but for the rounding of batched products (1e-7 a step).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmdit_jax.config import HardwareConfig, OptimizerConfig, Run
from mmdit_jax.diffusion import Formulation, formulation
from mmdit_jax.errors import UserError
from mmdit_jax.host import by_onednn, step_options
from mmdit_jax.models import MMDiTConfig
from mmdit_jax.sharding import make_mesh, platform, replicated
from mmdit_jax.training.data import TrainingData, global_batches
from mmdit_jax.training.meter import Values
from mmdit_jax.training.state import TrainState
from mmdit_jax.training.step import Batch, Metrics, TrainStep, step_function

AXIS = "replica"
OWN = PartitionSpec(AXIS)


def program_key(run: Run) -> Hashable:
    """What runs that train together must have in common: all but name, seed, and the numbers of the formulation."""
    family = jax.tree.structure(formulation(run.formulation))
    return dataclasses.replace(run, name="any", formulation="rf", seed=0), family


def alone_on_a_device(hardware: HardwareConfig) -> bool:
    """Whether a run so laid out can be one of several in a program."""
    plain = (hardware.fsdp, hardware.sequence, hardware.tensor, hardware.accumulation) == (1, 1, 1, 1)
    return plain and not hardware.offload


def replica_mesh(count: int) -> Mesh:
    """A mesh ("replica",) for ``count`` runs: all devices of this process, or as many as there are runs."""
    devices = jax.devices()[: min(count, jax.device_count())]
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


@functools.lru_cache(maxsize=32)
def make_replica_step(
    model_config: MMDiTConfig,
    optimizer_config: OptimizerConfig,
    steps: int,
    drop: float,
    mesh: Mesh,
    *,
    shared_batch: bool,
    onednn: bool = False,
    layout: str = "channels",
) -> TrainStep:
    """The step of R runs at once: ``step_function`` over a leading axis [R] of state, formulation, seed and metrics.

    R is a multiple of the devices of ``mesh``, which each hold their share; no device waits for another. The given
    state is donated. Leaves of the formulation are stacked, so all are of one path and prediction.

    Args:
      steps, drop, onednn, layout: as of ``make_train_step``.
      mesh: of one axis, "replica".
      shared_batch: all runs take the same batch, without the leading axis; else each its own, stacked.
    """
    products = by_onednn(onednn, platform())
    inner = step_function(model_config, optimizer_config, steps, drop, onednn=products, layout=layout)
    batch_spec = PartitionSpec() if shared_batch else OWN
    spread = jax.shard_map(
        jax.vmap(inner, in_axes=(0, None if shared_batch else 0, 0, 0)),
        mesh=mesh,
        in_specs=(OWN, batch_spec, OWN, OWN),
        out_specs=OWN,
        check_vma=False,
    )

    def step(state: TrainState, batch: Batch, f: Formulation, seed: jax.Array) -> tuple[TrainState, Metrics]:
        after: tuple[TrainState, Metrics] = spread(state, batch, f, seed)
        return after

    own = NamedSharding(mesh, OWN)
    return jax.jit(
        step,
        in_shardings=(own, NamedSharding(mesh, batch_spec), own, own),
        out_shardings=own,
        donate_argnums=0,
        compiler_options=step_options(onednn, model_config.remat, platform()),
    )


def stack(trees: Sequence[Any], mesh: Mesh, *, give_away: bool = False) -> Any:
    """Trees of arrays or numbers as one with a leading axis, spread over ``mesh``; each part already on its device.

    With ``give_away`` the arrays of ``trees`` are freed as they are copied, leaf by leaf: never more than a leaf is
    held twice.
    """
    sharding = NamedSharding(mesh, OWN)
    share = len(trees) // mesh.size

    def leaf(*parts: Any) -> jax.Array:
        shape = (len(parts), *np.shape(parts[0]))
        pieces = []
        for i, device in enumerate(mesh.devices.flat):
            here = [jax.device_put(item, device) for item in parts[i * share : (i + 1) * share]]
            pieces.append(jnp.stack(here))
        whole = jax.make_array_from_single_device_arrays(shape, sharding, pieces)
        if give_away:
            jax.block_until_ready(whole)
            for item in parts:
                item.delete()
        return whole

    return jax.tree.map(leaf, *trees)


@jax.jit
def _at(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def part(tree: Any, index: int) -> Any:
    """The tree of one replica, a copy on the device that holds it. Leaves have a leading axis [R]."""
    leaves, structure = jax.tree.flatten(tree)
    shards = [_holding(leaf, index) for leaf in leaves]
    first = shards[0].index[0].start or 0
    return _at(jax.tree.unflatten(structure, [shard.data for shard in shards]), index - first)


def _holding(leaf: jax.Array, index: int) -> Any:
    """The piece of ``leaf`` in which replica ``index`` lies."""
    (shard,) = (
        shard
        for shard in leaf.addressable_shards
        if (shard.index[0].start or 0) <= index < (shard.index[0].stop or len(leaf))
    )
    return shard


class Replicas:
    """The program (see ``program.Program``) of several runs with one ``program_key``.

    Where they do not divide over the devices, the last one fills the places that are left: no device is slower for it.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        first = runs[0]
        if len({program_key(run) for run in runs}) > 1:
            names = ", ".join(run.name for run in runs)
            raise UserError(f"replicas={names!r}: expected runs that differ in name, seed or density alone")
        if jax.process_count() > 1 or not alone_on_a_device(first.hardware):
            raise UserError(
                f"replicas={len(runs)}: expected 1 with {jax.process_count()} processes and {first.hardware}; "
                "replicas are of one process, each whole on a device, its batch in one piece"
            )
        self.runs, self.mesh = tuple(runs), make_mesh()
        self._over = replica_mesh(len(runs))
        places = -(-len(runs) // self._over.size) * self._over.size
        self._filled = (*self.runs, *[self.runs[-1]] * (places - len(runs)))
        share = places // self._over.size
        self.homes = tuple(_alone(self._over.devices.flat[i // share]) for i in range(len(runs)))
        self._shared = len({run.seed for run in runs}) == 1
        self._formulations = stack([formulation(run.formulation) for run in self._filled], self._over)
        self._seeds = stack([np.uint32(run.seed) for run in self._filled], self._over)
        self._step = make_replica_step(
            first.model,
            first.optimizer,
            first.steps,
            first.data.text_drop,
            self._over,
            shared_batch=self._shared,
            onednn=first.hardware.onednn,
            layout=first.data.text_layout,
        )

    def join(self, states: Sequence[TrainState]) -> TrainState:
        fill = [jax.tree.map(jnp.copy, states[-1]) for _ in range(len(self._filled) - len(states))]
        state: TrainState = stack([*states, *fill], self._over, give_away=True)
        return state

    def batches(self, data: TrainingData, start_step: int) -> Iterator[Batch]:
        by_seed = {run.seed: global_batches(run, data, start_step, self.mesh) for run in self.runs}
        while True:
            batch = {seed: next(stream) for seed, stream in by_seed.items()}
            if self._shared:
                yield batch[self.runs[0].seed]
            else:
                yield jax.tree.map(lambda *rows: np.stack(rows), *(batch[run.seed] for run in self._filled))

    def step(self, state: TrainState, batch: Batch, shift: int = 0) -> tuple[TrainState, Metrics]:
        assert not shift, "runs side by side are not rewound"
        return self._step(state, batch, self._formulations, self._seeds)

    def metrics_of(self, index: int, values: Values) -> Values:
        return {name: value[index] for name, value in values.items()}

    def state_of(self, index: int, state: TrainState) -> TrainState:
        own: TrainState = part(state, index)
        return own

    def ema_of(self, index: int, state: TrainState) -> Any:
        return jax.device_put(part(state.ema, index), replicated(self.mesh))


def _alone(device: jax.Device) -> Mesh:
    """The mesh of a run that has one device."""
    return make_mesh(devices=[device])
