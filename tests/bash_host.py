"""A host on which a batch script of Slurm runs, in a real bash."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from process_group import Processes

PROGRAMS = {
    # What it is told, NUL between words, and what it sees; then as files of the test say.
    "srun": (
        'printf "%s\\0" "$@" >> $HOST/srun; env -0 > $HOST/environment; echo x >> $HOST/started\n'
        '[ -e "$HOST/waits" ] && { trap "touch $HOST/saving" TERM; echo $$ > $HOST/pid; touch $HOST/ready\n'
        '  for _ in $(seq 600); do [ -e "$HOST/saved" ] && break; /bin/sleep 0.05; done; }\n'
        "read -r code < $HOST/codes; sed -i 1d $HOST/codes; exit $code"
    ),
    "scontrol": (
        'printf "%s " "$@" >> $HOST/scontrol; echo >> $HOST/scontrol\n[ "$1" = requeue ] && exit 0; cat $HOST/state'
    ),
    "sleep": "exit 0",  # until Slurm ends the script that has asked for its requeue
}


class Host:
    """Where a batch script runs: a bash, with an ``srun`` and a ``scontrol`` that note what they are told."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder, self._processes = folder / "host", processes
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
        return self._processes.start(["bash", str(self.folder / "script")], own, self.work)

    def __call__(self, script: str, *codes: int, **variables: str) -> subprocess.CompletedProcess[str]:
        (end,) = self._processes.ends([self.start(script, *codes, **variables)], 60.0)
        return subprocess.CompletedProcess(script, *end)

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
