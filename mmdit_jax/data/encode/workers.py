"""Several processes on one host: started, watched, and ended together."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from glob import glob
from pathlib import Path
from typing import Any

from mmdit_jax.data.encode.job import Job, Place, Report
from mmdit_jax.data.encode.settings import Settings
from mmdit_jax.data.sources import open_source
from mmdit_jax.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED, Preempted, UserError
from mmdit_jax.host import GPU_SHARE_VARIABLE


class WorkerDied(RuntimeError):
    """A worker process ended on its own account."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        """Exit code for the whole: 128 and the signal's number where there was one."""


def encode_here(
    settings: Settings, folder: Path, place: Place, stop: Callable[[], bool], report: Report
) -> dict[str, Any]:
    """One process's part; returns the manifest. See ``Job.encode``."""
    from mmdit_jax.data.encode.models import load_models

    source = open_source(settings.scan.source, settings.scan.options)
    models = load_models(settings)
    return Job(folder, source, place, stop, report).encode(settings, models)


def threads_each(processes: int) -> int:
    """Threads that read and decode images in each of so many processes."""
    return max(1, min(16, len(os.sched_getaffinity(0)) // processes))


def device_environment(number: int, processes: int, gpus: Sequence[str]) -> dict[str, str]:
    """Variables that give a worker its GPU: one each in turn, and its share of the memory where they share one.

    Args:
        number: of the worker.
        processes: workers in all.
        gpus: that this host lets us see; none on a host without.
    """
    if not gpus or processes == 1:
        return {}
    sharing = -(-processes // len(gpus))
    shared = {GPU_SHARE_VARIABLE: f"{0.9 / sharing:.3f}"} if sharing > 1 else {}
    return {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)], **shared}


def visible_gpus() -> list[str]:
    """NVIDIA GPUs by the names that CUDA_VISIBLE_DEVICES takes."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name for name in told.split(",") if name]
    return sorted((path.removeprefix("/dev/nvidia") for path in glob("/dev/nvidia[0-9]*")), key=int)


def encode_in_processes(
    settings: Settings, folder: Path, processes: int, place: Place, stop: Callable[[], bool], report: Report
) -> None:
    """Encode with several processes; returns when the set is finished.

    Args:
        settings: of the set.
        folder: of the set.
        processes: how many.
        place: of this host among hosts.
        stop: whether to stop.
        report: of progress.

    Raises:
        UserError, OSError: what a worker met; the others are ended.
        Preempted: told to stop.
        WorkerDied: a worker was killed, or failed without a word. What is finished is kept.
    """
    events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
    gpus = visible_gpus()
    workers: list[subprocess.Popen[str]] = []
    try:
        for number in range(processes):
            own = Place(place.index * processes + number, place.count * processes, threads_each(processes))
            environment = {**os.environ, **device_environment(number, processes, gpus)}
            workers.append(_start(settings, folder, own, environment, number, events))
        _watch(workers, events, stop, report)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(60)
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def _start(
    settings: Settings, folder: Path, place: Place, environment: dict[str, str], number: int, events: queue.Queue[Any]
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmdit_jax.data.encode.workers"]
    worker = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin is not None
    told = {"settings": settings.to_json(), "folder": str(folder), "place": asdict(place)}
    # It stays open: a worker whose parent is gone reads its end, and stops.
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(json.dumps(told) + "\n")
        worker.stdin.flush()

    def listen() -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            with contextlib.suppress(ValueError):  # half a line of one that was killed
                events.put((number, json.loads(line)))
        events.put((number, None))

    threading.Thread(target=listen, daemon=True).start()
    return worker


def _watch(
    workers: Sequence[subprocess.Popen[str]],
    events: queue.Queue[tuple[int, dict[str, Any] | None]],
    stop: Callable[[], bool],
    report: Report,
) -> None:
    """Pass on what workers report until all have ended well, or one has not."""
    running = len(workers)
    while running:
        if stop():
            raise Preempted("encode: stopped; finished shards are kept, run again to go on")
        try:
            number, event = events.get(timeout=0.2)
        except queue.Empty:
            continue
        if event is None:
            running -= 1
            _judge(number, workers[number])
        elif "report" in event:
            report(*event["report"])
        elif "errno" in event:
            raise OSError(event["errno"], os.strerror(event["errno"]), event["file"])
        elif "error" in event:
            raise UserError(event["error"])


def _judge(number: int, worker: subprocess.Popen[str]) -> None:
    code = worker.wait()
    if code == 0:
        return
    if code == EXIT_PREEMPTED:
        raise Preempted("encode: a worker was stopped; finished shards are kept, run again to go on")
    name = f"worker {number} (process {worker.pid})"
    kept = "finished shards are kept, run again to go on"
    if code < 0:
        why = ", as by a lack of memory" if code == -signal.SIGKILL else ""
        raise WorkerDied(f"{name} was killed by {signal.Signals(-code).name}{why}; {kept}", 128 - code)
    raise WorkerDied(f"{name} ended with {code}; {kept}", code)


def main() -> int:
    """A worker: its orders come as one line on stdin, its reports go to stdout, one JSON object a line."""
    from mmdit_jax.host import sigterm_noted

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    with sigterm_noted() as asked:
        return _obey(asked)


def _obey(asked: Callable[[], bool]) -> int:
    """Do what the orders say until it is done, ``asked`` to stop, or the parent has gone."""
    from mmdit_jax.host import prepare_host

    orphaned = threading.Event()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no report
    orders = json.loads(sys.stdin.readline())

    def watch_parent() -> None:
        sys.stdin.read()
        orphaned.set()

    threading.Thread(target=watch_parent, daemon=True).start()
    prepare_host()

    def tell(**event: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            out.write(json.dumps(event) + "\n")

    def stop() -> bool:
        return asked() or orphaned.is_set()

    settings, place = Settings.from_json(orders["settings"]), Place(**orders["place"])
    try:
        encode_here(settings, Path(orders["folder"]), place, stop, lambda *report: tell(report=report))
    except UserError as error:
        tell(error=str(error))
        return EXIT_BAD_INPUT
    except Preempted:
        return EXIT_PREEMPTED
    except OSError as error:
        if error.errno is None:
            raise
        tell(errno=error.errno, file=error.filename and str(error.filename))
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
