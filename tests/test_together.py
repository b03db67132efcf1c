"""A run of several real processes: the same numbers as one, and what becomes of it when they are stopped or fail."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from together_cases import FILLS, FULL, Together, aborted, own_lines, same_numbers, saved, trained_by_one_and_two

from mmdit_jax.training.events import read_events


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, compile_cache: Path) -> Iterator[Together]:
    """With the run untouched in ``one``, by one process, and in ``two``, by two."""
    found = trained_by_one_and_two(tmp_path_factory.mktemp("together"), compile_cache)
    yield found
    found.close()


@pytest.mark.slow
def test_two_processes_are_as_one(together: Together) -> None:
    same_numbers(together.result("two"), together.result("one"))
    told = list(read_events(together.run_dir("two")))
    assert [event["processes"] for event in told if event["event"] in ("attempt", "start")] == [2, 2]
    steps = [event["step"] for event in told if event["event"] == "validation"]
    assert steps == [8, 16, 24]  # process 0 alone writes
    saved = together.run_dir("two") / "checkpoints" / "24"
    sums = [json.loads(path.read_text()) for path in saved.glob("checksums.*.json")]
    assert [item["processes"] for item in sums] == [2, 2]
    assert not (together.run_dir("two") / "stacks").exists()


@pytest.mark.slow
def test_every_fault_in_turn_and_the_same_bits(together: Together) -> None:
    """One attempt after another at one run of two processes; the last ends as if nothing had been."""
    root = "faults"

    # SIGTERM, to the second alone.
    group = together.start(2, root)
    together.at_step(group, 12)
    group[1].send_signal(signal.SIGTERM)
    ends = together.finish(group)
    assert [code for code, _, _ in ends] == [75, 75], ends
    folder = together.run_dir(root)
    (preempted,) = [event["step"] for event in read_events(folder) if event["event"] == "preempted"]
    assert 12 < preempted < 24
    for _, _, err in ends:
        assert own_lines(err) == [f"mmdit: rf: stopped by SIGTERM at step {preempted}, saved; run again to go on"]
    assert saved(folder) == [*(step for step in (8, 16) if step < preempted), preempted][-2:]  # two are kept
    shutil.copytree(together.folder / root, together.folder / "counts")  # for the test below

    # One is gone.
    group = together.start(2, root)
    together.at_step(group, preempted + 1)
    begun = time.monotonic()
    group[1].kill()
    (code, _, err), (killed, _, _) = together.finish(group)
    assert killed == -signal.SIGKILL and aborted(code), (code, err)
    assert time.monotonic() - begun < 40  # of heartbeats of 10 s, on a busy machine

    # Meanwhile the newest checkpoint is damaged, so they begin at the one before; then one of them hangs.
    before, newest = saved(folder)
    weights = max((folder / "checkpoints" / str(newest)).rglob("*"), key=lambda item: item.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    ends = together(2, root, "--hang-seconds", "8", hang=before + 2)
    assert all(aborted(code) for code, _, _ in ends), ends
    assert ends[1][0] == -signal.SIGALRM
    assert f"{folder / 'checkpoints' / str(newest)}: damaged, passed over" in ends[0][2]
    assert "damaged" not in ends[1][2]  # said once
    starts = [event["step"] for event in read_events(folder) if event["event"] == "start"]
    assert starts == [0, preempted, before]
    assert "in hangs_for_ever\n" in (folder / "stacks" / "attempt3-process1.txt").read_text()

    # The disk of the second is full, or fills, where both write: weights are spread over them.
    for program in (FULL, FILLS):
        begun = time.monotonic()
        ends = together(2, root, "--set", "hardware.fsdp=2", second=program)
        assert [code for code, _, _ in ends] == [2, 2], ends
        for _, _, err in ends:
            (line,) = own_lines(err)
            assert re.fullmatch(r"mmdit: root=.*checkpoints: disk full while saving a checkpoint; free space .*", line)
        assert [event["event"] for event in read_events(folder)][-1] == "refused"
        assert saved(folder) == [before]
        assert time.monotonic() - begun < 90  # Orbax alone waits 1200 s for the second

    # One is stopped, and does not come back before the other has given up.
    group = together.start(2, root)
    together.at_step(group, max(13, before + 2))
    group[1].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    group[0].wait(timeout=60)
    assert aborted(group[0].returncode), (together.folder / "err0").read_text()
    group[1].send_signal(signal.SIGCONT)
    group[1].wait(timeout=60)
    assert aborted(group[1].returncode)

    ends = together(2, root)
    assert [code for code, _, _ in ends] == [0, 0], ends
    ours, theirs = (together.run_dir(name) / "result.json" for name in (root, "two"))
    assert ours.read_bytes() == theirs.read_bytes()
    kinds = [event["event"] for event in read_events(folder)]
    assert kinds.count("attempt") == 7 and kinds.count("preempted") == kinds.count("done") == 1


@pytest.mark.slow
def test_two_then_one_then_four(together: Together) -> None:
    """Goes on with what the test before has left by two processes."""
    root = "counts"
    if not (together.folder / root).exists():
        group = together.start(2, root)
        together.at_step(group, 12)
        group[0].send_signal(signal.SIGTERM)
        assert [code for code, _, _ in together.finish(group)] == [75, 75]
    (began,) = [event["step"] for event in read_events(together.run_dir(root)) if event["event"] == "preempted"]
    group = together.start(1, root)
    together.at_step(group, began + 1)
    group[0].send_signal(signal.SIGTERM)
    ((code, _, err),) = together.finish(group)
    assert code == 75, err
    ends = together(4, root)
    assert [code for code, _, _ in ends] == [0] * 4, ends
    same_numbers(together.result(root), together.result("one"))
    told = [(event["processes"], event["step"]) for event in read_events(together.run_dir(root)) if "mesh" in event]
    assert [processes for processes, _ in told] == [2, 1, 4]
    assert 0 == told[0][1] < told[1][1] == began < told[2][1] < 24


@pytest.mark.slow
def test_sigterm_before_and_after_training_loses_nothing(together: Together) -> None:
    root, data = "early", together.folder / "early-data"
    args = ("--data-dir", str(data))
    group = together.start(1, root, *args)
    together.until(group, lambda: data.exists() and any(data.iterdir()))
    group[0].send_signal(signal.SIGTERM)
    ((code, _, err),) = together.finish(group, 20)
    line = "mmdit: rf {} training: stopped by SIGTERM, nothing is lost; run again to go on"
    assert code == 75 and own_lines(err) == [line.format("before")]
    assert [event["event"] for event in read_events(together.run_dir(root))] == ["attempt"]

    def over() -> bool:
        return any(event["event"] == "left" for event in read_events(together.run_dir(root)))

    group = together.start(1, root, *args)
    together.until(group, over)
    time.sleep(0.1)  # past what follows the last step
    group[0].send_signal(signal.SIGTERM)
    ((code, _, err),) = together.finish(group, 20)
    assert code == 75 and own_lines(err) == [line.format("after")]
    assert not (together.run_dir(root) / "result.json").exists()
    ((code, _, err),) = together(1, root, *args)
    assert code == 0, err
    assert together.result(root) == together.result("one")
    starts = [event["step"] for event in read_events(together.run_dir(root)) if event["event"] == "start"]
    assert starts == [0, 24]
