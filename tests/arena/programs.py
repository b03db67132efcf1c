"""A real PostgreSQL and a real Chromium, for tests: in a folder of their own, taken down by their pids.

Debian's packages are postgresql and chromium. PostgreSQL doesn't run as root: there its files are the user postgres'.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from process_group import free_port

REQUIRED = "MMDIT_REQUIRE_ARENA"
"""Variable by which CI says that there must be both."""
VERSIONS = "/usr/lib/postgresql"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing(what: str) -> None:
    """Skip the test, or fail where CI says that it must run."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"no {what} here")
    pytest.skip(f"no {what} here; apt-get install postgresql chromium")


class Postgres:
    """A server with an empty database at ``url``."""

    def __init__(self) -> None:
        found = sorted(Path(VERSIONS).glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
        if not found[-1].is_file():
            missing("PostgreSQL")
        self._programs = found[-1].parent
        self.folder = Path(tempfile.mkdtemp(prefix="mmdit-postgres-"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "--auth=trust", "--username=arena", "--no-sync", f"--pgdata={self.folder}/data")
        self.port = free_port()
        self.url = f"postgresql://arena@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        self._control("start", "-w", "-l", f"{self.folder}/log", "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """``immediate`` is a crash: what is not on disk is lost."""
        self._control("stop", "-w", "-m", mode)

    def remove(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.folder)

    def _control(self, *words: str) -> None:
        self._run("pg_ctl", f"--pgdata={self.folder}/data", *words)

    def _run(self, program: str, *words: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*user, str(self._programs / program), *words]
        # The server inherits what it is started with: a pipe would never end.
        with (self.folder / f"{program}.out").open("w") as out:
            done = subprocess.run(command, stdout=out, stderr=out, cwd="/", timeout=120)
        assert done.returncode == 0, (self.folder / f"{program}.out").read_text()


class Chromium:
    """A headless browser; ``endpoint`` is where it takes DevTools' commands."""

    def __init__(self) -> None:
        program = next(filter(None, map(shutil.which, BROWSERS)), None)
        if program is None:
            missing("Chromium")
        self.folder = Path(tempfile.mkdtemp(prefix="mmdit-chromium-"))
        words = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={self.folder}/profile"]
        # The sandbox works neither as root nor in most containers; the pages are our own.
        words += [
            "--no-sandbox",
            "--no-first-run",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
        ]
        log = self.folder / "log"
        with log.open("w") as out:
            self._process = subprocess.Popen([str(program), *words, "about:blank"], stdout=out, stderr=out)
        deadline = time.monotonic() + 120
        while not (found := re.search(r"DevTools listening on (ws://\S+)", log.read_text())):
            assert self._process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        self.endpoint = found[1]

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
