"""The table of plans on machines whose answers are known."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.plan_table import COLUMNS, DEPTHS, RESOLUTIONS, TOPOLOGIES, Size, tables, told
from launch.planning.layout import layout_of
from launch.planning.target import Target
from mmdit_jax.config import Run

SIZES = [Size("v5p:8x8x4", 256, 15), Size("h100:32x8", 1024, 24)]


class Machine:
    """Has ``room`` for what is compiled from the second time on; each program is faster than the one before."""

    def __init__(self, room: float) -> None:
        self.room = room
        self.asked: list[tuple[int, Any]] = []

    def __call__(self, run: Run, target: Target) -> dict[str, Any]:
        key = (run.model.depth, layout_of(run))
        if key not in self.asked:  # a memo
            self.asked.append(key)
        nth = [one for one in self.asked if one[0] == key[0]].index(key) + 1
        hardware = run.hardware
        mesh = {name: vars(hardware)[name] for name in ("fsdp", "sequence", "tensor")}
        layout = {"mesh": mesh, "remat": run.model.remat, "accumulation": hardware.accumulation}
        fits = nth > 1 and self.room > 1
        plan = {**dict.fromkeys(COLUMNS, 0.25), **layout, "fits": fits, "peak_gib": 1.0, "hbm_gib": self.room}
        return plan | {"step_seconds": 10.0 / nth, "mfu_bound": 0.5, "bound": "compute"}


def test_every_row_has_one_compilation_before_any_has_two() -> None:
    machine, seen = Machine(2.0), []
    for table in tables(SIZES, 3, machine):
        assert len(table) == min(len(seen) + 1, 2)
        seen.append([depth for depth, _ in machine.asked])
    assert seen == [[15], [15, 24], [15, 24, 15], [15, 24] * 2, [15, 24, 15, 24, 15], [15, 24] * 3]
    assert list(table["compiled"]) == [3, 3] and list(table["fits"]) == [True, True]
    # The fastest of the compiled: the last.
    assert all(math.isclose(seconds, 10.0 / 3) for seconds in table["step_seconds"])
    assert table["layout"][0] == str(machine.asked[4][1])
    assert all(math.isclose(days, 10.0 / 3 * 500_000 / 86_400) for days in table["days"])


def test_rows_that_do_not_fit_are_told() -> None:
    *_, table = tables(SIZES, 2, Machine(0.5))
    head, rule, *lines = told(table)
    assert head.count("|") == rule.count("|") == lines[0].count("|")
    assert lines[0].startswith("| v5p:8x8x4 | 256 | 15 | none of 2 fits | – |")
    *_, table = tables(SIZES, 2, Machine(2.0))
    assert "| 1.0 of 2.0 | 5.000 s | compute | 50 % |" in told(table)[2]


def test_the_committed_table_has_every_size_and_all_fit() -> None:
    table = pd.read_csv(Path(__file__).parent.parent / "docs" / "results" / "plans.csv")
    sizes = list(itertools.product(TOPOLOGIES, RESOLUTIONS, DEPTHS))
    assert list(zip(table["topology"], table["pixels"], table["depth"], strict=True)) == sizes
    assert table["fits"].all() and (table["peak_gib"] <= table["hbm_gib"]).all()
    largest = table[(table["topology"] == "v5p:8x8x4") & (table["pixels"] == 256) & (table["depth"] == 38)]
    assert float(largest["mfu_bound"].item()) >= 0.55
