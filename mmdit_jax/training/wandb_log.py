"""Weights & Biases: online where the user is logged in, else offline; its absence or failure never stops a run."""

from __future__ import annotations

import importlib
import logging
import netrc
import os
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


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


class WandbLog:
    """One wandb run, resumed under the run's id."""

    def __init__(self, run_dir: Path, project: str, run_id: str, name: str, config: dict[str, Any]) -> None:
        self._run: Any = None
        mode = _mode()
        if mode == "disabled":
            return
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
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
            )
        except ImportError:
            log.info("wandb is not installed: metrics go to events.jsonl only")
        except Exception as error:
            log.warning("wandb could not start (%s): metrics go to events.jsonl only", error)

    def write(self, step: int, **fields: float) -> None:
        if self._run is not None:
            self._run.log(fields, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
