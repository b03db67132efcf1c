"""Conversion in a process of its own: how much memory it takes, and what is left when it is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import fake_devices
from sd3_files import contents, sparse_stability

from mmdit_jax.models.sd3 import open_checkpoint

# The peak of the process's own memory: ru_maxrss would also count that of the process which started it.
CHILD = """
import sys
from launch.cli import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, "convert", *map(str, arguments)]
    environment = {**os.environ, **fake_devices(1)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def peak_bytes(*arguments: object) -> int:
    """Peak resident memory of one conversion."""
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return 1024 * int(out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_checkpoint(tmp_path) -> None:
    """300 MB more of checkpoint, 40 MB more of memory at most: a few times the largest tensor (6 MB)."""
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    sparse_stability(small, 2, 64)
    size = sparse_stability(large, 11, 640)
    assert size > 300e6
    for to in ("diffusers", "orbax"):
        there, back = tmp_path / f"{to}-there", tmp_path / f"{to}-back.safetensors"
        least = peak_bytes(small, tmp_path / f"{to}-least", "--to", to)
        assert peak_bytes(large, there, "--to", to) - least < 40e6
        assert peak_bytes(there, back, "--to", "stability") - least < 40e6
        assert open_checkpoint(back).config == open_checkpoint(large).config


@pytest.mark.parametrize("to", ["diffusers", "orbax"])
def test_killed_half_way_leaves_nothing_that_looks_finished(tmp_path, to) -> None:
    source, target = tmp_path / "s.safetensors", tmp_path / "out"
    sparse_stability(source, 8, 512)
    process = start(source, target, "--to", to)
    deadline = time.monotonic() + 100
    while not any(_bytes(item) > 1e6 for item in tmp_path.glob(".out.*.tmp")):  # it writes
        assert time.monotonic() < deadline and process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not target.exists() and len(list(tmp_path.glob(".out.*.tmp"))) == 1
    peak_bytes(source, target, "--to", to)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "s.safetensors"]
    assert open_checkpoint(target).config == open_checkpoint(source).config
    if to == "diffusers":
        assert len(contents(target)) > 200


def _bytes(folder: Path) -> int:
    """Of all files below; of those that vanish meanwhile, none."""
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size
    return total
