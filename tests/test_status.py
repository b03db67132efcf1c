"""``study status``: a row a run, of its own events; engines only add what they know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from submit_cases import ATTEMPT, FAILED, START, Site, site_in

from launch.status import table

COLUMNS = ["run", "state", "step", "loss", "val loss", "images/s", "ETA", "restarts", "where"]


@pytest.fixture
def site(
    mmdit: Any, compile_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Site:
    return site_in(mmdit, compile_cache, tmp_path / "slurm", monkeypatch, capsys)


def test_status_is_of_the_events(site: Site) -> None:
    """Step, loss, speed and what is left, from the run's own file; of the engine who has it, and where."""
    train = {"event": "train", "step": 15, "loss": 1.25, "images_per_second": 4.0}
    site.events("rf", ATTEMPT, START, ATTEMPT, {**START, "step": 10}, {**train, "step": 12}, train)
    site.events("rf", {"event": "validation", "step": 15, "loss": 1.5, "levels": []})
    site.events("rf", {**train, "step": 16, "images_per_second": None})
    assert site.submit()[0] == 0
    site.set_states("RUNNING")
    rows = site.rows()
    row = rows["rf"]
    assert (row["state"], row["step"], row["steps"], row["restarts"]) == ("running", 16, 40, 1)
    assert (row["loss"], row["val_loss"], row["images_per_second"]) == (1.25, 1.5, 4.0)
    assert row["eta_seconds"] == (40 - 16) * 8 / 4.0
    assert row["where"].startswith("slurm:10") and row["where"].endswith(" node[1-2]")
    assert rows["log normal"]["state"] == "running" and rows["log normal"]["eta_seconds"] is None
    assert list(rows) == ["rf", "log normal"] and row["run_id"] == site.ids["rf"]

    heading, first, second, counts = site("study", "status", "tiny.py")[1].splitlines()
    assert re.split(r"\s{2,}", heading) == COLUMNS
    assert re.split(r"\s{2,}", first) == ["rf", "running", "16/40", "1.2500", "1.5000", "4", "0:48", "1", row["where"]]
    assert re.split(r"\s{2,}", second)[:3] == ["log normal", "running", "0/40"]
    assert counts == "2 running"
    (site.slurm / "queue").rename(site.slurm / "gone")
    (site.slurm / "queue").mkdir()
    assert {name: row["state"] for name, row in site.rows().items()} == {"rf": "stopped", "log normal": "new"}
    assert site.rows()["rf"]["eta_seconds"] is None and site.rows()["rf"]["where"] == "node7"


def test_status_where_an_engine_cannot_be_asked(site: Site) -> None:
    """The files still say what they say, and a line what is missing."""
    site.events("rf", *FAILED)
    assert site.submit("--retries", "1")[0] == 0
    (site.slurm / "squeue_fails").touch()
    code, out, err = site("study", "status", "tiny.py")
    assert code == 0 and "failed" in out.splitlines()[1]
    assert "squeue refused" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "state, reason, told",
    [
        ("PENDING", "Resources", "Resources"),
        ("PENDING", "QOSUsageThreshold", "QOSUsageThreshold"),
        ("PENDING", "JobHeldUser", "held, JobHeldUser: scontrol release {job}"),
        ("PENDING", "launch failed requeued held", "held, launch failed requeued held: scontrol release {job}"),
        ("PENDING", "JobHoldMaxRequeue", "held, JobHoldMaxRequeue: scontrol release {job}"),
        ("REQUEUE_HOLD", "None", "held, REQUEUE_HOLD: scontrol release {job}"),
        ("SPECIAL_EXIT", "job requeued in held state", "held, job requeued in held state: scontrol release {job}"),
        ("REQUEUED", "BeginTime", "BeginTime"),
        ("SUSPENDED", "None", "node[1-2] suspended"),
    ],
)
def test_status_tells_why_a_job_waits(site: Site, state: str, reason: str, told: str) -> None:
    """In Slurm's words; one that is held waits for a person, who is told what to type."""
    assert site.submit("--only", "rf")[0] == 0
    site.set_states(state, reason=reason)
    row = site.rows()["rf"]
    assert row["state"] == "queued" and row["message"] == ""
    job = row["where"].removeprefix("slurm:").split()[0]
    assert row["where"] == f"slurm:{job} {told.format(job=job)}"
    assert site("study", "status", "tiny.py")[1].splitlines()[1].endswith(row["where"])


def test_stopped_before_its_first_step_is_no_failure(site: Site) -> None:
    """SIGTERM while data are being built: 75, and nothing was there to save."""
    site.events("rf", ATTEMPT, {"event": "ended", "code": 75, "verdict": "cancelled"})
    assert site.rows()["rf"]["state"] == "stopped"


@pytest.mark.parametrize("seconds", ["-1", "nan"])
def test_watch_of_no_time(site: Site, seconds: str) -> None:
    code, _, err = site("study", "status", "tiny.py", f"--watch={seconds}")
    assert code == 2 and err.startswith("mmdit: watch=")


def test_table_of_everything() -> None:
    """A heading, a row a run in its order, and how many are in which state."""
    empty = {"loss": None, "val_loss": None, "images_per_second": None, "eta_seconds": None, "restarts": 0}
    rows = [
        {"name": "a", "state": "done", "step": 40, "steps": 40, "where": "h", "message": ""} | empty,
        {"name": "b", "state": "failed", "step": 7, "steps": 40, "where": "h", "message": "exit code 1"} | empty,
    ]
    rows[0] |= {"loss": 0.125, "val_loss": 0.25, "images_per_second": 12345.6, "restarts": 3}
    heading, first, second, counts = table(rows)
    assert re.split(r"\s{2,}", heading) == COLUMNS
    assert re.split(r"\s{2,}", first) == ["a", "done", "40/40", "0.1250", "0.2500", "12,346", "3", "h"]
    assert re.split(r"\s{2,}", second) == ["b", "failed", "7/40", "exit code 1"]
    assert first.index("40/40") + 5 == second.index("7/40") + 4 == heading.index("step") + 4
    assert counts == "1 done, 1 failed"


def test_watch_ends_when_all_are_done(site: Site) -> None:
    """It prints again and again until then."""
    site.done("rf")
    site.events("log normal", ATTEMPT, START)
    watch = site.mmdit.start("study", "status", "tiny.py", "--watch", "0.1")
    assert watch.stdout is not None
    told: list[str] = []
    while sum(line.startswith("log normal") for line in told) < 3:
        told.append(watch.stdout.readline())
    assert watch.poll() is None
    site.done("log normal")
    out, err = watch.communicate(timeout=60)
    assert watch.returncode == 0, err
    assert out.splitlines()[-1] == "2 done"
