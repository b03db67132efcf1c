"""benchmarks/loop_overhead.py times the parts that a run really goes through."""

from __future__ import annotations

from pathlib import Path

from benchmarks.loop_overhead import Clock, parts_timed
from launch.execute import Handling, execute
from launch.places import Places
from launch.studies import load_study


def test_every_part_takes_time(tiny_study: Path, tmp_path: Path) -> None:
    run, clock = load_study(str(tiny_study), []).runs[0], Clock()
    with parts_timed(clock, wait=True):
        execute(run, Places(tmp_path / "studies", "overhead", tmp_path / "data"), Handling(quiet=True))
    assert set(clock) == {"validation", "evaluation", "steps", "batches", "metrics", "checkpoints"}
    assert all(seconds > 0 for seconds in clock.values())
