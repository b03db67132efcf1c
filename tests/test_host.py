"""Settings of the host, in processes of their own: they can't be taken back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.planning.target import parse
from mmdit_jax.host import by_onednn, onednn_options, step_options

REPORT = """
import numpy as np
from mmdit_jax.host import prepare_host, use_huge_pages
{before}
array = np.ones(2**26, np.float32)  # 256 MiB
first = array.ctypes.data
del array
again = np.empty(2**26, np.float32)
huge = [line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
print(int(first == again.ctypes.data), int(huge[0]) // 1024)
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is set exists on Linux only")


def _report(before: str) -> tuple[bool, int]:
    """Whether freed memory came back at the same place, and MiB in huge pages, after the statements ``before``."""
    script = REPORT.format(before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    same, huge = done.stdout.split()
    return same == "1", int(huge)


def test_large_arrays_lie_in_huge_pages_that_are_kept() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this kernel gives no huge pages to anyone")
    kept, huge = _report("prepare_host()")
    assert kept
    assert huge >= 200
    if "[madvise]" in setting.read_text():
        assert _report("")[1] == 0  # nothing changes for whoever does not call it


def test_a_limit_on_addresses_is_no_error() -> None:
    limit = "import os, resource; fifth = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 5\n"
    limit += "resource.setrlimit(resource.RLIMIT_AS, (fifth, fifth))\n"
    kept, _ = _report(limit + "prepare_host(); assert use_huge_pages() == 0")
    assert kept


def test_jax_is_given_the_memory_that_plans_count_on() -> None:
    """Unless it was told otherwise, by either name: JAX refuses to be told by both."""
    script = "import os; from mmdit_jax.host import prepare_host; prepare_host()\n"
    script += "print(*(os.environ.get(n) for n in ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')))"

    def told(**variables: str) -> str:
        done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert told() == f"{parse('h100:1x1').usable_bytes / parse('h100:1x1').chip.hbm_bytes:g} None"
    assert told(XLA_PYTHON_CLIENT_MEM_FRACTION="0.5") == "0.5 None"
    assert told(XLA_CLIENT_MEM_FRACTION="0.6") == "0.6 None"


def test_onednn_is_for_cpus_alone() -> None:
    """Also where a CPU compiles for another machine, as ``mmdit plan`` does."""
    assert by_onednn(True, "cpu") == bool(onednn_options())
    assert step_options(True, "none", "cpu") == onednn_options()
    for platform in ("gpu", "tpu"):
        assert not by_onednn(True, platform) and step_options(True, "none", platform) == {}
    assert not by_onednn(False, "cpu") and step_options(False, "none", "cpu") == {}
