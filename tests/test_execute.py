"""Who may be at a run: the processes of one job together, and nobody else."""

from __future__ import annotations

import sys
from pathlib import Path

from conftest import TINY_STUDY
from process_group import Processes, one_run

from launch.hold import is_locked

# Holds a run until it is told to end.
PROCESS = """
import sys, time
from pathlib import Path
import jax
from mmdit_jax.processes import join
join(seconds=60)
place, index = Path(sys.argv[1]), jax.process_index()
from launch.hold import hold
from launch.places import Places
from launch.studies import load_study
run = load_study(str(place / "tiny.py"), []).runs[0]
with hold(run, Places(place, "tiny", place / "data"), began=time.time()):
    (place / f"held{index}").touch()
    while not (place / "end").exists():
        time.sleep(0.01)
"""


def test_processes_of_one_run_share_its_folder(tmp_path: Path, processes: Processes) -> None:
    """Two processes of a job both go on; the first has the lock, which another job would meet."""
    (tmp_path / "tiny.py").write_text(TINY_STUDY)
    both = [processes.start([sys.executable, "-c", PROCESS, str(tmp_path)], told) for told in one_run(2)]
    processes.until(both, lambda: all((tmp_path / f"held{index}").exists() for index in (0, 1)))
    (folder,) = (tmp_path / "tiny").iterdir()
    assert is_locked(folder) and (folder / "config.json").exists()
    (tmp_path / "end").touch()
    ends = processes.ends(both, 60.0)
    assert [end.code for end in ends] == [0, 0], ends
    assert not is_locked(folder)
