"""This machine's supervisor with real processes: how many at a time, what is started again, and who ends whom."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.attempts import attempts, failures
from launch.executors import local
from launch.executors.job import Job, Machine
from launch.executors.local import Local, LocalEngine, host_cores, host_gpus, render
from launch.planning.target import parse
from mmdit_jax.errors import UserError
from mmdit_jax.training.events import read_events

RUN = '''
"""Stands for `mmdit train`: FOLDER RUN; does what FOLDER/RUN.json says of this attempt, and notes what it sees."""
import json, os, signal, subprocess, sys, time

folder, run = sys.argv[1:]
number = int(os.environ.get("MMDIT_PROCESS", "0"))
mark = f"{folder}/{run}.{number}.attempts"
attempt = os.path.getsize(mark) if os.path.exists(mark) else 0
open(mark, "a").write("x")
plan = json.load(open(f"{folder}/{run}.json"))
step = plan[min(attempt, len(plan) - 1)]
code = step.get("codes", [step.get("code", 0)] * 9)[number]
notes = open(f"{folder}/notes", "a")


def note(what, **more):
    told = {"what": what, "run": run, "number": number, "at": time.monotonic(), **more}
    print(json.dumps(told), file=notes, flush=True)


def event(kind, **more):
    if number == 0:
        os.makedirs(f"{folder}/study/{run}", exist_ok=True)
        with open(f"{folder}/study/{run}/events.jsonl", "a") as events:
            print(json.dumps({"event": kind, "time": time.time(), **more}), file=events)


def term(*_):
    note("term")
    if step.get("term") != "ignored":
        event("preempted", step=7)
        sys.exit(75)


signal.signal(signal.SIGTERM, term)
event("attempt", attempt=attempt + 1)
seen = {name: value for name, value in os.environ.items() if name.startswith(("MMDIT_", "CUDA_", "JAX_LOCAL"))}
child = subprocess.Popen(["sleep", "600"]).pid if step.get("child") else None
note("start", attempt=attempt, pid=os.getpid(), child=child, seen=seen, cores=sorted(os.sched_getaffinity(0)))
until = time.monotonic() + step.get("seconds", 0.0)
while time.monotonic() < until:
    time.sleep(0.02)
if code == 0 and number == 0:
    open(f"{folder}/study/{run}/result.json", "w").write("{}")
note("end")
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
'''


class Lab:
    """A study's folder, with engines whose runs are the script above."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.study = folder, folder / "study"
        self.study.mkdir()
        (folder / "run.py").write_text(RUN)
        self.supervisors: list[int] = []

    def job(self, plans: dict[str, list[dict[str, Any]]], machine: Machine | None = None, **changes: Any) -> Job:
        """Runs, and what each attempt of them does (the last: all that follow)."""
        for run, plan in plans.items():
            (self.folder / f"{run}.json").write_text(json.dumps(plan))
        command = (sys.executable, "-S", "-E", str(self.folder / "run.py"), str(self.folder))
        machine = machine or Machine(cpus_per_process=1)
        return Job("job", "study", tuple(plans), command, str(self.study), machine=machine, **changes)

    def submit(self, job: Job, options: Local | None = None) -> LocalEngine:
        engine = LocalEngine(self.study, options or Local())
        self.supervisors.append(int(engine.submit(job).removeprefix("local:")))
        return engine

    def finish(self, job: Job, options: Local | None = None, seconds: float = 60.0) -> None:
        """Submit, and wait until its supervisor has none of them in its hands."""
        engine = self.submit(job, options)
        self.until(lambda: not engine.live(), seconds)

    def until(self, reached: Callable[[], Any], seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := reached()):
            assert time.monotonic() < deadline, f"{self.notes()}\n{self.logs()}"
            time.sleep(0.02)
        return found

    def notes(self, what: str | None = None, run: str | None = None) -> list[dict[str, Any]]:
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [item for item in found if what in (None, item["what"]) and run in (None, item["run"])]

    def states(self) -> dict[str, str]:
        """As the supervisors last told."""
        paths = sorted((self.study / "jobs").glob("*.state.json"))
        return {run: told["state"] for path in paths for run, told in json.loads(path.read_text()).items()}

    def ends(self, run: str) -> list[tuple[int, str]]:
        """What the supervisor noted in the run's events."""
        events = read_events(self.study / run)
        return [(event["code"], event["verdict"]) for event in events if event["event"] == "ended"]

    def logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()}" for path in (self.study / "logs").glob("*"))

    def most_at_once(self) -> int:
        """By the processes' own clocks."""
        changes = [(item["at"], 1 if item["what"] == "start" else -1) for item in self.notes()]
        running = most = 0
        for _, change in sorted(changes):
            running += change
            most = max(most, running)
        return most

    def close(self) -> None:
        """End what a failed test has left, by its process ids."""
        pids = [pid for item in self.notes("start") for pid in (item["pid"], item["child"]) if pid]
        for pid in (*self.supervisors, *(pid for pid in pids if is_ours(pid, self.folder))):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether it runs: one that has ended and that nobody asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_ours(pid: int, folder: Path) -> bool:
    try:
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # GPUs are claimed there: those of no other test
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = Lab(tmp_path)
    yield made
    made.close()


two_cores = pytest.mark.skipif(len(host_cores()) < 2, reason="needs two cores")
LONG = {"seconds": 60.0}


def test_in_order(lab: Lab) -> None:
    runs = [f"r{i}" for i in range(4)]
    lab.finish(lab.job({run: [{"seconds": 0.1}] for run in runs}), Local(at_once=1))
    assert [item["run"] for item in lab.notes("start")] == runs
    assert lab.most_at_once() == 1
    assert lab.states() == dict.fromkeys(runs, "done")
    assert all(lab.ends(run) == [(0, "done")] for run in runs)


@two_cores
@pytest.mark.parametrize(
    "machine, options, most",
    [
        (Machine(cpus_per_process=2), Local(cores=2, at_once=3), 1),
        (Machine(cpus_per_process=1), Local(cores=2), 2),
        (Machine(cpus_per_process=1), Local(cores=1, at_once=3), 1),
        (Machine(processes_per_node=2, cpus_per_process=1), Local(cores=2, at_once=3), 1),
        (Machine(cpus_per_process=1), Local(cores=2, at_once=1), 1),
        (Machine(), Local(cores=2), 1),
        (Machine(), Local(cores=2, at_once=2), 2),
        (Machine(cpus_per_process=1, memory_gib=2.0), Local(cores=2, memory_gib=3.5), 1),
        (Machine(cpus_per_process=1, memory_gib=2.0), Local(cores=2, memory_gib=4.0), 2),
    ],
)
def test_never_more_than_they_may(lab: Lab, machine: Machine, options: Local, most: int) -> None:
    """And as many as they may, by cores, memory and number; each has cores of its own, as many as it was given."""
    plans = {run: [{"seconds": 0.3 if most == 1 else 1.5}] for run in ("a", "b", "c")}
    lab.finish(lab.job(plans, machine), options)
    count = machine.processes
    assert lab.most_at_once() == most * count
    together = [item for item in lab.notes("start") if item["number"] == 0]
    each = 2 // most if machine.cpus_per_process is None else count * machine.cpus_per_process
    allowed = set(host_cores()[: options.cores])
    assert all(len(item["cores"]) == each and set(item["cores"]) <= allowed for item in together)
    if most == 2:
        first, second = sorted(together, key=lambda item: item["at"])[:2]
        assert not set(first["cores"]) & set(second["cores"])


@two_cores
def test_processes_of_a_run_are_told_of_one_another(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """One coordinator, their count and their numbers; whatever the one who submits was told itself."""
    monkeypatch.setenv("MMDIT_DISTRIBUTED", "auto")
    monkeypatch.setenv("MMDIT_COORDINATOR", "elsewhere:1")
    lab.finish(lab.job({"a": [{}], "b": [{}]}, Machine(processes_per_node=2, cpus_per_process=1)))
    for run in ("a", "b"):
        seen = {item["number"]: item["seen"] for item in lab.notes("start", run)}
        assert sorted(seen) == [0, 1]
        host, port = seen[0]["MMDIT_COORDINATOR"].rsplit(":", 1)
        assert host == "127.0.0.1" and 1024 <= int(port) < 65536
        assert seen[0]["MMDIT_COORDINATOR"] == seen[1]["MMDIT_COORDINATOR"]
        assert all(item["MMDIT_PROCESSES"] == "2" and "MMDIT_DISTRIBUTED" not in item for item in seen.values())
        assert all((lab.study / "logs" / f"{run}.{number}.log").exists() for number in (0, 1))
    job = render(lab.job({"a": [{}]}, Machine(processes_per_node=2)), Local()).splitlines()
    assert len(job) == 2 and "MMDIT_PROCESS=0" in job[0] and "MMDIT_PROCESS=1" in job[1]


def test_a_process_alone_is_told_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDIT_DISTRIBUTED", "auto")
    monkeypatch.setenv("MMDIT_PROCESSES", "2")
    lab.finish(lab.job({"a": [{}]}))
    (only,) = lab.notes("start")
    assert set(only["seen"]) == {"MMDIT_JOB"}
    assert only["seen"]["MMDIT_JOB"] == f"local:{lab.supervisors[0]}"


def test_preempted_runs_start_again_without_limit(lab: Lab) -> None:
    lab.finish(lab.job({"a": [{"code": 75}] * 5 + [{"code": 0}]}, retries=0))
    assert lab.ends("a") == [(75, "again")] * 5 + [(0, "done")]
    assert lab.states() == {"a": "done"}


@pytest.mark.parametrize("code, noted", [(160, 160), (-signal.SIGKILL, 137), (-signal.SIGABRT, 134)])
def test_infrastructure_has_a_budget(lab: Lab, code: int, noted: int) -> None:
    """Failures are started again, after a while, so often and no more; the next run has its turn meanwhile."""
    lab.finish(lab.job({"a": [{"code": code}], "b": [{}]}, retries=1), Local(at_once=1))
    assert lab.ends("a") == [(noted, "again"), (noted, "spent")]
    assert lab.states() == {"a": "spent", "b": "done"}
    first, second = lab.notes("start", "a")
    assert second["at"] - first["at"] > 0.9
    assert first["at"] < lab.notes("start", "b")[0]["at"] < second["at"]


@pytest.mark.parametrize("code", [1, 2, 3])
def test_what_would_only_fail_again_is_left(lab: Lab, code: int) -> None:
    lab.finish(lab.job({"a": [{"code": code}], "b": [{}]}))
    assert lab.ends("a") == [(code, "stop")] and len(lab.notes("start", "a")) == 1
    assert lab.states() == {"a": "stop", "b": "done"}


@two_cores
def test_the_code_of_one_that_knows_counts(lab: Lab) -> None:
    """Of several processes: 3 from one that saw the loss, before 137 from one that was killed for it."""
    machine = Machine(processes_per_node=2, cpus_per_process=1)
    lab.finish(lab.job({"a": [{"codes": [-signal.SIGKILL, 3]}]}, machine))
    assert lab.ends("a") == [(3, "stop")]


@two_cores
def test_where_one_process_is_killed_the_others_are_ended(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for it for ever; all start again, with another coordinator. (Patience shortened to a second.)"""
    program = lab.folder / "python"
    lines = "import sys; from pathlib import Path; from launch.executors import supervise as s; "
    lines += "s.STRAGGLER_SECONDS = 1.0; sys.exit(s.Supervisor(Path(sys.argv[-1])).work())"
    program.write_text(f"#!/bin/bash\nexec '{sys.executable}' -c '{lines}' \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setattr(local, "sys", SimpleNamespace(executable=str(program)))
    machine = Machine(processes_per_node=2, cpus_per_process=1)
    engine = lab.submit(lab.job({"a": [{**LONG, "term": "ignored", "child": True}, {}]}, machine))
    started = lab.until(lambda: (found := lab.notes("start")) and len(found) == 2 and found)
    (victim,) = [item for item in started if item["number"] == 1]
    (other,) = [item for item in started if item["number"] == 0]
    os.kill(victim["pid"], signal.SIGKILL)
    killed = time.monotonic()
    lab.until(lambda: not is_alive(other["pid"]))
    assert time.monotonic() - killed > 0.9  # it might have ended by itself
    lab.until(lambda: not is_alive(other["child"]))  # with the children of what had to be killed
    os.kill(victim["child"], signal.SIGKILL)
    lab.until(lambda: not engine.live())
    assert lab.ends("a") == [(137, "again"), (0, "done")]
    coordinators = {item["seen"]["MMDIT_COORDINATOR"] for item in lab.notes("start")}
    assert len(coordinators) == 2


@two_cores
def test_cancel_ends_only_the_chosen(lab: Lab) -> None:
    """One that runs is told, one that waits never starts, and the others don't notice."""
    plans = {"a": [LONG], "b": [{"seconds": 2.0}], "c": [{}], "d": [{}], "e": [LONG]}
    engine = lab.submit(lab.job(plans), Local(at_once=2))
    lab.until(lambda: len(lab.notes("start")) == 2)
    live = engine.live()
    assert {run: item.state for run, item in live.items()} == {
        **dict.fromkeys("ab", "running"),
        **dict.fromkeys("cde", "queued"),
    }
    assert str(lab.notes("start", "a")[0]["pid"]) in live["a"].where
    # Two who cancel at the same moment, and names that are nobody's.
    assert engine.cancel(["a", "nobody"]) == ["a"]
    assert sorted(LocalEngine(lab.study, Local()).cancel(["c", "e"])) == ["c", "e"]
    lab.until(lambda: not engine.live())
    assert lab.states() == {"a": "cancelled", "b": "done", "c": "cancelled", "d": "done", "e": "cancelled"}
    assert [item["run"] for item in lab.notes("term")] == ["a"]
    assert {item["run"] for item in lab.notes("start")} == {"a", "b", "d"}
    assert lab.ends("a")[0][0] == 75 and len(lab.ends("a")) == 1
    assert engine.cancel(["a", "b"]) == []


def test_cancel_kills_after_its_grace(lab: Lab) -> None:
    """What does not end when it is told, with its children."""
    engine = lab.submit(lab.job({"a": [{**LONG, "term": "ignored", "child": True}]}), Local(grace_seconds=1))
    (started,) = lab.until(lambda: lab.notes("start"))
    engine.cancel(["a"])
    lab.until(lambda: not engine.live())
    ended = time.monotonic()
    (term,) = lab.notes("term")
    assert 0.9 < ended - term["at"] < 20
    assert lab.states() == {"a": "cancelled"} and lab.ends("a") == [(137, "cancelled")]
    assert failures(attempts(read_events(lab.study / "a"))) == 0
    lab.until(lambda: not is_alive(started["pid"]) and not is_alive(started["child"]))
    assert len(lab.notes("start")) == 1


@two_cores
def test_sigterm_to_the_supervisor_ends_all(lab: Lab) -> None:
    """As where the machine is shut down: runs save, none starts."""
    engine = lab.submit(lab.job({"a": [LONG], "b": [LONG], "c": [LONG]}), Local(at_once=2))
    lab.until(lambda: len(lab.notes("start")) == 2)
    os.kill(lab.supervisors[0], signal.SIGTERM)
    lab.until(lambda: not is_alive(lab.supervisors[0]))
    assert sorted(item["run"] for item in lab.notes("term")) == ["a", "b"]
    assert lab.states() == dict.fromkeys("abc", "cancelled") and not engine.live()
    assert not any(is_alive(item["pid"]) for item in lab.notes("start"))


def test_a_killed_supervisor_has_nothing_in_its_hands(lab: Lab) -> None:
    """Whatever its file says; the run goes on, held by its own lock, and nobody would start it again."""
    engine = lab.submit(lab.job({"a": [LONG], "b": [LONG]}, Machine()), Local())
    lab.until(lambda: lab.notes("start"))
    assert set(engine.live()) == {"a", "b"}
    os.kill(lab.supervisors[0], signal.SIGKILL)
    lab.until(lambda: not engine.live())
    assert lab.states() == {"a": "running", "b": "queued"}
    assert engine.cancel(["a", "b"]) == []
    time.sleep(0.3)
    (started,) = lab.notes("start")
    assert is_alive(started["pid"])
    os.kill(started["pid"], signal.SIGKILL)


def test_a_supervisor_that_has_only_begun_is_known(lab: Lab) -> None:
    """It holds its file before it has said a word: whoever submits then must not start its runs, too."""
    (lab.study / "jobs").mkdir()
    spec = lab.study / "jobs" / "local-x-1.json"
    spec.write_text(json.dumps({"runs": ["a", "b"]}))
    handle = local.hold(spec)
    try:
        live = LocalEngine(lab.study, Local()).live()
    finally:
        os.close(handle)
    assert {run: item.state for run, item in live.items()} == {"a": "queued", "b": "queued"}
    assert not LocalEngine(lab.study, Local()).live()


def test_a_command_that_is_not_there(lab: Lab) -> None:
    """It ends that run, not the supervisor."""
    job = lab.job({"a": [{}]})
    lab.finish(Job("job", "study", ("a", "b"), ("/no/such/program",), job.folder, machine=job.machine))
    assert lab.states() == {"a": "stop", "b": "stop"}
    assert "/no/such/program" in lab.logs()


def test_strange_names_are_words(lab: Lab) -> None:
    """No shell sees them."""
    run = 'it\'s $(touch pwned) `touch pwned` "x"; touch pwned #\n'
    lab.finish(lab.job({run: [{}]}))
    assert [item["run"] for item in lab.notes("start")] == [run]
    assert lab.states() == {run: "done"} and not list(lab.folder.rglob("pwned"))


@pytest.fixture
def four_gpus(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nvidia-smi lists them."""
    (lab.folder / "bin").mkdir()
    lines = "".join(f"GPU {i}: NVIDIA H100 (UUID: GPU-{i})\n  MIG 1g.10gb Device 0\n" for i in range(4))
    (lab.folder / "gpus").write_text("".join(line for line in lines.splitlines(keepends=True) if "MIG" not in line))
    program = lab.folder / "bin" / "nvidia-smi"
    program.write_text(f'#!/bin/bash\n[ "$*" = --list-gpus ] && cat {lab.folder}/gpus\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def gpus_of(item: dict[str, Any]) -> list[str]:
    return item["seen"]["CUDA_VISIBLE_DEVICES"].split(",")


@two_cores
@pytest.mark.usefixtures("four_gpus")
def test_each_run_has_gpus_of_its_own(lab: Lab) -> None:
    """And another that was submitted apart from them has what they leave."""
    machine = Machine(parse("h100:1x1"), cpus_per_process=1)
    pair = Machine(parse("h100:1x2"), cpus_per_process=1)
    first = lab.submit(
        lab.job({"a": [{"seconds": 4.0}], "b": [{"seconds": 4.0}], "c": [{}]}, machine), Local(at_once=2)
    )
    lab.until(lambda: len(lab.notes("start")) == 2)
    second = lab.submit(lab.job({"d": [{"seconds": 0.5}], "e": [{}]}, pair), Local(at_once=2))
    lab.until(lambda: not first.live() and not second.live())
    spans: dict[str, list[tuple[float, float]]] = {}
    for item in lab.notes("start"):
        (end,) = lab.notes("end", item["run"])
        assert len(gpus_of(item)) == (2 if item["run"] in "de" else 1)
        for gpu in gpus_of(item):
            spans.setdefault(gpu, []).append((item["at"], end["at"]))
    assert set(spans) <= set("0123")
    for times in map(sorted, spans.values()):
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(times))
    assert lab.notes("start", "d")[0]["at"] < lab.notes("end", "a")[0]["at"]  # it need not wait for others


@two_cores
@pytest.mark.usefixtures("four_gpus")
def test_processes_share_the_gpus_of_their_run(lab: Lab) -> None:
    """By their numbers among those that the run has."""
    machine = Machine(parse("h100:1x4"), processes_per_node=2, cpus_per_process=1)
    lab.finish(lab.job({"a": [{}]}, machine))
    seen = {item["number"]: item["seen"] for item in lab.notes("start")}
    assert {number: item["JAX_LOCAL_DEVICE_IDS"] for number, item in seen.items()} == {0: "0,1", 1: "2,3"}
    assert all(item["CUDA_VISIBLE_DEVICES"] == "0,1,2,3" for item in seen.values())


@pytest.mark.usefixtures("four_gpus")
def test_gpus_of_a_killed_supervisor_stay_with_its_runs(lab: Lab) -> None:
    """They are in use."""
    machine = Machine(parse("h100:1x4"), cpus_per_process=1)
    lab.submit(lab.job({"a": [LONG]}, machine))
    (started,) = lab.until(lambda: lab.notes("start"))
    os.kill(lab.supervisors[0], signal.SIGKILL)
    engine = lab.submit(lab.job({"b": [{}]}, machine))
    time.sleep(0.5)
    assert not lab.notes("start", "b") and engine.live()["b"].state == "queued"
    os.kill(started["pid"], signal.SIGKILL)
    lab.until(lambda: not engine.live())
    assert lab.states()["b"] == "done"


@pytest.mark.usefixtures("four_gpus")
def test_gpus_that_the_user_chose(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_gpus() == ["0", "1", "2", "3"]
    for told, expected in (
        ("", []),
        ("-1", []),
        ("2,3", ["2", "3"]),
        ("1,-1,2", ["1"]),
        ("GPU-ab, 3", ["GPU-ab", "3"]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
        assert host_gpus() == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    lab.finish(lab.job({"a": [{}]}, Machine(parse("h100:1x2"), cpus_per_process=1)))
    assert gpus_of(lab.notes("start")[0]) == ["3", "1"]


@pytest.mark.parametrize(
    "field, machine, options",
    [
        ("nodes", {"nodes": 2}, {}),
        ("topology", {"target": parse("v5e:2x2")}, {}),
        ("topology", {"target": parse("h100:1x5")}, {}),
        ("cpus", {"cpus_per_process": 100_000}, {}),
        ("cpus", {"cpus_per_process": 2}, {"cores": 1}),
        ("cpus", {"cpus_per_process": 100_000}, {"cores": 100_000}),
        ("memory", {"memory_gib": 3.0}, {"memory_gib": 2.5}),
        ("at_once", {}, {"at_once": 0}),
        ("cores", {}, {"cores": -1}),
        ("memory_gib", {}, {"memory_gib": float("nan")}),
        ("grace", {}, {"grace_seconds": -1}),
    ],
)
@pytest.mark.usefixtures("four_gpus")
def test_what_would_never_start_is_refused(lab: Lab, field: str, machine: Any, options: Any) -> None:
    with pytest.raises(UserError, match=f"^{field}=") as error:
        lab.submit(lab.job({"a": [{}]}, Machine(**machine)), Local(**options))
    assert "\n" not in str(error.value)
    assert not (lab.study / "jobs").exists()
