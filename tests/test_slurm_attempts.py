"""What a real bash makes of batch scripts for Slurm: exit codes, requeues, signals, and names word for word."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from bash_host import Host
from process_group import Processes
from slurm_cases import COMMAND, H100, HOSTILE, JOB, job, options_of

from launch.executors.job import Job, Machine
from launch.executors.slurm import Slurm, render
from launch.planning.target import parse
from mmdit_jax.errors import UserError
from mmdit_jax.training.events import read_events


@pytest.fixture
def host(tmp_path: Path, processes: Processes) -> Host:
    return Host(tmp_path, processes)


def job_in(folder: Path, **changes: Any) -> Job:
    """A job whose folder is there, and whose ``after`` is the real one."""
    folder.mkdir(parents=True, exist_ok=True)
    return job(folder=str(folder), after=(sys.executable, "-m", "launch.executors.after"), **changes)


def endings(folder: Path) -> list[tuple[int, str]]:
    """What was noted of each attempt."""
    events = read_events(folder / JOB.runs[0])
    return [(event["code"], event["verdict"]) for event in events if event["event"] == "ended"]


@pytest.mark.parametrize(
    "code, verdict, requeued",
    [(0, "stop", []), (75, "again", ["4711"]), (137, "again", ["4711"]), (2, "stop", []), (3, "stop", [])],
)
def test_exit_codes(host: Host, tmp_path: Path, code: int, verdict: str, requeued: list[str]) -> None:
    """The job's exit code is the run's; it is requeued where another attempt may help. (0 without a result: not.)"""
    study = tmp_path / "ladder"
    done = host(render(job_in(study), Slurm()), code)
    assert done.returncode == code, done.stderr
    assert endings(study) == [(code, verdict)]
    assert host.requeued == requeued
    assert (host.folder / "started").read_text() == "x\n"


def test_a_run_that_is_done_is_not_requeued(host: Host, tmp_path: Path) -> None:
    study = tmp_path / "ladder"
    given = job_in(study)
    (study / JOB.runs[0]).mkdir()
    (study / JOB.runs[0] / "result.json").write_text("{}")
    assert host(render(given, Slurm()), 0).returncode == 0
    assert endings(study) == [(0, "done")] and host.requeued == []


def test_failures_within_a_budget_and_preemptions_without(host: Host, tmp_path: Path) -> None:
    """Two failures are started again; preemptions between them don't count; the third failure is the last."""
    study = tmp_path / "ladder"
    script = render(job_in(study, retries=2), Slurm())
    codes = [75, 137, 75, 75, 160, 75, 137]
    told = []
    for code in codes:
        assert host(script, code).returncode == code
        told.append(host.requeued == ["4711"])
    assert told == [True] * 6 + [False]
    assert endings(study)[-1] == (137, "spent")


@pytest.mark.parametrize(
    "state, reason, requeued",
    [
        ("RUNNING", "None", ["4711"]),
        ("COMPLETING", "TimeLimit", ["4711"]),
        ("COMPLETING", "None", []),
        ("CANCELLED", "None", []),
    ],
)
def test_a_job_that_its_user_cancelled_stays_so(
    host: Host, tmp_path: Path, state: str, reason: str, requeued: list[str]
) -> None:
    """As scontrol tells them apart: preempted, over its limit, and ended by scancel."""
    host.state(state, reason)
    assert host(render(job_in(tmp_path / "ladder"), Slurm()), 75).returncode == 75
    assert host.requeued == requeued


def test_where_the_end_cannot_be_noted(host: Host, tmp_path: Path) -> None:
    """Without its folder nothing would bound the attempts."""
    given = dataclasses.replace(job_in(tmp_path / "ladder"), folder=str(tmp_path / "gone"))
    assert host(render(given, Slurm()), 137).returncode == 137
    assert host.requeued == []


def test_a_signal_to_the_script_waits_for_the_run(host: Host, tmp_path: Path, processes: Processes) -> None:
    """Slurm tells both: the run saves meanwhile, and its own exit code is what counts. More signals change nothing."""
    (host.folder / "waits").touch()
    process = host.start(render(job_in(tmp_path / "ladder"), Slurm()), 75)
    processes.until([process], (host.folder / "ready").exists)
    process.send_signal(signal.SIGTERM)
    os.kill(int((host.folder / "pid").read_text()), signal.SIGTERM)
    processes.until([process], (host.folder / "saving").exists)
    process.send_signal(signal.SIGTERM)
    (host.folder / "saved").touch()
    (end,) = processes.ends([process], 60.0)
    assert end.code == 75, end
    assert endings(tmp_path / "ladder") == [(75, "again")] and host.requeued == ["4711"]


def test_an_array_has_each_task_at_its_own_run(host: Host, tmp_path: Path) -> None:
    runs = ("rf-0", "edm-1", "v-2")
    script = render(job_in(tmp_path / "ladder", runs=runs), Slurm())
    for task, run in enumerate(runs):
        host(script, 75, SLURM_JOB_ID="4799", SLURM_ARRAY_JOB_ID="4711", SLURM_ARRAY_TASK_ID=str(task))
        assert host.words[-1] == run
        assert host.requeued == [f"4711_{task}"]
        assert host.variables["MMDIT_JOB"] == f"slurm:4711_{task}"


def test_nothing_of_the_submitters_own_job_is_taken_over(host: Host, tmp_path: Path) -> None:
    """sbatch brings the environment along, of one who may be a task of an array, or a process of a run."""
    script = render(job_in(tmp_path / "ladder"), Slurm())
    inherited = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "5"}
    inherited |= {"MMDIT_COORDINATOR": "x:1", "MMDIT_PROCESSES": "4", "MMDIT_PROCESS": "1", "MMDIT_DISTRIBUTED": "auto"}
    host(script, 75, **inherited)
    assert host.words[-1] == JOB.runs[0] and host.requeued == ["4711"]
    left = {name for name in host.variables if name.startswith("MMDIT_")}
    assert left == {"MMDIT_JOB"} and host.variables["MMDIT_JOB"] == "slurm:4711"


def test_what_srun_is_told(host: Host, tmp_path: Path) -> None:
    """One task a GPU, with its cores, on all nodes; the tasks know that they are several."""
    host(render(job_in(tmp_path / "ladder", machine=H100), Slurm()), 0)
    assert host.words == [
        *("--kill-on-bad-exit=1", "--unbuffered", "--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=12"),
        *COMMAND,
        JOB.runs[0],
    ]
    assert host.variables["MMDIT_DISTRIBUTED"] == "auto" and "JAX_LOCAL_DEVICE_IDS" not in host.variables


def test_one_process_a_node_has_all_its_gpus(host: Host, tmp_path: Path) -> None:
    """JAX would give it the one of its number on the node. Alone it has all without being told."""
    machine = Machine(parse("h100:2x4"), nodes=2)
    host(render(job_in(tmp_path / "ladder", machine=machine), Slurm()), 0)
    assert host.variables["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
    host(render(job_in(tmp_path / "ladder", machine=Machine(parse("h100:1x4"))), Slurm()), 0)
    assert "JAX_LOCAL_DEVICE_IDS" not in host.variables and "MMDIT_DISTRIBUTED" not in host.variables
    with pytest.raises(UserError, match=r"processes=2: expected 4 \(one a GPU\) or 1"):
        render(job(machine=Machine(parse("h100:1x4"), processes_per_node=2)), Slurm())


@pytest.mark.parametrize(
    "text", [*HOSTILE.values(), "two\nlines; touch pwned", "tab\there"], ids=[*HOSTILE, "lines", "tab"]
)
def test_names_are_passed_on_word_for_word(host: Host, tmp_path: Path, text: str) -> None:
    """As a study's path, an override, a root and a run's id; nothing of it is executed, on any way through."""
    printable = text.isprintable()
    study = tmp_path / (text.replace("/", "") if printable else "plain") / "ladder"
    command = ("python", "-m", "launch.cli", "train", f"{text}.py", "--root", text, "--set", f"name={text}", "--run")
    given = job_in(study, command=command, runs=(text,))
    script = render(given, Slurm(options=(f"--comment={text}",) if printable else ()))
    done = host(script, 75)
    assert done.returncode == 75, done.stderr
    assert host.words[4:] == [*command, text]
    noted = [event for event in read_events(study / text) if event["event"] == "ended"]
    assert len(noted) == 1 and host.requeued == ["4711"]
    assert f"--output={study}/logs/{JOB.name}-%j.log" in options_of(script)
    host(render(dataclasses.replace(given, runs=("other", text)), Slurm()), 2, SLURM_ARRAY_TASK_ID="1")
    assert host.words[-1] == text
    assert not list(tmp_path.rglob("pwned"))


def test_setup_runs_before_the_run(host: Host, tmp_path: Path) -> None:
    host(render(job_in(tmp_path / "ladder"), Slurm(setup=("export FROM_SETUP='a b'",))), 0)
    assert host.variables["FROM_SETUP"] == "a b"
