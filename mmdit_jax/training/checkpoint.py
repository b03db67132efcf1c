"""Checkpoints of the training state: Orbax, asynchronous, atomic, the newest few kept, their files summed.

All processes of a run call all of this in the same order: they save and restore together.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from mmdit_jax.errors import Infrastructure, UserError
from mmdit_jax.processes import exchange, from_first, is_first, is_infrastructure, together
from mmdit_jax.remote import remote_of
from mmdit_jax.training.checksums import write_sums, wrong_file
from mmdit_jax.training.orbax_places import orbax_context, orbax_path

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
DAMAGED = "damaged"
"""Beside it: where checkpoints are moved that were passed over, so that their steps can be saved again."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


PASSING = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED")
"""What TensorStore and JAX say of a store, or a memory, that is not there now: no damage."""


class Checkpoints:
    """The checkpoints of one run directory, in ``folder``. Steps are named by the number of updates made."""

    def __init__(self, run_dir: Path, keep: int = 2, read_only: bool = False, folder: str = FOLDER) -> None:
        self._remote = remote_of(run_dir / folder)
        self.folder = orbax_path(run_dir.resolve() / folder, self._remote)
        if read_only and not self.folder.is_dir():
            raise UserError(f"checkpoint={self.folder}: not there; train the run first")
        self._read_only = read_only
        with orbax_context(self._remote):
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=not read_only,
            )
        self._steps: list[int] = from_first("list of checkpoints", self._listed)
        self._summing: threading.Thread | None = None

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first; one that was saved last may not be finished."""
        return list(self._steps)

    def save(self, step: int, state: Any) -> None:
        """Copy ``state`` to the host and write it in the background; waits for an earlier save first."""
        if step in self._steps:
            return
        self._end_summing()
        if jax.process_count() > 1 and self._remote is None:
            # Orbax has the others wait 20 minutes for a process whose disk is full.
            with contextlib.ExitStack() as held:
                together("space for a checkpoint", lambda: held.enter_context(_room(self.folder, state)))
        try:
            with orbax_context(self._remote):
                response = self._checkpointer.save_async(step, state, force=True)
        except Exception as error:
            raise _told(error, self.folder) from error
        self._steps = [*self._steps, step]
        if self._remote is not None:
            return  # an object store keeps sums of its objects, and has no half of one
        self._summing = threading.Thread(target=self._sum, args=(step, response), name=f"sums of {step}", daemon=True)
        self._summing.start()

    def wait(self) -> None:
        """Return when everything saved is on disk; its sums may follow, for which ``close`` waits."""
        try:
            with orbax_context(self._remote):
                self._checkpointer.wait()
        except Exception as error:
            raise _told(error, self.folder) from error

    def restore(self, abstract: Any, *, step: int | None = None, upto: int | None = None) -> tuple[int, Any] | None:
        """(step, state) of the newest readable checkpoint, or of ``step``; none where nothing was ever saved.

        ``abstract`` is a tree of ``jax.ShapeDtypeStruct`` with shardings. A newest checkpoint that is damaged, for any
        of the processes, is passed over for the one before, which is said in the log, and moved aside: training from
        there gives the same bits again. With ``upto``, checkpoints of later steps are left aside.

        Raises:
            UserError: every candidate is damaged or shaped for another model, or ``step`` is not there.
        """
        self.wait()
        self._steps = from_first("list of checkpoints", self._listed)  # old ones are deleted meanwhile
        steps = [found for found in self._steps if upto is None or found <= upto]
        if step is not None:
            if step not in steps:
                raise UserError(
                    f"checkpoint={self.folder}: no step {step} (has: {steps or 'none'}); train the run first"
                )
            steps = [step]
        passed: list[int] = []
        for candidate in reversed(steps):
            state, reason = self._load(candidate, abstract)
            if reason is None:
                self._move_aside(passed)
                return candidate, state
            passed.append(candidate)
            if is_first():
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
            with orbax_context(self._remote):
                self._checkpointer.close()
        except Exception as error:
            raise _told(error, self.folder) from error
        self._end_summing()

    def _listed(self) -> list[int]:
        with orbax_context(self._remote):
            return sorted(item.step for item in self._checkpointer.checkpoints)

    def _load(self, step: int, abstract: Any) -> tuple[Any, str | None]:
        """(state, None), or what is wrong, which all processes then agree on."""
        folder = self.folder / str(step)
        # First the sums: a process that finds damage while it loads would leave the others waiting for it.
        wrong = None if self._remote else wrong_file(folder, jax.process_index(), jax.process_count())
        found = exchange(f"sums of {folder}", wrong)
        state, reason = None, next((item for item in found if item is not None), None)
        if reason is not None:
            return None, reason
        try:
            with orbax_context(self._remote):
                state = self._checkpointer.load(step, abstract)
            jax.block_until_ready(state)
        except Exception as error:
            text = str(error).strip()
            reason = text.splitlines()[0][:160] if text else type(error).__name__
            if is_infrastructure(error) or any(word in text for word in PASSING):
                reason = f"{PASSING[0]}: {reason}"
        found = exchange(f"loading of {folder}", reason)
        if passing := [item for item in found if item is not None and item.startswith(PASSING[0])]:
            raise Infrastructure(f"checkpoint {folder}: could not be read now ({passing[0]})")
        return state, next((item for item in found if item is not None), None)

    def _move_aside(self, steps: list[int]) -> None:
        if self._read_only or not steps:
            return

        def move() -> None:
            for step in steps:
                if self._remote is not None:  # where nothing can be moved
                    self._remote.files.rm((self._remote / str(step)).path, recursive=True)
                    continue
                aside = self.folder.parent / DAMAGED / f"{self.folder.name}-{step}-{time.time_ns()}"
                aside.parent.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(aside)

        from_first("damaged checkpoints", move)
        self._steps = [step for step in self._steps if step not in steps]
        with orbax_context(self._remote):
            self._checkpointer.reload()

    def _sum(self, step: int, response: Any) -> None:
        """When the checkpoint is finished, and before another one is begun: in a thread of its own."""
        folder = self.folder / str(step)
        with contextlib.suppress(Exception):  # a save that failed is told by Orbax, to whoever waits for it
            if response is not None:
                response.result()
            for _ in range(100):  # process 0 gives it its name; another host may see that later
                if folder.is_dir():
                    write_sums(folder, jax.process_index(), jax.process_count())
                    return
                time.sleep(0.1)

    def _end_summing(self) -> None:
        if self._summing is not None:
            self._summing.join()
            self._summing = None


def saved_steps(run_dir: Path, folder: str = FOLDER) -> list[int]:
    """Steps that the run directory holds a finished checkpoint of, oldest first; nothing is written."""
    if remote_of(run_dir) is None and not (run_dir / folder).is_dir():
        return []
    checkpoints = Checkpoints(
        run_dir, read_only=True, folder=folder
    )  # at a URL there may be no folder: it is made of its files
    try:
        return checkpoints.steps()
    finally:
        checkpoints.close()


@contextlib.contextmanager
def _room(folder: Path, state: Any) -> Iterator[None]:
    """Have the disk set aside what this process will write of ``state``, uncompressed, until the block ends.

    Raises:
        UserError: it can't.
    """
    leaves = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    size = sum(part.data.nbytes for leaf in leaves for part in leaf.addressable_shards if part.replica_id == 0)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if size and sys.platform == "linux":
                # Not os.posix_fallocate, which writes all of it where a file system can't set aside.
                libc = ctypes.CDLL(None, use_errno=True)
                number = libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(size)) and ctypes.get_errno()
                if number in NO_SPACE:
                    raise OSError(number, os.strerror(number))
            yield
    except OSError as error:
        raise _told(error, folder) from error


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
