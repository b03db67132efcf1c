"""What one process of several makes of a save that fails, with the others played by the test."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from mmdit_jax import processes
from mmdit_jax.errors import Infrastructure, UserError
from mmdit_jax.training import saves
from mmdit_jax.training.checkpoint import Checkpoints
from mmdit_jax.training.saves import Save


class Response:
    """Of Orbax: it has ended, in an error where one is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def result(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What this process, the first of two, tells the other, whose own lines are put in ``told`` before."""
    lines: list[Any] = []

    def exchange(what: str, line: Any) -> list[Any]:
        lines.insert(0, line)
        return lines[:2]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "exchange", exchange)
    return lines


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def settled(error: Exception | None) -> Save:
    save = Save(Path("run/checkpoints/8"), Response(error), sums=False)
    save.end()  # so it is over before anybody asks
    return save


def test_a_failure_that_is_over_is_told_as_well(told: list[Any]) -> None:
    told.append(None)
    save = settled(FULL)
    with pytest.raises(UserError, match="root=run/checkpoints: disk full while saving a checkpoint"):
        save.settle()
    assert told[0][0] == "UserError"
    assert not save.is_over()  # Orbax is not asked to close


def test_the_cause_goes_before_those_who_waited_for_it(told: list[Any]) -> None:
    told.append(["UserError", "root=run/checkpoints: disk full"])
    with pytest.raises(UserError, match="disk full"):
        settled(TimeoutError("barrier")).settle()
    told[:] = [["OSError", "[Errno 39] Directory not empty"]]
    with pytest.raises(Infrastructure, match=r"run/checkpoints/8: process 1 failed: OSError: .Errno 39. Directory"):
        settled(None).settle()


def test_what_all_have_written_is_over(told: list[Any]) -> None:
    told.append(None)
    save = settled(None)
    save.settle()
    assert told == [None, None] and save.is_over()


def test_only_failed_writes_are_heard_and_nothing_is_hidden_that_was_shown(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("absl")
    heard = saves._Overheard(logging.CRITICAL)
    try:
        raise FULL
    except OSError as error:
        info = (type(error), error, error.__traceback__)

    def record(level: int, path: str, exc_info: Any) -> logging.LogRecord:
        return logger.makeRecord("absl", level, path, 1, "text", (), exc_info)

    writer = "/x/orbax/checkpoint/_src/checkpointers/async_checkpointer.py"
    assert heard.filter(record(logging.DEBUG, writer, info)) and heard.error is None
    assert not heard.filter(record(logging.ERROR, writer, None)) and heard.error is None
    assert not heard.filter(record(logging.ERROR, "/x/signaling_client.py", info)) and heard.error is None
    assert not heard.filter(record(logging.ERROR, writer, info)) and heard.error is info[1]
    assert heard.filter(record(logging.CRITICAL, writer, None)) and heard.filter(record(logging.INFO, writer, None))
    assert saves._Overheard(logging.WARNING).filter(record(logging.ERROR, writer, info))


def test_orbax_does_not_ask_for_preemption_with_a_step_that_is_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step) or False)
    bare = ocp.training.Checkpointer(tmp_path / "bare")
    bare.save(8, {"a": jnp.zeros(2)})
    bare.close()
    assert set(asked) == {8}, "Orbax has ceased to ask: then it need not be kept from it"
    asked.clear()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(8, {"a": jnp.zeros(2)})
    checkpoints.close()
    assert checkpoints.steps() == [8] and not asked
