"""Who is at a run: the processes of one attempt together, and nobody else."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from launch.places import CONFIG, Places, make_folder
from mmdit_jax.config import Run
from mmdit_jax.config_values import to_dict
from mmdit_jax.copies import LEASE, pull
from mmdit_jax.data import pipeline
from mmdit_jax.data.encoded import EncodedSet
from mmdit_jax.errors import Held, UserError
from mmdit_jax.files import write_json
from mmdit_jax.lease import are_leased, lease
from mmdit_jax.locks import LOCK, unheld
from mmdit_jax.processes import from_first, is_first, together
from mmdit_jax.remote import remote_of
from mmdit_jax.training.best import FOLDER as BEST
from mmdit_jax.training.checkpoint import FOLDER as CHECKPOINTS
from mmdit_jax.training.data import training_data
from mmdit_jax.training.events import EventLog, read_events
from mmdit_jax.versions import versions

FOLDERS = (CHECKPOINTS, BEST)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "mmdit-jax")
JOB = "MMDIT_JOB"
"""The engine's name of what runs this attempt, as executors tell it: events say it, nothing is decided by it."""


@contextlib.contextmanager
def hold(run: Run, places: Places, *, began: float, lock_seconds: float = 0.0) -> Iterator[int]:
    """Hold the run's directory, with its config in it; process 0 does it for all. Gives the number of the attempt.

    Args:
      run: the run.
      places: where it lies.
      began: when the attempt began, in seconds since 1970: its ``attempt`` event says it.
      lock_seconds: how long to wait for another attempt to end.

    Raises:
        Held: another attempt holds it.
        UserError: its encoded data set is not there or another one than it was begun with.
    """
    run_dir = places.run_dir(run)

    def encoded_set() -> EncodedSet | None:
        found = pipeline.open_encoded(run.data.name, places.data)
        if found is not None:
            training_data(run, places.data)  # refuses what does not suit before anything is written
        return found

    encoded = together("data", encoded_set)
    with contextlib.ExitStack() as held:

        def enter() -> int:
            make_folder(run_dir)
            held.enter_context(_lock(run_dir, lock_seconds))
            told = {"run_id": run.run_id, "config": to_dict(run), "versions": versions(PACKAGES)}
            if encoded is not None:
                _check_same_data(run_dir, encoded)
                told["data_fingerprint"] = encoded.fingerprint
            write_json(run_dir / CONFIG, told)
            number = 1 + sum(event["event"] == "attempt" for event in read_events(run_dir))
            said = {"attempt": number, "began": round(began, 3), "processes": jax.process_count()}
            said |= {"host": socket.gethostname(), "job": os.environ.get(JOB)}
            _say(run_dir, "attempt", **said)
            return number

        number = from_first("run directory", enter, seconds=lock_seconds + 600)
        try:
            yield number
        except UserError as error:
            if is_first():
                with contextlib.suppress(OSError):  # a disk may be full
                    _say(run_dir, "refused", message=str(error))
            raise


def _say(run_dir: Path, event: str, **fields: object) -> None:
    events = EventLog(run_dir)
    events.write(event, durable=True, **fields)
    events.close()


def _check_same_data(run_dir: Path, encoded: EncodedSet) -> None:
    """Refuse to go on with another set than the checkpoints were trained on."""
    config = run_dir / CONFIG
    if not config.exists() or not _has_checkpoints(run_dir):
        return
    try:
        before = json.loads(config.read_text()).get("data_fingerprint")
    except ValueError:
        return  # cannot be told any more
    if before != encoded.fingerprint:
        raise UserError(
            f"data={encoded.folder}: fingerprint {encoded.fingerprint}, but {run_dir.name} was trained on {before} "
            f"under this name; restore that set, or delete {run_dir} to train anew"
        )


def _has_checkpoints(run_dir: Path) -> bool:
    """Whether there are any, finished or not. Asked by process 0 alone, so not of Orbax, which waits for the others."""
    remote = remote_of(run_dir)
    if remote is not None:
        return any(name.split("/")[0] in FOLDERS for name in remote.listing())
    return any(path for name in FOLDERS for path in (run_dir / name).glob("[0-9]*"))


@contextlib.contextmanager
def _lock(run_dir: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold the run, so that a second attempt at the same run is told, not mixed in.

    A lock of the kernel's: it goes with the process that has it, however that ends; on NFS it holds among hosts. At a
    URL there is a lease beside it (see ``lease``).
    """
    until = time.monotonic() + max(seconds, 0.5)  # whoever only looks (``is_locked``) holds it for a moment
    with (run_dir / LOCK).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise Held(
                        f"run={run_dir.name!r}: another process is at it; wait for it, or stop it (processes that are "
                        "to share a run are told so by MMDIT_COORDINATOR, or MMDIT_DISTRIBUTED=auto)"
                    ) from error
                time.sleep(min(1.0, max(0.05, seconds / 100)))
            except OSError as error:
                raise UserError(
                    f"root={run_dir}: its file system has no locks ({error.strerror}); mount it with them, or choose "
                    "another --root"
                ) from error
        remote = remote_of(run_dir / LEASE)
        if remote is None:
            yield
            return
        with lease(remote, f"run={run_dir.name!r}", max(0.0, until - time.monotonic())):
            pull(run_dir, ours=True)  # what an attempt on another host has left
            yield


def locked(run_dirs: Sequence[Path]) -> set[Path]:
    """Those that a live process holds; a store is asked for all of them at once."""
    found = {run_dir for run_dir in run_dirs if _locked_here(run_dir)}
    asked = {run_dir: remote for run_dir in run_dirs if (remote := remote_of(run_dir / LEASE)) is not None}
    leased = zip(asked, are_leased(list(asked.values())), strict=True)
    return found | {run_dir for run_dir, is_leased in leased if is_leased}


def is_locked(run_dir: Path) -> bool:
    """Whether a live process holds the run."""
    return bool(locked([run_dir]))


def _locked_here(run_dir: Path) -> bool:
    path = run_dir / LOCK
    if not path.exists():
        return False
    with unheld(path) as free:
        return not free
