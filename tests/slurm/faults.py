"""What is done to runs on a real Slurm, and what became of them: one function a fault, each with a run of its own.

python tests/slurm/faults.py FOLDER [--out docs/results/faults.md]     all of them at once, and the table
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cluster import Cluster, missing
from study_of_faults import EVERY, FAULT_STEP, STEPS, study

from launch.attempts import attempts
from launch.cli import main as command_line
from mmdit_jax.training.events import read_events
from scaling.goodput import goodput

TWO = ("--nodes", "2")
AT_ONCE = 6
PATIENCE = 400.0
"""Seconds for anything to happen: all runs share two cores."""
HERE = Path(__file__).resolve().parent


@dataclass
class Outcome:
    """What became of a run."""

    run: str
    attempts: int
    steps_lost: int
    ends: list[str]
    """How each attempt ended: an event's word, or its exit code."""
    result: dict[str, Any] | None
    notes: str = ""


class Lab:
    """A cluster, a study's folder on it, and what the scenarios need to do to both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cluster = folder, Cluster(folder / "slurm")
        # The name of the root is to be quoted, too.
        self.root = folder / "it's a root $(touch pwned)"
        self.study = self.root / "study.py"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MMDIT"))},
            **self.cluster.environment,
            "JAX_PLATFORMS": "cpu",
            "WANDB_MODE": "disabled",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "MMDIT_HEARTBEAT_SECONDS": "15",
            "FAULTS_FOLDER": str(folder),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        self.run_ids = {run.name: run.run_id for run in study().runs}
        self._speaking = threading.Lock()

    def start(self) -> None:
        self.root.mkdir(parents=True)
        shutil.copy(HERE / "study_of_faults.py", self.study)
        self.cluster.start()
        os.environ.update(self.environment)

    def mmdit(self, *words: str) -> str:
        """What a command says; in this process, which saves the time of starting one."""
        out = io.StringIO()
        with self._speaking, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = command_line([*words, "--root", str(self.root)])
        assert code == 0, out.getvalue()
        return out.getvalue()

    def submit(self, name: str, *options: str) -> str:
        """Give a run to Slurm; what the command said."""
        return self.mmdit(*self.words(name), *options)

    def words(self, name: str) -> list[str]:
        """The command that submits a run, but for the root."""
        given = ["--cpus", "1", "--grace", "10", "--hang-seconds", "15", "--quiet"]
        return ["study", "submit", str(self.study), "--executor", "slurm", "--only", name, *given]

    def run_dir(self, name: str) -> Path:
        return self.root / "faults" / self.run_ids[name]

    def events(self, name: str) -> list[dict[str, Any]]:
        return list(read_events(self.run_dir(name)))

    def saved(self, name: str) -> int:
        """The step of the newest checkpoint that is complete."""
        found = self.run_dir(name) / "checkpoints"
        return max((int(path.parent.name) for path in found.glob("*/checksums.0.json")), default=0)

    def until(self, reached: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := reached()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
            time.sleep(0.05)
        return found

    def ranks(self, name: str) -> dict[int, int]:
        """The run's processes, by their number."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                if b"launch.cli" not in words or self.run_ids[name].encode() not in words or b"srun" in words[0]:
                    continue
                told = dict(
                    item.split(b"=", 1) for item in (path / "environ").read_bytes().split(b"\0") if b"=" in item
                )
                if b"SLURM_PROCID" in told:
                    found[int(told[b"SLURM_PROCID"])] = int(path.name)
        return found

    def in_the_middle(self, name: str, after: int = 2 * EVERY) -> dict[int, int]:
        """Wait until the run has saved step ``after`` and goes on; its processes."""
        self.until(lambda: self.saved(name) >= after, f"{name}: step {after}")
        time.sleep(3 * 0.1)
        return self.ranks(name)

    def end(self, name: str, attempts: int | None = None) -> Outcome:
        """Wait until the run is done, after so many attempts; None: more than one, or nothing was survived."""
        self.until(lambda: (self.run_dir(name) / "result.json").exists(), f"{name}: result")
        self.until(lambda: self.events(name)[-1]["event"] == "ended", f"{name}: end of the job")
        found = self.outcome(name)
        assert found.attempts == attempts if attempts else found.attempts > 1, found
        return found

    def outcome(self, name: str, notes: str = "") -> Outcome:
        events = self.events(name)
        spent = goodput(events)
        assert spent is not None
        history = attempts(events)
        ends = [item.end if item.code in (None, 0) or item.end else f"exit {item.code}" for item in history]
        path = self.run_dir(name) / "result.json"
        result = json.loads(path.read_text()) if path.exists() else None
        return Outcome(name, len(history), spent.steps_lost, [str(end) for end in ends], result, notes)


def untouched(lab: Lab) -> Outcome:
    """Nothing."""
    lab.submit("untouched", *TWO)
    return lab.end("untouched", attempts=1)


def kill_one(lab: Lab) -> Outcome:
    """kill -9 of process 1"""
    lab.submit("kill one", *TWO)
    os.kill(lab.in_the_middle("kill one")[1], signal.SIGKILL)
    return lab.end("kill one")


def kill_all(lab: Lab) -> Outcome:
    """kill -9 of all processes (quotes and $(…) in the names of run, root and study file)"""
    name = next(name for name in lab.run_ids if name.startswith("kill all"))
    lab.submit(name, *TWO)
    for pid in lab.in_the_middle(name).values():
        os.kill(pid, signal.SIGKILL)
    found = lab.end(name)
    assert not list(lab.folder.rglob("pwned")), "something was executed"
    return found


def stop_one(lab: Lab) -> Outcome:
    """SIGSTOP of process 1"""
    lab.submit("stop one", *TWO)
    os.kill(lab.in_the_middle("stop one")[1], signal.SIGSTOP)
    return lab.end("stop one")


def hang(lab: Lab) -> Outcome:
    """process 1 hangs in a step"""
    lab.submit("hang", *TWO)
    found = lab.end("hang")
    stacks = [path.read_text() for path in (lab.run_dir("hang") / "stacks").glob("*.txt")]
    assert any("_for_ever" in text for text in stacks), "no stacks"
    return found


def slurmd_dies(lab: Lab) -> Outcome:
    """kill -9 of a node's slurmd"""
    lab.submit("slurmd dies", *TWO, "--partition", "apart", "--hang-seconds", "60")
    lab.in_the_middle("slurmd dies")
    waits = lab.folder / "slurmd dies waits"  # or the run would be over before Slurm misses the node
    waits.touch()
    lab.cluster.kill_node("n3")
    lab.until(lambda: _down(lab), "down")
    waits.unlink()
    lab.cluster.start_node("n3")
    return lab.end("slurmd dies")


def _down(lab: Lab) -> bool:
    return "down" in lab.cluster.ask("sinfo", "--noheader", "--nodes=n3", "--format=%T")


def preempted(lab: Lab) -> Outcome:
    """a job of a higher partition takes its nodes"""
    lab.submit("preempted", *TWO, "--partition", "lower")
    lab.in_the_middle("preempted")
    nodes = ("--partition=high", "--nodelist=n4,n5", "--nodes=2", "--exclusive")
    lab.cluster.ask("sbatch", *nodes, "--output=/dev/null", "--wrap=sleep 1")
    return lab.end("preempted")


def time_limit(lab: Lab) -> Outcome:
    """the limit of an attempt"""
    lab.submit("time limit", "--time", "1", "--grace", "20")
    return lab.end("time limit")


def _stopped(lab: Lab, name: str, *options: str, after: int = 2 * EVERY) -> None:
    """The run cancelled by its user, and so saved, and not requeued."""
    lab.submit(name, *options)
    lab.in_the_middle(name, after)
    said = lab.mmdit("study", "cancel", str(lab.study), "--only", name)
    assert lab.run_ids[name] in said.splitlines(), said
    lab.until(lambda: not lab.ranks(name), "end of the processes")
    lab.until(lambda: lab.events(name)[-1]["event"] == "ended", "end of the attempt")


def flipped_bit(lab: Lab) -> Outcome:
    """a bit of the newest checkpoint is flipped"""
    _stopped(lab, "flipped bit")
    newest = lab.run_dir("flipped bit") / "checkpoints" / str(lab.saved("flipped bit"))
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    lab.submit("flipped bit")
    found = lab.end("flipped bit")
    assert list((lab.run_dir("flipped bit") / "damaged").iterdir())
    return found


def half_written(lab: Lab) -> Outcome:
    """the newest checkpoint is half-written"""
    _stopped(lab, "half written")
    newest = lab.run_dir("half written") / "checkpoints" / str(lab.saved("half written"))
    for number, path in enumerate(sorted(path for path in newest.rglob("*") if path.is_file())):
        if number % 2:
            path.unlink()
    lab.submit("half written")
    return lab.end("half written")


def disk_full(lab: Lab) -> Outcome:
    """no space left for a checkpoint"""
    lab.submit("disk full", "--setup", "ulimit -f 200")
    lab.until(lambda: any(event["event"] == "ended" for event in lab.events("disk full")), "end of the attempt")
    told = [event for event in lab.events("disk full") if event["event"] == "refused"]
    assert told and "disk full" in told[0]["message"], lab.events("disk full")
    lab.until(lambda: not lab.ranks("disk full"), "end of the processes")
    lab.submit("disk full")
    return lab.end("disk full")


def not_finite(lab: Lab) -> Outcome:
    """a loss that is not finite"""
    lab.submit("not finite")
    lab.until(lambda: any(event["event"] == "ended" for event in lab.events("not finite")), "end of the attempt")
    said = lab.submit("not finite")
    assert f"diverged at step {FAULT_STEP}" in said, said
    found = lab.outcome("not finite")
    assert found.result is None and found.attempts == 1, found
    return found


def rewound(lab: Lab) -> Outcome:
    """likewise, with --rewinds 1"""
    lab.submit("not finite, rewound", "--rewinds", "1")
    found = lab.end("not finite, rewound", attempts=1)
    assert found.result is not None and found.result["rewinds"] == 1
    return found


def other_counts(lab: Lab) -> Outcome:
    """other numbers of processes: 2, then 1, then 4"""
    _stopped(lab, "2, 1, 4 processes", *TWO)
    _stopped(lab, "2, 1, 4 processes", after=4 * EVERY)
    lab.submit("2, 1, 4 processes", *TWO, "--processes", "2")
    found = lab.end("2, 1, 4 processes")
    processes = [event["processes"] for event in lab.events("2, 1, 4 processes") if event["event"] == "attempt"]
    assert processes == [2, 1, 4], processes
    return found


def two_submitters(lab: Lab) -> Outcome:
    """two who submit at once (1 process)"""
    name = "untouched, 1 process"
    command = [sys.executable, "-m", "launch.cli", *lab.words(name), "--root", str(lab.root)]
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, env=lab.environment, cwd=lab.folder, **pipe) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert sum("already, slurm:" in text for text in said) == 1, said
    return lab.end(name, attempts=1)


def array(lab: Lab) -> Outcome:
    """an array of two runs with a GPU each, the first killed by kill -9"""
    names = ("array, first", "array, second")
    options = ("--only", names[1], "--array", "--topology", "h100:1x1")
    lab.submit(names[0], *options)
    said = lab.submit(names[0], *options)
    assert said.count("already, slurm:") == 2 and "_0 " in said and "_1 " in said, said
    lab.until(lambda: lab.saved(names[0]) >= EVERY, "a checkpoint")
    os.kill(lab.ranks(names[0])[0], signal.SIGKILL)
    other = lab.end(names[1], attempts=1)
    found = lab.end(names[0])
    assert same(found, other) == "same bits"
    return found


SCENARIOS: dict[str, Callable[[Lab], Outcome]] = {
    scenario.__name__: scenario
    for scenario in (
        untouched,
        time_limit,
        slurmd_dies,
        other_counts,
        stop_one,
        kill_one,
        hang,
        preempted,
        kill_all,
        flipped_bit,
        half_written,
        disk_full,
        not_finite,
        rewound,
        two_submitters,
        array,
    )
}
"""The longest first."""


def start_all(lab: Lab, pool: ThreadPoolExecutor) -> dict[str, Future[Outcome]]:
    """All scenarios, as many at a time as the pool takes."""
    return {name: pool.submit(scenario, lab) for name, scenario in SCENARIOS.items()}


def reference(name: str) -> str:
    """The scenario that nothing happened in, with as many processes."""
    several = (untouched, kill_one, kill_all, stop_one, hang, slurmd_dies, preempted, other_counts)
    return "untouched" if name in [scenario.__name__ for scenario in several] else "two_submitters"


def same(outcome: Outcome, reference: Outcome) -> str:
    """How the run's end compares with an untouched one of as many processes: ``same bits``, or how its loss differs."""
    if outcome.result is None or reference.result is None:
        return "no result"
    keys = ("val_loss", "val_loss_levels", "curve", "params_sha256", "ema_sha256")
    if all(outcome.result[key] == reference.result[key] for key in keys):
        return "same bits"
    found, expected = outcome.result["val_loss"], reference.result["val_loss"]
    return f"loss differs by {abs(found - expected) / expected:.1e}"


def main() -> int:
    if (why := missing()) is not None:
        print(f"no Slurm here: {why}", file=sys.stderr)
        return 2
    lab = Lab(Path(sys.argv[1]).absolute())
    lab.start()
    began = time.monotonic()
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures = start_all(lab, pool)
            failed = {name: error for name, future in futures.items() if (error := future.exception()) is not None}
            outcomes = {name: future.result() for name, future in futures.items() if name not in failed}
    finally:
        lab.cluster.stop()
    seconds = time.monotonic() - began
    lines = [
        f"By `python tests/slurm/faults.py FOLDER`, {datetime.date.today()}, commit {_commit()}, {seconds:.0f} s on "
        f"{os.cpu_count()} cores ({platform.machine()}), a real Slurm on one host; a run of one or two "
        f"processes, {STEPS} steps, a checkpoint every {EVERY}.",
        "",
        "| what happened | attempts, and how each ended | steps lost | the end |",
        "|---|---|---|---|",
    ]
    for name, outcome in outcomes.items():
        what = SCENARIOS[name].__doc__
        verdict = same(outcome, outcomes[reference(name)]) if outcome.result else "exit 3, not started again"
        lines.append(f"| {what} | {', '.join(outcome.ends)} | {outcome.steps_lost} | {verdict} |")
    text = "\n".join(lines) + "\n"
    print(text)
    for name, error in failed.items():
        print(f"FAILED {name}: {error!r}", file=sys.stderr)
    if failed:
        return 1
    if "--out" in sys.argv:
        Path(sys.argv[sys.argv.index("--out") + 1]).write_text("# Faults\n\n" + text)
    return 0


def _commit() -> str:
    done = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
