"""``study submit`` and ``cancel``: each run once, whoever asks, and as often as they like."""

from __future__ import annotations

import fcntl
import json
import re
from pathlib import Path
from typing import Any

import pytest
from submit_cases import ATTEMPT, FAILED, START, SUBMIT, Site, contents, site_in

import launch.status
import launch.submit
from mmdit_jax.training.events import read_events


@pytest.fixture
def site(
    mmdit: Any, compile_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Site:
    return site_in(mmdit, compile_cache, tmp_path / "slurm", monkeypatch, capsys)


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


EXECUTORS = {"slurm": (), "local": (), "k8s": ("--image", "i", "--volume", "claim:/no/such/folder")}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("root", ["studies", "/no/such/folder/studies", "file://{folder}/bucket/studies"])
def test_dry_run_where_there_is_nothing_yet(
    site: Site, executor: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor need the root be here, or writable. (What stands for one at a URL is this host's own copy, elsewhere.)"""
    monkeypatch.setenv("MMDIT_MIRRORS", str(tmp_path.with_name(f"{tmp_path.name}-mirrors")))
    before = contents(site.folder)
    words = ("--root", root.format(folder=site.folder), *EXECUTORS[executor])
    code, out, _ = site(*SUBMIT, "--executor", executor, *words, "--dry-run")
    assert code == 0 and all(run_id in out for run_id in site.ids.values())
    assert contents(site.folder) == before and not Path("/no").exists()


@pytest.mark.parametrize(
    "words, field",
    [
        (("local", "--cpus", "100000"), "cpus="),
        (("slurm", "--topology", "v5e:2x2"), "topology="),
        (("k8s", "--image", "i"), "root="),
        (("k8s", "--image", "i", "--volume", "claim:/no/such/folder", "--root", "/no/such/folder/x"), "root="),
        (("k8s", "--image", "i", "--volume", "claim:/", "--at-once", "2"), "at_once="),
    ],
)
def test_what_is_refused_has_written_nothing(site: Site, words: tuple[str, ...], field: str) -> None:
    before = contents(site.folder)
    code, _, err = site(*SUBMIT, "--executor", *words)
    assert code == 2 and len(err.splitlines()) == 1 and err.startswith(f"mmdit: {field}")
    assert contents(site.folder) == before and not Path("/no").exists()


@pytest.mark.parametrize(
    "words, line",
    [
        (("slurm",), "executor='slurm': sbatch is not on this host's PATH"),
        (("k8s", "--image", "i", "--volume", "claim:/"), "kubectl: not on PATH"),
    ],
)
def test_an_engine_that_is_not_here_is_told_before_anything_is_written(
    site: Site, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], line: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    before = contents(site.folder)
    code, _, err = site(*SUBMIT, "--executor", *words)
    assert code == 2 and err.startswith(f"mmdit: {line}") and contents(site.folder) == before


def test_events_are_read_once_to_decide(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be long, and far away."""
    for name in site.ids:
        site.events(name, *FAILED)
    read: list[str] = []

    def counted(run_dir: Path) -> Any:
        read.append(run_dir.name)
        return read_events(run_dir)

    for module in (launch.submit, launch.status):
        monkeypatch.setattr(module, "read_events", counted)
    assert site.submit("--dry-run")[0] == 0
    assert sorted(read) == sorted(site.ids.values())


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
