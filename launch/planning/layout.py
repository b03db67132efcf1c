"""How a run is laid out on a machine, and every way there is to."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import jax

from launch.planning.target import Target
from mmdit_jax.config import Run
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, init_params
from mmdit_jax.models.config import REMAT_POLICIES
from mmdit_jax.parameter_sharding import parameter_specs


@dataclass(frozen=True)
class Layout:
    """The axes of the mesh (``data`` takes the devices that are left), and what is recomputed and split."""

    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    remat: str = "none"
    accumulation: int = 1

    @property
    def shards(self) -> int:
        """Devices that the state is spread over."""
        return self.fsdp * self.sequence * self.tensor

    def of(self, run: Run) -> Run:
        """The run, laid out so."""
        hardware = replace(
            run.hardware,
            fsdp=self.fsdp,
            sequence=self.sequence,
            tensor=self.tensor,
            accumulation=self.accumulation,
        )
        return replace(run, model=replace(run.model, remat=self.remat), hardware=hardware)

    def __str__(self) -> str:
        axes = [f"{name}={vars(self)[name]}" for name in ("fsdp", "sequence", "tensor") if vars(self)[name] > 1]
        parts = [*axes, f"remat={self.remat}"]
        return " ".join(parts if self.accumulation == 1 else [*parts, f"accumulation={self.accumulation}"])


def layout_of(run: Run) -> Layout:
    """How a run is laid out."""
    h = run.hardware
    return Layout(h.fsdp, h.sequence, h.tensor, run.model.remat, h.accumulation)


def layout_in(plan: Mapping[str, Any]) -> Layout:
    """How what a plan is of is laid out (``request.described``)."""
    return Layout(**plan["mesh"], remat=plan["remat"], accumulation=plan["accumulation"])


def layouts(run: Run, target: Target, asked: Mapping[str, Any] = MappingProxyType({})) -> Iterator[Layout]:
    """Ways to lay the run out on the target; ``why_not`` may refuse one still.

    Axes of up to 8, but for fsdp, parts of a batch by powers of two; fields that are ``asked`` have that value only.
    """
    devices = target.devices
    divisors = _divisors(devices)
    few = [n for n in divisors if n <= 8]

    def values(name: str, free: Sequence[Any]) -> Sequence[Any]:
        return (asked[name],) if name in asked else free

    for tensor, sequence in itertools.product(values("tensor", few), values("sequence", few)):
        each = run.batch * sequence * tensor // devices
        powers = [2**n for n in range(each.bit_length()) if each % 2**n == 0]
        for fsdp in values("fsdp", divisors):
            if devices % (fsdp * sequence * tensor) == 0:
                for accumulation, remat in itertools.product(
                    values("accumulation", powers), values("remat", REMAT_POLICIES)
                ):
                    yield Layout(fsdp, sequence, tensor, remat, accumulation)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def why_not(run: Run, layout: Layout, target: Target) -> str | None:
    """Why the run can't be laid out so; none where it can."""
    devices = target.devices
    if devices % layout.shards:
        return f"fsdp x sequence x tensor = {layout.shards} does not divide {devices} devices"
    data = devices // layout.shards
    if data % target.slices:
        return f"data={data} is no multiple of the {target.slices} slices, which only data may cross"
    parts = devices // (layout.sequence * layout.tensor) * layout.accumulation
    if run.batch % parts:
        return f"batch={run.batch} is no multiple of {parts} (data x fsdp x accumulation)"
    if run.model.num_heads % layout.tensor:
        return f"tensor={layout.tensor} does not divide {run.model.num_heads} heads"
    return _undivided(run.model, layout.fsdp, layout.sequence, layout.tensor)


@functools.lru_cache(maxsize=4096)
def _undivided(config: MMDiTConfig, fsdp: int, sequence: int, tensor: int) -> str | None:
    sizes = {"fsdp": fsdp, "sequence": sequence, "tensor": tensor}
    try:
        parameter_specs(dict(_shapes(replace(config, remat="none"))), sizes)
    except UserError as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=64)
def _shapes(config: MMDiTConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    tree: Any = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return tuple((jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape) for path, leaf in leaves)
