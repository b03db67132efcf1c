"""Two studies on one machine, each with a supervisor that knows nothing of the other: who has what, and whose turn."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cases import LONG, Lab, is_alive, two_cores

from launch.executors.job import Machine
from launch.executors.local import Local, host_cores, host_memory_gib

SHORT = [{"seconds": 0.5}]


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Lab, Lab]]:
    """Two roots, of one user's."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    both = Lab(tmp_path / "one"), Lab(tmp_path / "two")
    yield both
    for lab in both:
        lab.close()


def spans(*labs: Lab) -> list[tuple[float, float, str]]:
    """When each run began and ended, by the processes' own clock, which is one for all."""
    found = []
    for lab in labs:
        for item in lab.notes("start"):
            (end,) = lab.notes("end", item["run"])
            found.append((item["at"], end["at"], item["run"]))
    return sorted(found)


def most_at_once(*labs: Lab) -> int:
    changes = sorted(change for begin, end, _ in spans(*labs) for change in ((begin, 1), (end, -1)))
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def test_runs_that_need_all_cores_take_turns(labs: tuple[Lab, Lab]) -> None:
    """As they do without options; status and the log say for whom one waits."""
    one, two = labs
    first = one.submit(one.job({"a": [{"seconds": 2.0}], "b": SHORT}, Machine()))
    one.until(lambda: one.notes("start"))
    second = two.submit(two.job({"c": SHORT, "d": SHORT}, Machine()))
    waiting = two.until(lambda: (found := second.live()["c"]).where and found)
    assert (waiting.state, waiting.where) == ("queued", f"waits for cores, after {one.study}/a")
    two.until(lambda: not first.live() and not second.live())
    assert most_at_once(one, two) == 1
    assert [run for _, _, run in spans(one, two)] == ["a", "c", "b", "d"]
    assert f"c: waits for cores, after {one.study}/a\n" in two.logs()


@two_cores
def test_small_runs_go_side_by_side_on_cores_of_their_own(labs: tuple[Lab, Lab]) -> None:
    """Also where each study may have only as many as the other leaves."""
    one, two = labs
    first = one.submit(one.job({"a": [{"seconds": 4.0}]}), Local(cores=1))
    one.until(lambda: one.notes("start"))
    second = two.submit(two.job({"b": SHORT}), Local(cores=1))
    two.until(lambda: not first.live() and not second.live())
    (a,), (b,) = one.notes("start"), two.notes("start")
    assert b["at"] < one.notes("end")[0]["at"]
    assert len(a["cores"]) == len(b["cores"]) == 1 and a["cores"] != b["cores"]


@two_cores
def test_one_large_run_has_its_turn_among_many_small_ones(labs: tuple[Lab, Lab]) -> None:
    """There may always be a small one that runs; it must not wait for all of them."""
    one, two = labs
    small = {f"r{i}": [{"seconds": 0.3 + 0.15 * (i % 2)}] for i in range(12)}
    first = one.submit(one.job(small), Local(cores=2))
    one.until(lambda: len(one.notes("start")) > 2)
    second = two.submit(two.job({"large": SHORT}, Machine(cpus_per_process=2)), Local(cores=2))
    two.until(lambda: not first.live() and not second.live())
    (large,) = spans(two)
    others = spans(one)
    assert len(others) == 12
    if len(host_cores()) == 2:
        assert not any(begin < large[1] and large[0] < end for begin, end, _ in others)
    assert sum(begin > large[1] for begin, _, _ in others) > 2


@two_cores
def test_a_study_that_has_runs_takes_no_place_in_the_line(labs: tuple[Lab, Lab]) -> None:
    """Its next run waits for what is left over."""
    one, two = labs
    first = one.submit(one.job({"a": [{"seconds": 2.0}]}, Machine(cpus_per_process=len(host_cores()) - 1)))
    one.until(lambda: one.notes("start"))
    second = two.submit(two.job({"b": [{"seconds": 4.0}], "c": SHORT}))
    two.until(lambda: second.live()["c"].where == f"waits for cores, after {one.study}/a")
    (folder,) = two.folder.parent.glob("mmdit-claims-*")
    assert {path.suffix for path in folder.iterdir()} == {".has"}
    two.until(lambda: not first.live() and not second.live())
    assert [run for _, _, run in spans(one, two)] == ["a", "b", "c"]


@two_cores
def test_memory_is_shared_out(labs: tuple[Lab, Lab]) -> None:
    """Of a run that was given some; one that was not told any doesn't wait for it."""
    one, two = labs
    most = Machine(cpus_per_process=1, memory_gib=0.6 * host_memory_gib())
    first = one.submit(one.job({"a": [{"seconds": 2.0}]}, most))
    one.until(lambda: one.notes("start"))
    second = two.submit(two.job({"b": SHORT}, most))
    waiting = two.until(lambda: (found := second.live()["b"]).where and found)
    assert waiting.where == f"waits for memory, after {one.study}/a"
    two.until(lambda: not first.live() and not second.live())
    assert [run for _, _, run in spans(one, two)] == ["a", "b"] and most_at_once(one, two) == 1


@two_cores
def test_a_run_that_needs_more_than_there_is_runs_alone(labs: tuple[Lab, Lab]) -> None:
    """Where its user says that there is more: after what has memory, and before what comes later."""
    one, two = labs
    gib = host_memory_gib()
    first = one.submit(one.job({"a": [{"seconds": 1.0}]}, Machine(cpus_per_process=1, memory_gib=0.1 * gib)))
    one.until(lambda: one.notes("start"))
    huge = Machine(cpus_per_process=1, memory_gib=2 * gib)
    second = two.submit(two.job({"b": SHORT}, huge), Local(memory_gib=3 * gib))
    two.until(lambda: second.live()["b"].where)
    third = one.submit(one.job({"c": SHORT}, Machine(cpus_per_process=1, memory_gib=0.1 * gib)))
    two.until(lambda: not first.live() and not second.live() and not third.live())
    assert [run for _, _, run in spans(one, two)] == ["a", "b", "c"] and most_at_once(one, two) == 1


def test_what_a_killed_supervisor_had_is_free_when_its_run_is_gone(labs: tuple[Lab, Lab]) -> None:
    """Its run is on those cores yet."""
    one, two = labs
    one.submit(one.job({"a": [LONG]}, Machine()))
    (started,) = one.until(lambda: one.notes("start"))
    os.kill(one.supervisors[0], signal.SIGKILL)
    second = two.submit(two.job({"b": SHORT}, Machine()))
    two.until(lambda: second.live()["b"].where == f"waits for cores, after {one.study}/a")
    time.sleep(0.5)
    assert not two.notes("start") and is_alive(started["pid"])
    os.kill(started["pid"], signal.SIGKILL)
    two.until(lambda: not second.live())
    assert two.states() == {"b": "done"}


def test_a_supervisor_that_is_killed_while_it_waits_keeps_no_place(labs: tuple[Lab, Lab]) -> None:
    one, two = labs
    first = one.submit(one.job({"a": [{"seconds": 2.0}]}, Machine()))
    one.until(lambda: one.notes("start"))
    waiting = two.submit(two.job({"b": SHORT}, Machine()))
    two.until(lambda: waiting.live()["b"].where)
    third = one.submit(one.job({"c": SHORT}, Machine()))
    one.until(lambda: third.live()["c"].where == f"waits for cores, after {one.study}/a and 1 more")
    os.kill(two.supervisors[0], signal.SIGKILL)
    one.until(lambda: not first.live() and not third.live())
    assert [run for _, _, run in spans(one)] == ["a", "c"]
    assert not two.notes()


def test_a_run_that_is_cancelled_while_it_waits_keeps_no_place(labs: tuple[Lab, Lab]) -> None:
    one, two = labs
    one.submit(one.job({"a": [LONG]}, Machine()))
    one.until(lambda: one.notes("start"))
    waiting = two.submit(two.job({"b": SHORT}, Machine()))
    two.until(lambda: waiting.live()["b"].where)
    assert waiting.cancel(["b"]) == ["b"]
    two.until(lambda: not waiting.live())
    (folder,) = two.folder.parent.glob("mmdit-claims-*")
    assert [path.suffix for path in folder.iterdir()] == [".has"]
