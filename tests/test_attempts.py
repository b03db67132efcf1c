"""What became of attempts, from events alone; what follows one; and the program that engines ask, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from launch.attempts import after as what_follows
from launch.attempts import attempts, failures
from mmdit_jax.training.events import read_events

Events = list[dict[str, Any]]


def told(*words: str) -> Events:
    """Events from words: ``attempt``, ``start:20``, ``train:30``, ``ended:137``, ``rewound:10``; a second apart."""
    events: Events = []
    for time, word in enumerate(words, start=1000):
        kind, _, value = word.partition(":")
        event: dict[str, Any] = {"event": kind, "time": float(time)}
        number = {"ended": "code", "rewound": "to"}.get(kind, "step")
        if value.isdigit():
            event[number] = int(value)
        elif value:
            event |= {"code": 143, "verdict": value}
        if kind == "attempt":
            event |= {"began": time - 0.5, "host": "node7", "job": "slurm:12", "processes": 4}
        if kind in ("diverged", "refused"):
            event["message"] = f"{kind}: why"
        events.append(event)
    return events


def after(words: Iterable[str], code: int, retries: int = 3, done: bool = False) -> str:
    return what_follows(attempts(told(*words)), done, code, retries)


def test_one_attempt_from_begin_to_end() -> None:
    """All fields, of a run that saw everything once."""
    (only,) = attempts(told("attempt", "start:0", "train:10", "validation:10", "checkpoint:10", "done", "ended:0"))
    assert (only.number, only.began, only.host, only.job, only.processes) == (1, 999.5, "node7", "slurm:12", 4)
    assert (only.start, only.step, only.last, only.end, only.code) == (0, 10, 1006.0, "done", 0)
    assert not only.failed


def test_no_events_no_attempts() -> None:
    assert attempts([]) == [] and failures([]) == 0


def test_each_attempt_has_its_own_end() -> None:
    """Preempted, killed with a supervisor that told, killed with one that didn't, and one that runs."""
    events = told(
        *("attempt", "start:0", "preempted:17", "ended:75"),
        *("attempt", "start:17", "train:30", "ended:137"),
        *("attempt", "start:20", "train:25"),
        *("attempt", "start:20", "train:31"),
    )
    found = attempts(events)
    assert [item.number for item in found] == [1, 2, 3, 4]
    assert [item.start for item in found] == [0, 17, 20, 20]
    assert [item.step for item in found] == [17, 30, 25, 31]
    assert [item.end for item in found] == ["preempted", None, None, None]
    assert [item.code for item in found] == [75, 137, None, None]
    assert failures(found) == 2  # of the last nobody knows


@pytest.mark.parametrize("code, count", [(0, 0), (1, 0), (2, 0), (3, 0), (75, 0), (127, 0), (128, 1), (160, 1)])
def test_failures_are_of_infrastructure(code: int, count: int) -> None:
    assert failures(attempts(told("attempt", "start:0", f"ended:{code}"))) == count


@pytest.mark.parametrize("word", ["preempted:8", "diverged:8", "refused", "done"])
def test_what_told_its_end_did_not_fail(word: str) -> None:
    """Even where one of its processes was killed meanwhile."""
    assert failures(attempts(told("attempt", "start:0", word, "ended:137"))) == 0


def test_old_files_have_a_start_an_attempt() -> None:
    """From before there were ``attempt`` events."""
    found = attempts(told("start:0", "train:12", "start:10", "train:20", "preempted:24", "start:24", "done"))
    assert [(item.start, item.step, item.end) for item in found] == [
        (0, 12, None),
        (10, 24, "preempted"),
        (24, 24, "done"),
    ]
    assert failures(found) == 1
    assert found[0].began == 1000.0 and found[0].host == "" and found[0].job is None and found[0].processes == 1


def test_old_file_goes_on_with_a_new_program() -> None:
    found = attempts(told("start:0", "train:12", "attempt", "start:10", "train:20"))
    assert [(item.start, item.step) for item in found] == [(0, 12), (10, 20)]


def test_a_rewind_takes_a_divergence_back() -> None:
    (only,) = attempts(told("attempt", "start:0", "train:30", "diverged:31", "rewound:20", "train:25"))
    assert (only.end, only.step, only.message) == (None, 25, "")


def test_what_its_user_ended_did_not_fail() -> None:
    """Before it could save, or say a word."""
    found = attempts(told("attempt", "ended:cancelled", "attempt", "start:0", "preempted:4", "ended:cancelled"))
    assert [item.end for item in found] == ["cancelled", "preempted"] and failures(found) == 0
    assert failures(attempts(told("attempt", "ended:again"))) == 1


def test_messages_of_ends() -> None:
    found = attempts(told("attempt", "refused", "ended:2", "attempt", "start:0", "diverged:7", "ended:3"))
    assert [(item.end, item.message) for item in found] == [("refused", "refused: why"), ("diverged", "diverged: why")]


def test_attempts_that_said_nothing_are_counted() -> None:
    """Gone before they could (out of memory while importing): each is one, and none has another's last word."""
    found = attempts(told("attempt", "start:0", "preempted:5", "ended:75", "ended:137", "ended:137"))
    assert [(item.end, item.code) for item in found] == [("preempted", 75), (None, 137), (None, 137)]
    assert failures(found) == 2
    assert [item.code for item in attempts(told("ended:134", "ended:134"))] == [134, 134]


NOTHING = ("attempt", "start:0", "train:10")
"""Events of an attempt that was in the middle of it."""

DECISIONS = {
    # the attempt's last word: what follows exit codes 0, 75, 2, 3, 1, 137, 142, 160
    None: ("stop", "again", "stop", "stop", "stop", "again", "again", "again"),
    "preempted:10": ("again", "again", "again", "again", "again", "again", "again", "again"),
    "diverged:10": ("stop", "again", "stop", "stop", "stop", "stop", "stop", "stop"),
    "refused": ("stop", "again", "stop", "stop", "stop", "stop", "stop", "stop"),
}
CODES = (0, 75, 2, 3, 1, 137, 142, 160)


@pytest.mark.parametrize("word", DECISIONS)
@pytest.mark.parametrize("code", CODES)
def test_what_follows(word: str | None, code: int) -> None:
    """The whole table; a result is the end of it all."""
    words = NOTHING if word is None else (*NOTHING, word)
    assert after(words, code) == DECISIONS[word][CODES.index(code)]
    assert after(words, code, done=True) == "done"


@pytest.mark.parametrize("code", [137, 142, 160])
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_budget_of_failures(code: int, retries: int) -> None:
    """``retries`` failures are started again, the next is not; preemptions in between don't count."""
    history: list[str] = []
    for _ in range(retries):
        history += [*NOTHING, "preempted:12", "ended:75", *NOTHING]
        assert after(history, code, retries) == "again"
        history.append(f"ended:{code}")
    history += [*NOTHING, "preempted:12", "ended:75", *NOTHING]
    assert after(history, code, retries) == "spent"
    assert after(history, 75, retries) == "again"  # of those there are any number


def test_lost_supervisors_count_too() -> None:
    """Attempts that nobody noted the end of, as where a host went away."""
    assert after((*NOTHING, *NOTHING, *NOTHING), 137, retries=2) == "spent"
    assert after((*NOTHING, *NOTHING, *NOTHING), 137, retries=3) == "again"


@pytest.mark.parametrize("code, expected", [(2, "stop"), (1, "stop"), (137, "again"), (75, "again")])
def test_an_earlier_preemption_says_nothing_of_this_attempt(code: int, expected: str) -> None:
    """One that ended before its first word, after one that was preempted: or it would be started for ever."""
    assert after((*NOTHING, "preempted:10", "ended:75"), code) == expected


def test_attempts_without_a_word_are_bounded() -> None:
    history: list[str] = []
    verdicts = []
    for _ in range(4):
        verdicts.append(after(history, 134, retries=2))
        history.append("ended:134")
    assert verdicts == ["again", "again", "spent", "spent"]


def run_after(run_dir: Path, code: int, retries: int = 3) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.executors.after", str(run_dir), str(code), str(retries)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def run_with(folder: Path, *words: str) -> Path:
    run_dir = folder / "rf-0123456789"
    run_dir.mkdir()
    (run_dir / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told(*words)))
    return run_dir


@pytest.mark.parametrize(
    "words, code, exit_code, verdict",
    [
        (NOTHING, 75, 75, "again"),
        (NOTHING, 137, 75, "again"),
        ((*NOTHING, "preempted:10"), 134, 75, "again"),
        (NOTHING, 2, 0, "stop"),
        ((*NOTHING, "diverged:10"), 134, 0, "stop"),
        ((*NOTHING, "ended:137", *NOTHING), 137, 0, "spent"),
    ],
)
def test_after_as_a_process(tmp_path: Path, words: tuple[str, ...], code: int, exit_code: int, verdict: str) -> None:
    """Exit code 75 is for ``again`` alone; the end is noted behind what was there; one line says what follows."""
    run_dir = run_with(tmp_path, *words)
    before = (run_dir / "events.jsonl").read_bytes()
    done = run_after(run_dir, code, retries=1)
    assert done.returncode == exit_code, done.stderr
    assert (run_dir / "events.jsonl").read_bytes().startswith(before)
    *_, last = read_events(run_dir)
    assert (last["event"], last["code"], last["verdict"]) == ("ended", code, verdict)
    assert len(done.stderr.splitlines()) == 1 and f"exit code {code}" in done.stderr and done.stdout == ""
    assert ("--retries" in done.stderr) == (verdict == "spent")


def test_after_a_result(tmp_path: Path) -> None:
    """Whatever the code: it may be of a process that was killed when all was done."""
    run_dir = run_with(tmp_path, *NOTHING)
    (run_dir / "result.json").write_text("{}")
    assert run_after(run_dir, 137).returncode == 0
    assert [event["verdict"] for event in read_events(run_dir) if event["event"] == "ended"] == ["done"]


def test_after_a_torn_line(tmp_path: Path) -> None:
    """A process killed while it wrote: its line is passed over, and the next one readable."""
    run_dir = run_with(tmp_path, *NOTHING)
    with (run_dir / "events.jsonl").open("ab") as events:
        events.write(b'{"event": "preempted", "st')
    assert run_after(run_dir, 137).returncode == 75
    assert [event["event"] for event in read_events(run_dir)] == ["attempt", "start", "train", "ended"]


def test_after_attempts_that_never_came_to_their_folder(tmp_path: Path) -> None:
    """They are noted all the same, and so bounded; not where the study's folder has gone."""
    codes = [run_after(tmp_path / "rf-0123456789", 137, retries=2).returncode for _ in range(4)]
    assert codes == [75, 75, 0, 0]
    assert run_after(tmp_path / "gone" / "rf-0123456789", 137).returncode == 0
    assert not (tmp_path / "gone").exists()


def test_after_starts_without_jax() -> None:
    """It runs inside an engine's grace, on hosts that have other things to do."""
    script = "import sys, launch.executors.after, launch.executors.supervise; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"jax", "jaxlib", "numpy", "flax", "orbax", "pandas", "wandb", "tensorflow", "transformers"}
