"""Who may be at a run: the processes of one job together, and nobody else."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from conftest import TINY_STUDY

from launch.hold import is_locked

# Holds a run until it is told to end.
PROCESS = """
import sys, time
from pathlib import Path
import jax
place, port, index = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.distributed.initialize("localhost:" + port, num_processes=2, process_id=index, initialization_timeout=60)
from launch.hold import hold
from launch.places import Places
from launch.studies import load_study
run = load_study(str(place / "tiny.py"), []).runs[0]
with hold(run, Places(place, "tiny", place / "data"), began=time.time()):
    (place / f"held{index}").touch()
    while not (place / "end").exists():
        time.sleep(0.01)
"""


def test_processes_of_one_run_share_its_folder(tmp_path: Path) -> None:
    """Two processes of a job both go on; the first has the lock, which another job would meet."""
    (tmp_path / "tiny.py").write_text(TINY_STUDY)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])

    def start(index: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, str(tmp_path), port, str(index)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    both = [start(0), start(1)]
    try:
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"held{index}").exists() for index in (0, 1)):
            assert time.monotonic() < deadline and all(process.poll() is None for process in both)
            time.sleep(0.01)
        (folder,) = (tmp_path / "tiny").iterdir()
        assert is_locked(folder) and (folder / "config.json").exists()
        (tmp_path / "end").touch()
        ends = [process.communicate(timeout=60) for process in both]
    finally:
        for process in both:
            process.kill()  # does nothing to one that has ended
            process.wait()
    assert all(process.returncode == 0 for process in both), ends
    assert not is_locked(folder)
