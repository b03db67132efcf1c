"""How long a command waits for a study's small files at a URL: fetched anew, unchanged, and after some runs went on.

    python -m benchmarks.remote_pull

An S3-compatible server (moto) on this host, in a process of its own, that waits ``--latency-ms`` before each answer as
a store that is further away would. Each run has config.json, events.jsonl, result.json and one file of samples. In a
round a folder that knows nothing of the URL fetches all, then again with nothing changed, then after a tenth of the
runs have written 1 KiB more of events; last, one folder of as many small files is written. A figure is the median over
rounds, in seconds; the requests are those that the server was sent in the last round. The server takes some
milliseconds of processor time for each request, one after another: without latency, it is the server that is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

SIZES = {"config.json": 2000, "events.jsonl": 40_000, "result.json": 6000, "samples/settings.npz": 3000}
"""Bytes of a run's files."""
MORE = 1024
"""Bytes of events that a run that went on has more."""
LOG = "/what-was-asked-for"


class Served(NamedTuple):
    """A request that the server answered."""

    method: str
    path: str
    sent: int
    """Bytes of the answer."""
    at_once: int
    """Requests that were under way when it came, itself among them."""


def serve(port: int, latency: float) -> None:
    """The server, until it is killed; it also tells what it was asked for since it was last asked that."""
    from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    store = DomainDispatcherApplication(create_backend_app)
    served: list[Served] = []
    under_way: set[int] = set()

    class Handler(MotoRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as every store does

        def log(self, *_: Any, **__: Any) -> None:
            pass

    def application(environment: dict[str, Any], start_response: Any) -> Any:
        if environment["PATH_INFO"] == LOG:
            told, served[:] = json.dumps(served), []
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(told)))])
            return [told.encode()]
        under_way.add(threading.get_ident())
        at_once = len(under_way)
        time.sleep(latency)
        answer = list(store(environment, start_response))
        under_way.discard(threading.get_ident())
        sent = sum(len(piece) for piece in answer)
        served.append(Served(environment["REQUEST_METHOD"], environment["PATH_INFO"], sent, at_once))
        return answer

    run_simple("127.0.0.1", port, application, threaded=True, request_handler=Handler)


def started(latency: float) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """The server's process, and the variables of processes that speak to it; it has one empty bucket, ``bucket``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "benchmarks.remote_pull",
        "--serve",
        str(port),
        "--latency-ms",
        str(1000 * latency),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT"), timeout=5).close()
            break
        except OSError:
            if time.monotonic() > deadline or server.poll() is not None:
                server.kill()
                raise
            time.sleep(0.1)
    return server, {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def served(address: str) -> list[Served]:
    """What the server was asked for since this was last called."""
    with urllib.request.urlopen(address + LOG) as told:
        return [Served(*item) for item in json.loads(told.read())]


def measure(runs: int, rounds: int, address: str, folder: Path) -> dict[str, dict[str, float]]:
    """Median seconds, and requests, of each kind of fetching and of writing."""
    from mmdit_jax.copies import pull, push_all
    from mmdit_jax.remote import MIRRORS, Remote, open_root

    url = "s3://bucket/studies"
    seconds: dict[str, list[float]] = {}
    requests: dict[str, int] = {}

    def timed(name: str, act: Any) -> None:
        served(address)
        start = time.perf_counter()
        act()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        requests[name] = len(served(address))

    def lines(size: int) -> bytes:
        return (b'{"event": "train", "step": 1}\n' * (size // 30 + 1))[:size]

    events: dict[int, bytes] = {}
    for run in range(runs):
        for name, size in SIZES.items():
            content = lines(size) if name == "events.jsonl" else os.urandom(size)
            (Remote(url) / f"study/run{run}/{name}").put(content)
        events[run] = lines(SIZES["events.jsonl"])
    for number in range(rounds):
        os.environ[MIRRORS] = str(folder / f"host{number}")
        study = open_root(url) / "study"
        timed("all", lambda study=study: pull(study))
        timed("nothing changed", lambda study=study: pull(study))
        for run in range(0, runs, 10):
            events[run] += lines(MORE)
            (Remote(url) / f"study/run{run}/events.jsonl").put(events[run])
        timed("a tenth went on", lambda study=study: pull(study))
        if any((study / f"run{run}" / "events.jsonl").read_bytes() != content for run, content in events.items()):
            raise RuntimeError("what was fetched is not what lies at the URL")
        written = open_root(f"{url}/written{number}") / "run"
        for index in range(4 * runs):
            path = written / "samples" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(3000))
        timed("written", lambda written=written: push_all(written))
    return {name: {"seconds": statistics.median(seconds[name]), "requests": requests[name]} for name in seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.latency_ms / 1000)
        return
    server, variables = started(args.latency_ms / 1000)
    os.environ |= variables
    address = variables["AWS_ENDPOINT_URL"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(args.runs, args.rounds, address, Path(folder))
    finally:
        server.kill()
        server.wait()
    if args.json:
        print(json.dumps({"runs": args.runs, "latency_ms": args.latency_ms, **found}))
        return
    for name, told in found.items():
        print(f"{name:16} {told['seconds']:7.2f} s  {told['requests']:5.0f} requests")


if __name__ == "__main__":
    main()
