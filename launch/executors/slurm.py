"""Slurm: a batch script a job, one task a GPU, arrays of small runs; requeued on 75, and when infrastructure failed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.executors.after import CANCELLED, last_verdict, mark_cancelled
from launch.executors.job import FOLDER, GRACE_SECONDS, QUEUED, RUNNING, Job, Live, Machine
from mmdit_jax.errors import UserError
from mmdit_jax.files import write_atomic

_SESSION = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|PMI|PMIX|OMPI)_|(JAX_LOCAL_DEVICE_IDS|JAX_COORDINATOR_ADDRESS)$")
"""Variables of the session that submits."""
_SEPARATOR = "\x1f"
# States as squeue tells them.
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
HOLDS = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
WAITING = ("PENDING", "REQUEUED", *HOLDS, "CONFIGURING", "SUSPENDED", "COMPLETING")
"""A job that is about to be requeued is COMPLETING for a while, as one that has ended."""


@dataclass(frozen=True)
class Slurm:
    """What a site's Slurm is told; None and empty leave it at the site's defaults."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    """As sbatch takes it: minutes, or [D-]HH:MM[:SS]."""
    grace_seconds: int = GRACE_SECONDS
    """SIGTERM comes so long before the end of ``time``."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the run starts (``module load …``); they are taken as they are."""
    options: tuple[str, ...] = ()
    """More options of sbatch, as ``--exclusive`` or ``--reservation=x``: each one word, whatever is in it."""

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "constraint", "time"):
            value = vars(self)[name]
            if value is not None and not re.fullmatch(r"[^\s'\"\\]+", value):
                raise UserError(f"{name}={value!r}: expected a word without spaces and quotes")
        if self.time is not None and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time):
            raise UserError(f"time={self.time!r}: expected minutes, or [D-]HH:MM[:SS]")
        if self.grace_seconds < 0:
            raise UserError(f"grace={self.grace_seconds}: expected 0 or more seconds")
        for option in self.options:
            if not option.startswith("-") or not option.isprintable():
                raise UserError(f"sbatch={option!r}: expected an option of sbatch, as --exclusive")
        for line in self.setup:
            if not line.isprintable():
                raise UserError(f"setup={line!r}: expected one line of shell")


def render(job: Job, slurm: Slurm) -> str:
    """The batch script: a function of its arguments. Everything but ``setup`` is quoted: nothing in it is expanded."""
    if job.machine.target is not None and job.machine.target.is_tpu:
        raise UserError(f"topology={job.machine.target.name!r}: Slurm starts runs on CPUs and GPUs; TPUs are for k8s")
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in _options(job, slurm)), ""]
    machine = job.machine
    tasks = [f"--ntasks={machine.processes}", f"--ntasks-per-node={machine.processes_per_node}"]
    if machine.cpus_per_process is not None:  # srun does not take it from the job
        tasks.append(f"--cpus-per-task={machine.cpus_per_process}")
    # sbatch brings the submitter's environment, who may be in an array, or be one of several processes.
    which = ("$SLURM_ARRAY_TASK_ID", "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID")
    index, number = which if len(job.runs) > 1 else ("0", "$SLURM_JOB_ID")
    lines += [
        *slurm.setup,
        f"runs=({' '.join(map(shlex.quote, job.runs))})",
        f"run=${{runs[{index}]}}",
        f"job={number}",
        "export MMDIT_JOB=slurm:$job",
        "unset MMDIT_COORDINATOR MMDIT_PROCESSES MMDIT_PROCESS MMDIT_DISTRIBUTED",
        *_several(machine),
        f'[ -e {shlex.quote(job.folder)}/"$run"/{CANCELLED} ] && exit 0  # since it was started',
        "# At preemption and scancel the signal comes here, too; the tasks have it from Slurm.",
        "told=; trap told=1 TERM",
        f'srun --kill-on-bad-exit=1 --unbuffered {" ".join(tasks)} {shlex.join(job.command)} "$run" & step=$!',
        "wait $step; code=$?",
        'while [ -n "$told" ] && [ $code -gt 128 ]; do told=; wait $step; code=$?; done',
        f'{shlex.join(job.after)} {shlex.quote(job.folder)}/"$run" $code {job.retries}',
        "again=$?",
        "# Exiting inside a preemption's grace would leave the job completed, and one over its limit timed out. What",
        "# scancel ends is neither, and stays ended.",
        "asked='JobState=RUNNING|Reason=TimeLimit'",
        'if [ $again -eq 75 ] && scontrol -o show job "$job" | grep -Eq "$asked"; then',
        '  scontrol requeue "$job" && { sleep 60; exit $code; }',
        '  echo "$run: Slurm did not requeue it; submit it again" >&2',
        "fi",
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def _several(machine: Machine) -> list[str]:
    """What processes of a run are told to be that."""
    if machine.processes == 1:
        return []
    lines = ["export MMDIT_DISTRIBUTED=auto"]
    if machine.chips_per_node and machine.processes_per_node != machine.chips_per_node:
        if machine.processes_per_node != 1:
            raise UserError(
                f"processes={machine.processes_per_node}: expected {machine.chips_per_node} (one a GPU) or 1 with "
                "executor='slurm'"
            )
        lines.append(f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(machine.chips_per_node)))}")  # else the 0th
    return lines


def _options(job: Job, slurm: Slurm) -> list[str]:
    machine = job.machine
    logs = f"{job.folder}/logs/{job.name}"
    if "%" in logs or "\\" in logs or not logs.isprintable():
        raise UserError(f"root={job.folder!r}: Slurm's log files can't have % and backslashes in their names")
    options = [
        f"--job-name={job.name}",
        f"--nodes={machine.nodes}",
        f"--ntasks-per-node={machine.processes_per_node}",
        _word(f"--output={logs}{'-%A_%a.log' if len(job.runs) > 1 else '-%j.log'}"),
        "--open-mode=append",
        "--requeue",
        f"--signal=TERM@{slurm.grace_seconds}",
    ]
    if machine.cpus_per_process is not None:
        options.append(f"--cpus-per-task={machine.cpus_per_process}")
    if machine.chips_per_node:
        # Of the node, not of the task: JAX picks a task's GPU by its local number among all.
        options.append(f"--gres=gpu:{machine.chips_per_node}")
    if machine.memory_gib is not None:
        options.append(f"--mem={round(1024 * machine.memory_gib)}M")
    for name in ("partition", "account", "qos", "constraint", "time"):
        if vars(slurm)[name] is not None:
            options.append(_word(f"--{name}={vars(slurm)[name]}"))
    if len(job.runs) > 1:
        most = "" if job.at_once is None else f"%{job.at_once}"
        options.append(f"--array=0-{len(job.runs) - 1}{most}")
    return [*options, *map(_word, slurm.options)]


def _word(text: str) -> str:
    """As one word of a #SBATCH line: quotes and backslashes work as in a shell, # begins a comment, and that is all."""
    if re.fullmatch(r"[A-Za-z0-9_./:=,@%+-]+", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


class SlurmEngine:
    """The Slurm that this host's sbatch, squeue and scancel speak to."""

    name = "slurm"

    def __init__(self, study_dir: Path, slurm: Slurm) -> None:
        self._folder, self._slurm = study_dir, slurm

    def render(self, job: Job) -> str:
        return render(job, self._slurm)

    def check(self, job: Job) -> None:
        self.render(job)
        _program("sbatch")

    def found_by(self) -> dict[str, Any]:
        return {}

    def submit(self, job: Job) -> str:
        """Submit, and return what it is called there. The script stays in the study's folder."""
        script = self.render(job)
        (self._folder / FOLDER).mkdir(parents=True, exist_ok=True)
        (self._folder / "logs").mkdir(exist_ok=True)
        # Before the job: whoever meets it in the queue finds out here which runs it is of.
        write_atomic(self._folder / FOLDER / f"{job.name}.runs.json", json.dumps(job.runs))
        path = self._folder / FOLDER / f"{job.name}.sbatch"
        write_atomic(path, script)
        return "slurm:" + _ask("sbatch", "--parsable", str(path)).strip().split(";")[0]

    def live(self) -> Mapping[str, Live]:
        """Runs that wait or run there, by run id."""
        fields = _SEPARATOR.join(("%j", "%F", "%K", "%T", "%N", "%r"))
        found: dict[str, Live] = {}
        for line in _ask("squeue", "--me", "--noheader", "--array", f"--format={fields}").splitlines():
            told = line.split(_SEPARATOR)
            if len(told) != 6:  # of another job, with a strange name
                continue
            name, number, index, state, nodes, reason = told
            runs = self._runs(name)
            place = int(index) if index.isdigit() else 0
            if place >= len(runs) or state in ENDED:
                continue
            job = f"{number}_{index}" if index.isdigit() else number
            verdict = last_verdict(self._folder / runs[place], f"slurm:{job}")
            if state == "COMPLETING" if verdict is None else verdict != "again":
                continue  # it has ended, and Slurm has not noticed yet
            where = f"slurm:{job} {_how(job, state, nodes, reason)}".strip()
            found[runs[place]] = Live(QUEUED if state in WAITING else RUNNING, where, job)
        return found

    def states(self) -> Mapping[str, Live]:
        """As ``live``: Slurm soon forgets what ended."""
        return self.live()

    def cancel(self, runs: Sequence[str]) -> list[str]:
        """End these runs there; those that it ended. One that runs is asked to: it saves, however long that takes."""
        live = {run: item for run, item in self.live().items() if run in runs}
        for run in live:
            mark_cancelled(self._folder / run)
        for state, how in ((QUEUED, ()), (RUNNING, ("--signal=TERM",))):
            if jobs := [item.handle for item in live.values() if item.state == state]:
                _ask("scancel", *how, *jobs)
        return list(live)

    def _runs(self, name: str) -> list[str]:
        """Of a job of this study; none of another's."""
        path = self._folder / FOLDER / f"{name}.runs.json"
        if not re.fullmatch(r"[a-z0-9-]+", name) or not path.exists():
            return []
        runs: list[str] = json.loads(path.read_text())
        return runs


def _how(job: str, state: str, nodes: str, reason: str) -> str:
    """Where a job runs, or why it waits: one that is held waits for a person, and for nothing else."""
    why = "" if reason == "None" else reason
    if state in HOLDS or re.search(r"^JobH[eo]ld|\bheld\b", why):
        return f"held, {why or state}: scontrol release {job}"
    if state in ("PENDING", "REQUEUED") or not nodes:
        return why
    return f"{nodes} suspended" if state == "SUSPENDED" else nodes


def _program(name: str) -> None:
    if shutil.which(name) is None:
        raise UserError(f"executor='slurm': {name} is not on this host's PATH; submit from a login node")


def _ask(*command: str) -> str:
    _program(command[0])
    # Of an allocation that this is called in, nothing is to be the job's: srun ends where two variables contradict.
    given = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not _SESSION.match(name)}
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:300]
        raise UserError(f"executor='slurm': {command[0]} refused: {said}")
    return done.stdout
