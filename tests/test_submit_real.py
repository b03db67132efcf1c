"""Submitted to this machine: real runs are started once, cancelled, go on, and are collected from their folders."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from submit_cases import SUBMIT, Site, contents, site_in, wait_until

from launch.studies import load_study
from mmdit_jax.training.events import read_events


@pytest.fixture
def site(
    mmdit: Any, compile_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Site:
    return site_in(mmdit, compile_cache, tmp_path / "slurm", monkeypatch, capsys)


@pytest.mark.slow
def test_real_runs_are_started_once_and_collected_from_their_folders(site: Site) -> None:
    """Two submitters on this machine, at once, and a third later: one supervisor, one attempt a run."""
    words = (*SUBMIT, "--executor", "local", "--cpus", "1", "--quiet")
    both = [site.mmdit.start(*words, "--wait"), site.mmdit.start(*words)]
    told = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sum(err.count(": local:") for _, err in told) == 1
    assert sum(len(re.findall(r"(?:queued|running) already", err)) for _, err in told) == 2
    wait_until(lambda: all(row["state"] == "done" for row in site.rows().values()))
    for run_id in site.ids.values():
        events = list(read_events(site.study_dir / run_id))
        assert [event["attempt"] for event in events if event["event"] == "attempt"] == [1]
        assert [event["verdict"] for event in events if event["event"] == "ended"] == ["done"]
    specs = sorted(path.name for path in (site.study_dir / "jobs").glob("local-*.json"))
    assert len([name for name in specs if not name.endswith(".state.json")]) == 1

    files = {run_id: contents(site.study_dir / run_id) for run_id in site.ids.values()}
    code, out, err = site(*words, "--wait")
    assert code == 0 and err.splitlines() == ["rf: done", "log normal: done"]
    assert out.splitlines()[-1] == "2 done"
    assert {run_id: contents(site.study_dir / run_id) for run_id in site.ids.values()} == files
    assert sorted(path.name for path in (site.study_dir / "jobs").glob("local-*.json")) == specs
    assert site("study", "status", "tiny.py", "--watch", "1")[0] == 0

    code, out, _ = site("study", "collect", "tiny.py")
    results = site.study_dir / "results.csv"
    assert (code, Path(out.strip())) == (0, Path("studies/tiny/results.csv"))
    first = results.read_bytes()
    rows = {row["name"]: row for row in csv.DictReader(first.decode().splitlines())}
    assert list(rows) == ["rf", "log normal"]
    for name, run_id in site.ids.items():
        result = json.loads((site.study_dir / run_id / "result.json").read_text())
        assert rows[name]["run_id"] == run_id and float(rows[name]["val_loss"]) == result["val_loss"]
    shutil.rmtree(site.study_dir / "jobs")
    shutil.rmtree(site.study_dir / "logs")
    for path in site.study_dir.glob("*.csv"):
        path.unlink()
    assert site("study", "collect", "tiny.py")[0] == 0
    assert results.read_bytes() == first


@pytest.mark.slow
def test_a_real_run_is_cancelled_and_goes_on(site: Site) -> None:
    """It saves, nobody starts it again, status says stopped; submitted again it goes on from there."""
    long = ("--set", "steps=100000", "--set", "hardware.checkpoint_every=100000")
    words = (*SUBMIT, *long, "--executor", "local", "--only", "rf", "--quiet")
    (run_id,) = [run.run_id for run in load_study("tiny.py", ["steps=100000"]).runs if run.name == "rf"]
    run_dir = site.study_dir / run_id

    def of(kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(run_dir) if event["event"] == kind]

    assert site(*words)[0] == 0
    try:
        wait_until(lambda: of("train"))
    finally:
        code, out, _ = site("study", "cancel", "tiny.py", *long)
    assert (code, out.split()) == (0, [run_id])
    wait_until(lambda: of("ended"))
    (saved,) = of("preempted")
    time.sleep(0.5)
    row = site.rows(*long)["rf"]
    assert (row["state"], row["step"]) == ("stopped", saved["step"])
    assert len(of("attempt")) == 1 and [path.name for path in (run_dir / "checkpoints").iterdir()] == [
        str(saved["step"])
    ]
    assert site(*words)[0] == 0
    try:
        wait_until(lambda: len(of("start")) == 2)
    finally:
        site("study", "cancel", "tiny.py", *long)
    assert of("start")[1]["step"] == saved["step"]
    wait_until(lambda: len(of("ended")) == 2)
