"""Ends of runs on this machine that their user asked for, and of supervisors."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cases import LONG, Lab, is_alive, lab_in, two_cores

from launch.attempts import attempts, failures
from launch.executors import local
from launch.executors.job import Machine
from launch.executors.local import Local, LocalEngine
from mmdit_jax.training.events import read_events


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with lab_in(tmp_path, monkeypatch) as made:
        yield made


@two_cores
def test_cancel_ends_only_the_chosen(lab: Lab) -> None:
    """One that runs is told, one that waits never starts, and the others don't notice."""
    plans = {"a": [LONG], "b": [{"seconds": 2.0}], "c": [{}], "d": [{}], "e": [LONG]}
    engine = lab.submit(lab.job(plans), Local(at_once=2))
    lab.until(lambda: len(lab.notes("start")) == 2)
    live = engine.live()
    assert {run: item.state for run, item in live.items()} == {
        **dict.fromkeys("ab", "running"),
        **dict.fromkeys("cde", "queued"),
    }
    assert str(lab.notes("start", "a")[0]["pid"]) in live["a"].where
    # Two who cancel at the same moment, and names that are nobody's.
    assert engine.cancel(["a", "nobody"]) == ["a"]
    assert sorted(LocalEngine(lab.study, Local()).cancel(["c", "e"])) == ["c", "e"]
    lab.until(lambda: not engine.live())
    assert lab.states() == {"a": "cancelled", "b": "done", "c": "cancelled", "d": "done", "e": "cancelled"}
    assert [item["run"] for item in lab.notes("term")] == ["a"]
    assert {item["run"] for item in lab.notes("start")} == {"a", "b", "d"}
    assert lab.ends("a")[0][0] == 75 and len(lab.ends("a")) == 1
    assert engine.cancel(["a", "b"]) == []


def test_cancel_kills_after_its_grace(lab: Lab) -> None:
    """What does not end when it is told, with its children."""
    engine = lab.submit(lab.job({"a": [{**LONG, "term": "ignored", "child": True}]}), Local(grace_seconds=1))
    (started,) = lab.until(lambda: lab.notes("start"))
    engine.cancel(["a"])
    lab.until(lambda: not engine.live())
    ended = time.monotonic()
    (term,) = lab.notes("term")
    assert 0.9 < ended - term["at"] < 20
    assert lab.states() == {"a": "cancelled"} and lab.ends("a") == [(137, "cancelled")]
    assert failures(attempts(read_events(lab.study / "a"))) == 0
    lab.until(lambda: not is_alive(started["pid"]) and not is_alive(started["child"]))
    assert len(lab.notes("start")) == 1


@two_cores
def test_sigterm_to_the_supervisor_ends_all(lab: Lab) -> None:
    """As where the machine is shut down: runs save, none starts."""
    engine = lab.submit(lab.job({"a": [LONG], "b": [LONG], "c": [LONG]}), Local(at_once=2))
    lab.until(lambda: len(lab.notes("start")) == 2)
    os.kill(lab.supervisors[0], signal.SIGTERM)
    lab.until(lambda: not is_alive(lab.supervisors[0]))
    assert sorted(item["run"] for item in lab.notes("term")) == ["a", "b"]
    assert lab.states() == dict.fromkeys("abc", "cancelled") and not engine.live()
    assert not any(is_alive(item["pid"]) for item in lab.notes("start"))


def test_a_killed_supervisor_has_nothing_in_its_hands(lab: Lab) -> None:
    """Whatever its file says; the run goes on, held by its own lock, and nobody would start it again."""
    engine = lab.submit(lab.job({"a": [LONG], "b": [LONG]}, Machine()), Local())
    lab.until(lambda: lab.notes("start"))
    assert set(engine.live()) == {"a", "b"}
    os.kill(lab.supervisors[0], signal.SIGKILL)
    lab.until(lambda: not engine.live())
    assert lab.states() == {"a": "running", "b": "queued"}
    assert engine.cancel(["a", "b"]) == []
    time.sleep(0.3)
    (started,) = lab.notes("start")
    assert is_alive(started["pid"])
    os.kill(started["pid"], signal.SIGKILL)


def test_a_supervisor_that_has_only_begun_is_known(lab: Lab) -> None:
    """It holds its file before it has said a word: whoever submits then must not start its runs, too."""
    (lab.study / "jobs").mkdir()
    spec = lab.study / "jobs" / "local-x-1.json"
    spec.write_text(json.dumps({"runs": ["a", "b"]}))
    handle = local.hold(spec)
    try:
        live = LocalEngine(lab.study, Local()).live()
    finally:
        os.close(handle)
    assert {run: item.state for run, item in live.items()} == {"a": "queued", "b": "queued"}
    assert not LocalEngine(lab.study, Local()).live()
