"""Samplers of the probability-flow ODE, from noise to data: tables of coefficients, and the one loop that runs them.

Every step of every method is a linear combination of four images: where the loop is, where the step began, the data as
the network sees it now (x0), and as it saw it an evaluation ago. So a sampler is a table, a row an evaluation of the
network, made on the host by ``plan``; ``sample`` compiles once for all methods, numbers of steps up to the table's
length, shifts, guidance, and all formulations.

The loop's variable is y = z/(a + b), which lies on the straight path of `rf` at level s = b/(a + b).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mmdit_jax.diffusion.formulation import LAST_TIME_EPS, Formulation, shifted
from mmdit_jax.diffusion.paths import EDM_SCHEDULES
from mmdit_jax.diffusion.sampler_config import SamplerConfig
from mmdit_jax.diffusion.times import timesteps

Column = Any  # numpy on the host, jax inside a compiled function
Network = Callable[[Array, Array], Array | tuple[Array, Array]]


_ON_BOUND = 1e-6  # so near to a bound of guidance's interval is on it: levels are rounded to float32


class Plan(NamedTuple):
    """A sampler as numbers: a pytree, so that it is an argument of a compiled function. Arrays are [length]."""

    t: Column
    """Time that the network is told, on its formulation's path, float32 as all of these."""
    input_by_y: Column
    """The network's input is this times y."""
    x0_by_y: Column
    """x0 is this times y, plus"""
    x0_by_output: Column
    """this times the network's output."""
    by_y: Column
    """y becomes this times y, plus"""
    by_start: Column
    """this times y at the step's start, plus"""
    by_x0: Column
    """this times x0, plus"""
    by_previous: Column
    """this times the x0 of the evaluation before."""
    ends: Column
    """Whether a step ends with this evaluation, bool."""
    guidance: Column
    """Guidance at this evaluation; 1 is none."""
    evaluations: Column
    """How many rows count, int32 scalar."""
    rescale: Column
    """φ of guidance rescale, scalar."""
    start: Column
    """Level at which the noise starts: 1 but where the path or the prediction ends earlier, scalar."""


def plan(f: Formulation, config: SamplerConfig, length: int | None = None) -> Plan:
    """The table of a sampler for networks trained under ``f``. Host only.

    Args:
        f: the formulation, its numbers known.
        config: method, steps, guidance, shift.
        length: rows of the table, at least ``config.evaluations`` (the default); unused ones do nothing. Plans of one
            length share a compiled loop.

    Raises:
        ValueError: ``length`` is too short.
    """
    count = config.evaluations
    length = count if length is None else length
    if length < count:
        raise ValueError(f"length={length}: {count} evaluations don't fit")
    nodes = _nodes(f, config)
    rows = {"euler": _euler, "heun": _heun, "dpm++2m": _multistep}[config.method](nodes)
    at = np.array([row.node for row in rows])
    low, high = config.interval
    level = nodes.level[at]
    acts = (low - _ON_BOUND <= level) & (level <= high + _ON_BOUND)
    columns = {
        "t": nodes.t[at],
        **{name: value[at] for name, value in nodes.network._asdict().items()},
        **{name: np.array([vars(row)[name] for row in rows]) for name in ("by_y", "by_start", "by_x0", "by_previous")},
        "guidance": np.where(acts, config.guidance, 1.0),
    }
    return Plan(
        **{name: np.pad(column.astype(np.float32), (0, length - count)) for name, column in columns.items()},
        ends=np.pad(np.array([row.ends for row in rows]), (0, length - count)),
        evaluations=np.int32(count),
        rescale=np.float32(config.rescale),
        start=np.float32(nodes.level[0]),
    )


def sample(plan: Plan, network: Network, noise: Array) -> tuple[Array, Array]:
    """Follow a plan from noise to data (pure; jit it).

    Args:
        plan: of the formulation that the network was trained under.
        network: (network input [B, ...], t [B] float32) -> raw output [B, ...], or for guidance a pair of them:
            conditional and unconditional.
        noise: float32 [B, ...], standard normal.

    Returns:
        (x0 [B, ...], path length [B]), float32. The path length is Σ‖Δy‖ over the steps, Euclidean over an example:
        Table 6's Σ‖v dt‖ where the method is Euler.
    """

    def evaluate(i: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        y, start, previous, length = carry
        output = network(plan.input_by_y[i] * y, jnp.broadcast_to(plan.t[i], y.shape[:1]))
        if isinstance(output, tuple):
            output = guided(*output, plan.guidance[i], plan.rescale)
        x0 = plan.x0_by_y[i] * y + plan.x0_by_output[i] * output.astype(jnp.float32)
        moved = plan.by_y[i] * y + plan.by_start[i] * start + plan.by_x0[i] * x0 + plan.by_previous[i] * previous
        stride = jnp.sqrt(jnp.sum((moved - start) ** 2, axis=tuple(range(1, y.ndim))))
        ends = plan.ends[i]
        return moved, jnp.where(ends, moved, start), x0, length + jnp.where(ends, stride, 0.0)

    plan = Plan(*(jnp.asarray(column) for column in plan))
    y = plan.start * noise.astype(jnp.float32)
    first = (y, y, jnp.zeros_like(y), jnp.zeros(y.shape[:1], jnp.float32))
    x0, _, _, length = jax.lax.fori_loop(0, plan.evaluations, evaluate, first)
    return x0, length


def guided(conditional: Array, unconditional: Array, guidance: ArrayLike, rescale: ArrayLike = 0.0) -> Array:
    """Classifier-free guidance: unconditional + guidance · (conditional − unconditional); 1 means none.

    Being linear, it gives the same samples on raw outputs of any prediction as on velocities. ``rescale`` φ then sets
    the share φ of an example's deviation back to the conditional output's, as published: of the network's raw output,
    there v (Lin et al. 2024, arXiv 2305.08891, section 3.4). That is not linear, so one φ does different things to ε,
    v, F and velocity: compare formulations at φ = 0.
    """
    output = unconditional + guidance * (conditional - unconditional)
    axes = tuple(range(1, output.ndim))
    ratio = jnp.std(conditional, axes, keepdims=True) / jnp.maximum(jnp.std(output, axes, keepdims=True), 1e-12)
    return output * jnp.where(jnp.greater(rescale, 0), rescale * ratio + (1.0 - rescale), 1.0)


# ---- the tables, float64 on the host -------------------------------------------------------------------------------


class _Network(NamedTuple):
    """What connects y with the network, by node."""

    input_by_y: Column
    x0_by_y: Column
    x0_by_output: Column


class _Nodes(NamedTuple):
    """Where steps begin and end, [steps + 1]; at the last nothing is evaluated.

    A step of size h in ``clock`` moves z = scale · y by h (slope_by_y · y + slope_by_x0 · x0).
    """

    level: Column
    t: Column
    network: _Network
    clock: Column
    scale: Column
    slope_by_y: Column
    slope_by_x0: Column


@dataclass(frozen=True)
class _Row:
    node: int
    ends: bool
    by_y: float = 0.0
    by_start: float = 0.0
    by_x0: float = 0.0
    by_previous: float = 0.0


def _nodes(f: Formulation, config: SamplerConfig) -> _Nodes:
    shift = float(f.shift) if config.shift is None else config.shift
    if config.variables == "straight":
        last = float(f.last_level())
        level = last * timesteps(config.steps, shift, applied=config.shift_applied).astype(np.float64)
        _, t, _, _, network = _quantities(f, level.astype(np.float32), is_level=True)
        if config.shift_applied == "twice" and (f.path, f.prediction) == ("rf", "velocity"):
            # Reference samplers tell the network t = 1, which nothing forbids here; ours stay within what training saw.
            t, network = level, _Network(np.ones_like(level), np.ones_like(level), -level)
        with np.errstate(divide="ignore"):
            slope = 1.0 / level
        return _Nodes(level, t, network, level, np.ones_like(level), slope, -slope)
    last_time = LAST_TIME_EPS if f.prediction == "eps" else 1.0
    times = last_time * timesteps(config.steps).astype(np.float64)
    if shift != 1.0:
        # levels relative to the last, as above: the start stays where it is, and none goes beyond it
        level, last = np.asarray(f.level(times[1:-1].astype(np.float32)), np.float64), float(f.last_level())
        times[1:-1] = f.time_at(last * shifted(level / last, shift))
    _, t, (a, b), (a_slope, b_slope), network = _quantities(f, times.astype(np.float32), is_level=False)
    a[-1], b[-1] = 1.0, 0.0  # data, which EDM's clipped time does not quite reach
    clock = times
    if f.path == "edm":  # σ is its time: dσ/dt is infinite at both ends
        clock, a_slope, b_slope = b, np.zeros_like(b), np.ones_like(b)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_y, by_x0 = b_slope * (a + b) / b, a_slope - b_slope * a / b
    return _Nodes(b / (a + b), t, network, clock, a + b, by_y, by_x0)


def _quantities(f: Formulation, at: np.ndarray, *, is_level: bool) -> Any:
    """(level, t, (a, b), (a', b'), _Network) at levels or at times, as float64 arrays that may be written to."""
    return jax.tree.map(lambda x: np.array(x, np.float64), _traced_quantities(f, at, is_level))


@functools.partial(jax.jit, static_argnums=2)
def _traced_quantities(f: Formulation, at: Array, is_level: bool) -> Any:
    t = f.time_at(at) if is_level else at
    told = f.inside(t)
    if is_level and f.path == "edm":
        # The network is told its own schedule's t, but σ is not taken from that, which is rounded near 1 and cut near
        # 0. Under schedule `rf`, the level σ/(1 + σ) is t itself.
        f, t = replace(f, kind=jnp.int32(EDM_SCHEDULES.index("rf"))), at
    inside = f.inside(t)
    total = f.a(inside) + f.b(inside)
    output = jnp.ones_like(t)
    x0_by_output, _ = f.recover(output, jnp.zeros_like(t), t)
    x0_by_z, _ = f.recover(jnp.zeros_like(t), output, t)
    network = _Network(f.network_input(total, inside), x0_by_z * total, x0_by_output)
    return f.level(t), told, (f.a(t), f.b(t)), f.slopes(t), network


def _euler(nodes: _Nodes) -> list[_Row]:
    rows = []
    for i in range(len(nodes.level) - 1):
        h, end = nodes.clock[i + 1] - nodes.clock[i], nodes.scale[i + 1]
        by_y, by_x0 = nodes.scale[i] + h * nodes.slope_by_y[i], h * nodes.slope_by_x0[i]
        rows.append(_Row(i, True, by_y=by_y / end, by_x0=by_x0 / end))
    return rows


def _heun(nodes: _Nodes) -> list[_Row]:
    """Each step by Euler, then again with the mean of the slopes at both ends; the last one by Euler alone."""
    *steps, last = _euler(nodes)
    rows = []
    for i, predictor in enumerate(steps):
        h, end = nodes.clock[i + 1] - nodes.clock[i], nodes.scale[i + 1]
        corrector = _Row(
            i + 1,
            True,
            by_start=(nodes.scale[i] + h / 2 * nodes.slope_by_y[i]) / end,
            by_previous=h / 2 * nodes.slope_by_x0[i] / end,
            by_y=h / 2 * nodes.slope_by_y[i + 1] / end,
            by_x0=h / 2 * nodes.slope_by_x0[i + 1] / end,
        )
        rows += [replace(predictor, ends=False), corrector]
    return [*rows, last]


def _multistep(nodes: _Nodes) -> list[_Row]:
    """DPM-Solver++(2M): exact in λ for an x0 that is linear in λ. Its step is the same whatever z is scaled by.

    The first step, the last one to λ = ∞, and one after a step that went nowhere are of first order.
    """
    s = nodes.level
    with np.errstate(divide="ignore"):
        half_log_snr = np.log1p(-s) - np.log(s)
    rows = []
    for i in range(len(s) - 1):
        keeps = s[i + 1] / s[i]
        inner = 0 < i < len(s) - 2 and np.isfinite(half_log_snr[i - 1]) and s[i] < s[i - 1]
        before = half_log_snr[i] - half_log_snr[i - 1] if inner else np.inf
        extra = (half_log_snr[i + 1] - half_log_snr[i]) / (2 * before) if inner else 0.0
        rows.append(_Row(i, True, by_y=keeps, by_x0=(1 - keeps) * (1 + extra), by_previous=-(1 - keeps) * extra))
    return rows
