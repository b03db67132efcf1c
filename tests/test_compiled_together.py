"""Several processes of one run and what they keep of compiled programs: none waits for one that found its program."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import fake_devices
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec
from process_group import Processes, one_run

from launch.compiled import AUTOTUNED, TOGETHER, keep_compiled_programs
from mmdit_jax.processes import end, exchange, join


def compile_one(root: str, platform: str) -> None:
    """Compile and run one program over all processes; prints its value, and how many programs were found."""
    join()
    jax.config.update("jax_compilation_cache_dir", None)  # none is chosen
    x = jax.device_put(jnp.arange(8.0), NamedSharding(jax.make_mesh((2,), ("x",)), PartitionSpec("x")))
    if platform != "cpu":
        jax.default_backend = lambda: platform  # what is decided by it, without its devices
    keep_compiled_programs(Path(root))
    found: list[str] = []
    jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
    value = float(jax.jit(lambda x: (jnp.sin(x) ** 2).sum())(x))
    exchange("done", None)
    print(json.dumps([value, found.count("/jax/compilation_cache/cache_hits")]), flush=True)
    end(0)


def compiled(processes: Processes, roots: list[Path], platform: str = "cpu") -> list[list[float]]:
    """What ``compile_one`` prints in each of two processes, with a root each."""
    group = []
    for told, root in zip(one_run(2), roots, strict=True):
        script = (
            "import sys; sys.path.insert(0, sys.argv[1]); "
            "import test_compiled_together as t; t.compile_one(sys.argv[2], sys.argv[3])"
        )
        command = [sys.executable, "-c", script, os.path.dirname(__file__), str(root), platform]
        group.append(processes.start(command, {**fake_devices(1), **told, "MMDIT_HEARTBEAT_SECONDS": "20"}))
    ends = processes.ends(group)
    assert [item.code for item in ends] == [0, 0], ends
    return [json.loads(item.out.splitlines()[-1]) for item in ends]


@pytest.mark.parametrize("shared", [True, False])
def test_one_that_finds_its_program_goes_on_with_one_that_compiles_it(
    tmp_path: Path, processes: Processes, shared: bool
) -> None:
    """On CPUs, with one folder of both and, as at a URL, with a folder each: only the first finds its program."""
    roots = [tmp_path / "first", tmp_path / ("first" if shared else "second")]
    (value, none), (same, nor_here) = compiled(processes, roots)
    assert value == same and none == nor_here == 0
    again = compiled(processes, roots)
    assert [item[0] for item in again] == [value, value]
    assert again[0][1] > 0 and again[1][1] == 0


def test_with_gpus_none_of_several_finds_a_program(tmp_path: Path, processes: Processes) -> None:
    """Where one alone, or several with CPUs, would find it; the devices are CPUs, whose programs are kept the same."""
    for _ in range(2):
        assert [found for _, found in compiled(processes, [tmp_path, tmp_path], "gpu")] == [0, 0]
    assert not list(tmp_path.rglob("*-cache"))
    assert (tmp_path / "_cache" / "xla" / TOGETHER / AUTOTUNED / "tmp").is_dir()


def test_a_folder_chosen_for_several_with_gpus_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    try:
        with caplog.at_level(logging.WARNING):
            jax.config.update("jax_compilation_cache_dir", None)
            keep_compiled_programs(tmp_path)
            keep_compiled_programs(tmp_path)  # of the next run, the folder is chosen
            assert not caplog.text
            jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
            keep_compiled_programs(tmp_path)
        assert f"JAX_COMPILATION_CACHE_DIR={tmp_path / 'mine'}: GPUs hang" in caplog.text
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        compilation_cache.reset_cache()
