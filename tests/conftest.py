"""What every test shares: JAX on the CPU, no wandb, and a study small enough to train in seconds."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from process_group import Processes

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("WANDB_MODE", "disabled")
# Nearly all of the suite's time is compilation of tiny models: compile fast rather than well.
FAST_COMPILATION = "--xla_backend_optimization_level=0"
os.environ.setdefault("XLA_FLAGS", FAST_COMPILATION)


def fake_devices(number: int) -> dict[str, str]:
    """Environment variables of a process that sees its host as so many devices.

    XLA has as many threads as cores, and a device that waits for the others in a collective holds one. NPROC gives it
    more, so that none waits for a thread; the time after which a collective gives up suits a busy machine.
    """
    flags = (
        f"{FAST_COMPILATION} --xla_force_host_platform_device_count={number} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=300"
    )
    return {"XLA_FLAGS": flags, "NPROC": str(4 * number)} if number > 1 else {"XLA_FLAGS": flags}


def value_of(module: str, expression: str) -> list[str]:
    """The command that prints the value (plain, as JSON) of ``expression`` over the test module ``t``."""
    script = (
        "from mmdit_jax.host import prepare_host; prepare_host(); "
        f"import json, sys; sys.path.insert(0, sys.argv[1]); import {module} as t; print(json.dumps({expression}))"
    )
    return [sys.executable, "-c", script, os.path.dirname(__file__)]


def on_fake_devices(number: int, module: str, expression: str) -> Any:
    """The value of ``expression`` over the test module ``t``, in a process with so many devices."""
    command = value_of(module, expression)
    done = subprocess.run(command, env={**os.environ, **fake_devices(number)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


MAPS = 30_000
"""Of a process's memory maps, half of what Linux allows it by default: each compiled program takes some."""


@pytest.fixture(autouse=True)
def few_memory_maps() -> Iterator[None]:
    """Forget what was compiled before there are too many maps: the compiler crashes where it gets no more."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


TINY_STUDY = '''
"""Two tiny runs for the tests."""
from mmdit_jax.config import *
from mmdit_jax.diffusion import SamplerConfig
from mmdit_jax.models import MMDiTConfig

def study():
    data = DataConfig(name="scenes", examples=256, validation_examples=8, text_encoders=("words", "tower"))
    context, pooled = text_widths(data.text_encoders)
    model = MMDiTConfig.from_depth(
        2, head_size=16, patch_size=8, in_channels=3, context_dim=context, pooled_dim=pooled, position_table=8
    )
    base = dict(
        model=model, data=data, batch=8, steps=40, validate_every=10,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, ema_decay=0.9),
        evaluation=EvaluationConfig(prompts_per_task=2, sampler=SamplerConfig(steps=2)),
        hardware=HardwareConfig(checkpoint_every=10),
    )
    names = {"rf": "rf", "log normal": "rf/lognorm(0.00,1.00)"}
    return Study("tiny", tuple(Run(name=name, formulation=f, **base) for name, f in names.items()))
'''


class Mmdit:
    """Runs the console script in a process of its own, as a user does."""

    def __init__(self, folder: Path, cache: Path, processes: Processes) -> None:
        self.folder = folder
        self._processes = processes
        self.study = folder / "tiny.py"
        self.study.write_text(TINY_STUDY)
        self._cache = cache

    def start(self, *args: str, devices: int = 1, **options: object) -> subprocess.Popen[str]:
        variables = {**fake_devices(devices), "JAX_COMPILATION_CACHE_DIR": str(self._cache)}
        return self._processes.start([sys.executable, "-m", "launch.cli", *args], variables, self.folder, **options)

    def __call__(self, *args: str, devices: int = 1, **options: object) -> subprocess.CompletedProcess[str]:
        (end,) = self._processes.ends([self.start(*args, devices=devices, **options)], 300.0)
        return subprocess.CompletedProcess(args, *end)


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, shared by the processes that tests start."""
    return tmp_path_factory.mktemp("xla")


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Starts processes, of which none outlives the test."""
    found = Processes()
    yield found
    found.kill()


@pytest.fixture
def mmdit(tmp_path: Path, compile_cache: Path, processes: Processes) -> Mmdit:
    """The console script in an empty folder that holds ``tiny.py``."""
    return Mmdit(tmp_path, compile_cache, processes)


@pytest.fixture
def tiny_study(tmp_path: Path) -> Path:
    """A study file with two runs that train in seconds."""
    path = tmp_path / "tiny_study.py"
    path.write_text(TINY_STUDY)
    return path
