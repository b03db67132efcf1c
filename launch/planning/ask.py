"""Ask the compiler: in a child process, and only once for the same question."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxlib

from launch.planning.child import environment
from launch.planning.measure import measured
from launch.planning.request import Request
from mmdit_jax.errors import UserError
from mmdit_jax.files import write_json

MODULES = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda13"}


class CompilerDied(UserError):
    """The child ended by a signal: on a host too small for a large program, the kernel's."""


def default_memo() -> Path:
    """The folder where answers are kept unless another is named."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmdit-jax" / "plans"


def ask(request: Request, memo: Path | None) -> dict[str, Any]:
    """The plan of a request (``measure.measured``), from the folder ``memo`` where it is known there.

    Raises:
      UserError: the compiler for that platform is not installed, there is no such topology, or the program can't be
        laid out so.
      CompilerDied: its process was killed.
    """
    known = None if memo is None else memo / f"{request.key}.json"
    if known is not None and known.exists():
        try:
            found: dict[str, Any] = json.loads(known.read_text())
            return found | {"memoised": True}
        except ValueError:
            known.unlink()  # cut short
    _require_compiler(request.target.chip.platform)
    plan = measured(request, _child(request))
    if known is not None:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_json(known, plan)
    return plan | {"memoised": False}


def _require_compiler(platform: str) -> None:
    name = MODULES[platform]
    try:
        there = importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        extra = {"tpu": "tpu", "cuda": "cuda13-local"}[platform]
        raise UserError(
            f"topology: no compiler for {platform} here; "
            f"pip install 'jax[{extra}]=={jaxlib.__version__}' "
            "(all of them, in a clone of the repository: pip install -e '.[plan]')"
        )


def _child(request: Request) -> dict[str, Any]:
    command = [sys.executable, "-m", "launch.planning.child"]
    path = os.pathsep.join(item for item in sys.path if item)  # as this process found its modules
    done = subprocess.run(
        command, input=pickle.dumps(request), capture_output=True, env={**environment(), "PYTHONPATH": path}
    )
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    if done.returncode < 0:
        number = -done.returncode
        cause = "out of the host's memory?" if number == signal.SIGKILL else " ".join(lines[-1:])[:200]
        raise CompilerDied(f"the compiler's process was killed (signal {number}): {cause}")
    if done.returncode != 0 or not done.stdout:
        raise RuntimeError(f"{' '.join(command)}: ended with {done.returncode}: " + "\n".join(lines[:12] + lines[-8:]))
    said: dict[str, Any] = json.loads(done.stdout)
    if "error" in said:
        raise UserError(said["error"])
    return said
