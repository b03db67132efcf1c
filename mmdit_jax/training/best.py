"""The weights of the step with the lowest EMA validation loss, kept beside the checkpoints that training goes on from.

They are what the SD3 paper's ranking evaluates (section 5.1: per run, the step with the lowest validation loss).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from mmdit_jax.errors import UserError
from mmdit_jax.processes import from_first
from mmdit_jax.training.checkpoint import Checkpoints
from mmdit_jax.training.events import validations
from mmdit_jax.training.state import TrainState

FOLDER = "best"


class Best:
    """``best/`` in a run directory: one state, without the optimizer's memory, and which step it is of.

    What the folder holds is the truth, events.jsonl says its loss. So a run killed between the two, or sent back to an
    earlier checkpoint, ends with the state it would have had: on its way back to the step held it saves nothing.
    """

    def __init__(self, run_dir: Path) -> None:
        self._checkpoints = Checkpoints(run_dir, keep=1, folder=FOLDER)
        self._step = max(self._checkpoints.steps(), default=0)

        def look() -> float | None:
            return next((event["loss"] for event in validations(run_dir) if event["step"] == self._step), None)

        loss = from_first("validation losses", look)
        self._loss = math.inf if loss is None else loss

    def offer(self, step: int, loss: float, state: Callable[[], TrainState]) -> None:
        """Save ``state()`` in the background if ``loss`` is the lowest so far; its event must be on disk by now."""
        if step == self._step:
            self._loss = loss  # as the latest event has it
        if step <= self._step or loss >= self._loss:
            return
        self._step, self._loss = step, loss
        self._checkpoints.save(step, without_memory(state()))

    def wait(self) -> None:
        """Return when it is on disk: to be called before a checkpoint from which the step would not come again."""
        self._checkpoints.wait()

    def close(self) -> None:
        self._checkpoints.close()


def restore_best(run_dir: Path, abstract: TrainState) -> tuple[int, TrainState]:
    """(step, state) that ``best/`` holds, ``opt_state`` None; ``abstract`` is what ``abstract_state`` gives.

    Raises:
        UserError: there is none, or it is damaged.
    """
    checkpoints = Checkpoints(run_dir, read_only=True, folder=FOLDER)
    try:
        # Of two, which a kill can leave behind, the later one is the best; there is no falling back to the other.
        found = checkpoints.restore(without_memory(abstract), step=max(checkpoints.steps(), default=0))
        assert found is not None  # a step that is named is there, or told to be missing
        return found
    except UserError as error:
        raise UserError(
            f"best={checkpoints.folder}: missing or damaged; delete {run_dir} to train from the start"
        ) from error
    finally:
        checkpoints.close()


def without_memory(state: TrainState) -> TrainState:
    """``state`` with no optimizer state, which evaluation has no use for: half of the bytes, or a third."""
    return dataclasses.replace(state, opt_state=None)
