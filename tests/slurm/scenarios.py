"""What is done to runs on a real Slurm: one function a fault, each with a run of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lab import PATIENCE, Lab, Outcome, same
from study_of_faults import EVERY, FAULT_STEP

TWO = ("--nodes", "2")
AT_ONCE = 6


def untouched(lab: Lab) -> Outcome:
    """Nothing."""
    lab.submit("untouched", *TWO)
    return lab.end("untouched", attempts=1)


def kill_one(lab: Lab) -> Outcome:
    """kill -9 of process 1"""
    lab.submit("kill one", *TWO)
    os.kill(lab.in_the_middle("kill one")[1], signal.SIGKILL)
    return lab.end("kill one")


def kill_all(lab: Lab) -> Outcome:
    """kill -9 of all processes (quotes and $(…) in the names of run, root and study file)"""
    name = next(name for name in lab.run_ids if name.startswith("kill all"))
    lab.submit(name, *TWO)
    for pid in lab.in_the_middle(name).values():
        os.kill(pid, signal.SIGKILL)
    found = lab.end(name)
    assert not list(lab.folder.rglob("pwned")), "something was executed"
    return found


def stop_one(lab: Lab) -> Outcome:
    """SIGSTOP of process 1"""
    lab.submit("stop one", *TWO)
    os.kill(lab.in_the_middle("stop one")[1], signal.SIGSTOP)
    return lab.end("stop one")


def hang(lab: Lab) -> Outcome:
    """process 1 hangs in a step"""
    lab.submit("hang", *TWO)
    found = lab.end("hang")
    stacks = [path.read_text() for path in (lab.run_dir("hang") / "stacks").glob("*.txt")]
    assert any("_for_ever" in text for text in stacks), "no stacks"
    return found


def slurmd_dies(lab: Lab) -> Outcome:
    """kill -9 of a node's slurmd"""
    lab.submit("slurmd dies", *TWO, "--partition", "apart", "--hang-seconds", "60")
    lab.in_the_middle("slurmd dies")
    waits = lab.folder / "slurmd dies waits"  # or the run would be over before Slurm misses the node
    waits.touch()
    lab.cluster.kill_node("n3")
    lab.until(lambda: _down(lab), "down")
    waits.unlink()
    lab.cluster.start_node("n3")
    return lab.end("slurmd dies")


def _down(lab: Lab) -> bool:
    return "down" in lab.cluster.ask("sinfo", "--noheader", "--nodes=n3", "--format=%T")


def preempted(lab: Lab) -> Outcome:
    """a job of a higher partition takes its nodes"""
    lab.submit("preempted", *TWO, "--partition", "lower")
    lab.in_the_middle("preempted")
    nodes = ("--partition=high", "--nodelist=n4,n5", "--nodes=2", "--exclusive")
    lab.cluster.ask("sbatch", *nodes, "--output=/dev/null", "--wrap=sleep 1")
    return lab.end("preempted")


def time_limit(lab: Lab) -> Outcome:
    """the limit of an attempt"""
    lab.submit("time limit", "--time", "1", "--grace", "20")
    return lab.end("time limit")


def _stopped(lab: Lab, name: str, *options: str, after: int = 2 * EVERY) -> None:
    """The run cancelled by its user, and so saved, and not requeued."""
    lab.submit(name, *options)
    lab.in_the_middle(name, after)
    said = lab.mmdit("study", "cancel", str(lab.study), "--only", name)
    assert lab.run_ids[name] in said.splitlines(), said
    lab.until(lambda: not lab.ranks(name), "end of the processes")
    lab.until(lambda: lab.events(name)[-1]["event"] == "ended", "end of the attempt")


def flipped_bit(lab: Lab) -> Outcome:
    """a bit of the newest checkpoint is flipped"""
    _stopped(lab, "flipped bit")
    newest = lab.run_dir("flipped bit") / "checkpoints" / str(lab.saved("flipped bit"))
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    lab.submit("flipped bit")
    found = lab.end("flipped bit")
    assert list((lab.run_dir("flipped bit") / "damaged").iterdir())
    return found


def half_written(lab: Lab) -> Outcome:
    """the newest checkpoint is half-written"""
    _stopped(lab, "half written")
    newest = lab.run_dir("half written") / "checkpoints" / str(lab.saved("half written"))
    for number, path in enumerate(sorted(path for path in newest.rglob("*") if path.is_file())):
        if number % 2:
            path.unlink()
    lab.submit("half written")
    return lab.end("half written")


def disk_full(lab: Lab) -> Outcome:
    """no space left for a checkpoint"""
    lab.submit("disk full", "--setup", "ulimit -f 200")
    lab.until(lambda: any(event["event"] == "ended" for event in lab.events("disk full")), "end of the attempt")
    told = [event for event in lab.events("disk full") if event["event"] == "refused"]
    assert told and "disk full" in told[0]["message"], lab.events("disk full")
    lab.until(lambda: not lab.ranks("disk full"), "end of the processes")
    lab.submit("disk full")
    return lab.end("disk full")


def not_finite(lab: Lab) -> Outcome:
    """a loss that is not finite"""
    lab.submit("not finite")
    lab.until(lambda: any(event["event"] == "ended" for event in lab.events("not finite")), "end of the attempt")
    said = lab.submit("not finite")
    assert f"diverged at step {FAULT_STEP}" in said, said
    found = lab.outcome("not finite")
    assert found.result is None and found.attempts == 1, found
    return found


def rewound(lab: Lab) -> Outcome:
    """likewise, with --rewinds 1"""
    lab.submit("not finite, rewound", "--rewinds", "1")
    found = lab.end("not finite, rewound", attempts=1)
    assert found.result is not None and found.result["rewinds"] == 1
    return found


def other_counts(lab: Lab) -> Outcome:
    """other numbers of processes: 2, then 1, then 4"""
    _stopped(lab, "2, 1, 4 processes", *TWO)
    _stopped(lab, "2, 1, 4 processes", after=4 * EVERY)
    lab.submit("2, 1, 4 processes", *TWO, "--processes", "2")
    found = lab.end("2, 1, 4 processes")
    processes = [event["processes"] for event in lab.events("2, 1, 4 processes") if event["event"] == "attempt"]
    assert processes == [2, 1, 4], processes
    return found


def two_submitters(lab: Lab) -> Outcome:
    """two who submit at once (1 process)"""
    name = "untouched, 1 process"
    command = [sys.executable, "-m", "launch.cli", *lab.words(name), "--root", str(lab.root)]
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, env=lab.environment, cwd=lab.folder, **pipe) for _ in range(2)]
    try:
        said = [process.communicate(timeout=PATIENCE)[0] for process in both]
    finally:
        for process in both:
            process.kill()  # does nothing to one that has ended
    assert sum("already, slurm:" in text for text in said) == 1, said
    return lab.end(name, attempts=1)


def array(lab: Lab) -> Outcome:
    """an array of two runs with a GPU each, the first killed by kill -9"""
    names = ("array, first", "array, second")
    options = ("--only", names[1], "--array", "--topology", "h100:1x1")
    lab.submit(names[0], *options)
    said = lab.submit(names[0], *options)
    assert re.search(r"already, slurm:\d+_0\b", said) and re.search(r"already, slurm:\d+_1\b", said), said
    os.kill(lab.in_the_middle(names[0], EVERY)[0], signal.SIGKILL)
    other = lab.end(names[1], attempts=1)
    found = lab.end(names[0])
    assert same(found, other) == "same bits"
    return found


SCENARIOS: dict[str, Callable[[Lab], Outcome]] = {
    scenario.__name__: scenario
    for scenario in (
        untouched,
        time_limit,
        slurmd_dies,
        other_counts,
        stop_one,
        kill_one,
        hang,
        preempted,
        kill_all,
        flipped_bit,
        half_written,
        disk_full,
        not_finite,
        rewound,
        two_submitters,
        array,
    )
}
"""The longest first."""


def start_all(lab: Lab, pool: ThreadPoolExecutor) -> dict[str, Future[Outcome]]:
    """All scenarios, as many at a time as the pool takes."""
    return {name: pool.submit(scenario, lab) for name, scenario in SCENARIOS.items()}


def reference(name: str) -> str:
    """The scenario that nothing happened in, with as many processes."""
    several = (untouched, kill_one, kill_all, stop_one, hang, slurmd_dies, preempted, other_counts)
    return "untouched" if name in [scenario.__name__ for scenario in several] else "two_submitters"
