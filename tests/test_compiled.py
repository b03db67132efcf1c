"""A run that starts again finds every program compiled, whatever a kill left of the folder that they lie in."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from conftest import TINY_STUDY
from jax.experimental.compilation_cache import compilation_cache

from launch.compiled import AUTOTUNED, CHECKED, keep_compiled_programs, tidy
from launch.studies import load_study
from mmdit_jax.training.events import read_events

# The console script, in a process that notes each program that JAX asks the compiler for: whether it was found.
# JAX times each request, found or not; one that is found says so before it ends.
COUNTED = """
import json, sys
from jax import monitoring
notes, found = open(sys.argv[1], "w", buffering=1), []
def event(name, **_):
    if name == "/jax/compilation_cache/cache_hits":
        found.append(name)
def duration(name, seconds, **about):
    if name == "/jax/core/compile/backend_compile_duration":
        notes.write(json.dumps([bool(found), str(about.get("fun_name"))]) + chr(10))
        found.clear()
monitoring.register_event_listener(event)
monitoring.register_event_duration_secs_listener(duration)
from launch.cli import main
sys.exit(main(sys.argv[2:]))
"""


class Counted:
    """``mmdit train tiny.py --run rf`` in a folder, and which programs the last start found and compiled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tiny.py").write_text(TINY_STUDY)

    @property
    def run_dir(self) -> Path:
        return next(iter(sorted((self.folder / "studies" / "tiny").glob("rf-*"))), self.folder / "none")

    @property
    def entries(self) -> list[Path]:
        return sorted((self.folder / "studies" / "_cache").rglob("*-cache"))

    @property
    def saved(self) -> int:
        """The newest finished checkpoint's step, by its folder's name: the run may be writing and removing others."""
        return max((int(path.name) for path in self.run_dir.glob("checkpoints/*") if path.name.isdigit()), default=0)

    def start(self, *args: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", COUNTED, "notes.jsonl", "train", "tiny.py", "--run", "rf", "--quiet", *args]
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        return subprocess.Popen(words, cwd=self.folder, env=environment, text=True, stderr=subprocess.PIPE)

    def found_and_compiled(self) -> tuple[list[str], list[str]]:
        notes = [json.loads(line) for line in (self.folder / "notes.jsonl").read_text().splitlines()]
        return [name for hit, name in notes if hit], [name for hit, name in notes if not hit]

    def kill_when(self, reached: Callable[[], bool], *args: str) -> str:
        """Start, SIGKILL once ``reached``, and return what was said on stderr."""
        process = self.start(*args)
        try:
            deadline = time.monotonic() + 120
            while process.poll() is None and not reached() and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            process.kill()
        _, told = process.communicate()
        assert process.returncode == -signal.SIGKILL, told
        return told


@pytest.mark.slow
def test_a_killed_run_that_starts_again_compiles_nothing(tmp_path: Path) -> None:
    run = Counted(tmp_path)
    long = ("--set", "steps=100000")  # its evaluation, which the first start never reaches, is not reached here

    def kill_after(steps: int) -> str:
        """Kill when it has validated and saved so many steps further on than it was."""
        wanted = run.saved + steps
        return run.kill_when(lambda: run.saved >= wanted, *long)

    kill_after(20)
    found, compiled = run.found_and_compiled()
    assert "jit(step)" in compiled and "jit(errors)" in compiled and not found
    kill_after(20)
    starts = [event for event in read_events(run.run_dir) if event["event"] == "start"]
    assert starts[0]["step"] == 0 and starts[1]["step"] >= 20
    found, compiled = run.found_and_compiled()
    assert compiled == [] and "jit(step)" in found and "jit(errors)" in found

    for entry in run.entries:
        os.truncate(entry, entry.stat().st_size // 2)
    assert "Error reading" not in kill_after(20)
    found, compiled = run.found_and_compiled()
    assert "jit(step)" in compiled and found == []
    kill_after(20)
    assert run.found_and_compiled()[1] == []


@pytest.mark.slow
def test_a_finished_run_that_is_done_again_compiles_nothing(tmp_path: Path) -> None:
    """From an earlier checkpoint on, and its evaluation."""
    run = Counted(tmp_path)
    results = []
    for _ in range(2):
        process = run.start()
        assert process.communicate()[1] is not None and process.returncode == 0
        results.append((run.run_dir / "result.json").read_bytes())
        (run.run_dir / "result.json").unlink()
        shutil.rmtree(run.run_dir / "checkpoints" / "40")
    found, compiled = run.found_and_compiled()
    assert compiled == [] and {"jit(step)", "jit(errors)", "jit(run)", "jit(embed_images)"} <= set(found)
    assert results[0] == results[1]

    first, _ = (event for event in read_events(run.run_dir) if event["event"] == "start")
    config = load_study(str(tmp_path / "tiny.py")).find("rf")
    assert (first["step_flops"], first["step_flops_6nd"]) == (config.train_flops(1), config.train_flops_6nd(1))
    assert first["datasheet_flops_per_second"] is None and first["device_kind"] == "cpu"
    assert (first["ceiling_size"], first["ceiling_dtype"]) == (1024, "float32")
    assert first["ceiling_flops_per_second"] > 1e8


def entry(folder: Path, name: str, size: int, used: int) -> Path:
    """A whole entry of so many bytes before it was packed, written and read at second ``used``."""
    path = folder / f"{name}-cache"
    path.write_bytes(zlib.compress(os.urandom(size)))
    os.utime(path, (used, used))
    return path


def test_tidy_removes_what_was_cut_short(tmp_path: Path) -> None:
    whole, cut, empty = (entry(tmp_path, name, 5000, 100) for name in ("whole", "cut", "empty"))
    for path, left in ((cut, 4990), (empty, 0)):
        os.truncate(path, left)
        os.utime(path, (100, 100))
    other = tmp_path / "notes"
    other.write_bytes(b"no entry")
    tidy(tmp_path, now=200 * 10**9, limit=10**6)
    assert sorted(tmp_path.iterdir()) == sorted([whole, other, tmp_path / CHECKED])

    late, early = entry(tmp_path, "late", 5000, 200), entry(tmp_path, "early", 5000, 199)
    for path in (late, early):
        times = path.stat()
        os.truncate(path, 100)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    tidy(tmp_path, now=300 * 10**9, limit=10**6)
    assert not late.exists() and early.exists()  # what lay there at the last call was read then, and is not again


def test_tidy_keeps_what_was_used_last(tmp_path: Path) -> None:
    entries = [entry(tmp_path, name, 1000, used) for name, used in (("b", 300), ("a", 100), ("d", 400), ("c", 200))]
    os.utime(entries[1], (500, 100))  # the oldest one has been read again
    tidy(tmp_path, now=10**12, limit=2500)
    assert [path.exists() for path in entries] == [False, True, True, False]


def forbidden(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_what_another_user_owns_ends_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared root: entries beyond the limit that can't be removed, and a marker that can't be set."""
    entries = [entry(tmp_path, name, 1000, used) for name, used in (("a", 100), ("b", 200), ("c", 300))]
    cut = entry(tmp_path, "cut", 1000, 100)
    os.truncate(cut, 10)
    unlink = Path.unlink
    others = [cut, entries[0]]

    def unlink_own(path: Path, missing_ok: bool = False) -> None:
        if path in others:
            forbidden()
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink_own)
        patched.setattr(os, "utime", forbidden)
        tidy(tmp_path, now=10**12, limit=2500)
    assert [path.exists() for path in (*entries, cut)] == [True, False, True, True]  # the next oldest went instead
    with monkeypatch.context() as patched:
        patched.setattr(Path, "touch", forbidden)
        tidy(tmp_path, now=10**12, limit=2500)
    tidy(tmp_path, now=10**12, limit=1500)
    assert [path.exists() for path in (*entries, cut)] == [False, False, True, False]


@pytest.fixture
def no_folder() -> Iterator[None]:
    """No folder chosen, as at the start of a process."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_enable_xla_caches",
    )
    before = {name: jax.config.values[name] for name in names}
    jax.config.update(names[0], None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path, no_folder: None, caplog) -> None:
    (tmp_path / "_cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        keep_compiled_programs(tmp_path)
    assert jax.config.values["jax_compilation_cache_dir"] is None
    assert "can't be kept" in caplog.text and str(tmp_path) in caplog.text
    (tmp_path / "_cache").unlink()
    keep_compiled_programs(tmp_path)
    chosen = Path(jax.config.values["jax_compilation_cache_dir"])
    assert chosen.is_dir() and chosen.is_relative_to(tmp_path / "_cache" / "xla")
    keep_compiled_programs(tmp_path / "another")  # what is chosen stays so
    assert Path(jax.config.values["jax_compilation_cache_dir"]) == chosen and not (tmp_path / "another").exists()


def test_a_folder_that_can_only_be_read_is_read(
    tmp_path: Path, no_folder: None, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    """What was kept there is found, what is not there is compiled, and nothing is written or warned about."""
    keep_compiled_programs(tmp_path)
    folder = Path(jax.config.values["jax_compilation_cache_dir"])
    old, new = (jax.jit(lambda x, n=n: jnp.cos(x) + n) for n in (1, 2))
    x = jnp.arange(3.0)
    expected = old(x)
    kept = sorted(folder.iterdir())
    assert len(kept) >= 2
    jax.clear_caches()
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)
    for name in ("touch", "unlink", "write_bytes"):
        monkeypatch.setattr(Path, name, forbidden)
    with caplog.at_level(logging.WARNING):
        keep_compiled_programs(tmp_path)
    assert "are read there, no new ones are kept (Operation not permitted)" in caplog.text
    assert Path(jax.config.values["jax_compilation_cache_dir"]) == folder
    found: list[str] = []
    listener = lambda name, **_: found.append(name)  # noqa: E731
    jax.monitoring.register_event_listener(listener)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, first = old(x), new(x)
    jax.monitoring.unregister_event_listener(listener)
    assert found.count("/jax/compilation_cache/cache_hits") == 1
    assert (again == expected).all() and (first == expected + 1).all()
    assert sorted(folder.iterdir()) == kept


@pytest.mark.parametrize("whose", ["ours", "side", "all"])
def test_on_gpus_nothing_is_used_where_xla_could_not_write(
    whose: str, tmp_path: Path, no_folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLA ends a compilation there: without its own folder where that is another user's, none at all where all is."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    folder = tmp_path / "_cache" / "xla"
    temporary = tempfile.TemporaryFile
    (folder / AUTOTUNED / "tmp").mkdir(parents=True)

    def own(dir: Path) -> Any:
        return forbidden() if whose == "all" or (whose == "side" and AUTOTUNED in str(dir)) else temporary(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", own)
    side = jax.config.values["jax_persistent_cache_enable_xla_caches"]
    keep_compiled_programs(tmp_path)
    assert jax.config.values["jax_compilation_cache_dir"] == (None if whose == "all" else str(folder))
    assert jax.config.values["jax_persistent_cache_enable_xla_caches"] == ("none" if whose == "side" else side)
