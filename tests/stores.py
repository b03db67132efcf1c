"""A store that tests speak to: an S3-compatible server on loopback, which tells what it was asked for, or memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from benchmarks.remote_pull import started


@pytest.fixture(scope="session")
def store() -> Iterator[dict[str, str]]:
    """Variables of processes that speak to a server with one bucket; s3fs keeps to the first it was told of."""
    server, variables = started(latency=0.005)
    try:
        yield variables
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty folder at a store."""
    if request.param == "s3":
        for name, value in request.getfixturevalue("store").items():
            monkeypatch.setenv(name, value)
    return f"{request.param}://bucket/{uuid.uuid4().hex}"
