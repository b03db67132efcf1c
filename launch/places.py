"""Where a study's things lie, and the two files that say what a run is and that it is done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit_jax.config import Run
from mmdit_jax.copies import RESULT
from mmdit_jax.errors import UserError

CONFIG = "config.json"
STACKS = "stacks"
"""Folder of a run directory with what its watchdog wrote."""


@dataclass(frozen=True)
class Places:
    """Where things lie: ``root/<study>/<run_id>/`` and the data sets."""

    root: Path
    study: str
    data: Path
    vae: str | None = None
    """Autoencoder of an encoded data set, ``none`` to draw nothing; None: where it lay when the set was made."""

    @property
    def study_dir(self) -> Path:
        return self.root / self.study

    def run_dir(self, run: Run) -> Path:
        return self.study_dir / run.run_id


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """The run's result, or none where it is not done."""
    path = run_dir / RESULT
    if not path.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"result={path}: damaged; delete it, and the run is evaluated again") from error
    return result


def make_folder(folder: Path, option: str = "root") -> None:
    """Create ``folder``, or say in one line why it can't be written, and by which option to name another."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another process of this run may have been first
    except OSError as error:
        raise UserError(
            f"{option}={folder}: cannot be written ({error.strerror}); choose another --{option}"
        ) from error
