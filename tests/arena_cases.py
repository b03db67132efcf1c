"""Studies to vote on, an arena as a process of its own, and voters that talk to it over HTTP."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image, PngImagePlugin
from process_group import Processes

QUESTIONS = ("prompt following", "aesthetics", "typography")
WORD = "secret-run"
"""In the name of every run: nobody who votes may come to see it."""


def make_study(folder: Path, runs: int = 3, prompts: int = 4, samples: int = 1, size: int = 8) -> Path:
    """Finished runs with samples, each image of noise of its own; what is written beside the pixels tells the run."""
    rng = np.random.default_rng(0)
    for run in range(runs):
        name = f"{WORD} {run}"
        place = folder / f"{name.replace(' ', '-')}-0123abcd"
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"config": {"name": name}}))
        (place / "result.json").write_text("{}")
        for number in range(prompts):
            tree = place / "samples" / f"{number:05d}"
            (tree / "samples").mkdir(parents=True)
            (tree / "metadata.jsonl").write_text(json.dumps({"tag": "counting", "prompt": f"prompt {number}"}) + "\n")
            for sample in range(samples):
                told = PngImagePlugin.PngInfo()
                told.add_text("parameters", name)
                image = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))
                image.save(tree / "samples" / f"{sample:04d}.png", pnginfo=told)
    return folder


class Server:
    """``mmdit arena`` in a process of its own."""

    def __init__(
        self, processes: Processes, root: Path, *options: str, port: int = 0, before: Sequence[str] = ()
    ) -> None:
        """``before`` is what the command is started by."""
        command = [sys.executable, "-m", "launch.cli", "arena", str(root), "--port", str(port), "--json", *options]
        self.process = processes.start([*before, *command], {})
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(processes.ends([self.process])[0].err)
        self.told: dict[str, Any] = json.loads(line)
        self.url = self.told["address"].rstrip("/")
        self.port = int(self.url.rsplit(":", 1)[1])

    def stop(self) -> subprocess.CompletedProcess[str]:
        """SIGTERM, and how it ended."""
        self.process.terminate()
        out, err = self.process.communicate(timeout=30)
        return subprocess.CompletedProcess([], self.process.returncode, out, err)


class Voter:
    """A browser as the server sees it: cookies, JSON, and the same answer again until it is acknowledged."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server, self.session = server, session
        self.acknowledged: dict[tuple[str, str], str] = {}

    async def ticket(self) -> dict[str, Any]:
        return await self._post("/api/ticket", {})

    async def send(self, ticket: str, question: str, outcome: str) -> str:
        """One request; what the server says it counted."""
        told = await self._post("/api/vote", {"ticket": ticket, "question": question, "outcome": outcome})
        counted: str = told["counted"]
        self.acknowledged[ticket, question] = counted
        return counted

    async def judge(self, outcomes: Sequence[str]) -> dict[str, Any]:
        """Answer all of a new ticket."""
        pair = await self.ticket()
        for question, outcome in zip(pair["questions"], outcomes, strict=True):
            await self.send(pair["ticket"], question, outcome)
        return pair

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self.session.post(self.server.url + path, json=body) as response:
            assert response.status == 200, (response.status, await response.text())
            told: dict[str, Any] = await response.json()
            return told


def session(name: str | None = None, limit: int = 8) -> aiohttp.ClientSession:
    """One browser; by a ``name`` it is the same one as before, else a new one that keeps its cookies."""
    return aiohttp.ClientSession(
        headers={} if name is None else {"Cookie": f"arena_voter={name}"},
        cookie_jar=aiohttp.CookieJar(unsafe=True),  # for an address, too
        connector=aiohttp.TCPConnector(limit=limit),
        timeout=aiohttp.ClientTimeout(total=120),
    )


def votes_in(path: Path) -> dict[tuple[str, str], str]:
    """(ticket, question) -> outcome, by SQLite itself."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT ticket, question, outcome FROM arena_votes").fetchall()
    found = {(ticket, question): outcome for ticket, question, outcome in rows}
    assert len(found) == len(rows)
    return found
