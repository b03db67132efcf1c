"""Several processes of which one sees files late, or is stopped or hangs after the last step."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from together_cases import Together, aborted, kinds, own_lines, saved, trained_by_one_and_two

from mmdit_jax.training.events import read_events

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, compile_cache: Path) -> Iterator[Together]:
    """With the run untouched in ``one``, by one process, and in ``two``, by two."""
    found = trained_by_one_and_two(tmp_path_factory.mktemp("late"), compile_cache)
    yield found
    found.close()


@pytest.fixture(scope="module")
def half(together: Together) -> Path:
    """A root whose run was stopped after step 16, with two checkpoints."""
    group = together.start(2, "half")
    together.at_step(group, 16)
    group[0].send_signal(signal.SIGTERM)
    assert [end.code for end in together.finish(group)] == [75, 75]
    return together.folder / "half"


def test_a_host_that_sees_files_late_takes_none_for_damaged(together: Together, half: Path) -> None:
    """Neither the newest checkpoint, not seen at first, nor the one before where that was moved aside, and still is."""
    for root, damaged in (("unseen", False), ("still-seen", True)):
        shutil.copytree(half, together.folder / root)
        folder = together.run_dir(root)
        before, newest = saved(folder)
        if damaged:
            (folder / "checkpoints" / str(newest) / "state" / "manifest.ocdbt").unlink()
        ends = together(2, root, late=6)
        assert [end.code for end in ends] == [0, 0], ends
        starts = [event["step"] for event in read_events(folder) if event["event"] == "start"]
        assert starts == [0, before if damaged else newest]
        assert ("damaged" in ends[0].err) == damaged == (folder / "damaged").exists()
        ours, theirs = (together.run_dir(name) / "result.json" for name in (root, "two"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_host_that_never_sees_it_ends_the_attempt_and_no_checkpoint(together: Together, half: Path) -> None:
    shutil.copytree(half, together.folder / "blind")
    folder = together.run_dir("blind")
    there = saved(folder)
    ends = together(2, "blind", late=1000, patience=2)
    assert [end.code for end in ends] == [160, 160], ends
    for end in ends:
        (line,) = own_lines(end.err)
        assert f"process 1 sees steps [], process 0 {there}, for 2 s; do all hosts mount the same root?" in line
    assert saved(folder) == there and not (folder / "damaged").exists()


def test_a_signal_while_drawing_ends_both_and_the_next_attempt_draws(together: Together) -> None:
    root = "drawn-late"
    group = together.start(2, root, drawing=3)
    together.until(group, lambda: (together.folder / "drawn").exists())
    group[1].send_signal(signal.SIGTERM)
    ends = together.finish(group)
    assert [end.code for end in ends] == [75, 75], ends
    line = "mmdit: rf after training: stopped by SIGTERM, nothing is lost; run again to go on"
    assert [own_lines(end.err) for end in ends] == [[line], [line]]
    folder = together.run_dir(root)
    assert kinds(folder)[-2:] == ["left", "preempted"] and not (folder / "result.json").exists()
    assert [end.code for end in together(2, root)] == [0, 0]
    assert json.loads((folder / "result.json").read_text()) == together.result("two")


def test_drawing_that_hangs_is_ended_by_the_watchdog(together: Together) -> None:
    root = "stuck"
    ends = together(2, root, "--hang-seconds", "10", drawing=600)
    assert all(aborted(end.code) for end in ends) and -signal.SIGALRM in [end.code for end in ends], ends
    folder = together.run_dir(root)
    assert kinds(folder)[-1] == "left"
    stacks = [path.read_text() for path in (folder / "stacks").iterdir()]
    assert any("in pause\n" in text and "in sample_images\n" in text for text in stacks)


def test_a_signal_in_the_last_validation_of_one_process(together: Together) -> None:
    """Everything is saved then, and it ends at once, rather than in the midst of drawing."""
    root = "last"
    group = together.start(1, root, validating=2, drawing=60)
    together.until(group, lambda: (together.folder / "validated").exists())
    group[0].send_signal(signal.SIGTERM)
    (end,) = together.finish(group, 50)
    line = "mmdit: rf: stopped by SIGTERM after its last step, saved; run again to go on"
    assert end.code == 75 and own_lines(end.err) == [line]
    folder = together.run_dir(root)
    assert kinds(folder)[-2:] == ["left", "preempted"] and saved(folder)[-1] == 24
    assert [end.code for end in together(1, root)] == [0]
    assert together.result(root) == together.result("one")


def test_two_processes_save_their_best_beside_their_checkpoints(together: Together) -> None:
    """Both folders are written at the same time, again and again."""
    often = ("validate_every=1", "hardware.checkpoint_every=1", "evaluation.at=best", "hardware.fsdp=2")
    settings = [word for setting in often for word in ("--set", setting)]
    ends = together(2, "best", *settings)
    assert [end.code for end in ends] == [0, 0], ends
    result = together.result("best")
    losses = {point["step"]: point["loss"] for point in result["curve"]}
    assert list(losses) == list(range(1, 25))
    assert result["best_val_loss"] == min(losses.values()) == losses[result["best_step"]]
    assert saved(together.run_dir("best")) == [23, 24]
