"""The levers on memory: the bytes of the state by hand, a row for every value there is, offloading from afar."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from benchmarks import levers
from benchmarks.levers import BASE, LEVERS, pulled
from launch.planning.lower import abstract_batch
from launch.planning.paper import planned_run
from mmdit_jax.config import OFFLOADED
from mmdit_jax.diffusion import formulation
from mmdit_jax.errors import UserError
from mmdit_jax.models.config import DTYPES, PRODUCTS, REMAT_POLICIES
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training import state as states
from mmdit_jax.training.program import step_of
from mmdit_jax.training.state import HOST, abstract_state
from mmdit_jax.training.step import make_train_step

RESULTS = Path(__file__).parent.parent / "docs" / "results"


@pytest.mark.parametrize("lever", LEVERS)
def test_bytes_of_the_state(lever: str) -> None:
    """Parameters of 4 bytes, the average and two moments of 4 or 2, each where the lever puts it, at depth 24."""
    run = pulled(planned_run(24, batch=32), lever)
    n, each = run.model.num_params(), {"float32": 4, "bfloat16": 2}
    ema, moments = n * each[run.optimizer.ema_dtype], 2 * n * each[run.optimizer.moments]
    expected = defaultdict(int, {False: 4 * n})
    expected["ema" in run.hardware.offload] += ema
    expected["optimizer" in run.hardware.offload] += moments

    state: Any = abstract_state(run.model, run.optimizer, run.steps, make_mesh(), run.hardware.offload)
    found: defaultdict[bool, int] = defaultdict(int)
    for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state)):
        if leaf.ndim:
            found[leaf.sharding.memory_kind == HOST] += leaf.size * leaf.dtype.itemsize
    assert found == expected


def test_every_value_of_a_lever_has_a_row() -> None:
    """The base has the first of each; of what can be offloaded, each alone. No row is another by a second name."""
    base = planned_run(24, batch=32)
    runs = {name: pulled(base, name) for name in LEVERS}
    alone = [run for name, run in runs.items() if len(LEVERS[name]) <= 1]
    assert {run.model.remat for run in alone} == set(REMAT_POLICIES)
    assert {run.model.products for run in alone} == set(PRODUCTS)
    assert {run.model.scan for run in alone} == {None, True}
    assert {run.optimizer.moments for run in alone} == {run.optimizer.ema_dtype for run in alone} == set(DTYPES)
    assert {run.hardware.offload for run in alone} == {(), *((name,) for name in OFFLOADED)}
    assert {run.hardware.accumulation for run in alone} > {1}
    assert runs[BASE] == base
    assert len({str(run) for run in runs.values()}) == len(LEVERS)


def test_the_committed_table_has_the_rows_of_the_command() -> None:
    assert list(pd.read_csv(RESULTS / "levers.csv")["lever"]) == list(LEVERS)


def test_which_levers_make_another_run() -> None:
    """As docs/levers.md says: those that move results by more than rounding."""
    base = planned_run(24, batch=32)
    others = {name for name in LEVERS if pulled(base, name).run_id != base.run_id}
    assert others == {"moments bfloat16", "EMA bfloat16", "products int8", "products fp8", "dots, 16 bits"}


def test_the_table(tmp_path: Path) -> None:
    """Differences and ratios of plans that are given, beside the base; what a compiler refuses has its size alone."""
    plan = {
        **{"fits": True, "peak_gib": 50.0, "argument_gib": 30.0, "temporary_gib": 20.0, "host_gib": 0.0},
        **{"device_flops": 4e13, "hbm_bytes": 2e11, "host_bytes": 0.0},
        **{"step_seconds": 0.1, "mfu_bound": 0.5, "bound": "hbm"},
    }
    plans = {
        BASE: plan,
        "remat full": plan | {"peak_gib": 35.0, "device_flops": 5e13, "hbm_bytes": 3e11, "step_seconds": 0.12},
        "offload EMA": plan | {"host_gib": 8.0, "host_bytes": 16e9, "bound": "host", "step_seconds": 0.125},
        "EMA bfloat16": {"fits": False, "peak_gib": 90.0},
    }
    asked: list[str] = []

    def compiled(lever: str) -> dict[str, Any]:
        asked.append(lever)
        return plans[lever]

    out = tmp_path / "levers.csv"
    levers.table(list(plans)[1:], compiled, out)
    assert asked == list(plans)
    table = pd.read_csv(out).set_index("lever")
    assert list(table.index) == list(plans)
    assert list(table.saved_gib) == [0, 15, 0, -40]
    np.testing.assert_allclose(table.flops_ratio, [1, 1.25, 1, np.nan])
    np.testing.assert_allclose(table.hbm_ratio, [1, 1.5, 1, np.nan])
    np.testing.assert_allclose(table.step_ratio, [1, 1.2, 1.25, np.nan])
    assert table.host_gb["offload EMA"] == 16 and table.bound["offload EMA"] == "host"
    assert not table.fits["EMA bfloat16"] and np.isnan(table.step_seconds["EMA bfloat16"])
    refused = levers.row("remat full", plan, plans["EMA bfloat16"])
    assert refused["saved_gib"] == 40 and not [name for name in refused if "ratio" in name]


def forget() -> None:
    """What was made of the memories that devices told of."""
    states._maker.cache_clear()
    make_train_step.cache_clear()


@pytest.fixture
def devices_tell(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets which memories devices tell of, here and in nothing that is kept."""

    def tell(*kinds: str) -> None:
        for module in ("mmdit_jax.sharding", "mmdit_jax.training.state"):
            monkeypatch.setattr(f"{module}.memories", lambda mesh: kinds)

    return tell


def test_offloading_where_devices_tell_of_no_memories(devices_tell: Any) -> None:
    """A GPU that is compiled for, but is not here: the program is the one of a device that is."""
    run = planned_run(2, batch=2, overrides=["model.head_size=32", "model.attention='xla'"])
    run = replace(run, hardware=replace(run.hardware, offload=OFFLOADED))
    mesh = make_mesh()

    def text() -> str:
        forget()
        with jax.set_mesh(mesh):
            state = abstract_state(run.model, run.optimizer, run.steps, mesh, run.hardware.offload)
            step: Any = step_of(run, mesh)
            lowered = step.lower(state, abstract_batch(run, mesh), formulation(run.formulation), np.uint32(0))
        return str(lowered.as_text())

    here = text()
    devices_tell()
    afar = text()
    forget()
    away: Any = abstract_state(run.model, run.optimizer, run.steps, mesh)
    leaves = sum(leaf.ndim > 0 for leaf in jax.tree.leaves((away.ema, away.opt_state)))
    # Each of them, as argument and as result.
    assert afar.count('mhlo.memory_kind = "pinned_host"') == 2 * leaves
    assert afar == here
    # Nothing reads them before the barrier that waits for what they are needed with.
    main = afar.partition("func.func public @main(")[2].partition("func.func private")[0]
    signature, _, body = main.partition("\n")
    offloaded = re.findall(r"(%arg\d+): [^%]*pinned_host", signature.partition(" -> ")[0])
    assert len(offloaded) == leaves
    for name in offloaded:
        uses = [line for line in body.splitlines() if re.search(rf"{name}\b", line)]
        assert len(uses) == 1 and "optimization_barrier" in uses[0]


def test_offloading_where_devices_have_no_such_memory(devices_tell: Any) -> None:
    run = planned_run(3, batch=2)
    devices_tell("device")
    with pytest.raises(UserError, match=r"hardware.offload=\('ema',\): cpu devices have no pinned_host memory"):
        abstract_state(run.model, run.optimizer, run.steps, make_mesh(), ("ema",))
