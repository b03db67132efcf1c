"""Batch scripts for Slurm: goldens, their options as sbatch reads them, and what is refused.

After a change that is meant, ``REGENERATE=1 pytest tests/test_slurm_script.py`` writes the goldens anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from slurm_cases import H100, HOSTILE, JOB, job, options_of

from launch.executors.job import Machine
from launch.executors.slurm import Slurm, render
from launch.planning.target import parse
from mmdit_jax.errors import UserError

GOLDENS = Path(__file__).parent / "goldens" / "slurm"
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
