"""Going on after a loss that is not finite: which step sees which batch, and what the console script makes of it."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TINY_STUDY

from mmdit_jax.training.events import read_events
from mmdit_jax.training.loop import _stream
from mmdit_jax.training.member import Member
from mmdit_jax.training.program import Solo
from mmdit_jax.training.rewinds import Rewinds, rewinds
from scaling.goodput import goodput


class Numbers:
    """A program whose batches are their numbers."""

    def batches(self, data: Any, start_step: int) -> Any:
        return itertools.count(start_step)


def history(pick: random.Random) -> tuple[list[dict[str, Any]], list[int]]:
    """Events of a run that was rewound some times, and the batch that each step then sees, kept step by step."""
    seen, events = list(range(400)), [{"event": "attempt"}]
    for _ in range(pick.randrange(5)):
        to, skip = pick.randrange(0, 60), pick.randrange(1, 12)
        events += [{"event": "diverged", "step": to + skip, "message": "m"}, {"event": "train", "step": 1}]
        events.append({"event": "rewound", "step": to + skip, "to": to, "skip": skip})
        first = seen[to] + skip
        seen[to:] = range(first, first + len(seen) - to)
    return events, seen


def test_batches_are_those_of_a_list_that_is_kept_by_hand() -> None:
    program: Any = Numbers()
    counts = set()
    for seed in range(300):
        events, seen = history(random.Random(seed))
        past = rewinds(events)
        counts.add(past.count)
        assert past.count == sum(event["event"] == "rewound" for event in events) and past.diverged is None
        assert [past.shift(step) for step in range(200)] == [seen[step] - step for step in range(200)]
        for step in range(100):
            following = [i for i in range(step + 1, 200) if seen[i] - i != seen[i - 1] - (i - 1)]
            change = past.next_change(step)
            # Two rewinds to one step change it once; one to an earlier step forgets later ones.
            assert change == (following[0] if following else None)
        for start in (0, 1, 30, 59, 60, 61):
            found = list(itertools.islice(_stream(program, None, start, past), 120))  # type: ignore[arg-type]
            assert found == [(seen[step], seen[step] - step) for step in range(start, start + 120)]
    assert counts == {0, 1, 2, 3, 4}


def test_a_divergence_that_nothing_followed() -> None:
    bad: dict[str, Any] = {"event": "diverged", "step": 7, "message": "not finite"}
    back: dict[str, Any] = {"event": "rewound", "step": 7, "to": 5, "skip": 2}
    assert rewinds([]) == Rewinds()
    assert rewinds([bad]).diverged == (7, "not finite")
    assert rewinds([bad, back]) == Rewinds(((5, 2),), 1) == Rewinds().after(5, 2)
    assert rewinds([bad, back, bad, back]) == Rewinds(((5, 4),), 2)  # the later one holds
    assert rewinds([bad, back, {**bad, "step": 9}]) == Rewinds(((5, 2),), 1, (9, "not finite"))


def test_going_back_beyond_an_earlier_rewind_passes_over_what_followed_it_too() -> None:
    """A checkpoint is damaged: no batch that the run saw since step ``to`` comes again."""
    written: list[dict[str, Any]] = []
    for to in (20, 15, 10, 0):
        member = Member.__new__(Member)
        member.rewinds = Rewinds(((10, 5), (15, 9)), 2, (23, "not finite"))
        seen = [step + member.rewinds.shift(step) for step in range(to, 23)]
        member.events = SimpleNamespace(write=lambda event, **fields: written.append({"event": event, **fields}))  # type: ignore
        member._account = SimpleNamespace(take=dict)  # type: ignore[assignment]
        member.meter = SimpleNamespace(forget=lambda: None)  # type: ignore[assignment]
        member.rewind(to)
        assert to + member.rewinds.shift(to) == max(seen) + 1
        assert member.rewinds.diverged is None and member.rewinds.count == 3
        event = written.pop()
        assert (event["event"], event["step"], event["to"]) == ("rewound", 23, to)
        assert Rewinds(((10, 5), (15, 9)), 2).after(to, event["skip"]) == member.rewinds


def test_noise_is_another_for_each_shift() -> None:
    solo = Solo.__new__(Solo)
    solo._formulation = None  # type: ignore[assignment]
    solo._step = lambda state, batch, f, seed: seed  # type: ignore
    for seed in (0, 1, 2**32 - 1):
        solo._run = SimpleNamespace(seed=seed)  # type: ignore[assignment]
        found = [solo.step(None, None, shift) for shift in range(2000)]  # type: ignore[arg-type]
        assert found[0] == seed and len({int(item) for item in found}) == 2000  # type: ignore[call-overload]
        assert all(type(item) is np.uint32 for item in found)


POISONED = (
    TINY_STUDY
    + '''
from dataclasses import replace
from pathlib import Path
import jax
from mmdit_jax.training.program import Solo

BAD = BATCHES
STEP = Solo.step

def step(self, state, batch, shift=0):
    """Batches with a number in BAD leave weights that are not finite, as a damaged image might."""
    number = int(state.step)
    with open("steps.txt", "a") as seen:
        seen.write(f"{number} {shift}\\n")
    state, metrics = STEP(self, state, batch, shift)
    if number + shift in BAD:
        state = replace(state, params=jax.tree.map(lambda leaf: leaf * float("nan"), state.params))
    return state, metrics

Solo.step = step
'''
)
"""A study in which some batches are bad, wherever they come: diverged two steps later. Steps and shifts are noted."""
TRAIN = ("train", "tiny.py", "--run", "rf", "--quiet", "--data-dir", "data")
TRAIN = (*TRAIN, "--set", "steps=30", "--set", "evaluation.prompts_per_task=1")


def run_dir(root: Path) -> Path:
    (found,) = (root / "tiny").glob("rf-*")
    return found


def kinds(folder: Path, *wanted: str) -> list[tuple[str, int]]:
    return [(event["event"], event["step"]) for event in read_events(folder) if event["event"] in wanted]


def steps_seen(folder: Path) -> list[tuple[int, int]]:
    """(step, shift) of all steps since last asked."""
    note = folder / "steps.txt"
    found = [tuple(map(int, line.split())) for line in note.read_text().splitlines()]
    note.unlink()
    return found  # type: ignore[return-value]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("mmdit: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.slow
def test_a_run_that_is_rewound(mmdit) -> None:
    """At once, by a later attempt, and killed on its way: the same bits; without the flag exit code 3."""
    mmdit.study.write_text(POISONED.replace("BATCHES", "{13}"))
    at_once = mmdit(*TRAIN, "--root", "once", "--rewinds", "1")
    assert at_once.returncode == 0, at_once.stderr
    folder = run_dir(mmdit.folder / "once")
    expected = (folder / "result.json").read_bytes()
    result = json.loads(expected)
    assert result["rewinds"] == 1 and result["rewound"] == [[10, 5]]
    assert [point["step"] for point in result["curve"]] == [10, 20, 30]
    assert all(np.isfinite(point["loss"]) for point in result["curve"])
    assert kinds(folder, "diverged", "rewound", "left") == [("diverged", 15), ("rewound", 15), ("left", 30)]
    (back,) = [event for event in read_events(folder) if event["event"] == "rewound"]
    assert (back["to"], back["skip"]) == (10, 5)
    seen = steps_seen(mmdit.folder)
    turn = seen.index((10, 5))
    assert seen[:turn] == [(step, 0) for step in range(turn)] and 15 <= turn <= 17  # a few are in flight
    assert seen[turn:] == [(step, 5) for step in range(10, 30)]
    lost = goodput(list(read_events(folder)))
    assert lost is not None and lost.steps_lost == 5 and lost.attempts == 1 and lost.lost["redone"] > 0

    refused = mmdit(*TRAIN, "--root", "later")
    assert refused.returncode == 3
    assert "rf: diverged at step 15: " in one_line(refused) and refused.stdout == ""
    folder = run_dir(mmdit.folder / "later")
    assert not (folder / "result.json").exists()
    again = mmdit(*TRAIN, "--root", "later")
    assert again.returncode == 3 and one_line(again) == one_line(refused)
    assert kinds(folder, "start", "diverged") == [("start", 0), ("diverged", 15)]  # nothing was trained again
    later = mmdit(*TRAIN, "--root", "later", "--rewinds", "1")
    assert later.returncode == 0, later.stderr
    assert (folder / "result.json").read_bytes() == expected
    steps_seen(mmdit.folder)

    process = mmdit.start(*TRAIN, "--root", "killed", "--rewinds", "1")
    deadline = time.monotonic() + 120
    killed = mmdit.folder / "killed"

    def rewound() -> bool:
        return any(
            ("checkpoint", 20) in kinds(folder, "checkpoint") and (folder / "checkpoints" / "20").exists()
            for folder in killed.glob("tiny/rf-*")
        )

    while not rewound() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (run_dir(killed) / "result.json").exists()
    before = steps_seen(mmdit.folder)
    assert (19, 5) in before
    # The flag is not needed any more: what happened stays.
    finished = mmdit(*TRAIN, "--root", "killed")
    assert finished.returncode == 0, finished.stderr
    assert steps_seen(mmdit.folder) == [(step, 5) for step in range(20, 30)]
    assert (run_dir(killed) / "result.json").read_bytes() == expected


@pytest.mark.slow
def test_so_often_and_no_more(mmdit) -> None:
    """Batch 28 is bad too: the first rewind brings it to step 23."""
    mmdit.study.write_text(POISONED.replace("BATCHES", "{13, 28}"))
    refused = mmdit(*TRAIN, "--rewinds", "1")
    assert refused.returncode == 3 and "diverged at step 25: " in one_line(refused)
    folder = run_dir(mmdit.folder / "studies")
    told = [("diverged", 15), ("rewound", 15), ("diverged", 25)]
    assert kinds(folder, "diverged", "rewound") == told
    assert mmdit(*TRAIN, "--rewinds", "1").returncode == 3
    finished = mmdit(*TRAIN, "--rewinds", "2")
    assert finished.returncode == 0, finished.stderr
    assert kinds(folder, "diverged", "rewound") == [*told, ("rewound", 25)]
    result = json.loads((folder / "result.json").read_text())
    assert result["rewinds"] == 2 and result["rewound"] == [[10, 5], [20, 10]]
    assert steps_seen(mmdit.folder)[-10:] == [(step, 10) for step in range(20, 30)]
    lost = goodput(list(read_events(folder)))
    assert lost is not None and lost.steps_lost == 10 and lost.attempts == 3


@pytest.mark.slow
def test_a_checkpoint_whose_weights_are_at_fault_is_gone_back_beyond(mmdit) -> None:
    """Batch 9 leaves bad weights in the checkpoint of step 10; the loss and the gradient before it were finite."""
    mmdit.study.write_text(POISONED.replace("BATCHES", "{9}"))
    often = ("--set", "hardware.checkpoint_every=5", "--set", "validate_every=15", "--rewinds", "2")
    finished = mmdit(*TRAIN, *often)
    assert finished.returncode == 0, finished.stderr
    folder = run_dir(mmdit.folder / "studies")
    # Other batches after step 10 change nothing, so the second time it goes on from step 5, and passes over them all.
    told = [("diverged", 11), ("rewound", 11)]
    assert kinds(folder, "diverged", "rewound") == told * 2
    backs = [(event["to"], event["skip"]) for event in read_events(folder) if event["event"] == "rewound"]
    assert backs == [(10, 1), (5, 7)]
    assert steps_seen(mmdit.folder)[-25:] == [(step, 7) for step in range(5, 30)]
    result = json.loads((folder / "result.json").read_text())
    assert result["rewinds"] == 2 and result["rewound"] == [[5, 7]]
    assert [item.name.split("-")[1] for item in (folder / "damaged").iterdir()] == ["10"]


@pytest.mark.slow
def test_the_last_checkpoint_is_never_given_up(mmdit) -> None:
    mmdit.study.write_text(POISONED.replace("BATCHES", "{4}"))
    often = ("--set", "hardware.checkpoint_every=5", "--set", "validate_every=15", "--rewinds", "3")
    refused = mmdit(*TRAIN, *often)
    assert refused.returncode == 3 and "diverged at step 6: " in one_line(refused)
    folder = run_dir(mmdit.folder / "studies")
    assert kinds(folder, "diverged", "rewound") == [("diverged", 6), ("rewound", 6)] * 3 + [("diverged", 6)]
    assert {event["to"] for event in read_events(folder) if event["event"] == "rewound"} == {5}
    assert (folder / "checkpoints" / "5").exists() and not (folder / "damaged").exists()
