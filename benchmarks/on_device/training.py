"""The training step of a run, on the largest batch that fits."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import time
import zlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.on_device.batches import largest_batch, rung, rungs
from benchmarks.on_device.device import memory_limit, needed_bytes, peak_bytes, random_like, touched_bytes
from benchmarks.on_device.programs import bound, run_of
from launch.planning.estimate import estimate
from launch.planning.layout import layout_of
from launch.planning.lower import abstract_batch
from launch.planning.target import parse
from mmdit_jax.chips import GIB
from mmdit_jax.config import Run
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import Diverged, UserError
from mmdit_jax.training.peak import timings
from mmdit_jax.training.program import mesh_of, step_of
from mmdit_jax.training.state import TrainState, abstract_state, init_state

ZEROS = ("modulation", "final_modulation", "final")
"""Layers that training begins with at zero."""
_SHARE = 0.97  # of the memory, as libraries take some at run time, and it has holes
_MEASURING = 30  # seconds that a step takes to be measured once it is compiled


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step; where memory runs out nevertheless, of the next smaller batch.

    Raises:
      UserError: no batch fits, or the job's shape is no run's.
      Diverged: the loss is not finite.
    """
    search = _Search(job)
    while True:
        batch = search.largest()
        try:
            return {**_timed(search.compiled[batch], search.run(batch), job), "tried": search.tried}
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error) or batch == search.accumulation:
                raise
        search.too_large(batch)  # not within ``except``, where the error would keep the state alive


def out_of_memory(error: Exception) -> bool:
    """Whether XLA says so."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


class _Search:
    """Batches tried, and their programs."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self.accumulation = job["accumulation"]
        limit = job["limit_bytes"] or memory_limit()
        if limit is None:
            raise UserError("limit_bytes=None: expected bytes, as this device does not tell its memory")
        self._limit = _SHARE * limit
        self._deadline = time.monotonic() + job["seconds"]
        self._last = 0.0
        self.compiled: dict[int, Any] = {}
        self.tried: list[dict[str, Any]] = []
        self._needed: dict[int, float] = {}
        counted_to_fit = itertools.takewhile(lambda parts: self._counted(parts) <= self._limit, rungs())
        self._first = max(counted_to_fit, default=1)

    def run(self, batch: int) -> Run:
        return run_of(self._job, batch)

    def largest(self) -> int:
        """The largest batch that fits, compiled."""
        fixed = float(state_bytes(self.run(self.accumulation)))
        parts = largest_batch(self._needs, self._limit, fixed, self._first, self._has_time)
        if parts is None:
            raise UserError(f"depth={self._job['depth']}: no batch fits in {self._limit / GIB:.1f} GiB")
        return parts * self.accumulation

    def _has_time(self) -> bool:
        """For another compilation, and what comes after."""
        return self._deadline - time.monotonic() > 1.5 * self._last + _MEASURING

    def too_large(self, batch: int) -> None:
        """Memory ran out at this batch: there is less of it than the compiler says that this takes."""
        self._limit = self._needed[batch] - 1.0
        self._first = rung(batch // self.accumulation - 1)
        self.tried.append({"batch": batch, "out_of_memory": True})
        self.compiled.clear()
        gc.collect()

    def _counted(self, parts: int) -> float:
        """As ``mmdit plan`` counts, and the batch, whose texts are masked and laid out: much of a tiny run."""
        run = self.run(parts * self.accumulation)
        given = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_batch(run, _mesh(run))))
        return estimate(run, layout_of(run), parse("h100:1x1")).bytes + 4.0 * given

    def _needs(self, parts: int) -> float:
        batch, needs = parts * self.accumulation, float("inf")
        started = time.perf_counter()
        try:
            self.compiled[batch] = compiled_step(self.run(batch))
            needs = needed_bytes(self.compiled[batch])
            if not self.compiled[batch].memory_analysis().temp_size_in_bytes:  # a kept program that has forgotten
                needs = self._counted(parts)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
        seconds = self._last = time.perf_counter() - started
        self._needed[batch] = needs
        told = None if needs == float("inf") else needs
        self.tried.append({"batch": batch, "bytes": told, "compile_seconds": seconds})
        return needs


def _mesh(run: Run) -> Mesh:
    return mesh_of(run, jax.local_devices()[:1])


def compiled_step(run: Run, devices: Any = None, options: Any = None) -> Any:
    """The run's own step, compiled for one device."""
    mesh = _mesh(run) if devices is None else mesh_of(run, devices)
    state = abstract_state(run.model, run.optimizer, run.steps, mesh, run.hardware.offload)
    step: Any = step_of(run, mesh)
    lowered = step.lower(state, abstract_batch(run, mesh), formulation(run.formulation), np.uint32(0))
    return lowered.compile(compiler_options=options)


def state_bytes(run: Run) -> int:
    """Of weights, average and optimizer."""
    mesh = _mesh(run)
    leaves = jax.tree.leaves(abstract_state(run.model, run.optimizer, run.steps, mesh))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _timed(compiled: Any, run: Run, job: dict[str, Any]) -> dict[str, Any]:
    mesh = _mesh(run)
    state = awake(init_state(run.model, run.optimizer, run.steps, 0, mesh))
    batch = random_like(abstract_batch(run, mesh), 1)
    f, seed = formulation(run.formulation), np.uint32(0)
    losses = []

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch, f, seed)
        losses.append(metrics["loss"])
        return metrics

    (probe,) = timings(step, calls=1, warm=job["warm"], samples=1)
    calls = max(1, min(job["calls"], round(job["round_seconds"] / probe)))
    seconds = timings(step, calls=calls, warm=0, samples=job["rounds"])
    loss = np.asarray(losses, np.float32)
    if not np.isfinite(loss).all():
        raise Diverged(f"loss is not finite: {loss.tolist()}")
    return {
        "batch": run.batch,
        "seconds": seconds,
        "calls_a_round": calls,
        "flops": run.train_flops(1),
        "flops_6nd": run.train_flops_6nd(1),
        "floor_bytes": touched_bytes(compiled),
        "analysis_bytes": needed_bytes(compiled),
        "peak_bytes": peak_bytes(),
        "bound": bound(compiled.as_text(), jax.local_devices()[0].device_kind, job["rates"]),
        "losses": loss.tolist(),
    }


def awake(state: TrainState) -> TrainState:
    """The state with random numbers where training begins at zero.

    There the first gradients of the blocks are zero as well; products of zeros would flatter the device.
    """

    def leaf(path: tuple[Any, ...], value: jax.Array) -> jax.Array:
        names = [entry.key for entry in path]
        if names[-1] != "kernel" or names[-2] not in ZEROS:
            return value
        shape, dtype, sharding = value.shape, value.dtype, value.sharding
        value.delete()  # so that the new one takes its place, and leaves no hole
        random = jax.jit(lambda key: 0.02 * jax.random.normal(key, shape, dtype), out_shardings=sharding)
        return random(jax.random.key(zlib.crc32("/".join(names).encode())))

    return dataclasses.replace(state, params=jax.tree_util.tree_map_with_path(leaf, state.params))
