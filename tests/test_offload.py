"""Whole runs whose moments and average lie in the host's memory: validated, evaluated and resumed as any other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import on_fake_devices

from launch.digest import digest
from launch.execute import Handling, execute, restore_ema
from launch.places import RESULT, Places
from launch.studies import load_study
from mmdit_jax.config import OFFLOADED, HardwareConfig, Run
from mmdit_jax.parameter_sharding import state_shardings
from mmdit_jax.training.events import read_events
from mmdit_jax.training.program import Solo, mesh_of
from mmdit_jax.training.state import HOST, init_state

LAYOUTS: dict[str, HardwareConfig] = {
    "all here": HardwareConfig(checkpoint_every=5),
    "offloaded": HardwareConfig(checkpoint_every=5, offload=OFFLOADED),
}


def short(study: Path, **changes: Any) -> Run:
    """Ten steps of the tiny study's first run, validated and saved halfway."""
    return replace(load_study(str(study)).runs[0], steps=10, validate_every=5, **changes)


def kinds(tree: Any) -> set[str | None]:
    """The memories that a tree's arrays lie in, scalars left out."""
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two results of a run are the same but for rounding, down to every score."""
    assert found.keys() == expected.keys()

    def same(path: tuple[Any, ...], a: Any, b: Any) -> None:
        if not str(path[0]).endswith("sha256']"):
            assert a == (pytest.approx(b, rel=1e-5) if isinstance(b, float) else b), jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(same, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["last", "best"])
def test_a_whole_run_is_as_without(tmp_path: Path, tiny_study: Path, at: str) -> None:
    given = short(tiny_study).evaluation
    asked = replace(given, at=at, without=("words",), settings=(given.sampler,), settings_images=4)
    runs = {name: short(tiny_study, evaluation=asked, hardware=hardware) for name, hardware in LAYOUTS.items()}
    places = {name: Places(tmp_path / name, "tiny", tmp_path / "data") for name in LAYOUTS}
    expected, found = (execute(runs[name], places[name], Handling(quiet=True)) for name in LAYOUTS)
    assert [point["step"] for point in found["curve"]] == [5, 10]
    assert {row["weights"] for row in found["settings"]} == {"ema", "raw"}
    close(found, expected)

    run, folder = runs["offloaded"], places["offloaded"].run_dir(runs["offloaded"])
    assert digest(restore_ema(run, folder)) == found["ema_sha256"]
    assert kinds(restore_ema(run, folder)) == {"device"}
    (folder / RESULT).unlink()
    shutil.rmtree(folder / "checkpoints" / "10")
    assert execute(run, places["offloaded"], Handling(quiet=True)) == found
    assert [event["step"] for event in read_events(folder) if event["event"] == "start"] == [0, 5]


def ema_of_program(study: str, **axes: int) -> dict[str, Any]:
    """Of a program that offloads and of one that does not: where the state's average lies, and the program's."""
    found = {}
    for name, hardware in LAYOUTS.items():
        run = short(Path(study), hardware=replace(hardware, **axes))
        mesh = mesh_of(run)
        state = init_state(run.model, run.optimizer, run.steps, 0, mesh, run.hardware.offload)
        given = Solo(run, mesh).ema_of(0, state)
        pairs = list(zip(jax.tree.leaves(given), jax.tree.leaves(state.ema), strict=True))
        found[name] = {
            "kept": sorted(map(str, kinds(state.ema))),
            "given": sorted(map(str, kinds(given))),
            "copied": sum(a is not b for a, b in pairs) / len(pairs),
            "equal": all(np.array_equal(a, b) for a, b in pairs),
            "placed": jax.tree.leaves(state_shardings(given, mesh)) == [leaf.sharding for leaf, _ in pairs],
        }
    return found


def test_what_leaves_the_program_is_on_the_devices(tiny_study: Path) -> None:
    alone = ema_of_program(str(tiny_study))
    assert alone["all here"] == dict(kept=["device"], given=["device"], copied=0, equal=True, placed=True)
    assert alone["offloaded"] == dict(kept=[HOST], given=["device"], copied=1, equal=True, placed=True)
    assert on_fake_devices(4, "test_offload", f"t.ema_of_program({str(tiny_study)!r}, fsdp=2)") == alone
