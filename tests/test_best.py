"""The step with the lowest validation loss: kept, evaluated, and the same after any kill."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_kill import kill_when, last_step, run_dir

from mmdit_jax.config import EvaluationConfig
from mmdit_jax.diffusion import LossByTime
from mmdit_jax.errors import UserError
from mmdit_jax.training.best import Best, restore_best
from mmdit_jax.training.events import EventLog
from mmdit_jax.training.state import TrainState

TRAIN = ("train", "tiny.py", "--run", "rf", "--quiet")
# So high a rate that the loss goes up and down: 2.7, 29, 8, 4, 2.0, 1.5, 1.23, 1.25 at steps 5, 10, ... 40.
ROUGH = (
    *("--set", "evaluation.at=best", "--set", "optimizer.learning_rate=0.2"),
    *("--set", "validate_every=5", "--set", "hardware.checkpoint_every=15"),
)


def state_at(step: int) -> TrainState:
    weights, average = {"w": jnp.full(3, float(step))}, {"w": jnp.full(3, -float(step))}
    return TrainState(jnp.int32(step), weights, average, {"m": 0.0}, LossByTime.empty())


def abstract() -> TrainState:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = state_at(0)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=one), state)


def attempt(folder: Path, losses: dict[int, float], first: int, last: int) -> None:
    """What the loop does at the validations of steps ``first`` to ``last``."""
    best, events = Best(folder), EventLog(folder)
    for step, loss in losses.items():
        if first <= step <= last:
            events.write("validation", step=step, loss=loss, durable=True)
            best.offer(step, loss, lambda step=step: state_at(step))
    best.close()
    events.close()


@pytest.mark.parametrize("back", [1, 2, 3, 4, 5, 6])
def test_the_lowest_loss_is_kept_whatever_step_a_run_goes_back_to(tmp_path: Path, back: int) -> None:
    """Validations 1 to 5, then again from ``back`` on; 3 and 6 tie, and the earlier one counts."""
    losses = {1: 3.0, 2: 5.0, 3: 1.0, 4: 2.0, 5: 4.0, 6: 1.0, 7: 1.5}
    attempt(tmp_path, losses, 1, 5)
    attempt(tmp_path, losses, back, 7)
    step, state = restore_best(tmp_path, abstract())
    assert step == int(state.step) == 3
    np.testing.assert_array_equal(state.params["w"], 3.0)
    np.testing.assert_array_equal(state.ema["w"], -3.0)
    assert state.opt_state is None
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["3"]


def test_a_best_that_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train the run first"):
        restore_best(tmp_path, abstract())
    attempt(tmp_path, {1: 2.0}, 1, 1)
    largest = max((p for p in (tmp_path / "best").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(b"")
    with pytest.raises(UserError, match=r"best=.*missing or damaged; delete"):
        restore_best(tmp_path, abstract())


def test_at_is_checked() -> None:
    with pytest.raises(UserError, match=r"evaluation\.at='bets': unknown; did you mean 'best'"):
        EvaluationConfig(at="bets")


@pytest.mark.slow
def test_killed_anywhere_the_same_best(mmdit) -> None:
    train = (*TRAIN, *ROUGH)
    untouched = mmdit(*train, "--root", "untouched")
    assert untouched.returncode == 0, untouched.stderr
    expected = (run_dir(mmdit.folder / "untouched") / "result.json").read_bytes()
    result = json.loads(expected)
    lowest = min(result["curve"], key=lambda point: point["loss"])
    assert (result["best_step"], result["best_val_loss"]) == (lowest["step"], lowest["loss"])
    assert result["best_step"] < 40 and result["val_loss"] > result["best_val_loss"]
    losses = [point["loss"] for point in result["curve"]]
    better = [point["step"] for i, point in enumerate(result["curve"]) if point["loss"] == min(losses[: i + 1])]
    assert len(better) > 1, "too smooth a run: nothing ever replaces a best"

    root = mmdit.folder / "killed"
    moments = (
        ("a best is being written", lambda: any((run_dir(root) / "best").glob(f"{better[0]}*"))),
        ("a better one replaces it", lambda: any((run_dir(root) / "best").glob(f"{better[-1]}*"))),
        ("the last checkpoint is some steps ago", lambda: last_step(run_dir(root)) >= 35),
        ("images are being sampled", lambda: (run_dir(root) / "samples" / "00003").exists()),
    )
    for name, reached in moments:
        assert kill_when(mmdit.start(*train, "--root", "killed"), reached), name
    finished = mmdit(*train, "--root", "killed")
    assert finished.returncode == 0, finished.stderr
    assert (run_dir(root) / "result.json").read_bytes() == expected
    assert [path.name for path in (run_dir(root) / "best").iterdir()] == [str(result["best_step"])]

    drawn = mmdit("sample", "tiny.py", "--run", "rf", *ROUGH, "a red circle", "--out", "mine", "--root", "killed")
    assert drawn.returncode == 0, drawn.stderr
    last = mmdit(*TRAIN, "--root", "plain")
    assert last.returncode == 0 and not (run_dir(mmdit.folder / "plain") / "best").exists()
