"""Runs side by side in one program: each as if alone, on one device and on four, through divergence and kills."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_fake_devices
from test_kill import kill_when, last_step
from test_step import MODEL, OPTIMIZER, STEPS, batch

from launch.groups import groups
from launch.places import Places
from launch.studies import load_study
from mmdit_jax.diffusion import STUDY_61, formulation
from mmdit_jax.errors import UserError
from mmdit_jax.host import gpu_options
from mmdit_jax.models import MMDiTConfig
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training.checkpoint import Checkpoints
from mmdit_jax.training.events import read_events
from mmdit_jax.training.replicas import Replicas, make_replica_step, part, replica_mesh, stack
from mmdit_jax.training.state import init_state
from mmdit_jax.training.step import make_train_step

NAMES = ("rf/lognorm(0.00,1.00)", "rf/adaptive(-1.00)", "rf/histogram(1,0,3)/shift(3.00)", "rf/cosmap")
EDM = ("edm(-1.20,1.20)", "edm/cos/minsnr(5.00)")
SEEDS = (0, 3)


def own_batch(seed: int) -> dict:
    """A batch that differs from seed to seed."""
    drawn = batch()
    return {"image": np.roll(drawn["image"], seed, axis=0), "text": drawn["text"]}


def apart(optimizer: str, shared_batch: bool, replicas: int = 8, names: tuple[str, ...] = NAMES) -> dict[str, float]:
    """How far replicas (formulations x seeds) end from the same runs alone: relative errors of losses and weights.

    The runs alone are on one device, the replicas on all of this process.
    """
    config = replace(OPTIMIZER, name=optimizer)
    grid = [(name, seed) for seed in SEEDS for name in names][:replicas]
    alone_mesh = make_mesh(devices=jax.devices()[:1])
    alone = make_train_step(MODEL, config, STEPS, 0.464, alone_mesh)
    mesh = replica_mesh(len(grid))
    together = make_replica_step(MODEL, config, STEPS, 0.464, mesh, shared_batch=shared_batch)
    batches = [batch() if shared_batch else own_batch(seed) for _, seed in grid]
    fs, seeds = stack([formulation(name) for name, _ in grid], mesh), stack([np.uint32(seed) for _, seed in grid], mesh)
    begin = [init_state(MODEL, config, STEPS, seed, alone_mesh) for _, seed in grid]
    state = stack(begin, mesh)
    given = batches[0] if shared_batch else jax.tree.map(lambda *rows: np.stack(rows), *batches)
    text = together.lower(state, given, fs, seeds).compile().as_text()
    losses = []
    for _ in range(STEPS):
        state, metrics = together(state, given, fs, seeds)
        losses.append(np.asarray(metrics["loss"]))
    worst = {"loss": 0.0, "params": 0.0, "ema": 0.0}
    for i, (name, seed) in enumerate(grid):
        mine = begin[i]
        for step in range(STEPS):
            mine, metrics = alone(mine, batches[i], formulation(name), seed)
            expected = float(metrics["loss"])
            worst["loss"] = max(worst["loss"], abs(float(losses[step][i]) - expected) / expected)
        own = part(state, i)
        assert int(own.step) == STEPS
        for which in ("params", "ema"):
            a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(vars(x)[which])]) for x in (own, mine))
            worst[which] = max(worst[which], float(np.linalg.norm(a - b) / np.linalg.norm(b)))
    collectives = len(re.findall(r"all-(?:gather|reduce|to-all)|collective-permute", text))
    return {**worst, "devices": mesh.size, "collectives": collectives}


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "names"), [("adamw", NAMES), ("muon", EDM)])
def test_replicas_are_the_runs_alone(optimizer: str, names: tuple[str, ...]) -> None:
    """Formulations x seeds, each seed with its own data: clipping (which is active) and Muon see one run each."""
    found = apart(optimizer, shared_batch=False, names=names)
    assert max(found["loss"], found["params"], found["ema"]) < 1e-6, found


@pytest.mark.slow
def test_on_four_devices_nothing_passes_between_replicas() -> None:
    for found in on_fake_devices(4, "test_replicas", "[t.apart('adamw', True, 4), t.apart('muon', False)]"):
        assert found["devices"] == 4 and found["collectives"] == 0
        assert max(found["loss"], found["params"], found["ema"]) < 1e-6, found


@pytest.mark.parametrize(("remat", "release"), [("dots", (0, 11)), ("none", (0, 11)), ("dots", (0, 10))])
def test_the_compiler_is_told_as_of_a_run_alone(remat: str, release: tuple[int, int], monkeypatch) -> None:
    """On GPUs, where a release of XLA needs to be told something."""
    told: list[dict] = []
    jit = jax.jit

    def noted(function: Callable, **options: Any) -> Any:
        told.append(options.get("compiler_options"))
        return jit(function, **options)

    monkeypatch.setattr(jax, "jit", noted)
    monkeypatch.setattr("mmdit_jax.host._release", lambda: release)
    for module in ("step", "replicas"):
        monkeypatch.setattr(f"mmdit_jax.training.{module}.platform", lambda: "gpu")
    model = replace(MODEL, remat=remat)
    make_train_step.__wrapped__(model, OPTIMIZER, STEPS, 0.1, make_mesh())
    alone = told[-1]
    make_replica_step.__wrapped__(model, OPTIMIZER, STEPS, 0.1, replica_mesh(2), shared_batch=True)
    assert told[-1] == alone == gpu_options(remat, "gpu") and bool(alone) == (remat == "dots" and release == (0, 11))


def test_a_stack_gives_its_parts_back() -> None:
    mesh = replica_mesh(3)
    trees = [{"a": jnp.full((2, 3), float(i)), "b": jnp.int32(i)} for i in range(3)]
    whole = stack(trees, mesh, give_away=True)
    assert whole["a"].shape == (3, 2, 3) and trees[0]["a"].is_deleted()
    assert [int(part(whole, i)["b"]) for i in range(3)] == [0, 1, 2]
    assert float(part(whole, 1)["a"].sum()) == 6.0


@pytest.mark.slow
def test_the_61_formulations_need_six_programs() -> None:
    """One step a path and prediction serves the sweep at a depth: all compiling there is."""
    model = MMDiTConfig.from_depth(
        1, head_size=16, patch_size=8, in_channels=3, context_dim=12, pooled_dim=4, position_table=8
    )
    mesh = make_mesh()
    step = make_train_step(model, OPTIMIZER, STEPS, 0.464, mesh)
    before = step._cache_size()  # type: ignore[attr-defined]
    state = init_state(model, OPTIMIZER, STEPS, 0, mesh)
    for number, name in enumerate(STUDY_61):
        state, metrics = step(state, batch(), formulation(name), number)
        assert np.isfinite(metrics["loss"]), name
    families = {(f.path, f.prediction) for f in map(formulation, STUDY_61)}
    assert step._cache_size() - before == len(families) == 6  # type: ignore[attr-defined]


STUDY = '''
"""Three runs of one program, and one of another that diverges."""
from dataclasses import replace
import tiny
from mmdit_jax.config import Study

def study():
    first, second = tiny.study().runs
    best = replace(first.evaluation, at="best")
    runs = (first, second, replace(first, name="other seed", seed=5))
    wild = [replace(first, name=name, formulation=f) for name, f in WILD.items()]
    return Study("trio", tuple(replace(run, evaluation=best) for run in (*runs, *wild)))

WILD = {}
'''


def results(folder: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    return {result["name"]: result for result in found}


@pytest.fixture
def trio(mmdit) -> Path:
    """A study file of three runs that share a program, two seeds among them, evaluated at their best."""
    (mmdit.folder / "trio.py").write_text(STUDY)
    return mmdit.folder / "trio.py"


@pytest.mark.slow
def test_a_study_side_by_side_killed_and_grouped_anew(mmdit, trio, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{mmdit.folder}:{os.environ.get('PYTHONPATH', '')}")
    alone = mmdit("study", "run", "trio.py", "--quiet", "--root", "alone")
    assert alone.returncode == 0, alone.stderr
    together = mmdit.folder / "together" / "trio"
    args = ("study", "run", "trio.py", "--quiet", "--root", "together", "--data-dir", "alone/_data")

    def steps() -> list[int]:
        return [last_step(folder) for folder in together.glob("*-*") if folder.is_dir()]

    assert kill_when(mmdit.start(*args, "--replicas", "3"), lambda: len(steps()) == 3 and min(steps()) >= 24)
    assert not results(together)
    finished = mmdit(*args, "--replicas", "2", devices=4)  # two of them hold a run, all four validate
    assert finished.returncode == 0, finished.stderr
    ours, theirs = results(together), results(mmdit.folder / "alone" / "trio")
    assert set(ours) == set(theirs) == {"rf", "log normal", "other seed"}
    for name, result in theirs.items():
        for mine, other in zip(ours[name]["curve"], result["curve"], strict=True):
            assert mine["step"] == other["step"]
            assert mine["levels"] == pytest.approx(other["levels"], rel=1e-6)
        assert ours[name]["best_step"] == result["best_step"]
        assert ours[name]["best_val_loss"] == min(point["loss"] for point in ours[name]["curve"])
    groups_of = [
        [event["replicas"] for event in read_events(folder) if event["event"] == "start" and "replicas" in event]
        for folder in together.glob("[!.]*-*")
    ]
    assert [sizes[0] for sizes in groups_of] == [3, 3, 3] and [3, 2] in groups_of


@pytest.mark.slow
def test_one_diverges_the_others_go_on(mmdit, trio, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{mmdit.folder}:{os.environ.get('PYTHONPATH', '')}")
    wild = {"edm": "edm(-1.20,1.20)", "edm wild": "edm(100.00,1.20)", "edm too": "edm(0.00,0.60)"}
    trio.write_text(STUDY.replace("WILD = {}", f"WILD = {wild}"))
    chosen = [word for name in wild for word in ("--only", name)]
    args = ("study", "run", "trio.py", "--quiet", "--replicas", "4", *chosen)
    done = mmdit(*args)
    assert done.returncode == 3, done.stderr
    assert "edm wild: diverged at step 1" in done.stderr
    folder = mmdit.folder / "studies" / "trio"
    assert set(results(folder)) == {"edm", "edm too"}
    again = mmdit(*args)
    assert again.returncode == 3 and "edm wild: diverged at step 1" in again.stderr
    (broken,) = folder.glob("edm-wild-*")
    assert sum(event["event"] == "diverged" for event in read_events(broken)) == 1
    assert not any((broken / "checkpoints").iterdir())


@pytest.mark.slow
def test_sigterm_saves_every_replica(mmdit, trio, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{mmdit.folder}:{os.environ.get('PYTHONPATH', '')}")
    long = ("--set", "steps=4000", "--set", "hardware.checkpoint_every=4000", "--set", "validate_every=4000")
    process = mmdit.start("study", "run", "trio.py", "--quiet", "--replicas", "3", *long)
    folder = mmdit.folder / "studies" / "trio"
    deadline = time.monotonic() + 120
    while min((last_step(item) for item in folder.glob("rf-*")), default=0) < 80 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    saved = {tuple(step.name for step in (item / "checkpoints").iterdir()) for item in folder.glob("*-*")}
    preempted = {e["step"] for item in folder.glob("*-*") for e in read_events(item) if e["event"] == "preempted"}
    assert len(preempted) == 1 and saved == {(str(preempted.pop()),)}


def test_groups_take_the_runs_furthest_behind_first(tmp_path: Path, tiny_study: Path) -> None:
    """Steps that a run could go on from are folders; which of them share a program follows from the configs."""
    first, second = load_study(str(tiny_study)).runs
    runs = [
        first,
        second,
        replace(first, name="seed", seed=1),
        replace(first, name="edm", formulation="edm/rf"),
        replace(first, name="wide", batch=16),
        replace(second, name="edm too", formulation="edm/cos"),
    ]
    places = Places(tmp_path, "tiny", tmp_path)

    def names(replicas: int) -> list[list[str]]:
        return [[run.name for run in group] for group in groups(runs, places, replicas)]

    assert names(1) == [[run.name] for run in runs]
    assert names(4) == [["rf", "log normal", "seed"], ["edm", "edm too"], ["wide"]]
    assert names(2) == [["rf", "log normal"], ["seed"], ["edm", "edm too"], ["wide"]]
    for run, steps in ((first, (10, 20)), (second, (20, 30)), (runs[2], (10,))):
        state = init_state(run.model, run.optimizer, run.steps, run.seed, make_mesh())
        checkpoints = Checkpoints(places.run_dir(run))
        for step in steps:
            checkpoints.save(step, state)
        checkpoints.close()
    assert names(4) == [["rf", "seed"], ["log normal"], ["edm", "edm too"], ["wide"]]
    with pytest.raises(UserError, match="expected runs that differ in name, seed or density alone"):
        Replicas([first, runs[4]])
