"""Counts of programs that libtpu and the CUDA plugin compile for pods, on a machine that has neither.

Needs the packages of ``mmdit plan``; run by itself, for libtpu takes a lock and sets environment variables.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.planning.child import ENVIRONMENT
from mmdit_jax.chips import CHIPS


def in_child(expression: str) -> Any:
    """The value of an expression over the module ``live_cases``, in a process that may load libtpu."""
    script = f"import json, live_cases as t; print('RESULT' + json.dumps({expression}))"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env={**environment, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=500,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("RESULT"))


def test_products_are_those_of_xla() -> None:
    """Without loops XLA counts right; its sum has the additions of the sharded product's reduction too."""
    ours, theirs, closed = in_child("t.one_product('v5p:2x2x1')")
    assert ours == closed
    assert theirs == pytest.approx(ours, rel=0.01)


def test_products_in_eight_bits_stay_so_on_the_chip() -> None:
    """One forward, two backward: as int8, and as fp8, whose gradients are e5m2."""
    for topology in ("v6e:2x2", "h100:1x1"):
        assert in_child(f"t.eight_bits({topology!r}, 'int8')") == pytest.approx({"s8": 3.0})
        fp8 = in_child(f"t.eight_bits({topology!r}, 'fp8')")
        assert set(fp8) <= {"f8e4m3fn", "f8e5m2"} and sum(fp8.values()) == pytest.approx(3.0)


def test_steps_of_a_small_mmdit() -> None:
    """Forward, backward and rematerialised products of joint blocks in a scan, on 16 devices of a v5p."""
    found = in_child("t.joint_blocks('v5p:2x2x4')")
    assert found["ours"] == pytest.approx(found["closed"], rel=0.01)
    assert found["loops"] == []
    assert found["xla"] < found["ours"] / 2  # which counts the scan's body once


def test_hbm_and_kind_of_each_tpu() -> None:
    names = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2", "tpu7x": "2x2x1"}
    tpus = {chip.name: chip for chip in CHIPS if chip.platform == "tpu"}
    assert set(tpus) == set(names)
    asked = {name: [f"{name}:{shape}", dict(tpus[name].topology_options)] for name, shape in names.items()}
    for name, (kind, devices, gib) in in_child(f"t.refused({asked!r})").items():
        chip = tpus[name]
        assert (kind, devices) == (chip.kind, 4 * chip.devices_per_chip)
        assert gib == pytest.approx(chip.hbm_bytes / 2**30, abs=0.005)


def test_slices_send_over_the_network() -> None:
    kinds = in_child("t.gradient_of_slices('v5p:2x2x1')")
    # The gradient of [512, 512] in bfloat16 over 2 x 4 devices: inside, and a part of it between the slices.
    between = [(kind, size) for kind, size, slices in kinds if slices == 2]
    assert between
    assert sum(size for _, size in between) <= 2 * 512 * 512
    assert any(slices == 1 for _, _, slices in kinds)


PODS = [
    ("v5p:2x2x4", {}, 4),
    ("v5p:2x2x4", {"fsdp": 4, "tensor": 2}, 4),
    ("v5p:4x4x4", {"fsdp": 64}, 16),
    ("v6e:8x8", {"fsdp": 16, "sequence": 2}, 16),
    ("2*v5p:2x2x2", {"fsdp": 8}, 4),
    ("2*v5p:2x2x2", {"fsdp": 2, "sequence": 2, "tensor": 2}, 4),
]
"""Topology, axes of the mesh, number of processes."""


def test_processes_read_the_rows_that_their_devices_hold() -> None:
    """On meshes laid along a torus, where a process's devices do not follow one another."""
    in_pieces = 0
    for (name, axes, processes), found in zip(
        PODS, in_child(f"[t.rows_of_processes(name, axes) for name, axes, _ in {PODS!r}]"), strict=True
    ):
        assert len(found["held"]) == processes, name
        assert found["read"] == found["held"], (name, axes)
        assert {row for rows in found["read"] for row in rows} == set(range(found["batch"])), (name, axes)
        in_pieces += any(rows[-1] - rows[0] >= len(rows) for rows in found["read"])
    assert in_pieces  # which no rule of equal, contiguous parts gives
