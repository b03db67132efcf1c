"""What events.jsonl says of training, however often it stops to validate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launch.execute import Places
from launch.studies import load_study
from launch.study import status_row
from mmdit_jax.training.events import EventLog, read_events
from mmdit_jax.training.meter import Meter
from mmdit_jax.training.progress import Progress


def values(step: int) -> dict[str, np.ndarray]:
    """Metrics of a step whose loss is its number."""
    loss = np.float32(step)
    return {"loss": loss, "grad_norm": loss, "bin_loss": np.array([loss, 0.0]), "bin_count": np.array([2.0, 0.0])}


@pytest.mark.parametrize("validate_every", [1, 3, 10, 100])
def test_every_loss_is_told_and_no_step_after_a_pause_is_timed(
    tmp_path: Path, tiny_study: Path, capsys, validate_every
):
    run = replace(load_study(str(tiny_study)).runs[0], steps=25, validate_every=validate_every)
    places = Places(tmp_path, "tiny", tmp_path)
    folder = places.run_dir(run)
    folder.mkdir(parents=True)
    events = EventLog(folder)
    meter, progress = Meter(run, events, None, 1e12), Progress("rf", run.steps)
    for step in range(1, run.steps + 1):
        told = meter.read(step, values(step))
        assert (told is not None) == (step in (10, 20, 25))
        if told:
            progress.show(step, [told])
        if step % validate_every == 0:
            meter.pause()
    found = [event for event in read_events(folder) if event["event"] == "train"]
    assert [event["step"] for event in found] == [10, 20, 25]
    assert [event["loss"] for event in found] == [5.5, 15.5, 23.0]  # of steps 1 to 10, 11 to 20, 21 to 25
    assert [event["loss_by_bin"] for event in found] == [[5.5, None], [15.5, None], [23.0, None]]
    timed = [event["images_per_second"] is not None for event in found]
    assert timed == [event["peak_share"] is not None for event in found] == [validate_every > 1] * 3
    line = capsys.readouterr().err
    assert "step 25/25  loss 23.0000" in line and ("images/s" in line) == (validate_every > 1)
    events.write("train", step=25, loss=1.0, images_per_second=None)
    row = status_row(run, places)
    assert row["loss"] == 1.0 and row["images_per_second"] == found[-1]["images_per_second"]
    events.close()
