"""Weights & Biases: online where the user is logged in, else offline; its absence or failure never stops a run."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import netrc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmdit_jax.processes import joined

log = logging.getLogger(__name__)

_PATIENCE = 20.0
"""Seconds in which a server may take the last points, where the process can't stay for them."""


def _mode() -> str:
    """``WANDB_MODE`` where set; online with a key in the environment or ~/.netrc; else offline."""
    if os.environ.get("WANDB_MODE"):  # wandb itself reads it; empty means unset
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        return "online" if netrc.netrc().authenticators("api.wandb.ai") else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


@functools.cache
def _thread() -> ThreadPoolExecutor:
    """wandb is spoken to from one thread, in order: no step waits for it, and the process ends when it has ended."""
    return ThreadPoolExecutor(1, thread_name_prefix="wandb")


class WandbLog:
    """One wandb run, resumed under the run's id. All methods return at once, but for ``close``."""

    def __init__(self, run_dir: Path, project: str, run_id: str, name: str, config: dict[str, Any]) -> None:
        self._run: Any = None
        mode = _mode()
        self._open = mode != "disabled"
        if self._open:
            _thread().submit(self._start, mode, run_dir, project, run_id, name, config)

    def write(self, step: int, **fields: float) -> None:
        if self._open:
            _thread().submit(self._log, step, fields)

    def close(self) -> None:
        """Nothing is written from here on; what was reaches the disk or the server meanwhile.

        One of several processes waits for it a little: they end at once (``processes.end``), with all their threads.
        """
        if self._open:
            finished = _thread().submit(self._finish)
            self._open = False
            if joined():
                with contextlib.suppress(TimeoutError):
                    finished.result(_PATIENCE)

    def _start(self, mode: str, run_dir: Path, project: str, run_id: str, name: str, config: dict[str, Any]) -> None:
        try:
            wandb = importlib.import_module("wandb")
            self._run = wandb.init(
                project=project,
                id=run_id,
                name=name,
                config=config,
                dir=str(run_dir),
                mode=mode,
                resume="allow" if mode == "online" else None,
                reinit="create_new",  # beside those of other runs that train in this process
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
            )
        except ImportError:
            log.info("wandb is not installed: metrics go to events.jsonl only")
        except Exception as error:
            log.warning("wandb could not start (%s): metrics go to events.jsonl only", error)

    def _log(self, step: int, fields: dict[str, float]) -> None:
        if self._run is None:
            return
        try:
            self._run.log(fields, step=step)
        except Exception as error:
            log.warning("wandb stopped at step %d (%s): metrics go to events.jsonl only", step, error)
            self._run = None

    def _finish(self) -> None:
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            log.warning("wandb could not end its run (%s); events.jsonl has every metric", error)
        self._run = None
