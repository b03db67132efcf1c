"""Checkpoints of the training state: Orbax, asynchronous, atomic, the newest few kept, their files summed.

All processes of a run call all of this in the same order: they save and restore together.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from mmdit_jax.errors import Infrastructure, UserError
from mmdit_jax.processes import exchange, from_first, is_first, is_infrastructure, rounds, together
from mmdit_jax.remote import Remote, remote_of
from mmdit_jax.training.checksums import damaged, wrong_file
from mmdit_jax.training.disk import STALE_SECONDS, room, told
from mmdit_jax.training.orbax_places import ask_no_preemption, orbax_context, orbax_path
from mmdit_jax.training.saves import Save, listen

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
DAMAGED = "damaged"
"""Beside it: where checkpoints are moved that were passed over, so that their steps can be saved again."""
PASSING = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED")
"""What TensorStore and JAX say of a store, or a memory, that is not there now: no damage."""


class Checkpoints:
    """The checkpoints of one run directory, in ``folder``. Steps are named by the number of updates made."""

    def __init__(self, run_dir: Path, keep: int = 2, read_only: bool = False, folder: str = FOLDER) -> None:
        self._remote = remote_of(run_dir / folder)
        self.folder = orbax_path(run_dir.resolve() / folder, self._remote)
        if read_only and not from_first("folder of checkpoints", self.folder.is_dir):
            raise UserError(f"checkpoint={self.folder}: not there; train the run first")
        self._read_only = read_only
        with self._context():
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=not read_only,
            )
        ask_no_preemption(self._checkpointer)
        listen()
        self._steps = self._agreed()
        self._save: Save | None = None

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first; one that was saved last may not be finished."""
        return list(self._steps)

    def save(self, step: int, state: Any) -> None:
        """Copy ``state`` to the host and write it in the background; waits for an earlier save first."""
        if step in self._steps:
            return
        if self._save is not None:
            self._save.settle()
            self._save.end()
        if jax.process_count() > 1 and self._remote is None:
            with contextlib.ExitStack() as held:
                together("space for a checkpoint", lambda: held.enter_context(room(self.folder, state)))
        with self._telling(), self._context():
            response = self._checkpointer.save_async(step, state, force=True)
        self._steps = [*self._steps, step]
        # An object store keeps sums of its objects, and has no half of one.
        self._save = Save(self.folder / str(step), response, sums=self._remote is None)

    def wait(self) -> None:
        """Return when everything saved is on disk; its sums may follow, for which ``close`` waits."""
        if self._save is not None:
            self._save.settle()
        with self._telling(), self._context():
            self._checkpointer.wait()

    def restore(self, abstract: Any, *, step: int | None = None, upto: int | None = None) -> tuple[int, Any] | None:
        """(step, state) of the newest readable checkpoint, or of ``step``; none where nothing was ever saved.

        ``abstract`` is a tree of ``jax.ShapeDtypeStruct`` with shardings. A newest checkpoint that is damaged, for any
        of the processes, is passed over for the one before, which is said in the log, and moved aside: training from
        there gives the same bits again. With ``upto``, checkpoints of later steps are left aside.

        Raises:
            UserError: every candidate is damaged or shaped for another model, or ``step`` is not there.
        """
        self.wait()
        self._steps = self._agreed()  # old ones are deleted meanwhile
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

    def discard(self, after: int) -> None:
        """Move aside the checkpoints of later steps than ``after``: they will be taken again, and saved anew."""
        self.wait()
        self._move_aside([step for step in self._steps if step > after])

    def close(self) -> None:
        """Wait for pending writes and release the threads."""
        if self._save is not None and not self._save.is_over():
            return  # Orbax would wait for the process that failed
        with self._telling(), self._context():
            self._checkpointer.close()
        if self._save is not None:
            self._save.end()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Orbax's errors in here are told in the user's words."""
        try:
            yield
        except Exception as error:
            raise told(error, self.folder) from error

    def _context(self) -> contextlib.AbstractContextManager[Any]:
        return orbax_context(self.folder, self._remote)

    def _listed(self) -> list[int]:
        with self._context():
            return sorted(item.step for item in self._checkpointer.checkpoints)

    def _agreed(self) -> list[int]:
        """The steps that have a checkpoint, when all processes see the same: a host may still see what was.

        Raises:
            Infrastructure: they don't come to see the same.
        """
        for _ in rounds(STALE_SECONDS):
            steps, *others = exchange("list of checkpoints", self._listed())
            if all(other == steps for other in others):
                return list(steps)
            with self._context():
                self._checkpointer.reload()
        number, other = next((1 + i, other) for i, other in enumerate(others) if other != steps)
        raise Infrastructure(
            f"checkpoints {self.folder}: process {number} sees steps {other}, process 0 {steps}, for "
            f"{STALE_SECONDS:g} s; do all hosts mount the same root?"
        )

    def _load(self, step: int, abstract: Any) -> tuple[Any, str | None]:
        """(state, None), or what is wrong, which all processes then agree on."""
        folder = self.folder / str(step)
        # First the sums: a process that finds damage while it loads would leave the others waiting for it.
        reason = None if self._remote else self._wrong(folder)
        if reason is not None:
            return None, reason
        state = None
        try:
            with self._context():
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

    def _wrong(self, folder: Path) -> str | None:
        """What is wrong with its files, if anything is: in the eyes of process 0, too, which looks again.

        Raises:
            Infrastructure: only another host sees it, and goes on to.
        """
        look = functools.partial(wrong_file, folder, jax.process_index(), jax.process_count())
        for _ in rounds(STALE_SECONDS):
            found = exchange(f"sums of {folder}", together(f"files of {folder}", look))
            suspects = {number: tuple(item) for number, item in enumerate(found) if item is not None}
            if not suspects:
                return None
            reason = from_first(f"sums of {folder}", functools.partial(damaged, folder, list(suspects.values())))
            if reason is not None:
                return reason
        number, (name, what) = next(iter(suspects.items()))
        raise Infrastructure(f"checkpoint {folder}: {name} {what} on the host of process {number} alone")

    def _move_aside(self, steps: list[int]) -> None:
        if self._read_only or not steps:
            return

        def move() -> None:
            for step in steps:
                name = f"{self.folder.name}-{step}-{time.time_ns()}"
                if self._remote is not None:
                    (self._remote / str(step)).move(Remote(self._remote.url.rpartition("/")[0]) / DAMAGED / name)
                    continue
                (self.folder.parent / DAMAGED).mkdir(exist_ok=True)
                (self.folder / str(step)).rename(self.folder.parent / DAMAGED / name)

        from_first("damaged checkpoints", move, seconds=3600.0)
        with self._context():
            self._checkpointer.reload()
        self._steps = self._agreed()


def saved_steps(run_dir: Path, folder: str = FOLDER) -> list[int]:
    """Steps that the run directory holds a finished checkpoint of, oldest first; nothing is written."""
    if remote_of(run_dir) is None and not (run_dir / folder).is_dir():
        return []
    # At a URL there may be no folder: it is made of its files.
    checkpoints = Checkpoints(run_dir, read_only=True, folder=folder)
    try:
        return checkpoints.steps()
    finally:
        checkpoints.close()
