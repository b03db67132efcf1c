"""wandb offline: a process of its own writes what wandb can read back, and nothing wandb does stops it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WRITE = """
import sys
from pathlib import Path
from mmdit_jax.training.wandb_log import WandbLog

for name in ("first", "second"):
    log = WandbLog(Path(sys.argv[1]), "project", name, name, {"depth": 2})
    for step in range(3):
        log.write(step, loss=0.1234567 * step)
    log.close()
    log.write(9, loss=76543.21)  # after its end: ignored
print("done")
"""


def _run(folder: Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", before + WRITE, str(folder)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_offline_runs_are_whole_when_the_process_ends(tmp_path: Path) -> None:
    done = _run(tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    for name in ("first", "second"):
        (file,) = tmp_path.rglob(f"run-{name}.wandb")
        content = file.read_bytes()
        assert b"depth" in content
        assert b"0.1234567" in content and b"0.2469134" in content
        assert b"76543.21" not in content


def test_runs_that_train_side_by_side_write_each_its_own(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from mmdit_jax.training.wandb_log import WandbLog

logs = {name: WandbLog(Path(sys.argv[1]), "project", name, name, {}) for name in ("first", "second")}
for step in range(3):
    logs["first"].write(step, loss=0.1234567)
    logs["second"].write(step, loss=0.7654321)
for log in logs.values():
    log.close()
"""
    environment = {**os.environ, "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (next(tmp_path.rglob(f"run-{name}.wandb")).read_bytes() for name in ("first", "second"))
    assert b"0.1234567" in first and b"0.7654321" not in first
    assert b"0.7654321" in second and b"0.1234567" not in second


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    assert _run(tmp_path, WANDB_MODE="disabled").returncode == 0
    assert not list(tmp_path.iterdir())


def test_its_absence_and_its_failures_stop_nothing(tmp_path: Path) -> None:
    absent = "import sys; sys.modules['wandb'] = None\n"
    failing = "import wandb; wandb.init = None\n"
    breaking = "import wandb; wandb.Run.log = wandb.Run.finish = None\n"
    for before in (absent, failing, breaking):
        done = _run(tmp_path, before, WANDB_MODE="offline")
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        assert "Traceback" not in done.stderr
        assert ("wandb" in done.stderr) == (before != absent)  # told, but for a package that is not there
