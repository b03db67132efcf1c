"""An ``sbatch``, ``squeue`` and ``scancel`` whose queue is a folder, ``FAKE_SLURM``; nothing in it ever runs.

A job is a file ``<number>.json`` with the states of its tasks. ``install`` puts the three on PATH.
"""

import json
import os
import shlex
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "scancel")


def install(folder: Path) -> dict[str, str]:
    """Environment variables under which the three are found, with an empty queue."""
    (folder / "bin").mkdir(parents=True)
    (folder / "queue").mkdir()
    for name in PROGRAMS:
        program = folder / "bin" / name
        program.write_text(f"#!{sys.executable} -SE\n" + Path(__file__).read_text())
        program.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def sbatch(folder: Path, words: list[str]) -> int:
    assert words[0] == "--parsable" and len(words) == 2, words
    if (folder / "sbatch_fails").exists():
        return refuse("sbatch: error: Batch job submission failed: Requested node configuration is not available")
    lines = [line for line in Path(words[1]).read_text().splitlines() if line.startswith("#SBATCH ")]
    options = dict(shlex.split(line)[1].split("=", 1) for line in lines if "=" in line)
    time.sleep(0.3)  # as a busy controller: long enough for another submitter to come in between
    tasks = {"N/A": "PENDING"}
    if "--array" in options:
        first, last = map(int, options["--array"].split("%")[0].split("-"))
        tasks = {str(task): "PENDING" for task in range(first, last + 1)}
    number = 100
    while True:
        try:
            with (folder / "queue" / f"{number}.json").open("x") as file:
                file.write(json.dumps({"name": options["--job-name"], "script": words[1], "tasks": tasks}))
        except FileExistsError:
            number += 1
            continue
        print(f"{number};cluster" if number % 2 else number)
        return 0


def squeue(folder: Path, words: list[str]) -> int:
    assert {"--me", "--noheader", "--array"} <= set(words), words
    if (folder / "squeue_fails").exists():
        return refuse("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    (form,) = [word.removeprefix("--format=") for word in words if word.startswith("--format=")]
    for path in sorted((folder / "queue").glob("*.json")):
        job = json.loads(path.read_text())
        for task, state in job["tasks"].items():
            waits = state == "PENDING"
            told = {"%j": job["name"], "%F": path.stem, "%K": task, "%T": state}
            told |= {"%N": "" if waits else "node[1-2]", "%r": job.get("reason", "Priority" if waits else "None")}
            line = form
            for code, value in told.items():
                line = line.replace(code, value)
            print(line)
    return 0


def scancel(folder: Path, words: list[str]) -> int:
    for word in words:
        if word.startswith("-"):
            continue
        number, _, task = word.partition("_")
        path = folder / "queue" / f"{number}.json"
        job = json.loads(path.read_text())
        del job["tasks"][task or "N/A"]
        path.write_text(json.dumps(job))
    return 0


def refuse(line: str) -> int:
    print(line, file=sys.stderr)
    return 1


def main(name: str, words: list[str]) -> int:
    folder = Path(os.environ["FAKE_SLURM"])
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps([name, *words]) + "\n")
    return {"sbatch": sbatch, "squeue": squeue, "scancel": scancel}[name](folder, words)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[0]).name, sys.argv[1:]))
