"""``study submit``, ``status``, ``cancel`` and ``collect``: each run once, whoever asks, and as often as they like."""

from __future__ import annotations

import csv
import fcntl
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_slurm
import pytest

from launch import cli
from launch.status import table
from launch.studies import load_study
from mmdit_jax.training.events import read_events

SUBMIT = ("study", "submit", "tiny.py")
COLUMNS = ["run", "state", "step", "loss", "val loss", "images/s", "ETA", "restarts", "where"]


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

    def set_states(self, state: str) -> None:
        for path in (self.slurm / "queue").glob("*.json"):
            job = json.loads(path.read_text())
            path.write_text(json.dumps({**job, "tasks": dict.fromkeys(job["tasks"], state)}))

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


ATTEMPT = {"event": "attempt", "began": 999.0, "host": "node7", "job": "slurm:99", "processes": 1}
START = {"event": "start", "step": 0}
FAILED = (ATTEMPT, START, {"event": "ended", "code": 137, "verdict": "again"})


@pytest.fixture
def site(
    mmdit: Any, compile_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Site:
    variables = fake_slurm.install(tmp_path / "slurm")
    variables["JAX_COMPILATION_CACHE_DIR"] = str(compile_cache)
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


def test_two_submitters_at_once_start_each_run_once(site: Site) -> None:
    """Real processes; the second waits, and finds the runs in the queue; so does a third."""
    both = [site.mmdit.start(*SUBMIT, "--executor", "slurm") for _ in range(2)]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted(site.queue()) == sorted(site.ids.values())
    assert sorted(err.count("queued already") for _, err in told) == [0, 2]
    code, _, err = site.submit()
    assert code == 0 and err.count("queued already") == 2
    assert len(site.calls("sbatch")) == 2


def test_an_array_is_one_job(site: Site) -> None:
    """What is in it already is not submitted beside it; what was cancelled is, alone."""
    assert site.submit("--array", "--at-once", "1")[0] == 0
    assert site.queue() == list(site.ids.values()) and len(site.calls("sbatch")) == 1
    assert site.submit()[0] == 0 and len(site.calls("sbatch")) == 1
    code, out, _ = site("study", "cancel", "tiny.py", "--only", "rf")
    assert (code, out.split()) == (0, [site.ids["rf"]])
    assert site.queue() == [site.ids["log normal"]]
    assert site.submit()[0] == 0
    assert sorted(site.queue()) == sorted(site.ids.values()) and len(site.calls("sbatch")) == 2


def test_a_refusal_of_sbatch_is_one_line(site: Site) -> None:
    (site.slurm / "sbatch_fails").touch()
    code, _, err = site.submit()
    told = [line for line in err.splitlines() if line.startswith("mmdit: ")]
    assert code == 2 and len(told) == 1 and "node configuration is not available" in told[0]
    (site.slurm / "sbatch_fails").unlink()
    assert site.submit()[0] == 0 and len(site.queue()) == 2


def test_where_the_queue_cannot_be_asked_nothing_is_submitted(site: Site) -> None:
    """The runs may be in it."""
    assert site.submit()[0] == 0
    (site.slurm / "squeue_fails").touch()
    code, _, err = site.submit()
    (site.slurm / "squeue_fails").unlink()
    assert len(site.queue()) == 2
    assert code == 2 and "Unable to contact slurm controller" in err


def test_a_run_that_is_named_twice_is_one(site: Site) -> None:
    assert site.submit("--only", "rf", "--only", site.ids["rf"])[0] == 0
    assert site.queue() == [site.ids["rf"]]


def test_diverged_runs_never(site: Site) -> None:
    """Whatever the budget; with --rewinds it is another kind of start, so many times."""
    diverged = {"event": "diverged", "step": 12, "message": "loss is nan at step 12"}
    site.events("rf", ATTEMPT, START, diverged, {"event": "ended", "code": 3, "verdict": "stop"})
    assert site.rows()["rf"]["state"] == "diverged"
    for words in ((), ("--retries", "99")):
        code, _, err = site.submit("--only", "rf", *words)
        assert code == 0 and site.queue() == []
        assert any(line.startswith("rf: diverged at step 12") and "--rewinds" in line for line in err.splitlines())
    assert site.submit("--only", "rf", "--rewinds", "1")[0] == 0
    assert site.queue() == [site.ids["rf"]]


def test_failed_runs_within_a_budget(site: Site) -> None:
    """Beyond it the line says what to do, and that does it."""
    site.events("rf", *FAILED, *FAILED, *FAILED)
    row = site.rows()["rf"]
    assert (row["state"], row["restarts"], row["message"]) == ("failed", 2, "exit code 137")
    code, _, err = site.submit("--retries", "2", "--only", "rf")
    assert code == 0 and site.queue() == [] and site.calls("sbatch") == []
    (line,) = [line for line in err.splitlines() if line.startswith("rf: ")]
    assert "failed 3 times (exit code 137)" in line
    (advice,) = re.findall(r"--retries \d+", line)
    assert site.submit("--only", "rf", *advice.split())[0] == 0
    assert site.queue() == [site.ids["rf"]]


@pytest.mark.parametrize(
    "events",
    [
        (),
        (ATTEMPT, START, {"event": "preempted", "step": 17}, {"event": "ended", "code": 75, "verdict": "cancelled"}),
        (ATTEMPT, START, {"event": "train", "step": 5, "loss": 1.0, "images_per_second": 8.0}),
        (ATTEMPT, {"event": "refused", "message": "disk full"}, {"event": "ended", "code": 2, "verdict": "stop"}),
        FAILED,
    ],
    ids=["new", "preempted", "killed", "refused", "failed"],
)
def test_what_is_missing_is_submitted(site: Site, events: tuple[dict[str, Any], ...]) -> None:
    if events:
        site.events("rf", *events)
    assert site.submit()[0] == 0
    assert sorted(site.queue()) == sorted(site.ids.values())


def test_what_is_done_or_held_is_not(site: Site) -> None:
    """By a process of whoever, that no engine knows."""
    site.done("rf")
    run_dir = site.events("log normal", ATTEMPT, START)
    with (run_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = site.submit()
        assert code == 0 and site.queue() == []
        assert "rf: done" in err.splitlines() and "log normal: running already, node7" in err.splitlines()
    assert site.submit()[0] == 0
    assert site.queue() == [site.ids["log normal"]]


def test_dry_run_submits_nothing_and_writes_nothing(site: Site) -> None:
    """What it prints is what is submitted then."""
    site.done("rf")
    before = contents(site.folder)
    code, out, _ = site.submit("--dry-run", "--time", "1:00:00")
    assert code == 0 and contents(site.folder) == before
    assert site.calls("sbatch") == [] and site.ids["log normal"] in out and site.ids["rf"] not in out
    assert site.submit("--time", "1:00:00")[0] == 0
    (script,) = (site.study_dir / "jobs").glob("*.sbatch")
    assert script.read_text() == out


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_dry_run_where_there_is_nothing_yet(site: Site, executor: str) -> None:
    before = contents(site.folder)
    code, out, _ = site(*SUBMIT, "--executor", executor, "--dry-run")
    assert code == 0 and all(run_id in out for run_id in site.ids.values())
    assert contents(site.folder) == before


def test_dry_run_leaves_out_what_is_queued(site: Site) -> None:
    assert site.submit("--only", "rf")[0] == 0
    _, out, _ = site.submit("--dry-run")
    assert site.ids["log normal"] in out and site.ids["rf"] not in out


def test_cancel_stops_only_its_own(site: Site) -> None:
    """Not the jobs of another study under the same root, nor those of the user's that are nothing of ours."""
    other = site.folder / "other.py"
    other.write_text((site.folder / "tiny.py").read_text().replace('Study("tiny"', 'Study("other"'))
    assert site.submit()[0] == 0
    assert site("study", "submit", "other.py", "--executor", "slurm")[0] == 0
    foreign = {"name": "ours-looks-like-this", "script": "", "tasks": {"N/A": "RUNNING"}}
    (site.slurm / "queue" / "7.json").write_text(json.dumps(foreign))
    code, out, err = site("study", "cancel", "tiny.py")
    assert code == 0 and sorted(out.split()) == sorted(site.ids.values())
    assert "2 of 2" in err
    left = {path.stem: json.loads(path.read_text()) for path in (site.slurm / "queue").glob("*.json")}
    with_tasks = [job["script"] for job in left.values() if job["tasks"]]
    assert len(with_tasks) == 3 and not any("studies/tiny/" in script for script in with_tasks)
    code, out, _ = site("study", "cancel", "tiny.py")
    assert (code, out) == (0, "")


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
