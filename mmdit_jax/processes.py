"""The processes of one run: how they find one another, and agree before they act.

What only one of them sees (files, a signal, a clock) must not decide what all of them do next: process 0 looks and
tells the others, or all tell one another. That goes through JAX's coordinator, not through devices, and is bounded in
time: who did not come is named.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from jax._src import distributed  # of the coordinator's keys and barriers there is no public face
from jax.experimental.multihost_utils import reached_preemption_sync_point

from mmdit_jax.errors import EXIT_DIVERGED, EXIT_OK, EXIT_PREEMPTED, Diverged, Held, Infrastructure, UserError
from mmdit_jax.host import sigterm_noted

T = TypeVar("T")

COORDINATOR, COUNT, NUMBER = "MMDIT_COORDINATOR", "MMDIT_PROCESSES", "MMDIT_PROCESS"
"""``host:port`` of process 0, how many processes a run has, and which one this is: as the executors tell them."""
DISTRIBUTED = "MMDIT_DISTRIBUTED"
"""``auto``: JAX finds all that in what Slurm, Open MPI or a TPU pod tell their processes."""
HEARTBEAT = "MMDIT_HEARTBEAT_SECONDS"
"""After which silence of a process the others end (default 100)."""
PATIENCE = 600.0
"""Seconds that processes wait for one another where they agree on something."""
LAST_SECONDS = 5.0
"""Seconds that process 0, where it fails, waits for the others to fail as well."""

_PASSING = (errno.EIO, errno.ESTALE, errno.EBUSY, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
"""What a disk or a network says of itself."""
_STORES = ("botocore", "aiohttp", "gcsfs", "aiobotocore")
"""Packages whose errors are of a store that could not be reached."""
_ERRORS: dict[str, type[Exception]] = {"UserError": UserError, "Held": Held, "Diverged": Diverged}


def join(environment: Mapping[str, str] | None = None, seconds: float = PATIENCE) -> None:
    """Become one of the processes of a run, where the environment says so. Call it once, before JAX has devices.

    From here on JAX hears SIGTERM, and ends this process (SIGABRT) when another one is gone.

    Raises:
      UserError: the environment says only a part of it.
      Infrastructure: the others can't be reached.
    """
    given = os.environ if environment is None else environment
    told = {name: given[name] for name in (COORDINATOR, COUNT, NUMBER) if given.get(name)}
    auto = given.get(DISTRIBUTED)
    if auto not in (None, "", "auto"):
        raise UserError(f"{DISTRIBUTED}={auto!r}: expected 'auto', or none")
    if not told and not auto:
        return
    arguments: dict[str, Any] = {}
    if told:
        missing = [name for name in (COORDINATOR, COUNT, NUMBER) if name not in told]
        if missing:
            raise UserError(f"{missing[0]}: not set beside {', '.join(told)}; set all three, or {DISTRIBUTED}=auto")
        count, number = _whole(COUNT, told[COUNT]), _whole(NUMBER, told[NUMBER])
        if number >= count:
            raise UserError(f"{NUMBER}={number}: expected less than {COUNT}={count}")
        if count == 1:
            return
        arguments = {"coordinator_address": told[COORDINATOR], "num_processes": count, "process_id": number}
        arguments["cluster_detection_method"] = "deactivate"
    heartbeat = _whole(HEARTBEAT, given.get(HEARTBEAT) or "100")
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=int(seconds),
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:300]
        if isinstance(error, ValueError):
            raise UserError(f"{DISTRIBUTED}=auto: no processes to join are told here ({line})") from error
        raise Infrastructure(f"the other processes of the run can't be reached: {line}") from error


def joined() -> bool:
    """Whether this is one of several processes."""
    return distributed.global_state.client is not None


def end(code: int) -> None:
    """End this process with ``code`` where it is one of several; one alone goes on.

    Where all end alike they do so together. Where this one fails it does not wait for the others, which would wait for
    it: JAX ends them, or their engine does. But process 0 is the coordinator, whose end would be taken for a failure by
    those that are about to end alike: it gives them a moment.
    """
    if not joined():
        return
    if code in (EXIT_OK, EXIT_DIVERGED, EXIT_PREEMPTED):
        with contextlib.suppress(RuntimeError):  # another one was gone first: what is saved is saved
            jax.distributed.shutdown()
    else:
        last = threading.Thread(target=_last_words, daemon=True)  # the coordinator may not answer any more
        last.start()
        last.join(LAST_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _last_words() -> None:
    """Process 0 hears those of the others."""
    if not is_first():
        with contextlib.suppress(RuntimeError):
            note(f"ends/{jax.process_index()}", "")
        return
    others = set(range(1, jax.process_count()))
    while others:
        others = {number for number in others if noted(f"ends/{number}") is None}
        time.sleep(0.05)


def is_infrastructure(error: BaseException) -> bool:
    """Whether an error is of a device, a link, a disk or a store, rather than of the program.

    Of several processes everything of JAX's runtime that is not plainly the program's: when one is lost, the others
    fail in all ways.
    """
    if isinstance(error, (TimeoutError, ConnectionError)) or type(error).__module__.split(".")[0] in _STORES:
        return True
    if isinstance(error, OSError):
        return error.errno in _PASSING
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    status = str(error).split(":", 1)[0].strip()
    if status in ("INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "NOT_FOUND"):
        return False
    if joined():
        return True
    return jax.default_backend() != "cpu" and status in ("UNAVAILABLE", "ABORTED", "INTERNAL", "DATA_LOSS", "UNKNOWN")


def is_first() -> bool:
    """Whether this process writes what a run has once."""
    return jax.process_index() == 0


_ROUNDS = {"count": 0, "looking": 0}


def exchange(what: str, value: Any, seconds: float = PATIENCE) -> list[Any]:
    """Everybody's ``value`` (plain, as JSON), by process. All processes call it in the same order.

    Args:
      what: for the message when somebody does not come.

    Raises:
      Infrastructure: some process did not come within ``seconds``; the message names it.
    """
    count = jax.process_count()
    if count == 1:
        return [json.loads(json.dumps(value))]
    client = distributed.global_state.client
    assert client is not None
    assert not _ROUNDS["looking"], f"{what}: process 0 looks alone, the others would not come"
    _ROUNDS["count"] += 1
    folder = f"mmdit/{_ROUNDS['count']}/"
    own = json.dumps({"host": socket.gethostname(), "value": value})
    client.key_value_set(f"{folder}{jax.process_index()}", own)
    try:
        client.wait_at_barrier(f"mmdit-{_ROUNDS['count']}", int(1000 * seconds))
    except RuntimeError as error:
        there = {int(key.rsplit("/", 1)[1]) for key, _ in client.key_value_dir_get(folder)}
        missing = [number for number in range(count) if number not in there]
        raise Infrastructure(
            f"{what}: process {', '.join(map(str, missing)) or 'unknown'} of {count} did not come within {seconds:g} s"
        ) from error
    found = {int(key.rsplit("/", 1)[1]): json.loads(text) for key, text in client.key_value_dir_get(folder)}
    return [found[number]["value"] for number in range(count)]


def from_first(what: str, look: Callable[[], T], seconds: float = PATIENCE) -> T:
    """What ``look`` returns in process 0 (plain, as JSON): for all of them. They end alike if it raises there.

    Raises:
      UserError, Diverged: as ``look`` does.
      Infrastructure: something else went wrong in process 0, or somebody did not come.
    """
    if jax.process_count() == 1:
        return look()
    told: dict[str, Any] = {}
    own: Exception | None = None
    if is_first():
        _ROUNDS["looking"] = 1
        try:
            told = {"value": look()}
        except Exception as error:
            own, told = error, {"error": type(error).__name__, "message": str(error)}
        finally:
            _ROUNDS["looking"] = 0
    first = exchange(what, told, seconds)[0]
    if own is not None:
        raise own
    if "error" in first:
        kind = _ERRORS.get(first["error"])
        if kind is None:
            raise Infrastructure(f"{what}: process 0 failed: {first['error']}: {first['message']}")
        raise kind(first["message"])
    found: T = first["value"]
    return found


def rounds(seconds: float) -> Iterator[None]:
    """One now, and another a second after each, until ``seconds`` are over by the clock of process 0, for all alike."""
    until = time.monotonic() + seconds
    yield
    while not from_first("time", lambda: time.monotonic() > until):
        time.sleep(1.0)
        yield


def together(what: str, act: Callable[[], T]) -> T:
    """``act()`` in every process; where it is bad input for one of them, it is for all.

    For what does not wait for the others inside.

    Raises:
      UserError: as the first of those processes says it.
      Infrastructure: something else went wrong in another process. In this one it is raised as it is.
    """
    if jax.process_count() == 1:
        return act()
    found, line, own = None, None, None
    try:
        found = act()
    except Exception as error:
        own, line = error, [type(error).__name__, str(error)[:500]]
    lines = exchange(what, line)
    bad = [text for item in lines if item is not None for kind, text in [item] if kind == "UserError"]
    if bad:
        raise UserError(bad[0])
    if own is not None:
        raise own
    for number, item in enumerate(lines):
        if item is not None:
            raise Infrastructure(f"{what}: process {number} failed: {': '.join(item)}")
    return found  # type: ignore[return-value]


def note(key: str, value: str) -> None:
    """Tell the others, who may look at any time (``noted``). Only for one of several processes."""
    client = distributed.global_state.client
    assert client is not None
    client.key_value_set(f"mmdit/{key}", value, allow_overwrite=True)


def noted(key: str) -> str | None:
    """What one of the processes has noted, if anything."""
    return _value(f"mmdit/{key}")


@contextlib.contextmanager
def preemption(start: int) -> Iterator[Callable[[int], bool]]:
    """Until the block ends SIGTERM ends nothing at once; what it gives says after which step all of them stop.

    It is asked after every step, by every process: it may be true of a later step than that in which the signal came to
    one of them, and is of the same one in all. A signal that came before the first step counts: they stop after it.

    Args:
      start: the step that the first one follows.
    """
    if jax.process_count() == 1:
        with sigterm_noted() as noted:
            yield lambda step: noted()
        return
    # JAX agrees on the step after the last that any of them has asked about, and does so once. Of a signal that came
    # before any had asked, that is step 1, which a run that goes on from another never asks about.
    reached_preemption_sync_point(start)
    early = from_first("preemption", _notice)
    yield lambda step: bool(reached_preemption_sync_point(step)) or early


def _notice() -> bool:
    """Whether one of the processes has told the coordinator of a SIGTERM."""
    return _value("RECEIVED_PREEMPTION_NOTICE") is not None


def _value(key: str) -> str | None:
    """What the coordinator holds by ``key``."""
    client = distributed.global_state.client
    assert client is not None
    try:
        found: str = client.key_value_try_get(key)
    except RuntimeError:  # NOT_FOUND
        return None
    return found


def _whole(name: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise UserError(f"{name}={text!r}: expected a whole number, 0 or more")
    return value
