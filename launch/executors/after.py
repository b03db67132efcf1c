"""After a run's processes have ended: says so in its events, and whether they are to start again.

    python -m launch.executors.after RUN_DIR CODE RETRIES

Exit code 75: start again; 0: no. What supervises an attempt calls it, on the host of process 0, when all processes have
ended and so none writes events any more. Starts in a tenth of a second: it imports no JAX.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch.attempts import after, attempts
from mmdit_jax.errors import EXIT_OK, EXIT_PREEMPTED
from mmdit_jax.training.events import EventLog, read_events


def ended(run_dir: Path, code: int, retries: int) -> str:
    """Note the end of an attempt; ``done``, ``again``, ``stop`` or ``spent``, as ``attempts.after``."""
    done = (run_dir / "result.json").exists()
    verdict = after(attempts(read_events(run_dir)), done, code, retries)
    if run_dir.is_dir():
        events = EventLog(run_dir)
        events.write("ended", code=code, verdict=verdict, durable=True)
        events.close()
    return verdict


def main(argv: list[str]) -> int:
    """The exit code; one line on stderr says what follows."""
    run_dir, code, retries = Path(argv[0]), int(argv[1]), int(argv[2])
    verdict = ended(run_dir, code, retries)
    what = {
        "done": "done",
        "again": "is started again",
        "stop": "is not started again",
        "spent": f"failed more than {retries} times, is not started again; `study submit --retries N` does",
    }
    print(f"{run_dir.name}: exit code {code}, {what[verdict]}", file=sys.stderr)
    return EXIT_PREEMPTED if verdict == "again" else EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
