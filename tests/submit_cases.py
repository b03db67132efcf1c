"""A place to submit from: the tiny study, a Slurm that runs nothing, and commands."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_slurm
import pytest

from launch import cli
from launch.studies import load_study

SUBMIT = ("study", "submit", "tiny.py")
ATTEMPT = {"event": "attempt", "began": 999.0, "host": "node7", "job": "slurm:99", "processes": 1}
START = {"event": "start", "step": 0}
FAILED = (ATTEMPT, START, {"event": "ended", "code": 137, "verdict": "again"})


class Site:
    """A folder with the tiny study and a Slurm that runs nothing; commands run in this process, or in their own."""

    def __init__(self, mmdit: Any, variables: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        self.mmdit, self.slurm, self._capsys = mmdit, Path(variables["FAKE_SLURM"]), capsys
        self.folder: Path = mmdit.folder
        self.study_dir = self.folder / "studies" / "tiny"
        self.ids = {run.name: run.run_id for run in load_study(str(mmdit.study)).runs}

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self._capsys.readouterr()
        code = cli.main(list(words))
        out, err = self._capsys.readouterr()
        return code, out, err

    def submit(self, *words: str) -> tuple[int, str, str]:
        return self(*SUBMIT, "--executor", "slurm", *words)

    def rows(self, *words: str) -> dict[str, dict[str, Any]]:
        """Of ``status --json``, by name."""
        code, out, _ = self("study", "status", "tiny.py", "--json", *words)
        assert code == 0
        return {row["name"]: row for row in json.loads(out)["runs"]}

    def calls(self, program: str) -> list[list[str]]:
        path = self.slurm / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [words for name, *words in map(json.loads, lines) if name == program]

    def queue(self) -> list[str]:
        """Ids of the runs in it, each as often as it is in it."""
        found: list[str] = []
        for path in sorted((self.slurm / "queue").glob("*.json")):
            job = json.loads(path.read_text())
            (listed,) = re.findall(r"^runs=\((.*)\)$", Path(job["script"]).read_text(), re.M)
            runs = listed.split()
            found += [runs[0 if task == "N/A" else int(task)] for task in job["tasks"]]
        return found

    def set_states(self, state: str, **told: str) -> None:
        """Of all jobs in it; ``reason``, too."""
        for path in (self.slurm / "queue").glob("*.json"):
            job = json.loads(path.read_text())
            path.write_text(json.dumps({**job, "tasks": dict.fromkeys(job["tasks"], state), **told}))

    def events(self, name: str, *events: dict[str, Any]) -> Path:
        """A run directory with these; a second apart."""
        run_dir = self.study_dir / self.ids[name]
        run_dir.mkdir(parents=True, exist_ok=True)
        with (run_dir / "events.jsonl").open("a") as file:
            for time_, event in enumerate(events, start=1000):
                file.write(json.dumps({"time": float(time_), **event}) + "\n")
        return run_dir

    def done(self, name: str) -> None:
        run_dir = self.events(name, ATTEMPT, {"event": "done"})
        (run_dir / "result.json").write_text(json.dumps({"val_loss": 0.5}))


def site_in(
    mmdit: Any, cache: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Site:
    """The site, in this process's environment; what runs have of this machine is claimed in it: nothing of others'."""
    variables = fake_slurm.install(slurm)
    variables |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "TMPDIR": str(mmdit.folder)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(mmdit.folder)
    return Site(mmdit, variables, capsys)


def contents(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """All that lies in it, and when it was last touched."""
    paths = sorted(folder.rglob("*"))
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in paths}


def wait_until(reached: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)
