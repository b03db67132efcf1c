"""Training and sampling of the paper's sizes on this machine's GPU, each beside its floor and its goal.

    python -m benchmarks.device                    under nine minutes; writes benchmarks/out/device.json and device.md
    python -m benchmarks.device --only ceilings 'training depth 24*'
    python -m benchmarks.device --tiny             the same ways in tiny shapes, without a GPU: does it run at all?

First the ceilings: a copy in the device's memory, and a product of 8192 x 8192 matrices in bfloat16. Then drawing
latents (1024 pixels, 50 steps, guidance) and training steps (the largest batch that fits), the most important first. A
measurement is a process of its own, so that one that runs out of memory, dies or hangs costs a row and no more; what
there was no time for is told. Needs jax, flax, optax and numpy. Exit code 0 when the table was made: goals
that were missed are marked in it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fnmatch
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.on_device.jobs import Job, jobs
from benchmarks.on_device.rows import rates, row, table
from mmdit_jax.errors import EXIT_BAD_INPUT
from mmdit_jax.host import GPU_SHARE_VARIABLE, tell_gpu_share

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out"
COMMAND = (sys.executable, "-m", "benchmarks.on_device.job")
LIBRARIES = 1e9
"""Bytes of a GPU that a process takes beside what JAX has: CUDA's context, kernels."""


def main(argv: list[str] | None = None) -> int:
    """Measure, write and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.5, help="for all of it (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measurements by name, * for anything")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: benchmarks/out")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on whatever there is")
    args = parser.parse_args(argv)
    every = jobs(tiny=args.tiny)
    chosen = [job for job in every if args.only is None or any(fnmatch.fnmatch(job.name, one) for one in args.only)]
    if not args.minutes > 0:
        return _bad(f"minutes={args.minutes:g}: expected more than 0")
    if not chosen:
        return _bad(f"only={args.only}: no such measurement; has {', '.join(repr(job.name) for job in every)}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _bad(f"out={str(args.out)!r}: {error.strerror}")
    return _measure(chosen, args, time.monotonic() + 60 * args.minutes)


def _measure(chosen: list[Job], args: argparse.Namespace, deadline: float) -> int:
    report: dict[str, Any] = {
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "changed": bool(_output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")),
        "driver": _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "device": None,
        "rates": None,
        "rows": [],
        "answers": [],
    }
    for job in chosen:
        left = deadline - time.monotonic()
        began = time.monotonic()
        if left < job.least_seconds:
            answer = {"error": f"not measured: {max(left, 0):.0f} s of {args.minutes:g} minutes were left"}
        else:
            print(f"{job.name} …", file=sys.stderr, flush=True)
            seconds = min(left, job.most_seconds)
            answer = ask(job.message(report["rates"], seconds), seconds, environment(job, report["device"]))
        if "no_gpu" in answer:
            return _bad(answer["no_gpu"])
        report["answers"].append(
            {"job": job.name, "shape": job.shape, "wall_seconds": time.monotonic() - began, "answer": answer}
        )
        if job.kind == "ceilings" and "error" not in answer:
            report |= {"device": answer["device"], "rates": rates(answer)}
        else:
            report["rows"].append(row(job, answer, report["rates"], report["device"]))
        _write(report, args.out)
    print("\n".join(told(report)))
    return 0


def environment(job: Job, device: dict[str, Any] | None) -> dict[str, str]:
    """Of a measurement's process: programs compiled once are kept, nearly all of the device's memory is JAX's.

    Where the goal is of memory, the process gets no more than that: what runs in it then is proven to fit.

    Args:
      device: as the ceilings describe it, if they were measured.
    """
    own = {
        "JAX_COMPILATION_CACHE_DIR": str(OUT / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # XLA recomputes of its own where memory is nearly full: what fits so would be another, slower program.
        "JAX_COMPILER_ENABLE_REMAT_PASS": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    variables = {**own, **os.environ}
    tell_gpu_share(variables)
    if "bytes" in job.goals and device is not None and device["memory_bytes"] is not None:
        whole = device["memory_bytes"] / float(variables[GPU_SHARE_VARIABLE])
        variables[GPU_SHARE_VARIABLE] = f"{min(1.0, (job.goals['bytes'] - LIBRARIES) / whole):.4f}"
    return variables


def ask(
    message: dict[str, Any], seconds: float, variables: dict[str, str], command: tuple[str, ...] = COMMAND
) -> dict[str, Any]:
    """The answer of a process of its own, which is ended after so many seconds; {"error": line} if it gives none."""
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, said = child.communicate(json.dumps(message), timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"ended after {seconds:.0f} s without an answer"}
    finally:
        _end(child)
    if child.returncode == 0:
        try:
            answer = json.loads(out)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return answer
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "no word on stderr")
    how = f"exit code {child.returncode}"
    if child.returncode < 0:
        how = f"signal {signal.Signals(-child.returncode).name}"
    return {"error": f"ended by {how}: {last.strip()[:300]}", "stderr": said[-4000:]}


def _end(child: subprocess.Popen[str]) -> None:
    """The process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def told(report: dict[str, Any]) -> list[str]:
    """The report as Markdown."""
    device, found = report["device"], report["rates"]
    name = "device not known" if device is None else device["name"]
    versions = "" if device is None else ", ".join(f"{key} {value}" for key, value in device["versions"].items())
    commit = "commit not known" if report["commit"] is None else f"commit {report['commit'][:7]}"
    lines = [f"{name}, {commit}{' and changes' if report['changed'] else ''}, {report['began']}", "", versions, ""]
    if found is None:
        lines += ["Ceilings: not measured.", ""]
    else:
        copy, product = found["bytes_per_second"], found["flops_per_second"]
        lines += [f"Ceilings: a copy {copy / 1e12:.3g} TB/s, a product in bfloat16 {product / 1e12:.4g} TFLOP/s.", ""]
    return lines + table(report["rows"])


def _write(report: dict[str, Any], out: Path) -> None:
    """After each measurement, so that a call that is cut short has left something."""
    (out / "device.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "device.md").write_text("\n".join(told(report)) + "\n")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _bad(line: str) -> int:
    print(line, file=sys.stderr)
    return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
