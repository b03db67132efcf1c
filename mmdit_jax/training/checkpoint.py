"""Checkpoints of the training state: Orbax, asynchronous, atomic, the newest few kept."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from mmdit_jax.errors import UserError

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Checkpoints:
    """The checkpoints of one run directory, in ``folder``. Steps are named by the number of updates made."""

    def __init__(self, run_dir: Path, keep: int = 2, read_only: bool = False, folder: str = FOLDER) -> None:
        self.folder = run_dir.resolve() / folder
        if read_only and not self.folder.is_dir():
            raise UserError(f"checkpoint={self.folder}: not there; train the run first")
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=not read_only,
        )

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, oldest first."""
        return sorted(item.step for item in self._checkpointer.checkpoints)

    def save(self, step: int, state: Any) -> None:
        """Copy ``state`` to the host and write it in the background; waits for an earlier save first."""
        if step in self.steps():
            return
        try:
            self._checkpointer.save_async(step, state, force=True)
        except Exception as error:
            raise _told(error, self.folder) from error

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        try:
            self._checkpointer.wait()
        except Exception as error:
            raise _told(error, self.folder) from error

    def restore(self, abstract: Any, *, step: int | None = None, upto: int | None = None) -> tuple[int, Any] | None:
        """(step, state) of the newest readable checkpoint, or of ``step``; none where nothing was ever saved.

        ``abstract`` is a tree of ``jax.ShapeDtypeStruct`` with shardings. A newest checkpoint that is damaged is
        passed over for the one before, which is said in the log: training from there gives the same bits again.
        With ``upto``, checkpoints of later steps are left aside.

        Raises:
            UserError: every candidate is damaged or shaped for another model, or ``step`` is not there.
        """
        steps = [found for found in self.steps() if upto is None or found <= upto]
        if step is not None:
            if step not in steps:
                raise UserError(
                    f"checkpoint={self.folder}: no step {step} (has: {steps or 'none'}); train the run first"
                )
            steps = [step]
        for candidate in reversed(steps):
            try:
                state = self._checkpointer.load(candidate, abstract)
                jax.block_until_ready(state)
                return candidate, state
            except Exception as error:
                reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
                log.warning("checkpoint %s: damaged, passed over (%s)", self.folder / str(candidate), reason)
        if not steps:
            return None
        where = self.folder / str(steps[-1])
        raise UserError(
            f"checkpoint={where}: truncated, damaged or of another model, and no older one is readable; "
            f"restore the files, or delete {self.folder} to train from the start"
        )

    def close(self) -> None:
        """Wait for pending writes and release the threads."""
        try:
            self._checkpointer.close()
        except Exception as error:
            raise _told(error, self.folder) from error


def saved_steps(run_dir: Path) -> list[int]:
    """Steps that the run directory holds a finished checkpoint of, oldest first; nothing is written."""
    if not (run_dir / FOLDER).is_dir():
        return []
    checkpoints = Checkpoints(run_dir, read_only=True)
    try:
        return checkpoints.steps()
    finally:
        checkpoints.close()


def _told(error: Exception, folder: Path) -> Exception:
    """The user's one line for a failed write (disk full, no permission), else the error itself."""
    text = str(error)
    numbers = [item.errno for item in _chain(error) if isinstance(item, OSError)]
    if (
        any(number in NO_SPACE for number in numbers)
        or "No space left" in text
        or "File too large" in text
        or "RESOURCE_EXHAUSTED" in text
    ):
        return UserError(
            f"root={folder}: disk full while saving a checkpoint; free space and run again, earlier ones are kept"
        )
    if any(number in (errno.EACCES, errno.EROFS, errno.EPERM) for number in numbers):
        return UserError(f"root={folder}: cannot be written; choose another --root or change its permissions")
    return error


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
