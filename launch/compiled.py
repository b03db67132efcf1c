"""The programs that XLA compiled, kept under the root of the studies: a run that starts again compiles nothing."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import math
import os
import platform
import tempfile
import zlib
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

log = logging.getLogger(__name__)

LIMIT = 16 * 2**30
"""Bytes of programs that are kept. JAX's own limit (jax_compilation_cache_max_size) is left alone: it takes a lock for
every program that any process reads, needs another package, and ends all writing where it meets an older folder."""
CHECKED = ".checked"
"""File whose time says up to when entries were checked."""
ENTRIES = "*-cache"
AUTOTUNED = "xla_gpu_per_fusion_autotune_cache_dir"
"""Folder below, as JAX calls it, in which XLA for GPUs keeps which kernels it found the fastest. XLA makes it for its
user alone, and ends a compilation in an error where it can't write there."""
TOGETHER = "together"
"""Folder below, for several processes with GPUs: what XLA found the fastest, and no programs."""
_ZSTD = b"\x28\xb5\x2f\xfd"


def keep_compiled_programs(root: Path) -> None:
    """Keep every program that XLA compiles from here on in ``root/_cache/xla``, where the next start finds it.

    A folder that was chosen before (by JAX_COMPILATION_CACHE_DIR) stays chosen, with JAX's own rules of what is kept.
    Where ``root`` can't be written nothing is kept, which is said in the log; but for GPUs, what lies there is read.
    Devices must be set up by now.

    Of several processes JAX lets the first write. On TPUs the others find there what all of them run, if the folder is
    theirs, too (JAX's documentation); at a URL it is not, and they compile at each start. On CPUs they always do: which
    part of the topology is a process's own goes into what its programs are found by. One that finds a program and one
    that compiles it go on together.

    Not on GPUs. Of the processes that compile a program each times a share of its kernels, and waits up to a day for
    the others' shares (XLA's xla_gpu_shard_autotuning); one that found the program has none to give. A folder of each
    host, another run that writes a moment earlier, or a file that NFS shows late, and the run hangs. Without shares
    each process could choose other kernels, and so another order of collectives. So there all of them compile at each
    start, and only which kernels they chose is kept.
    """
    on_gpu = jax.default_backend() == "gpu"
    together = on_gpu and jax.process_count() > 1
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen is not None:
        if together and Path(chosen).name != TOGETHER:
            log.warning("JAX_COMPILATION_CACHE_DIR=%s: GPUs hang where not all processes find a program there", chosen)
        return
    # Whole, because XLA's own cache on GPUs lies below it, and its path is part of what programs are found by.
    folder = (root / "_cache" / "xla").resolve()
    if jax.default_backend() == "cpu":
        folder /= f"cpu-{_instruction_set()}"
    shortest = 0.0  # seconds of a compilation that is worth keeping: many small ones add up
    if together:
        folder, shortest = folder / TOGETHER, math.inf
    try:
        now = _written(folder)
    except OSError as error:
        if on_gpu or not os.access(folder, os.R_OK | os.X_OK):
            log.warning("root=%s: compiled programs can't be kept (%s); each start compiles anew", root, error.strerror)
            return
        log.warning("root=%s: compiled programs are read there, no new ones are kept (%s)", root, error.strerror)
        shortest = math.inf
    else:
        if jax.process_index() == 0:
            tidy(folder, now, LIMIT)
    if on_gpu:
        try:
            _written(folder / AUTOTUNED)
            _written(folder / AUTOTUNED / "tmp")
        except OSError:  # another user's: programs are kept without it, apart from those that were made with it
            jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)
    compilation_cache.reset_cache()  # a program may have been compiled before there was a folder


def _written(folder: Path) -> int:
    """Make the folder, write there, and return when, in nanoseconds by the clock of its file system."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime_ns


def tidy(folder: Path, now: int, limit: int) -> None:
    """Remove entries that a kill cut short, and beyond ``limit`` bytes those that were longest not used.

    JAX writes entries in place, and never replaces one: a run would compile again at each start what one kill left
    half-written. Only entries written since the last call are read. Another process may be writing or reading here:
    it loses an entry at most, and compiles that program again. What another user's rights forbid is left as it is.

    Args:
        now: time in nanoseconds before the call, by the clock of the folder's file system.
    """
    marker = folder / CHECKED
    since = marker.stat().st_mtime_ns if marker.exists() else 0
    kept: list[tuple[int, int, Path]] = []
    for path in folder.glob(ENTRIES):
        try:
            found = path.stat()
            if found.st_mtime_ns >= since and not _whole(path.read_bytes()):
                path.unlink(missing_ok=True)
                continue
        except OSError:  # another process has removed it, or another user owns it
            continue
        kept.append((max(found.st_atime_ns, found.st_mtime_ns), found.st_size, path))
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            total -= size
    with contextlib.suppress(OSError):
        marker.touch()
        os.utime(marker, ns=(now, now))


def _whole(entry: bytes) -> bool:
    """Whether an entry can be unpacked: zstandard where that package is installed, else zlib, as JAX packs it."""
    try:
        if entry.startswith(_ZSTD):
            importlib.import_module("zstandard").ZstdDecompressor().decompress(entry)
        else:
            zlib.decompress(entry)
    except Exception:  # each library has its own
        return False
    return True


def _instruction_set() -> str:
    """Hash of what this CPU can do: hosts that share a root run no instruction that only another one has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:8]
