"""How a run is laid out on a machine, and every way there is to."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax

from mmdit_jax.config import Run
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig, init_params
from mmdit_jax.models.config import REMAT_POLICIES
from mmdit_jax.sharding import parameter_spec


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


def layouts(run: Run, devices: int) -> Iterator[Layout]:
    """Every way to lay the run out on so many devices; ``why_not`` may refuse it still."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for tensor in (n for n in divisors if n <= 8):
        for sequence in (n for n in divisors if n <= 8 and devices % (n * tensor) == 0):
            for fsdp in (n for n in divisors if devices % (n * sequence * tensor) == 0):
                parts = devices // (sequence * tensor)
                each = run.batch // parts
                for accumulation in (n for n in (1, 2, 4, 8, 16, 32, 64, 128) if each and each % n == 0):
                    for remat in REMAT_POLICIES:
                        yield Layout(fsdp, sequence, tensor, remat, accumulation)


def why_not(run: Run, layout: Layout, devices: int) -> str | None:
    """Why the run can't be laid out so; none where it can."""
    if devices % layout.shards:
        return f"fsdp x sequence x tensor = {layout.shards} does not divide {devices} devices"
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
        for name, shape in _shapes(replace(config, remat="none")):
            parameter_spec(name, shape, sizes)
    except UserError as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=64)
def _shapes(config: MMDiTConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    tree: Any = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return tuple((jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape) for path, leaf in leaves)
