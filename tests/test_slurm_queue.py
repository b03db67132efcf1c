"""What squeue says of jobs, read as the state of runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.executors.slurm import Slurm, SlurmEngine


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
