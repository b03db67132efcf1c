"""Batch scripts for Slurm: goldens, names that a shell would take for more, and what a real bash makes of exit codes.

After a change that is meant, ``REGENERATE=1 pytest tests/test_slurm_script.py`` writes the goldens anew.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.executors.job import Job, Machine
from launch.executors.slurm import Slurm, SlurmEngine, render
from launch.planning.target import parse
from mmdit_jax.errors import UserError
from mmdit_jax.training.events import read_events

GOLDENS = Path(__file__).parent / "goldens" / "slurm"
COMMAND = ("/opt/mmdit/bin/python", "-m", "launch.cli", "train", "ladder", "--root", "/scratch/studies", "--run")
AFTER = ("/opt/mmdit/bin/python", "-m", "launch.executors.after")
JOB = Job("d24-rf-0123456789-89abcdef", "ladder", ("d24-rf-0123456789",), COMMAND, "/scratch/studies/ladder", AFTER)
H100 = Machine(parse("h100:2x8"), nodes=2, processes_per_node=8, cpus_per_process=12, memory_gib=1000.0)


def job(**changes: Any) -> Job:
    return dataclasses.replace(JOB, **changes)


CASES = {
    "cpus": (job(), Slurm()),
    "h100_two_nodes": (job(machine=H100), Slurm(partition="gpu", time="12:00:00")),
    "array": (
        job(
            name="ladder-3-runs-89abcdef",
            runs=tuple(f"d15-{name}-0123456789" for name in ("rf", "edm", "v-cos")),
            machine=Machine(parse("h100:1x1"), cpus_per_process=8),
            at_once=2,
        ),
        Slurm(partition="gpu"),
    ),
    "all_options": (
        job(machine=Machine(cpus_per_process=4, memory_gib=6.5), retries=7),
        Slurm(
            partition="gpu,gpu_long",
            account="rf",
            qos="high",
            constraint="h100&ib",
            time="2-00:00:00",
            grace_seconds=120,
            setup=("module load cuda/13", 'export NCCL_DEBUG="WARN"'),
            options=("--exclusive", "--reservation=may 1st", "--comment=it's 5 o'clock # \"really\" $(touch pwned)"),
        ),
    ),
}


def sbatch_words(line: str) -> list[str]:
    """Words of what follows #SBATCH, by sbatch's rules: quotes, a backslash before any character, # for comments."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    characters = iter(line)
    for character in characters:
        if character == "\\":
            word = (word or "") + next(characters)
        elif quote:
            word, quote = (word, "") if character == quote else ((word or "") + character, quote)
        elif character in "'\"":
            word, quote = word or "", character
        elif character == "#":
            break
        elif character.isspace():
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + character
    assert not quote, line
    return words + ([] if word is None else [word])


def options_of(script: str) -> list[str]:
    """All options of a script, of which each has its line."""
    first, *lines = script.splitlines()
    assert first == "#!/bin/bash"
    told = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[: len(told)] == told  # sbatch stops reading at the first command
    found = [sbatch_words(line.removeprefix("#SBATCH ")) for line in told]
    assert all(len(words) == 1 for words in found), found
    return [words[0] for words in found]


@pytest.mark.parametrize("name", CASES)
def test_goldens(name: str) -> None:
    script, golden = render(*CASES[name]), GOLDENS / f"{name}.sbatch"
    if os.environ.get("REGENERATE"):
        golden.write_text(script)
    assert script == golden.read_text()


@pytest.mark.parametrize("name", CASES)
def test_bash_can_read_it(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=render(*CASES[name]), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


COMMON = {"--open-mode=append", "--requeue"}
EXPECTED = {
    "cpus": COMMON
    | {
        "--job-name=d24-rf-0123456789-89abcdef",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--output=/scratch/studies/ladder/logs/d24-rf-0123456789-89abcdef-%j.log",
        "--signal=TERM@300",
    },
    "h100_two_nodes": COMMON
    | {
        "--job-name=d24-rf-0123456789-89abcdef",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--output=/scratch/studies/ladder/logs/d24-rf-0123456789-89abcdef-%j.log",
        "--signal=TERM@300",
        "--cpus-per-task=12",
        "--gres=gpu:8",
        "--mem=1024000M",
        "--partition=gpu",
        "--time=12:00:00",
    },
    "array": COMMON
    | {
        "--job-name=ladder-3-runs-89abcdef",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--output=/scratch/studies/ladder/logs/ladder-3-runs-89abcdef-%A_%a.log",
        "--signal=TERM@300",
        "--cpus-per-task=8",
        "--gres=gpu:1",
        "--partition=gpu",
        "--array=0-2%2",
    },
    "all_options": COMMON
    | {
        "--job-name=d24-rf-0123456789-89abcdef",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--output=/scratch/studies/ladder/logs/d24-rf-0123456789-89abcdef-%j.log",
        "--signal=TERM@120",
        "--cpus-per-task=4",
        "--mem=6656M",
        "--partition=gpu,gpu_long",
        "--account=rf",
        "--qos=high",
        "--constraint=h100&ib",
        "--time=2-00:00:00",
        "--exclusive",
        "--reservation=may 1st",
        "--comment=it's 5 o'clock # \"really\" $(touch pwned)",
    },
}


@pytest.mark.parametrize("name", CASES)
def test_options_as_sbatch_reads_them(name: str) -> None:
    found = options_of(render(*CASES[name]))
    assert len(found) == len(set(found)) and set(found) == EXPECTED[name]


def read_by_sbatch(script: str, folder: Path) -> list[str]:
    """The options that the real sbatch finds in a script; nothing is submitted: there is no controller."""
    (folder / "slurm.conf").write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nAuthType=auth/none\n"
        "CredType=cred/none\nMessageTimeout=1\nNodeName=localhost\nPartitionName=none Nodes=ALL\n"
    )
    (folder / "script").write_text(script)
    done = subprocess.run(
        ["sbatch", "-vvv", "--test-only", "script"],
        cwd=folder,
        env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = 'Found in script, argument "'
    return [line.split(said, 1)[1][:-1] for line in done.stderr.splitlines() if said in line]


HOSTILE = {
    "space": "a root",
    "single": "it's",
    "double": 'a "root"',
    "both": "it's a \"root\" of 'mine'",
    "command": "$(touch pwned)",
    "backticks": "`touch pwned`",
    "variable": "$HOME ${PATH}",
    "control": "a; touch pwned & touch pwned | touch pwned > pwned",
    "comment": "a # b #SBATCH --array=0-9",
    "glob": "* ? [a-z] ~ {a,b} !!",
    "dash": "--wrap=touch pwned",
    "unicode": "Größe 漢字",
}


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no sbatch here")
def test_options_as_the_real_sbatch_reads_them(tmp_path: Path) -> None:
    for name, case in CASES.items():
        assert set(read_by_sbatch(render(*case), tmp_path)) == EXPECTED[name]
    for text in HOSTILE.values():
        given = job(folder=f"/scratch/{text}/ladder")
        expected = f"--output=/scratch/{text}/ladder/logs/{JOB.name}-%j.log"
        script = render(given, Slurm(options=(f"--comment={text}",)))
        found = read_by_sbatch(script, tmp_path)
        assert expected in found and f"--comment={text}" in found
        assert found == options_of(script)  # the parser above is one like it


PROGRAMS = {
    # What it is told, NUL between words, and what it sees; then as a file of the test says.
    "srun": (
        'printf "%s\\0" "$@" >> $HOST/srun; env -0 > $HOST/environment; echo x >> $HOST/started\n'
        '[ -e "$HOST/waits" ] && { trap "sleep_on=" TERM; sleep_on=1; touch $HOST/ready\n'
        "  for _ in $(seq 300); do [ $sleep_on ] || break; /bin/sleep 0.05; done; /bin/sleep 0.5; }\n"
        "read -r code < $HOST/codes; sed -i 1d $HOST/codes; exit $code"
    ),
    "scontrol": (
        'printf "%s " "$@" >> $HOST/scontrol; echo >> $HOST/scontrol\n[ "$1" = requeue ] && exit 0; cat $HOST/state'
    ),
    "sleep": "exit 0",  # until Slurm ends the script that has asked for its requeue
}


class Host:
    """Where a batch script runs: a bash, with an ``srun`` and a ``scontrol`` that note what they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "host"
        (self.folder / "bin").mkdir(parents=True)
        for name, text in PROGRAMS.items():
            program = self.folder / "bin" / name
            program.write_text(f"#!/bin/bash\n{text}\n")
            program.chmod(0o755)
        self.work = folder / "work"
        self.work.mkdir()
        self.state("RUNNING")

    def state(self, state: str, reason: str = "None") -> None:
        """What scontrol says of the job."""
        (self.folder / "state").write_text(f"JobId=4711 JobName=x UserId=u JobState={state} Reason={reason} Requeue=1")

    def start(self, script: str, *codes: int, **variables: str) -> subprocess.Popen[str]:
        (self.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
        for name in ("srun", "scontrol", "started"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "script").write_text(script)
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        own = {"PATH": path, "HOST": str(self.folder), "SLURM_JOB_ID": "4711", **variables}
        return subprocess.Popen(
            ["bash", str(self.folder / "script")],
            cwd=self.work,
            env={**os.environ, **own},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, script: str, *codes: int, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(script, *codes, **variables)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def requeued(self) -> list[str]:
        """Jobs that it was told to requeue."""
        path = self.folder / "scontrol"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith("requeue ")]

    @property
    def words(self) -> list[str]:
        """What srun was told."""
        return (self.folder / "srun").read_text().split("\0")[:-1]

    @property
    def variables(self) -> dict[str, str]:
        """What srun saw of the environment."""
        entries = (self.folder / "environment").read_text().split("\0")
        return dict(entry.split("=", 1) for entry in entries if entry)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


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


def test_a_signal_to_the_script_waits_for_the_run(host: Host, tmp_path: Path) -> None:
    """Slurm tells both: the run saves meanwhile, and its own exit code is what counts. More signals change nothing."""
    (host.folder / "waits").touch()
    process = host.start(render(job_in(tmp_path / "ladder"), Slurm()), 75)
    wait_for(host.folder / "ready")
    time.sleep(0.1)
    step = int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()[0])
    process.send_signal(signal.SIGTERM)
    os.kill(step, signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert endings(tmp_path / "ladder") == [(75, "again")] and host.requeued == ["4711"]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


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
    assert not list(tmp_path.rglob("pwned"))
    assert f"--output={study}/logs/{JOB.name}-%j.log" in options_of(script)
    host(render(dataclasses.replace(given, runs=("other", text)), Slurm()), 2, SLURM_ARRAY_TASK_ID="1")
    assert host.words[-1] == text


@pytest.mark.parametrize(
    "field, refused",
    [
        ("folder", lambda: render(job(folder="/scratch/50%/ladder"), Slurm())),
        ("folder", lambda: render(job(folder="/scratch/a\\b/ladder"), Slurm())),
        ("folder", lambda: render(job(folder="/scratch/a\nb/ladder"), Slurm())),
        ("topology", lambda: render(job(machine=Machine(parse("v5p:4x4x4"), nodes=16)), Slurm())),
        ("partition", lambda: Slurm(partition="a b")),
        ("partition", lambda: Slurm(partition="")),
        ("account", lambda: Slurm(account="a\nb")),
        ("qos", lambda: Slurm(qos="it's")),
        ("constraint", lambda: Slurm(constraint='"a"')),
        ("time", lambda: Slurm(time="tomorrow")),
        ("time", lambda: Slurm(time="12:00:00\n#SBATCH --uid=0")),
        ("grace", lambda: Slurm(grace_seconds=-1)),
        ("sbatch", lambda: Slurm(options=("exclusive",))),
        ("sbatch", lambda: Slurm(options=("--exclusive\ntouch pwned",))),
        ("setup", lambda: Slurm(setup=("module load cuda\ntouch pwned",))),
    ],
)
def test_refused_in_one_line(field: str, refused: Any) -> None:
    with pytest.raises(UserError) as error:
        refused()
    line = str(error.value)
    assert line.startswith("root=" if field == "folder" else f"{field}=") and "\n" not in line


def test_setup_runs_before_the_run(host: Host, tmp_path: Path) -> None:
    host(render(job_in(tmp_path / "ladder"), Slurm(setup=("export FROM_SETUP='a b'",))), 0)
    assert host.variables["FROM_SETUP"] == "a b"


def test_strange_lines_of_squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of others, with names that are like nothing of ours, are passed over; ours are found by their name."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "ours-1.runs.json").write_text('["a-0", "b-1", "c-2"]')
    (tmp_path / "jobs" / "one-1.runs.json").write_text('["d-3"]')
    rows = [
        ("../../etc/passwd", "1", "N/A", "RUNNING", "n1", "None"),
        ("no such job", "2", "N/A", "RUNNING", "n1", "None"),
        ("a\x1fb", "3", "N/A", "RUNNING", "n1", "None"),
        ("ours-1", "4", "0", "RUNNING", "n[1-2]", "None"),
        ("ours-1", "4", "1", "PENDING", "", "Resources"),
        ("ours-1", "4", "2", "TIMEOUT", "n1", "TimeLimit"),
        ("ours-1", "4", "7", "RUNNING", "n1", "None"),
        ("one-1", "5", "N/A", "PENDING", "", "Priority"),
    ]
    (tmp_path / "rows").write_text("".join("\x1f".join(row) + "\n" for row in rows) + "torn\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "squeue").write_text(f"#!/bin/bash\ncat '{tmp_path}/rows'\n")
    (tmp_path / "bin" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    live = SlurmEngine(tmp_path, Slurm()).live()
    assert {run: (item.state, item.handle) for run, item in live.items()} == {
        "a-0": ("running", "4_0"),
        "b-1": ("queued", "4_1"),
        "d-3": ("queued", "5"),
    }
    assert live["a-0"].where == "slurm:4_0 n[1-2]" and live["b-1"].where == "slurm:4_1 Resources"
