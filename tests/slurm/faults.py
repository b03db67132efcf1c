"""The table of what is done to runs on a real Slurm, and what became of them.

python tests/slurm/faults.py FOLDER [--out docs/results/faults.md]     all of them at once, and the table
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cluster import missing
from lab import Lab, same
from scenarios import AT_ONCE, SCENARIOS, reference, start_all
from study_of_faults import EVERY, STEPS

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one: for the cluster, the study and its runs")
    parser.add_argument("--out", type=Path, help="the file of the table")
    args = parser.parse_args()
    if (why := missing()) is not None:
        print(f"no Slurm here: {why}", file=sys.stderr)
        return 2
    lab = Lab(args.folder.absolute())
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
        f"processes, {STEPS} steps, a checkpoint every {EVERY}. Lost: steps that were begun and had to be begun again.",
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
    if args.out is not None:
        args.out.write_text("# Faults\n\n" + text)
    return 0


def _commit() -> str:
    done = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
