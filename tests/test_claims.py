"""What supervisors leave to one another, step by step, in one process."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import pytest

from launch.executors.claims import PATIENCE, Claim, Claims, Need


def need(cores: int = 1, gpus: int = 0, gib: float = 0.0) -> Need:
    return Need(cores, list(range(4)), gpus, ["0", "1"], gib, 16.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "claims"


def claimed(claims: Claims, what: Need, *, idle: bool = True) -> Claim:
    found = claims.claim("run", what, idle=idle)
    assert found is not None
    return found


def test_what_one_has_another_has_not(folder: Path) -> None:
    """Until it is released."""
    a, b = Claims("/a", folder), Claims("/b", folder)
    first = claimed(a, need(3, gpus=2))
    assert (first.cores, first.gpus) == ([0, 1, 2], ["0", "1"])
    assert b.claim("run", need(2), idle=True) is None and b.waits_for == "waits for cores, after /a/run"
    assert claimed(b, need(1)).cores == [3]
    assert b.claim("run", need(1, gpus=1), idle=False) is None
    assert b.waits_for == "waits for cores and GPUs, after /a/run"
    first.release()
    assert claimed(b, need(1, gpus=1), idle=False).gpus == ["0"] and b.waits_for == ""


def test_who_waits_longest_goes_first(folder: Path) -> None:
    """All that it needs is left to it, and no more; those that have runs come after all that have none."""
    a, b, c, d = (Claims(f"/{name}", folder) for name in "abcd")
    first, second = claimed(a, need(2)), claimed(d, need(1))
    assert b.claim("run", need(3), idle=True) is None  # one is free
    assert c.claim("run", need(1), idle=True) is None
    assert c.waits_for.endswith(", after /a/run and 2 more")
    second.release()
    first.release()
    assert c.claim("run", need(2), idle=True) is None
    assert d.claim("run", need(2), idle=False) is None
    assert claimed(c, need(1)).cores == [3]
    assert claimed(b, need(3)).cores == [0, 1, 2]


def test_nothing_is_left_to_one_that_needs_something_else(folder: Path) -> None:
    a, b, c = (Claims(f"/{name}", folder) for name in "abc")
    claimed(a, need(1, gpus=2))
    assert b.claim("run", need(1, gpus=1), idle=True) is None
    assert claimed(c, need(2)).cores == [2, 3]


@pytest.mark.parametrize("gib", [16.0, 40.0])
def test_as_much_memory_as_there_is_and_more(folder: Path, gib: float) -> None:
    """It goes alone among those that were given memory, and they go when it has ended."""
    a, b = Claims("/a", folder), Claims("/b", folder)
    one = claimed(a, need(gib=1.0))
    assert b.claim("run", need(gib=gib), idle=True) is None and "memory" in b.waits_for
    assert a.claim("run", need(gib=1.0), idle=False) is None
    claimed(a, need(), idle=False)
    one.release()
    all_of_it = claimed(b, need(gib=gib))
    assert a.claim("run", need(gib=1.0), idle=True) is None
    all_of_it.release()
    claimed(a, need(gib=1.0))


def test_where_another_looks_just_now(folder: Path) -> None:
    """It is asked again a moment later, also by one that nobody else keeps from it."""
    a = Claims("/a", folder)
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert a.claim("run", need(), idle=True) is None and a.waits_for == ""
    os.close(handle)
    claimed(a, need())


def test_files_of_processes_that_are_gone_count_for_nothing(folder: Path) -> None:
    folder.mkdir()
    (folder / "1-2-3.has").write_text("torn")
    (folder / "1-2-4.waits").write_text("")
    assert claimed(Claims("/a", folder), need(4)).cores == [0, 1, 2, 3]
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_cannot_be_used_keeps_no_run_waiting(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder, another user's, or a full disk: said, and what is known to be free is taken."""
    folder.write_text("")
    found = claimed(Claims("/a", folder), need(2, gpus=1))
    assert (found.cores, found.gpus, found.handles) == ([0, 1], ["0"], ())
    folder.unlink()
    folder.symlink_to("/tmp")
    claimed(Claims("/a", folder), need(2)).release()
    assert "not a folder of ours" in capsys.readouterr().out
    assert Claims("/a", folder).claim("run", Need(1, [3], 1, [], 0.0, 16.0), idle=False) is None  # its own have them
    folder.unlink()
    taken = claimed(Claims("/b", folder), need(1, gpus=2))
    write: Any = os.write
    monkeypatch.setattr(os, "write", lambda handle, text: write(handle, text[:5]))
    a = Claims("/a", folder)
    assert a.claim("run", need(1, gpus=1), idle=True) is None and a.waits_for == "waits for GPUs, after /b/run"
    found = claimed(a, need(2))
    assert found.cores == [1, 2] and not set(found.cores) & set(taken.cores)
    assert "No space left on device; run starts without a claim" in capsys.readouterr().out
    taken.release()
    assert not list(folder.iterdir())


def test_nothing_is_left_to_one_that_was_stopped_in_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = (Claims(f"/{name}", folder) for name in "abc")
    claimed(a, need(1))
    assert b.claim("run", need(4), idle=True) is None
    assert c.claim("run", need(1), idle=True) is None
    (line,) = [path for path in folder.glob("*.waits") if '"/b"' in path.read_text()]
    os.utime(line, (0, time.time() - PATIENCE - 1))
    assert claimed(c, need(1)).cores == [1]
    monkeypatch.setattr(b, "_seen", time.monotonic() - PATIENCE)
    assert b.claim("run", need(4), idle=True) is None  # it goes on, and is heard of again
    assert c.claim("run", need(1), idle=False) is None


def test_machines_that_share_a_folder_have_claims_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    claimed(Claims("/a"), need(4))
    assert Claims("/b").claim("run", need(1), idle=True) is None
    monkeypatch.setattr("launch.executors.claims._machine", lambda: "another")
    assert claimed(Claims("/c"), need(4)).cores == [0, 1, 2, 3]
