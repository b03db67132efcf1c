"""``mmdit plan`` as a user types it: real programs for chips that are not here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmdit_jax.chips import GIB
from mmdit_jax.models import MMDiTConfig

SMALL = ("--depth", "2", "--batch", "64", "--set", "model.head_size=64")


@pytest.fixture(scope="module")
def memo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


def run(memo: Path, *words: str, code: int = 0) -> Any:
    """What it prints, read where it is JSON; its one line of stderr where it fails."""
    command = [sys.executable, "-m", "launch.cli", "plan", "--memo", str(memo), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stderr
    if code:
        return done.stderr.splitlines()[-1]
    return json.loads(done.stdout) if "--json" in words else done.stdout


def check(plan: dict[str, Any], devices: int) -> None:
    """What holds of every plan that fits."""
    assert plan["fits"] and plan["devices"] == devices and plan["peak_gib"] <= plan["hbm_gib"]
    assert plan["peak_gib"] >= max(plan["argument_gib"], plan["temporary_gib"])
    parts = [plan[f"{name}_seconds"] for name in ("compute", "hbm", "interconnect")]
    assert plan["step_seconds"] >= max(parts) and not plan["uncounted_loops"]
    assert 0 < plan["mfu_bound"] < 1
    # What the device multiplies: the model's FLOPs, and at most what is recomputed beside. Nobody asks for gradients of
    # the text's states, which the count has as of any layer: at depth 2 they are 9 % of it.
    assert 0.9 * plan["flops_per_step"] < plan["device_flops"] * devices < 1.6 * plan["flops_per_step"]


@pytest.mark.parametrize(("topology", "devices"), [("v5p:2x2x2", 8), ("h100:1x8", 8)])
def test_a_step_on_eight_devices(memo: Path, topology: str, devices: int) -> None:
    layout = ("--fsdp", "4", "--sequence", "1", "--tensor", "2", "--accumulation", "2", "--remat", "none")
    first = run(memo, *SMALL, "--topology", topology, *layout, "--price", "2", "--steps", "1000", "--json")
    check(first, devices)
    assert first["mesh"] == {"fsdp": 4, "sequence": 1, "tensor": 2} and first["accumulation"] == 2
    assert first["cost"] == pytest.approx(2 * first["step_seconds"] * 1000 * devices / 3600)
    assert sum(first["collective_bytes"].values()) > 0
    again = run(memo, *SMALL, "--topology", topology, *layout, "--price", "2", "--steps", "1000", "--json")
    assert again == {**first, "memoised": True}
    assert "MFU at most" in run(memo, *SMALL, "--topology", topology, *layout)


@pytest.mark.parametrize(("topology", "devices"), [("h100:1x1", 1), ("v5p:2x2x1", 4)])
def test_offloading(memo: Path, topology: str, devices: int) -> None:
    """Average and moments, 12 bytes a parameter, lie with the host: they come and go once a step."""
    layout = ("--fsdp", str(devices), "--sequence", "1", "--tensor", "1", "--accumulation", "1", "--remat", "full")
    words = (*SMALL, "--topology", topology, *layout, "--json")
    plan = run(memo, *words, "--set", "hardware.offload=('optimizer','ema')")
    check(plan, devices)
    state = 12 * MMDiTConfig.from_depth(2, qk_norm=True).num_params() / devices
    # Biases and scales are whole on every device, and a TPU's arrays fill tiles.
    assert state <= plan["host_gib"] * GIB <= (1 if devices == 1 else 1.05) * state
    assert plan["host_bytes"] == pytest.approx(2 * plan["host_gib"] * GIB)
    assert plan["step_seconds"] >= plan["host_seconds"] > 0
    within = run(memo, *words)
    assert within["host_gib"] == within["host_bytes"] == 0
    assert within["argument_gib"] - plan["argument_gib"] == pytest.approx(plan["host_gib"], rel=1e-3)
    if devices == 1:  # a GPU's compiler keeps to the barrier: what is away comes when the activations have gone
        assert within["peak_gib"] - plan["peak_gib"] > 0.9 * plan["host_gib"]


def test_products_that_dots_keeps_are_computed_once_on_a_gpu(memo: Path) -> None:
    words = ("--depth", "3", "--batch", "64", "--topology", "h100:1x1", "--remat", "dots")
    plan = run(memo, *words, "--accumulation", "1", "--json")
    assert plan["remat"] == "dots"
    assert plan["device_flops"] < 1.05 * plan["flops_per_step"]


def test_two_slices_share_only_data(memo: Path) -> None:
    layout = ("--fsdp", "4", "--sequence", "1", "--tensor", "1", "--accumulation", "1", "--remat", "full")
    check(run(memo, *SMALL, "--topology", "2*v5e:2x2", *layout, "--json"), 8)
    told = run(memo, *SMALL, "--topology", "2*v5e:2x2", *layout[2:], "--fsdp", "8", code=2)
    assert "slices" in told


def test_the_search_finds_a_layout_that_fits(memo: Path) -> None:
    found = run(memo, *SMALL, "--topology", "h100:1x8", "--auto", "--tries", "2", "--json")
    check(found, 8)
    assert [item["why"] for item in found["tried"]].count("chosen") == 1
    compiled = [item for item in found["tried"] if item.get("step_seconds")]
    assert found["step_seconds"] == min(item["step_seconds"] for item in compiled)


def test_what_does_not_fit_is_told_with_what_would(memo: Path) -> None:
    """By the compiler's own refusal on a TPU, by comparing on a GPU."""
    layout = ("--fsdp", "1", "--sequence", "1", "--tensor", "1", "--remat", "none", "--accumulation", "1")
    for topology in ("v5e:2x4", "h100:1x8"):
        plan = run(memo, "--depth", "8", "--batch", "16384", "--topology", topology, *layout, "--json")
        assert not plan["fits"] and plan["peak_gib"] > plan["hbm_gib"] and len(plan["ways_to_fit"]) == 3


def test_drawing_at_8b_stays_under_24_gb(memo: Path) -> None:
    """1024 x 1024 in bfloat16 with guidance, the text encoded beforehand (SD3, section 5.3)."""
    plan = run(memo, "--sample", "--depth", "38", "--resolution", "1024", "--topology", "h100:1x1", "--json")
    assert plan["fits"] and plan["peak_gib"] * 2**30 < 24e9 and plan["steps"] == 50
    assert 50 * plan["flops_per_step"] == pytest.approx(2.96e15, rel=0.01)


def test_a_study(memo: Path) -> None:
    plan = run(memo, "quickstart", "--topology", "h100:1x1", "--json")
    assert len(plan["runs"]) == 7 and all(row["fits"] for row in plan["runs"])
    small = run(memo, "quickstart", "--topology", "h100:1x1", "--set", "hardware.tensor=2")
    assert "0 of 7 fit" in small


def test_topologies_that_are_none(memo: Path) -> None:
    assert "did you mean v5p:4x4x3?" in run(memo, *SMALL, "--topology", "v5p:3x3x3", "--batch", "270", code=2)
