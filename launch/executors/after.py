"""After a run's processes have ended: says so in its events, and whether they are to start again.

    python -m launch.executors.after RUN_DIR CODE RETRIES

Exit code 75: start again; 0: no. What supervises an attempt calls it, on the host of process 0, when all processes have
ended and so none writes events any more. Starts in a tenth of a second: it imports no JAX.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch.attempts import after, attempts
from mmdit_jax.copies import LEASE, RESULT, pull
from mmdit_jax.errors import EXIT_OK, EXIT_PREEMPTED
from mmdit_jax.files import write_json
from mmdit_jax.lease import is_leased
from mmdit_jax.locks import LOCK, unheld
from mmdit_jax.remote import remote_of
from mmdit_jax.training.events import EVENTS, EventLog, read_events

CANCELLED = "cancelled.json"
"""In a run directory: its user wants no more of it, until it is submitted again."""


def mark_cancelled(run_dir: Path) -> None:
    """What ends the run from here on is not followed by another attempt."""
    write_json(run_dir / CANCELLED, True)


def unmark_cancelled(run_dir: Path) -> None:
    """It is wanted again."""
    path = run_dir / CANCELLED
    path.unlink(missing_ok=True)
    if (remote := remote_of(path)) is not None:
        remote.delete()


def _cancelled(run_dir: Path) -> bool:
    remote = remote_of(run_dir / CANCELLED)
    return (run_dir / CANCELLED).exists() if remote is None else remote.get() is not None


def last_verdict(run_dir: Path, job: str) -> str | None:
    """What follows the run's last attempt, if that was ``job``'s and has ended."""
    told = [event for event in read_events(run_dir) if event["event"] in ("ended", "attempt")]
    jobs = [event.get("job") for event in told if event["event"] == "attempt"]
    return told[-1].get("verdict") if jobs and jobs[-1] == job else None


def ended(run_dir: Path, code: int, retries: int) -> str:
    """Note the end of an attempt; what follows, as ``attempts.after``, or ``cancelled``."""
    pull(run_dir, only=(EVENTS, RESULT))
    if code == EXIT_PREEMPTED and _in_others_hands(run_dir):  # it waited for another attempt: the events are that one's
        return "cancelled" if _cancelled(run_dir) else "again"
    done = (run_dir / RESULT).exists()
    verdict = after(attempts(read_events(run_dir)), done, code, retries)
    if verdict == "again" and _cancelled(run_dir):
        verdict = "cancelled"
    if run_dir.parent.is_dir():
        run_dir.mkdir(exist_ok=True)  # an attempt may have ended before it came to that: noted, or it would not count
        events = EventLog(run_dir)
        events.write("ended", code=code, verdict=verdict, durable=True)
        events.close()
    elif verdict == "again":  # the root has gone, and with it what bounds the attempts
        verdict = "stop"
    return verdict


def _in_others_hands(run_dir: Path) -> bool:
    remote = remote_of(run_dir / LEASE)
    if remote is not None:
        return is_leased(remote)
    try:
        with unheld(run_dir / LOCK) as free:
            return not free
    except OSError:
        return False


def main(argv: list[str]) -> int:
    """The exit code; one line on stderr says what follows."""
    run_dir, code, retries = Path(argv[0]), int(argv[1]), int(argv[2])
    verdict = ended(run_dir, code, retries)
    what = {
        "done": "done",
        "again": "is started again",
        "cancelled": "was cancelled",
        "stop": "is not started again",
        "spent": f"failed more than {retries} times, is not started again; `study submit --retries N` does",
    }
    print(f"{run_dir.name}: exit code {code}, {what[verdict]}", file=sys.stderr)
    return EXIT_PREEMPTED if verdict == "again" else EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
