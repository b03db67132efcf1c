"""This machine's supervisor with real processes: how many at a time, and what is started again."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from local_cases import LONG, Lab, is_alive, lab_in, two_cores

from launch.executors import local
from launch.executors.job import Job, Machine
from launch.executors.local import Local, host_cores, render


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with lab_in(tmp_path, monkeypatch) as made:
        yield made


def test_in_order(lab: Lab) -> None:
    runs = [f"r{i}" for i in range(4)]
    lab.finish(lab.job({run: [{"seconds": 0.1}] for run in runs}), Local(at_once=1))
    assert [item["run"] for item in lab.notes("start")] == runs
    assert lab.most_at_once() == 1
    assert lab.states() == dict.fromkeys(runs, "done")
    assert all(lab.ends(run) == [(0, "done")] for run in runs)


@two_cores
@pytest.mark.parametrize(
    "machine, options, most",
    [
        (Machine(cpus_per_process=2), Local(cores=2, at_once=3), 1),
        (Machine(cpus_per_process=1), Local(cores=2), 2),
        (Machine(cpus_per_process=1), Local(cores=1, at_once=3), 1),
        (Machine(processes_per_node=2, cpus_per_process=1), Local(cores=2, at_once=3), 1),
        (Machine(cpus_per_process=1), Local(cores=2, at_once=1), 1),
        (Machine(), Local(cores=2), 1),
        (Machine(), Local(cores=2, at_once=2), 2),
        (Machine(cpus_per_process=1, memory_gib=2.0), Local(cores=2, memory_gib=3.5), 1),
        (Machine(cpus_per_process=1, memory_gib=2.0), Local(cores=2, memory_gib=4.0), 2),
    ],
)
def test_never_more_than_they_may(lab: Lab, machine: Machine, options: Local, most: int) -> None:
    """And as many as they may, by cores, memory and number; each has cores of its own, as many as it was given."""
    plans = {run: [{"seconds": 0.3 if most == 1 else 1.5}] for run in ("a", "b", "c")}
    lab.finish(lab.job(plans, machine), options)
    count = machine.processes
    assert lab.most_at_once() == most * count
    together = [item for item in lab.notes("start") if item["number"] == 0]
    each = 2 // most if machine.cpus_per_process is None else count * machine.cpus_per_process
    allowed = set(host_cores()[: options.cores])
    assert all(len(item["cores"]) == each and set(item["cores"]) <= allowed for item in together)
    if most == 2:
        first, second = sorted(together, key=lambda item: item["at"])[:2]
        assert not set(first["cores"]) & set(second["cores"])


@two_cores
def test_processes_of_a_run_are_told_of_one_another(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """One coordinator, their count and their numbers; whatever the one who submits was told itself."""
    monkeypatch.setenv("MMDIT_DISTRIBUTED", "auto")
    monkeypatch.setenv("MMDIT_COORDINATOR", "elsewhere:1")
    lab.finish(lab.job({"a": [{}], "b": [{}]}, Machine(processes_per_node=2, cpus_per_process=1)))
    for run in ("a", "b"):
        seen = {item["number"]: item["seen"] for item in lab.notes("start", run)}
        assert sorted(seen) == [0, 1]
        host, port = seen[0]["MMDIT_COORDINATOR"].rsplit(":", 1)
        assert host == "127.0.0.1" and 1024 <= int(port) < 65536
        assert seen[0]["MMDIT_COORDINATOR"] == seen[1]["MMDIT_COORDINATOR"]
        assert all(item["MMDIT_PROCESSES"] == "2" and "MMDIT_DISTRIBUTED" not in item for item in seen.values())
        assert all((lab.study / "logs" / f"{run}.{number}.log").exists() for number in (0, 1))
    job = render(lab.job({"a": [{}]}, Machine(processes_per_node=2)), Local()).splitlines()
    assert len(job) == 2 and "MMDIT_PROCESS=0" in job[0] and "MMDIT_PROCESS=1" in job[1]


def test_a_process_alone_is_told_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDIT_DISTRIBUTED", "auto")
    monkeypatch.setenv("MMDIT_PROCESSES", "2")
    lab.finish(lab.job({"a": [{}]}))
    (only,) = lab.notes("start")
    assert set(only["seen"]) == {"MMDIT_JOB"}
    assert only["seen"]["MMDIT_JOB"] == f"local:{lab.supervisors[0]}"


def test_preempted_runs_start_again_without_limit(lab: Lab) -> None:
    lab.finish(lab.job({"a": [{"code": 75}] * 5 + [{"code": 0}]}, retries=0))
    assert lab.ends("a") == [(75, "again")] * 5 + [(0, "done")]
    assert lab.states() == {"a": "done"}


@pytest.mark.parametrize("code, noted", [(160, 160), (-signal.SIGKILL, 137), (-signal.SIGABRT, 134)])
def test_infrastructure_has_a_budget(lab: Lab, code: int, noted: int) -> None:
    """Failures are started again, after a while, so often and no more; the next run has its turn meanwhile."""
    lab.finish(lab.job({"a": [{"code": code}], "b": [{}]}, retries=1), Local(at_once=1))
    assert lab.ends("a") == [(noted, "again"), (noted, "spent")]
    assert lab.states() == {"a": "spent", "b": "done"}
    first, second = lab.notes("start", "a")
    assert second["at"] - first["at"] > 0.9
    assert first["at"] < lab.notes("start", "b")[0]["at"] < second["at"]


@pytest.mark.parametrize("code", [1, 2, 3])
def test_what_would_only_fail_again_is_left(lab: Lab, code: int) -> None:
    lab.finish(lab.job({"a": [{"code": code}], "b": [{}]}))
    assert lab.ends("a") == [(code, "stop")] and len(lab.notes("start", "a")) == 1
    assert lab.states() == {"a": "stop", "b": "done"}


@two_cores
def test_the_code_of_one_that_knows_counts(lab: Lab) -> None:
    """Of several processes: 3 from one that saw the loss, before 137 from one that was killed for it."""
    machine = Machine(processes_per_node=2, cpus_per_process=1)
    lab.finish(lab.job({"a": [{"codes": [-signal.SIGKILL, 3]}]}, machine))
    assert lab.ends("a") == [(3, "stop")]


@two_cores
def test_where_one_process_is_killed_the_others_are_ended(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for it for ever; all start again, with another coordinator. (Patience shortened to a second.)"""
    program = lab.folder / "python"
    lines = "import sys; from pathlib import Path; from launch.executors import supervise as s; "
    lines += "s.STRAGGLER_SECONDS = 1.0; sys.exit(s.Supervisor(Path(sys.argv[-1])).work())"
    program.write_text(f"#!/bin/bash\nexec '{sys.executable}' -c '{lines}' \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setattr(local, "sys", SimpleNamespace(executable=str(program)))
    machine = Machine(processes_per_node=2, cpus_per_process=1)
    engine = lab.submit(lab.job({"a": [{**LONG, "term": "ignored", "child": True}, {}]}, machine))
    started = lab.until(lambda: (found := lab.notes("start")) and len(found) == 2 and found)
    (victim,) = [item for item in started if item["number"] == 1]
    (other,) = [item for item in started if item["number"] == 0]
    os.kill(victim["pid"], signal.SIGKILL)
    killed = time.monotonic()
    lab.until(lambda: not is_alive(other["pid"]))
    assert time.monotonic() - killed > 0.9  # it might have ended by itself
    lab.until(lambda: not is_alive(other["child"]))  # with the children of what had to be killed
    os.kill(victim["child"], signal.SIGKILL)
    lab.until(lambda: not engine.live())
    assert lab.ends("a") == [(137, "again"), (0, "done")]
    coordinators = {item["seen"]["MMDIT_COORDINATOR"] for item in lab.notes("start")}
    assert len(coordinators) == 2


def test_a_command_that_is_not_there(lab: Lab) -> None:
    """It ends that run, not the supervisor."""
    job = lab.job({"a": [{}]})
    lab.finish(Job("job", "study", ("a", "b"), ("/no/such/program",), job.folder, machine=job.machine))
    assert lab.states() == {"a": "stop", "b": "stop"}
    assert "/no/such/program" in lab.logs()


def test_strange_names_are_words(lab: Lab) -> None:
    """No shell sees them."""
    run = 'it\'s $(touch pwned) `touch pwned` "x"; touch pwned #\n'
    lab.finish(lab.job({run: [{}]}))
    assert [item["run"] for item in lab.notes("start")] == [run]
    assert lab.states() == {run: "done"} and not list(lab.folder.rglob("pwned"))
